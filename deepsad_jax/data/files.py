"""Arrays of files: `.npz`, `.mat`, `.csv`, and folders of `.npy`. Nothing in them is
run or trusted.

Sizes that a file declares are compared with the memory before anything is unpacked.
"""

import itertools
import math
import pathlib
import warnings
import zipfile

import numpy as np

from deepsad_jax import stored
from deepsad_jax.data import delimited, matlab, memory

_CHUNK = 4096  # lines that are read at once
# What to do about a file that cannot be read.
_DAMAGED = "it may be incomplete or not what its name says: get it again"
_ADVICE = {
    ".npz": _DAMAGED,
    ".mat": f"{_DAMAGED}, or save it by save -v7",
    ".csv": "every cell must be a number, the label included, and the separator a "
    "comma, semicolon, tab or pipe",
}
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
Arrays = dict[str, np.ndarray]


def read(path: pathlib.Path, label: str = "") -> tuple[Arrays, str]:
    """The arrays of a file, and where the labels are from in words, if it says so.

    Args:
        path: of the file.
        label: the column of a `.csv` that holds the labels: its name, or its number
            from 1 where the file has no names; by default `label`, else `y`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read.
    """
    if path.is_dir():
        return _read_folder(path), ""
    if path.suffix not in READERS:
        raise ValueError(f"{path} must end in one of {', '.join(READERS)}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if label and path.suffix != ".csv":
        raise ValueError(
            f"label is {label!r}, the column of a .csv file, but {path} is none; it "
            "must be empty"
        )
    try:
        return _read_csv(path, label) if label else READERS[path.suffix](path)
    except _LabelError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except (memory.TooLargeError, MemoryError) as error:
        raise ValueError(
            f"{path} is too large ({error or 'the memory is full'}); give fewer rows "
            "or use a machine with more memory"
        ) from error
    except Exception as error:  # the readers raise many kinds for damaged files
        cause = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{path} cannot be read as {path.suffix} ({cause[:300].rstrip('.')}); "
            f"{_ADVICE[path.suffix]}"
        ) from error


def in_folder(path: pathlib.Path) -> dict[str, stored.Array]:
    """The `.npy` files of a folder by their names, unread.

    Raises:
        ValueError: if one of them is not whole.
    """
    found = {file.stem: stored.Array(file) for file in sorted(path.glob("*.npy"))}
    return {name: array for name, array in found.items() if array.ndim}


def _read_folder(path: pathlib.Path) -> Arrays:
    found = in_folder(path)
    try:
        memory.check(sum(array.row_bytes * len(array) for array in found.values()))
    except memory.TooLargeError as error:
        raise ValueError(
            f"{path} is too large ({error}); read it batch by batch, by "
            "--config.data.stream=True"
        ) from error
    return {name: array[:] for name, array in found.items()}


def _read_npz(path: pathlib.Path) -> tuple[Arrays, str]:
    if not zipfile.is_zipfile(path):
        raise ValueError("it is not an archive of arrays")
    with zipfile.ZipFile(path) as archive:
        memory.check(sum(member.file_size for member in archive.infolist()))
        for member in archive.infolist():
            if member.filename.endswith(".npy"):
                _check_header(archive, member)
    # Never unpickle: an object array could run code.
    with np.load(path, allow_pickle=False) as content:
        arrays = {name: content[name] for name in content.files}
    # Members that are not .npy files come as bytes.
    return {n: a for n, a in arrays.items() if isinstance(a, np.ndarray)}, ""


def _check_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Raises ValueError if an array declares more than its member holds."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:  # field names in UTF-8
            raise ValueError(f"{member.filename} is not an array of numbers")
        shape, _, dtype = _HEADERS[version](file)
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize > member.file_size:
        raise ValueError(f"{member.filename} is shorter than its shape {shape}")


def _read_mat(path: pathlib.Path) -> tuple[Arrays, str]:
    return matlab.read(path), ""


