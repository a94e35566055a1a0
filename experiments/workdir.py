"""The working directory of an experiment: what is in it is complete or absent."""

import contextlib
import datetime
import io
import json
import math
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

RESULTS = "results.json"


def prepare(path: str, label: str) -> pathlib.Path:
    """Makes the folder of a new experiment.

    Args:
        path: the folder, or "" for a new one under `runs/`, named by label and time.
        label: what is run.

    Raises:
        ValueError: if it holds a finished experiment, or is not a folder.
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
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"--workdir {folder} cannot be written")
    return folder


def _unused(path: pathlib.Path) -> pathlib.Path:
    candidates = [path, *(path.with_name(f"{path.name}-{i}") for i in range(2, 1000))]
    return next(c for c in candidates if not c.exists())


@contextlib.contextmanager
def atomic(path: str | os.PathLike) -> Iterator[io.BufferedWriter]:
    """A binary file that appears under its name only once it is complete."""
    path = pathlib.Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
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
