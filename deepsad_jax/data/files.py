"""Arrays of files: `.npz`, `.mat` and `.csv`. Nothing in them is run or trusted.

Sizes that a file declares are compared with the memory before anything is unpacked.
"""

import csv
import itertools
import math
import pathlib
import warnings
import zipfile
from collections.abc import Iterator

import numpy as np

from deepsad_jax.data import matlab, memory

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}
_CHUNK = 4096  # lines that are read at once
# What to do about a file that cannot be read.
_DAMAGED = "it may be incomplete or not what its name says: get it again"
_ADVICE = {
    ".npz": _DAMAGED,
    ".mat": f"{_DAMAGED}, or save it by save -v7",
    ".csv": "every cell must be a number, the label included, and the separator a "
    "comma, semicolon or tab",
}
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
Arrays = dict[str, np.ndarray]


def read(path: pathlib.Path) -> tuple[Arrays, str]:
    """The arrays of a file, and where the labels are from in words, if it says so.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read.
    """
    if path.suffix not in READERS:
        raise ValueError(f"{path} must end in one of {', '.join(READERS)}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        return READERS[path.suffix](path)
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


def _read_npz(path: pathlib.Path) -> tuple[Arrays, str]:
    if not zipfile.is_zipfile(path):
        raise ValueError("it is no archive of arrays")
    with zipfile.ZipFile(path) as archive:
        memory.check(sum(member.file_size for member in archive.infolist()))
        for member in archive.infolist():
            if member.filename.endswith(".npy"):
                _check_header(archive, member)
    # Never unpickle: an object array could run code.
    with np.load(path, allow_pickle=False) as content:
        arrays = {name: content[name] for name in content.files}
    # Members that are no .npy files come as bytes.
    return {n: a for n, a in arrays.items() if isinstance(a, np.ndarray)}, ""


def _check_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Raises ValueError if an array declares more than its member holds."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:  # field names in UTF-8
            raise ValueError(f"{member.filename} is no array of numbers")
        shape, _, dtype = _HEADERS[version](file)
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize > member.file_size:
        raise ValueError(f"{member.filename} is shorter than its shape {shape}")


def _read_mat(path: pathlib.Path) -> tuple[Arrays, str]:
    return matlab.read(path), ""


def _read_csv(path: pathlib.Path) -> tuple[Arrays, str]:
    _check_encoding(path)
    separator = _separator(path)
    lines = _lines(path, separator)
    first = next(lines, (0, []))[1]
    has_names = any(cell and not _is_number(cell) for cell in first)
    second = next(lines, None)
    if second is None:
        raise ValueError("it has less than two lines")
    if len(first) < 2:
        raise ValueError("it has a single column")
    names = first if has_names else []
    try:
        table = _table(path, separator, len(first), has_names)
    except ValueError as error:
        _blame(path, separator, names or [""] * len(first), has_names)
        raise error
    folded = [name.lower() for name in names]
    label = next((name for name in ("label", "y") if name in folded), None)
    if label and folded.count(label) > 1:
        raise ValueError(f"it has {folded.count(label)} columns {label}")
    column = folded.index(label) if label else len(first) - 1
    counts_rows = len(table) > 2 and (np.diff(table[:, 0]) == 1).all()
    if names and not names[0] and column and counts_rows:
        warnings.warn(
            f"{path}: the first column has no name and counts the rows; it is read as "
            "a feature, so remove it if it is an index",
            UserWarning,
            stacklevel=2,
        )
    where = f"column {names[column]!r}" if names else f"column {column + 1}"
    where += "" if label else " (the last)"
    return {"X": np.delete(table, column, axis=1), "y": table[:, column]}, where


READERS = {".npz": _read_npz, ".mat": _read_mat, ".csv": _read_csv}


def _check_encoding(path: pathlib.Path) -> None:
    with path.open("rb") as file:
        start = file.read(4)
        if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise ValueError("it is encoded in UTF-16; save it in UTF-8")
        file.seek(0)
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"line {number} has a byte {line[error.start]:#x}, which is not "
                    "UTF-8 (perhaps Latin-1 or Windows-1252); save it in UTF-8"
                ) from error


def _rows(path: pathlib.Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Numbers and cells of the lines that are not empty."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(
            file, delimiter=separator, skipinitialspace=True, strict=True
        )
        for cells in reader:
            if len(cells) > 1 or (cells and cells[0].strip()):
                yield reader.line_num, cells


def _lines(path: pathlib.Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    return (
        (n, [cell.strip() for cell in cells]) for n, cells in _rows(path, separator)
    )


def _separator(path: pathlib.Path) -> str:
    """The one that makes columns of the first lines, of numbers if possible."""
    best, choice = (False, False, False), ","
    for separator in SEPARATORS:
        try:
            lines = [c for _, c in itertools.islice(_lines(path, separator), 20)]
        except csv.Error:
            continue
        several = bool(lines) and min(len(cells) for cells in lines) > 1
        even = len({len(cells) for cells in lines}) == 1
        numeric = all(_is_number(cell) for cells in lines[1:] for cell in cells)
        if (several, numeric, even) > best:
            best, choice = (several, numeric, even), separator
    return choice


def _table(path, separator: str, width: int, has_names: bool) -> np.ndarray:
    """All numbers, `[n, width]` float64; int64 if float64 would lose some of them."""

    def read(convert, kind):
        lines = itertools.islice(_rows(path, separator), int(has_names), None)
        chunks = []
        while chunk := [cells for _, cells in itertools.islice(lines, _CHUNK)]:
            if set(map(len, chunk)) != {width}:
                raise ValueError("its lines are of unlike length")
            cells = map(convert, itertools.chain.from_iterable(chunk))
            chunks.append(np.fromiter(cells, kind, len(chunk) * width))
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


def _blame(path, separator: str, names: list[str], has_names: bool) -> None:
    """Raises ValueError that names the first line or cell that is no good."""
    for place, (number, cells) in enumerate(_lines(path, separator)):
        if len(cells) != len(names):
            raise ValueError(
                f"line {number} has {len(cells)} cells, not {len(names)}, separated by "
                f"a {SEPARATORS[separator]}"
            )
        for column, (name, cell) in enumerate(zip(names, cells, strict=True), 1):
            if not (has_names and place == 0) and not _is_number(cell):
                name = f" {name!r}" if name else ""
                what = f"is {cell[:40]!r}, no number" if cell else "is empty"
                raise ValueError(
                    f"line {number}, column {column}{name} {what}, where cells are "
                    f"separated by a {SEPARATORS[separator]}"
                )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
