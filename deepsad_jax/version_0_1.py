"""Models that version 0.1 saved: their arrays and a name, without any scaling."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from deepsad_jax import generative, networks, objectives, preprocessing


def model(state: dict[str, Any], meta: dict[str, Any], make: Callable) -> Any:
    """The model of what version 0.1 has written, as its `info` says.

    Args:
        state: its arrays.
        meta: its JSON.
        make: `model.make`.

    Raises:
        ValueError: if it is something else.
    """
    make = functools.partial(make, versions={"deepsad_jax": "0.1"})
    pair = _pair(meta["network"])
    shape, method = pair.input_shape, meta.get("method", "deep_sad")
    scaling = preprocessing.Unchanged()
    if len(shape) == 1:
        warnings.warn(
            "this model was saved by version 0.1, which did not keep the scaling of "
            "its table: pass rows that are scaled as they were then",
            stacklevel=4,
        )
    else:
        scaling = preprocessing.Bytes()
    if method == "deep_sad":
        return _deep_sad(state, pair, scaling, make)
    params, rest = state["params"], state.get("model_state") or {}
    if method == "supervised":
        found = {
            "params": params,
            "batch_stats": {"encoder": rest["batch_stats"]["encoder"]},
        }
        objective = objectives.Classifier(pair.encoder)
        return make(method, objective, found, scaling, shape)
    if method == "vae":
        vae = objectives.Elbo(generative.vae_for(pair.encoder, shape))
        return make(method, vae, {"params": params}, scaling, shape)
    variables = {"params": params, "batch_stats": rest.get("batch_stats") or {}}
    if method == "m2":
        objective = objectives.M2(generative.m2_for(pair.encoder, shape))
        return make(method, objective, variables, scaling, shape)
    objective = objectives.M2(generative.m1_m2_for(pair.encoder, shape))
    vae = objectives.Elbo(generative.vae_for(pair.encoder, shape))
    base = make("vae", vae, {"params": rest["m1"]}, scaling, shape)
    variables["m1"] = {"encoder": rest["m1"]["encoder"]}
    return make(method, objective, variables, scaling, shape, base)


def _pair(network):
    """The networks, by the name of those of the paper or the widths of others."""
    if isinstance(network, str):
        return networks.pair(network)
    hidden, columns = tuple(network["hidden"]), network["input_shape"][0]
    return networks.Pair(
        networks.MLPEncoder(hidden, network["rep_dim"]),
        networks.MLPDecoder(hidden[::-1], columns),
        (columns,),
    )


def _deep_sad(state, pair, scaling, make):
    """Deep SAD or soft-boundary Deep SVDD, with its autoencoder, if it had one."""
    shape, method, base = pair.input_shape, "deep_sad", None
    if state.get("autoencoder") is not None:
        reconstruction = objectives.Autoencoder(pair.encoder, pair.decoder)
        base = make("autoencoder", reconstruction, state["autoencoder"], scaling, shape)
    variables = {**state["encoder"], "center": np.asarray(state["center"])}
    objective = objectives.DeepSAD(pair.encoder)
    if state.get("radius") is not None:
        objective = objectives.SoftBoundary(pair.encoder)
        variables["radius"] = np.asarray(state["radius"])
        method = "deep_svdd"
    return make(method, objective, variables, scaling, shape, base)
