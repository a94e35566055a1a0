"""Locks on folders, which the kernel gives up when a process ends, however it does."""

import contextlib
import datetime
import logging
import os
import pathlib
import socket
from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # another system
    fcntl = None

# A hidden name that nobody else gives to a file.
_LOCK = ".deepsad-lock"


class Taken(ValueError):
    """Another command works in the folder."""


@contextlib.contextmanager
def held(folder: pathlib.Path, shared: bool = False) -> Iterator[None]:
    """Keeps others out of a folder, until the block or the process ends.

    Args:
        folder: an existing one.
        shared: whether others may hold it that say so, too.

    Raises:
        Taken: if another command works there.
    """
    path = folder / _LOCK
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _flock(file, "LOCK_SH" if shared else "LOCK_EX", folder)
        except ValueError:
            os.close(file)
            raise
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(path)):
                break
        os.close(file)  # who had it has just removed it
    now = datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    who = f"process {os.getpid()} on {socket.gethostname()} since {now}"
    try:
        with contextlib.suppress(OSError):  # a full disk
            os.ftruncate(file, 0)
            os.pwrite(file, who.encode(), 0)
        yield
    finally:
        if not shared:  # others may have it still
            path.unlink(missing_ok=True)
        os.close(file)


def check_free(folder: pathlib.Path) -> None:
    """Raises `Taken` if another command works in a folder that is not shared."""
    with contextlib.suppress(OSError):
        file = os.open(folder / _LOCK, os.O_RDWR)
        try:
            _flock(file, "LOCK_SH", folder)
        finally:
            os.close(file)


def _flock(file: int, kind: str, folder: pathlib.Path) -> None:
    """Raises ValueError that names who has the lock."""
    try:
        if fcntl is None:
            raise OSError(0, "this system has none")
        fcntl.flock(file, getattr(fcntl, kind) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        who = os.pread(file, 200, 0).decode(errors="replace") or "another process"
        raise Taken(
            f"--workdir {folder} is in use by {who}; wait until it has ended, or "
            "choose another folder"
        ) from error
    except OSError as error:
        logging.getLogger(__name__).warning(
            "%s cannot be locked (%s); see to it that no other command works there",
            *(folder, error.strerror),
        )
