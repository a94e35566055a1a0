"""The working directory of an experiment: what is in it is complete or absent.

A command takes a folder that is new, empty or its own (by its config.json), keeps other
commands out of it, and removes only what its like have left half written.
"""

import contextlib
import dataclasses
import datetime
import itertools
import json
import logging
import math
import os
import pathlib
import shutil
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from deepsad_jax import writing
from experiments import locks

CONFIG, DATA, RESULTS = "config.json", "data.json", "results.json"
PLAN = "plan.json"
MAY_DIFFER = ("devices", "checkpoint")


@contextlib.contextmanager
def locked(
    path: str,
    label: str,
    config: dict | None = None,
    *,
    resume: bool = True,
    may_differ: Sequence[str] = MAY_DIFFER,
    shared: bool = False,
) -> Iterator[pathlib.Path]:
    """`prepare`, and no other command may take the folder meanwhile.

    The kernel gives the lock up when the process ends, however it does.

    Args:
        path, label, config, resume, may_differ: as for `prepare`.
        shared: whether others may take it that say so, too.

    Raises:
        ValueError: also if another command works there; the message says which.
    """
    folder = _opened(path, label, config, resume, may_differ)
    for above in folder.absolute().parents[:2]:  # where a sweep may be at work
        locks.check_free(above)
    with locks.held(folder, shared):
        check(folder, config, resume, may_differ)  # it may have been finished since
        if not shared:  # else others may be writing in it
            remove_partial(folder)
        yield _begun(folder, config)


@contextlib.contextmanager
def claimed(folder: pathlib.Path, config: dict) -> Iterator[bool]:
    """Whether the folder of a run, within one that is locked, is this process's.

    It is not if another process that shares the grid is at work there.

    Raises:
        ValueError: if it holds a run of another config, or other files.
    """
    if (folder / RESULTS).exists():
        check_same(folder, config)
        yield False
        return
    _opened(str(folder), "", config, True, MAY_DIFFER)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locks.held(folder))
        except locks.Taken:
            yield False
            return
        if is_ours := not (folder / RESULTS).exists():
            remove_partial(folder)
            _begun(folder, config)
        yield is_ours


def prepare(
    path: str,
    label: str,
    config: dict | None = None,
    *,
    resume: bool = True,
    may_differ: Sequence[str] = MAY_DIFFER,
) -> pathlib.Path:
    """Makes the folder of an experiment, or takes that of an unfinished one.

    Args:
        path: the folder, or "" for a new one under `runs/`, named by label and time.
        label: what is run.
        config: of the experiment; it is written to config.json. Without one, the folder
            must be empty.
        resume: whether an unfinished experiment may be gone on with.
        may_differ: fields in which the config of an unfinished one may differ.

    Raises:
        ValueError: if it holds a finished experiment, one of another config or files of
            another origin, is not a folder, or another command works there.
        OSError: if it cannot be written.
    """
    folder = _opened(path, label, config, resume, may_differ)
    locks.check_free(folder)
    remove_partial(folder)
    return _begun(folder, config)


def _opened(path, label, config, resume, may_differ) -> pathlib.Path:
    folder = pathlib.Path(path) if path else _new(label)
    check(folder, config, resume, may_differ)
    return _make(folder)


def _begun(folder, config) -> pathlib.Path:
    if config is not None:
        write_json(folder / CONFIG, config)
    return folder


