"""Arrays on disk through Orbax: models, and the states of training that goes on.

Either is a folder with `state` (arrays) and `meta` (JSON with their checksum). Orbax
writes it under a temporary name and renames it, so a folder of the right name is
complete; it does not notice a flipped byte, the checksum does.
"""

import io
import json
import logging
import os
import pathlib
import re
import shutil
import time
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from deepsad_jax import deprecated, parallel, values


def write(path: str | os.PathLike, leaves: Sequence[Any], meta: dict) -> None:
    """Writes arrays and JSON to a new folder.

    Raises:
        FileExistsError: if the folder exists.
        OSError: if it cannot be written.
    """
    import orbax.checkpoint as ocp

    path = pathlib.Path(path).absolute()
    if path.exists():
        raise FileExistsError(f"{path} exists; a model is never overwritten")
    try:
        handler, options = _of_this_process(ocp)
        with ocp.Checkpointer(handler, multiprocessing_options=options) as checkpointer:
            checkpointer.save(path, args=_content(leaves, meta))
    except Exception as error:  # Orbax raises many kinds for a full disk, too
        for left in path.parent.glob(f"{path.name}.orbax-checkpoint-tmp*"):
            shutil.rmtree(left, ignore_errors=True)
        raise OSError(f"{path} cannot be written: {reason(error)}") from error


def _alone(ocp):
    """How Orbax saves and reads without waiting for other processes, which do not."""
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"only{own}"
    )


def _of_this_process(ocp):
    options = _alone(ocp)
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=options),
        state=ocp.StandardCheckpointHandler(multiprocessing_options=options),
        meta=ocp.JsonCheckpointHandler(multiprocessing_options=options),
    )
    return handler, options


def read(path: str | os.PathLike) -> tuple[Any, dict[str, Any]]:
    """Reads what `write` has written: arrays and JSON.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it is not complete, or its checksum is wrong.
    """
    path = pathlib.Path(path).absolute()
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}")
    try:
        return _read(path)
    except Exception as error:  # Orbax raises many kinds for damaged files
        raise ValueError(f"{path} is not complete: {reason(error)}") from error


def _content(leaves, meta):
    import orbax.checkpoint as ocp

    leaves = jax.device_get([values.numbers(leaf) for leaf in leaves])
    leaves = [np.asarray(leaf) for leaf in leaves]
    # Orbax saves no array without numbers.
    state = {str(i): leaf for i, leaf in enumerate(leaves) if leaf.size}
    empty = {str(i): leaf for i, leaf in enumerate(leaves) if not leaf.size}
    empty = {i: [list(leaf.shape), str(leaf.dtype)] for i, leaf in empty.items()}
    meta = {**meta, "leaves": len(leaves), "empty": empty}
    meta["crc32"] = _checksum(leaves, meta)
    return ocp.args.Composite(
        state=ocp.args.StandardSave(state or {"none": np.zeros(1)}),
        meta=ocp.args.JsonSave(meta),
    )