def _read_csv(path: pathlib.Path, label: str = "") -> tuple[Arrays, str]:
    with delimited.Reader(path) as reader:
        names = reader.names if reader.has_names else []
        width, separator = len(reader.names), reader.separator
        if sum(1 for _ in itertools.islice(reader.rest, 2)) + bool(names) < 2:
            raise ValueError("it has less than two lines")
    if width < 2:
        raise ValueError("it has a single column")
    column = _label_column(path, label, names, width)
    try:
        table = _table(path, separator, width)
    except ValueError as error:
        _blame(path, separator, names or [""] * width)
        raise error
    counts_rows = len(table) > 2 and (np.diff(table[:, 0]) == 1).all()
    if names and names[0] == "Unnamed: 0" and column and counts_rows:
        warnings.warn(
            f"{path}: the first column has no name and counts the rows; it is read as "
            "a feature, so remove it if it is an index",
            UserWarning,
            stacklevel=2,
        )
    where = f"column {names[column]!r}" if names else f"column {column + 1}"
    return {"X": np.delete(table, column, axis=1), "y": table[:, column]}, where


def _label_column(path, label: str, names: list[str], width: int) -> int:
    """Number of the column of the labels."""
    folded = [name.lower() for name in names]
    found = [label.lower()] if label else [n for n in ("label", "y") if n in folded]
    if found and folded.count(found[0]) > 1:
        raise ValueError(f"it has {folded.count(found[0])} columns {found[0]}")
    if found and found[0] in folded:
        return folded.index(found[0])
    if not names and label.isdecimal() and 1 <= int(label) <= width:
        return int(label) - 1
    has, choices = "has no names of columns", f"a number from 1 to {width}"
    if names:
        has = f"has no column {label or 'label or y'}"
        choices = f"one of {', '.join(name[:30] for name in names[:20])}"
    raise _LabelError(f"label is {label!r}, but {path} {has}; it must be {choices}")


class _LabelError(ValueError):
    """Nothing says which column holds the labels."""


READERS = {".npz": _read_npz, ".mat": _read_mat, ".csv": _read_csv}


def _table(path, separator: str, width: int) -> np.ndarray:
    """All numbers, `[n, width]` float64; int64 if float64 would lose some of them."""

    def read(convert, kind):
        chunks = []
        with delimited.Reader(path, separator=separator) as reader:
            while piece := list(itertools.islice(reader.rest, _CHUNK)):
                lines = [record.cells for record in piece]
                if set(map(len, lines)) != {width}:
                    raise ValueError("its lines are of unlike length")
                cells = map(convert, itertools.chain.from_iterable(lines))
                chunks.append(np.fromiter(cells, kind, len(lines) * width))
        return np.concatenate(chunks).reshape(-1, width)

    table = read(float, np.float64)
    wide = np.isfinite(table) & (np.abs(table) > 2**53)
    if wide.any():
        try:
            return read(int, np.int64)
        except (ValueError, OverflowError):
            column = int(np.argmax(wide.any(axis=0)))
            warnings.warn(
                f"{path}: column {column + 1} has numbers beyond 2^53, of which not "
                "all digits are kept; subtract an offset if they matter",
                UserWarning,
                stacklevel=2,
            )
    return table


def _blame(path, separator: str, names: list[str]) -> None:
    """Raises ValueError that names the first line or cell that is no good."""
    called = delimited.SEPARATORS[separator]
    with delimited.Reader(path, separator=separator) as reader:
        for line, cells, _ in reader.rest:
            if len(cells) != len(names):
                raise ValueError(
                    f"line {line} has {len(cells)} cells, not {len(names)}, separated "
                    f"by a {called}"
                )
            for column, (name, cell) in enumerate(zip(names, cells, strict=True), 1):
                if not _is_number(cell):
                    name = f" {name!r}" if name else ""
                    what = f"is {cell[:40]!r}, no number" if cell else "is empty"
                    raise ValueError(
                        f"line {line}, column {column}{name} {what}, where cells are "
                        f"separated by a {called}"
                    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