def check(
    folder: pathlib.Path,
    config: dict | None,
    resume: bool = True,
    may_differ: Sequence[str] = MAY_DIFFER,
) -> None:
    """Raises ValueError if a folder may not be taken; touches nothing."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--workdir {folder} is a file; name a folder")
    if not folder.exists():
        return
    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    if names and (config is None or CONFIG not in names):
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ValueError(
            f"--workdir {folder} holds files that are not of this experiment "
            f"({', '.join(names[:3])}{more}); choose an empty folder, or a new one"
        )
    if RESULTS in names:
        raise ValueError(
            f"--workdir {folder} holds a finished experiment, which is never "
            "overwritten; choose another folder, or move this one away"
        )
    if names:
        check_unfinished(folder, config, resume, may_differ)


def check_unfinished(
    folder: pathlib.Path,
    config: dict,
    resume: bool,
    may_differ: Sequence[str] = MAY_DIFFER,
) -> None:
    """Raises ValueError if a folder holds a run that this one may not go on with."""
    if not (folder / CONFIG).exists():
        return
    if not resume:
        raise ValueError(
            f"--workdir {folder} holds an unfinished experiment; choose another "
            "folder, or go on with it by --resume=auto"
        )
    check_same(folder, config, may_differ)


def check_same(
    folder: pathlib.Path, config: dict, may_differ: Sequence[str] = MAY_DIFFER
) -> None:
    """Raises ValueError that shows the difference to the config in a folder, if any.

    How a run is computed, on how many devices and with which checkpoints, may differ.
    """
    before = read_json(folder / CONFIG)
    now = json.loads(json.dumps(jsonable(config)))
    before, now = (dict(flat(content)) for content in (before, now))
    changes = []
    for name in sorted({*before, *now}):
        if name.split(".")[0] in may_differ:
            continue
        if name not in before or name not in now:
            changes.append(f"{name} is {'gone' if name in before else 'new'}")
        elif before[name] != now[name]:
            changes.append(f"{name} was {before[name]!r}, is {now[name]!r}")
    if changes:
        more = f"; and {len(changes) - 5} more" if len(changes) > 5 else ""
        raise ValueError(
            f"{folder} holds a run of another config ({'; '.join(changes[:5])}{more}); "
            "choose another --workdir"
        )


def check_data(folder: pathlib.Path, name: str, digest: str) -> None:
    """Raises ValueError if the run in a folder, if any, has begun on other data."""
    if (folder / DATA).exists():
        before = str(read_json(folder / DATA).get("sha256"))
        if before != digest:
            raise ValueError(
                f"{folder} holds a run on other data: {name} has changed since (the "
                f"SHA-256 of its arrays was {before[:12]}, is {digest[:12]}); restore "
                "it, or choose another --workdir"
            )


def note_data(folder: pathlib.Path, name: str, digest: str) -> None:
    """Writes which data a run is on, after `check_data`."""
    check_data(folder, name, digest)
    write_json(folder / DATA, {"name": name, "sha256": digest})


def as_begun(folders: Sequence[pathlib.Path], plan: Any) -> Any:
    """The plan of runs side by side with the convolutions that some began with.

    What is the fastest may have changed since. It is noted in all of their folders.
    """
    for folder in folders:
        if (folder / PLAN).exists():
            plan = dataclasses.replace(plan, **read_json(folder / PLAN))
            break
    for folder in folders:
        write_json(folder / PLAN, {"convolutions": plan.convolutions})
    return plan


def flat(content: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names, such as "train.epochs", and values of a nested dictionary."""
    for name, value in content.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _new(label: str) -> pathlib.Path:
    """A folder that no other command has made."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    for suffix in itertools.chain([""], (f"-{i}" for i in itertools.count(2))):
        folder = pathlib.Path("runs", f"{now}-{label}{suffix}")
        with contextlib.suppress(FileExistsError):
            return _make(folder, exist_ok=False)


def _make(folder: pathlib.Path, exist_ok: bool = True) -> pathlib.Path:
    try:
        folder.mkdir(parents=True, exist_ok=exist_ok)
    except FileExistsError:
        raise
    except OSError as error:
        raise OSError(f"--workdir {folder} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"--workdir {folder} cannot be written")
    return folder


def remove_partial(folder: pathlib.Path) -> None:
    """Removes what a process that was killed had not yet given its name."""
    orbax = ".orbax-checkpoint-tmp*"
    for pattern in (
        f".*{writing.PARTIAL}*",
        f"model{orbax}",
        f"checkpoints/*/*{orbax}",
    ):
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


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes JSON, atomically; NaN and infinities become null."""
    text = json.dumps(jsonable(content), indent=2, allow_nan=False)
    with writing.atomic(path) as file:
        file.write(text.encode() + b"\n")


def write_arrays(path: str | os.PathLike, **arrays: np.ndarray) -> None:
    """Writes a compressed `.npz`, atomically."""
    with writing.atomic(path) as file:
        np.savez_compressed(file, **arrays)


def save_model(path: str | os.PathLike, model: Any) -> None:
    """Saves a model, atomically, where something may stand already.

    The same model has been saved by a process that was then killed; anything else is
    put aside, with a warning.

    Raises:
        OSError: if it cannot be written.
    """
    from deepsad_jax import model as models

    path = pathlib.Path(path)
    if not os.path.lexists(path):
        models.save(model, path)
        return
    fresh = writing.temporary(path)
    try:
        models.save(model, fresh)
        if not _is_same(path, fresh):
            aside = path.with_name(f"unused-{path.name}-{time.time_ns()}")
            path.rename(aside)
            logging.getLogger(__name__).warning(
                "%s held something else, which is now %s", path, aside
            )
            fresh.rename(path)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _is_same(path: pathlib.Path, other: pathlib.Path) -> bool:
    """Whether two folders hold the same model, bit for bit."""
    from deepsad_jax import checkpoints

    try:
        (leaves, meta), (others, its) = map(checkpoints.read, (path, other))
    except (OSError, ValueError):
        return False
    return (
        isinstance(leaves, list)
        and meta == its
        and [_bits(leaf) for leaf in leaves] == [_bits(leaf) for leaf in others]
    )


def _bits(leaf: np.ndarray) -> tuple:
    return leaf.dtype, leaf.shape, leaf.tobytes()


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