def _read(folder):
    import orbax.checkpoint as ocp

    handler, options = _of_this_process(ocp)
    with ocp.Checkpointer(handler, multiprocessing_options=options) as checkpointer:
        content = checkpointer.restore(
            folder,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore()
            ),
        )
    state, meta = content["state"], content["meta"]
    if "leaves" not in meta:  # of version 0.1, which had no checksum of models
        return jax.tree.map(np.asarray, state), meta
    for i, (shape, dtype) in meta["empty"].items():
        state[i] = np.zeros(shape, jax.numpy.dtype(dtype))
    leaves = [np.asarray(state[str(i)]) for i in range(meta["leaves"])]
    if meta.pop("crc32", None) != _checksum(leaves, meta):
        raise ValueError("its checksum is wrong")
    return leaves, meta


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
        self, stage: str, like: Any, key: jax.Array, epochs: int, fit: str = ""
    ) -> tuple[int, float, Any, dict[str, np.ndarray]] | None:
        """The newest whole checkpoint of a stage; others are put aside.

        Args:
            stage: name of the stage.
            like: a state of the shapes that are expected.
            key: random key of the stage.
            epochs: how many the stage has.
            fit: a text that is another one for other data and settings.

        Returns:
            Epochs done, seconds they took, the state and the history; None if there is
            no checkpoint.
        """
        self._last_epoch, self._last_time = 0, time.monotonic()
        self.is_training, found = False, None
        for epoch in sorted(self._saved(stage), reverse=True):
            folder = self._path / stage / str(epoch)
            try:
                leaves, meta = _read(folder)
                if meta.get("key") != _numbers(key):
                    raise ValueError("it belongs to another random key")
                if meta.get("fit", fit) != fit:  # those of before have none
                    raise ValueError("it belongs to other data or settings")
                state, history = _state_of(leaves, meta, like, epochs)
                found = epoch, float(meta["seconds"]), state, history
            except Exception as error:  # Orbax raises many kinds for damaged files
                aside = self._path / f"unused-{stage}-{epoch}-{time.time_ns()}"
                folder.rename(aside)
                logging.getLogger(__name__).warning(
                    "the checkpoint %s cannot be used (%s); moved to %s, the one "
                    "before it is taken, if there is one",
                    *(folder, reason(error), aside),
                )
                continue
            self._last_epoch = epoch
            break
        # A stage that is finished, or has no epochs, will not be offered.
        self.is_training = self._last_epoch < epochs
        return found

    def offer(
        self,
        stage: str,
        epoch: int,
        seconds: float,
        state: Any,
        history: dict[str, np.ndarray],
        key: jax.Array,
        fit: str = "",
        *,
        last: bool,
    ) -> None:
        """Saves a state if its time has come.

        Args:
            stage, key, fit: as for `restore`.
            epoch: epochs done.
            seconds: time they took.
            state: any pytree of arrays.
            history: metrics of each epoch.
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
        names = sorted(history)
        leaves = [*jax.tree.leaves(state), *(history[name] for name in names)]
        meta = {"key": _numbers(key), "seconds": seconds, "history": names, "fit": fit}
        try:
            self._open(stage).save(epoch, args=_content(leaves, meta))
        except Exception as error:  # of this one, or of one before in the background
            _say_it_once()
            raise OSError(
                f"the checkpoint {self._path / stage / str(epoch)} cannot be written: "
                f"{reason(error)}"
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
        stages = self._path.glob("*")
        folders = [s / str(epoch) for s in stages for epoch in self._saved(s.name)]
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
                _say_it_once()
                raise OSError(
                    f"a checkpoint in {self._path} cannot be written: {reason(error)}"
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
                max_to_keep=self._keep,
                cleanup_tmp_directories=True,
                create=False,
                multiprocessing_options=_alone(ocp),
            )
            (self._path / stage).mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self._path / stage, options=options)
            self._stage = stage
        return self._manager


class Shared:
    """The keeper of a run that several processes train.

    The first of them saves, since all have the same state, and restores for all: only
    it needs the folder.

    Args:
        keeper: of the first process; None in the others.
    """

    def __init__(self, keeper: Keeper | None):
        self._keeper = keeper

    def restore(
        self, stage: str, like: Any, key: jax.Array, epochs: int, fit: str = ""
    ) -> tuple[int, float, Any, dict[str, np.ndarray]] | None:
        """As of `Keeper`, for all of them; all must call it."""
        found, leaves, tree = None, *jax.tree.flatten(like)
        if self._keeper is not None:
            found = self._keeper.restore(stage, like, key, epochs, fit)
        file = io.BytesIO()
        if found is not None:
            epoch, seconds, state, history = found
            raw = map(values.numbers, jax.tree.leaves(state))
            raw = [np.frombuffer(np.asarray(a).tobytes(), np.uint8) for a in raw]
            np.savez(file, *raw, epoch=epoch, seconds=seconds, **_prefixed(history))
        content = parallel.from_first(file.getvalue())
        if not content:
            return None
        with np.load(io.BytesIO(content)) as arrays:
            shapes = [values.numbers(leaf) for leaf in leaves]
            found = [
                arrays[f"arr_{i}"].view(of.dtype).reshape(of.shape)
                for i, of in enumerate(shapes)
            ]
            state = map(values.like, found, leaves)
            own = [name for name in arrays.files if name.startswith(_HISTORY)]
            history = {name.removeprefix(_HISTORY): arrays[name] for name in own}
            epoch, seconds = int(arrays["epoch"]), float(arrays["seconds"])
        return epoch, seconds, jax.tree.unflatten(tree, state), history

    def offer(self, *arguments: Any, last: bool) -> None:
        """As of `Keeper`; in the first process alone."""
        if self._keeper is not None:
            self._keeper.offer(*arguments, last=last)


_HISTORY = "history-"


def _prefixed(history):
    return {f"{_HISTORY}{name}": series for name, series in history.items()}


def _say_it_once() -> None:
    """Orbax's tasks would tell of a failure again, at length, when the process ends."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)


def _state_of(leaves, meta, like, epochs):
    """State and history from the arrays of a checkpoint."""
    if not isinstance(leaves, list):
        raise ValueError("it is of another version")
    names, expected = meta["history"], jax.tree.leaves(like)
    state, series = leaves[: len(expected)], leaves[len(expected) :]
    shapes = [values.numbers(leaf).shape for leaf in expected]
    if [leaf.shape for leaf in state] != shapes or len(series) != len(names):
        raise ValueError("it belongs to another fit: its arrays have other shapes")
    state = map(values.like, state, expected)
    history = dict(zip(names, map(np.array, series), strict=True))
    if any(of_epochs.shape[-1] != epochs for of_epochs in history.values()):
        raise ValueError("it belongs to a stage with another number of epochs")
    return jax.tree.unflatten(jax.tree.structure(like), state), history


def _checksum(leaves: Sequence[np.ndarray], meta: dict) -> int:
    checksum = zlib.crc32(json.dumps(meta, sort_keys=True).encode())
    for leaf in leaves:
        checksum = zlib.crc32(f"{leaf.shape}{leaf.dtype}".encode(), checksum)
        raw = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)  # of any type
        checksum = zlib.crc32(raw, checksum)
    return checksum


def _numbers(key: jax.Array) -> list[int]:
    return np.asarray(jax.random.key_data(key)).ravel().tolist()


def reason(error: Exception) -> str:
    """Why, in a few words: those of TensorStore hold whole configurations."""
    text = " ".join(str(error).split())
    if code := re.search(r"os_error_code='(\d+)'", text):
        return os.strerror(int(code[1]))
    return text[:200] or type(error).__name__


__getattr__ = deprecated.getter("checkpoints", deprecated.CHECKPOINTS)
