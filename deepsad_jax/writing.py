"""Files that appear under their name only once they are complete."""

import contextlib
import io
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator

# Nobody else gives it to a file.
PARTIAL = ".deepsad-partial"
_unfinished: set[pathlib.Path] = set()


@contextlib.contextmanager
def atomic(
    path: str | os.PathLike, *, replace: bool = True
) -> Iterator[io.BufferedWriter]:
    """A binary file that appears under its name only once it is complete.

    Args:
        path: of the file.
        replace: whether it may take the place of another one.

    Raises:
        FileExistsError: if it may not, and there is one.
        OSError: if it cannot be written; the message names it.
    """
    path = pathlib.Path(path)
    partial = temporary(path)
    try:
        if not replace:
            check_new(path)
        with open(partial, "xb") as file:
            _unfinished.add(partial)
            yield file
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(partial, path)
        else:
            _rename(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:  # names the partial file
            raise OSError(f"{path} cannot be written: {error.strerror}") from error
        raise
    finally:
        _unfinished.discard(partial)


def folder(path: str | os.PathLike, files: dict[str, bytes]) -> None:
    """Writes a new folder of files, which appears under its name once it is complete.

    Raises:
        FileExistsError: if there is something of this name.
        OSError: if it cannot be written; the message names it.
    """
    path = pathlib.Path(path)
    check_new(path)
    partial = temporary(path)
    try:
        partial.mkdir()
        for name, content in files.items():
            (partial / name).write_bytes(content)
        partial.rename(path)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_new(path: str | os.PathLike) -> None:
    """Raises FileExistsError if there is something of this name."""
    if os.path.lexists(path):
        raise FileExistsError(
            f"{path} exists, and nothing is overwritten; choose another name, or move "
            "it away"
        )


def temporary(path: pathlib.Path) -> pathlib.Path:
    """A name beside a path for what is being written, known as such to `PARTIAL`."""
    own = f"{os.getpid()}-{secrets.token_hex(4)}"
    return path.with_name(f".{path.name}.{own}{PARTIAL}")


def remove_unfinished() -> None:
    """Removes what this process is writing, as it is about to end."""
    for path in list(_unfinished):
        path.unlink(missing_ok=True)


def _rename(partial: pathlib.Path, path: pathlib.Path) -> None:
    """Gives a file its name, unless another has taken it meanwhile."""
    try:
        os.link(partial, path)
    except FileExistsError:
        check_new(path)
        raise
    except OSError:  # a file system without links
        check_new(path)
        os.replace(partial, path)
    else:
        partial.unlink()
