"""Trained models on disk, through Orbax.

A model is a folder with `state` (arrays) and `meta` (JSON). Orbax writes it under a
temporary name and renames it, so a folder of the right name is complete.
"""

import os
import pathlib

import jax
import numpy as np

from deepsad_jax import deep_sad, networks


def save_model(path: str | os.PathLike, fitted: deep_sad.Fitted) -> None:
    """Writes a model, without its history, to a new folder.

    Raises:
        FileExistsError: if the folder exists.
    """
    import orbax.checkpoint as ocp

    path = pathlib.Path(path).absolute()
    if path.exists():
        raise FileExistsError(f"{path} exists; a model is never overwritten")
    state = {"encoder": fitted.encoder, "center": fitted.center}
    if fitted.autoencoder is not None:
        state["autoencoder"] = fitted.autoencoder
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(
            path,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(jax.device_get(state)),
                meta=ocp.args.JsonSave({"network": _network_meta(fitted.network)}),
            ),
        )


def load_model(path: str | os.PathLike) -> deep_sad.Fitted:
    """Reads what `save_model` has written.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it does not hold a model.
    """
    import orbax.checkpoint as ocp

    path = pathlib.Path(path).absolute()
    if not path.is_dir():
        raise FileNotFoundError(f"there is no model folder {path}")
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            content = checkpointer.restore(
                path,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore()
                ),
            )
        state = jax.tree.map(np.asarray, content["state"])
        network = _network(content["meta"]["network"])
        return deep_sad.Fitted(
            state["encoder"], state["center"], state.get("autoencoder"), {}, {}, network
        )
    except Exception as error:  # Orbax raises many kinds for damaged files
        raise ValueError(f"{path} does not hold a complete model: {error}") from error


def _network_meta(network) -> str | dict:
    if isinstance(network, str):
        return network
    if isinstance(network, networks.MLPArchitecture):
        return {
            "input_shape": list(network.input_shape),
            "hidden": list(network.hidden),
            "rep_dim": network.rep_dim,
        }
    raise ValueError(
        "a LeNet that is not in networks.ARCHITECTURES cannot be saved by name; "
        "register it there"
    )


def _network(meta: str | dict) -> str | networks.Architecture:
    if isinstance(meta, str):
        return meta
    return networks.MLPArchitecture(
        tuple(meta["input_shape"]), tuple(meta["hidden"]), meta["rep_dim"]
    )
