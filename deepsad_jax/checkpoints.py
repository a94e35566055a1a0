"""Trained models, and the states of training that goes on, on disk through Orbax.

Either is a folder with `state` (arrays) and `meta` (JSON). Orbax writes it under a
temporary name and renames it, so a folder of the right name is complete.
"""

import logging
import os
import pathlib
import re
import shutil
import time
import zlib
from typing import Any

import jax
import numpy as np

from deepsad_jax import deep_sad, networks, stages, training

Model = deep_sad.Fitted | stages.Fitted


def save_model(path: str | os.PathLike, fitted: Model) -> None:
    """Writes a model, without its history, to a new folder.

    Raises:
        FileExistsError: if the folder exists.
        OSError: if it cannot be written.
    """
    import orbax.checkpoint as ocp

    path = pathlib.Path(path).absolute()
    if path.exists():
        raise FileExistsError(f"{path} exists; a model is never overwritten")
    if isinstance(fitted, deep_sad.Fitted):
        method, names = "deep_sad", ("encoder", "center", "autoencoder", "radius")
    else:
        method, names = fitted.method, ("params", "model_state")
    state = {name: getattr(fitted, name) for name in names}
    state = {name: value for name, value in state.items() if value is not None}
    meta = {"method": method, "network": _network_meta(fitted.network)}
    args = ocp.args.Composite(
        state=ocp.args.StandardSave(jax.device_get(state)),
        meta=ocp.args.JsonSave(meta),
    )
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            checkpointer.save(path, args=args)
    except Exception as error:  # Orbax raises many kinds for a full disk, too
        for left in path.parent.glob(f"{path.name}.orbax-checkpoint-tmp*"):
            shutil.rmtree(left, ignore_errors=True)
        raise OSError(
            f"the model {path} cannot be written: {_reason(error)}"
        ) from error


def load_model(path: str | os.PathLike) -> Model:
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
        method = content["meta"].get("method", "deep_sad")
        records = {"history": {}, "seconds": {}, "network": network}
        if method != "deep_sad":
            return stages.Fitted(**state, **records, method=method)
        state.setdefault("autoencoder", None)
        return deep_sad.Fitted(**state, **records)
    except Exception as error:  # Orbax raises many kinds for damaged files
        raise ValueError(f"{path} does not hold a complete model: {error}") from error


class Interrupted(Exception):
    """Training was asked to stop and has saved its state; the message says where."""


