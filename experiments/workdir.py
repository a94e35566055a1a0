"""The working directory of an experiment: what is in it is complete or absent."""

import contextlib
import datetime
import io
import json
import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

CONFIG, RESULTS = "config.json", "results.json"
_MAY_DIFFER = ("devices", "checkpoint")
_PARTIAL, _ORBAX = ".partial", ".orbax-checkpoint-tmp*"


def prepare(
    path: str, label: str, config: dict | None = None, *, resume: bool = True
) -> pathlib.Path:
    """Makes the folder of an experiment, or takes that of an unfinished one.

    Args:
        path: the folder, or "" for a new one under `runs/`, named by label and time.
        label: what is run.
        config: of the experiment; it is written to config.json.
        resume: whether an unfinished experiment may be gone on with.

    Raises:
        ValueError: if it holds a finished experiment, or one of another config, or is
            not a folder.
        OSError: if it cannot be written.
    """
    if not path:
        now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        path = _unused(pathlib.Path("runs", f"{now}-{label}"))
    folder = pathlib.Path(path)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--workdir {folder} is a file; name a folder")
    if (folder / RESULTS).exists():
        raise ValueError(
            f"--workdir {folder} holds a finished experiment, which is never "
            "overwritten; choose another folder, or move this one away"
        )
    if config is not None:
        check_unfinished(folder, config, resume)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"--workdir {folder} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"--workdir {folder} cannot be written")
    remove_partial(folder)
    if config is not None:
        write_json(folder / CONFIG, config)
    return folder


def remove_partial(folder: pathlib.Path) -> None:
    """Removes what a process that was killed had not yet given its name."""
    for pattern in (f".*{_PARTIAL}", f"model{_ORBAX}", f"checkpoints/*/*{_ORBAX}"):
        for left in folder.glob(pattern):
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads what `write_json` has written of a dictionary.

    Raises:
        ValueError: if it is something else; the message names the file.
    """
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it holds no dictionary")
    return content


def check_unfinished(folder: pathlib.Path, config: dict, resume: bool) -> None:
    """Raises ValueError if a folder holds a run that this one may not go on with."""
    if not (folder / CONFIG).exists():
        return
    if not resume:
        raise ValueError(
            f"--workdir {folder} holds an unfinished experiment; choose another "
            "folder, or go on with it by --resume=auto"
        )
    check_same(folder, config)


def check_same(folder: pathlib.Path, config: dict) -> None:
    """Raises ValueError that shows the difference to the config in a folder, if any.

    How a run is computed, on how many devices and with which checkpoints, may differ.
    """
    before = read_json(folder / CONFIG)
    now = json.loads(json.dumps(jsonable(config)))
    before, now = (dict(_flat(content)) for content in (before, now))
    changes = [
        f"{name} was {before.get(name)}, is {now.get(name)}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name) and name.split(".")[0] not in _MAY_DIFFER
    ]
    if changes:
        raise ValueError(
            f"{folder} holds a run of another config ({'; '.join(changes)}); choose "
            "another --workdir"
        )


def _flat(content: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _unused(path: pathlib.Path) -> pathlib.Path:
    candidates = [path, *(path.with_name(f"{path.name}-{i}") for i in range(2, 1000))]
    return next(c for c in candidates if not c.exists())


@contextlib.contextmanager
def atomic(path: str | os.PathLike) -> Iterator[io.BufferedWriter]:
    """A binary file that appears under its name only once it is complete.

    Raises:
        OSError: if it cannot be written; the message names it.
    """
    path, temporary = pathlib.Path(path), None
    try:
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=_PARTIAL
        )
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            pathlib.Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):  # which names the temporary file, or none
            reason = error.strerror or error
            raise OSError(f"{path} cannot be written: {reason}") from error
        raise


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes JSON, atomically; NaN and infinities become null."""
    text = json.dumps(jsonable(content), indent=2, allow_nan=False)
    with atomic(path) as file:
        file.write(text.encode() + b"\n")


def write_arrays(path: str | os.PathLike, **arrays: np.ndarray) -> None:
    """Writes a compressed `.npz`, atomically."""
    with atomic(path) as file:
        np.savez_compressed(file, **arrays)


def jsonable(content: Any) -> Any:
    """The same content in types that JSON knows."""
    if isinstance(content, dict):
        return {str(key): jsonable(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [jsonable(value) for value in content]
    if isinstance(content, (np.ndarray, np.generic)):
        return jsonable(content.tolist())
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