class Keeper:
    """Saves the state of the stages of a run while it trains, and finds it again.

    A fit that is given a keeper starts each stage from the newest checkpoint that is
    whole, and ends exactly where it would have ended without the interruption. Saving
    happens in the background; a checkpoint comes after each piece of training (about a
    quarter of a second, at least an epoch) that ends no sooner than said below, when a
    stage ends, and when `stop` was called.

    Args:
        path: folder of the checkpoints, `STAGE/EPOCH` in it; made when it is needed.
        epochs: least number of epochs between two checkpoints, >= 1.
        seconds: least time between two, >= 0.
        keep: how many of each stage are kept, >= 1.

    Attributes:
        is_training: whether a stage has begun and not yet ended.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        epochs: int = 10,
        seconds: float = 10.0,
        keep: int = 2,
    ):
        self._path = pathlib.Path(path).absolute()
        self._epochs, self._seconds, self._keep = epochs, seconds, keep
        self._last_epoch, self._last_time = 0, time.monotonic()
        self._manager, self._stage, self._stops = None, None, False
        self.is_training = False

    def restore(
        self, stage: str, like: training.TrainState, key: jax.Array
    ) -> tuple[int, float, training.TrainState] | None:
        """The newest whole checkpoint of a stage; damaged ones are put aside.

        Args:
            stage: name of the stage.
            like: a state of the shapes that are expected.
            key: random key of the stage.

        Returns:
            Epochs done, seconds they took and the state; None if there is none.
        """
        self._last_epoch, self._last_time = 0, time.monotonic()
        self.is_training, found = False, None
        for epoch in sorted(self._saved(stage), reverse=True):
            folder = self._path / stage / str(epoch)
            try:
                state, meta = _read(folder, like)
                if meta["key"] != _numbers(key):
                    raise ValueError("it belongs to another random key")
                found = epoch, float(meta["seconds"]), state
            except Exception as error:  # Orbax raises many kinds for damaged files
                aside = self._path / f"unused-{stage}-{epoch}-{time.time_ns()}"
                folder.rename(aside)
                logging.getLogger(__name__).warning(
                    "the checkpoint %s cannot be used (%s); moved to %s, the one "
                    "before it is taken, if there is one",
                    *(folder, _reason(error), aside),
                )
                continue
            self._last_epoch = epoch
            break
        # A stage that is finished, or has no epochs, will not be offered.
        self.is_training = self._last_epoch < len(like.history["loss"])
        return found

    def offer(
        self,
        stage: str,
        epoch: int,
        seconds: float,
        state: training.TrainState,
        key: jax.Array,
        *,
        last: bool,
    ) -> None:
        """Saves a state if its time has come.

        Args:
            stage, key: as for `restore`.
            epoch: epochs done.
            seconds: time they took.
            state: the state.
            last: whether these are all epochs of the stage.

        Raises:
            Interrupted: if `stop` was called, once the state is safe.
            OSError: if it cannot be written.
        """
        now = time.monotonic()
        is_due = (
            epoch - self._last_epoch >= self._epochs
            and now - self._last_time >= self._seconds
        )
        if not (is_due or last or self._stops):
            return
        import orbax.checkpoint as ocp

        state = jax.device_get(state)
        meta = {"key": _numbers(key), "seconds": seconds, "crc32": _checksum(state)}
        try:
            self._open(stage).save(
                epoch,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
                ),
            )
        except Exception as error:  # of this one, or of one before in the background
            raise OSError(
                f"the checkpoint {self._path / stage / str(epoch)} cannot be written: "
                f"{_reason(error)}"
            ) from error
        self._last_epoch, self._last_time = epoch, now
        self.is_training = not last
        if self._stops:
            self.close()
            raise Interrupted(f"stopped after epoch {epoch} of {stage}, which is saved")

    def stop(self) -> None:
        """Has the next `offer` save and raise `Interrupted`; may be called anywhere."""
        self._stops = True

    def newest(self) -> pathlib.Path | None:
        """The checkpoint that was written last, if there is one."""
        folders = [
            self._path / stage.name / str(epoch)
            for stage in self._path.glob("*")
            for epoch in self._saved(stage.name)
        ]
        return max(folders, key=lambda folder: folder.stat().st_mtime, default=None)

    def close(self) -> None:
        """Waits for what is being written.

        Raises:
            OSError: if it cannot be.
        """
        manager, self._manager = self._manager, None
        if manager is not None:
            try:
                manager.close()
            except Exception as error:
                raise OSError(
                    f"a checkpoint in {self._path} cannot be written: {_reason(error)}"
                ) from error

    def discard(self) -> None:
        """Removes all checkpoints, of a run whose results are safe."""
        self.close()
        shutil.rmtree(self._path, ignore_errors=True)

    def _saved(self, stage: str) -> list[int]:
        folders = (self._path / stage).glob("*")
        return [int(folder.name) for folder in folders if folder.name.isdigit()]

    def _open(self, stage: str):
        import orbax.checkpoint as ocp

        if self._manager is None or self._stage != stage:
            self.close()
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self._keep, cleanup_tmp_directories=True
            )
            self._manager = ocp.CheckpointManager(self._path / stage, options=options)
            self._stage = stage
        return self._manager


def _read(folder: pathlib.Path, like: Any) -> tuple[Any, dict[str, Any]]:
    import orbax.checkpoint as ocp

    target = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        content = checkpointer.restore(
            folder,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore()
            ),
        )
    state = jax.tree.map(np.asarray, content["state"])
    # Orbax does not insist on the shapes that it is given.
    if [leaf.shape for leaf in jax.tree.leaves(state)] != [
        leaf.shape for leaf in jax.tree.leaves(target)
    ]:
        raise ValueError("it belongs to another fit: its arrays have other shapes")
    if _checksum(state) != content["meta"]["crc32"]:
        raise ValueError("its checksum is wrong")
    return state, content["meta"]


def _checksum(state: Any) -> int:
    checksum = 0
    for leaf in jax.tree.leaves(state):
        checksum = zlib.crc32(np.ascontiguousarray(leaf), checksum)
    return checksum


def _numbers(key: jax.Array) -> list[int]:
    return np.asarray(jax.random.key_data(key)).ravel().tolist()


def _reason(error: Exception) -> str:
    """Why, in a few words: those of TensorStore hold whole configurations."""
    text = " ".join(str(error).split())
    if code := re.search(r"os_error_code='(\d+)'", text):
        return os.strerror(int(code[1]))
    return text[:200]


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
