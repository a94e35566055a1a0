"""Arrays in `.npy` files, of which only the rows that are asked for are in memory.

A file is mapped a window at a time: neither the address space nor the resident memory
of the process grows with it, as under `np.load(path, mmap_mode="r")` they do.
"""

import math
import mmap
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

# Bytes that are mapped at once, and of a block of rows; and rows of a block, as many
# as are evaluated at once, if they are not large, and no more than these.
_WINDOW, _BLOCK, _LARGE = 32 * 2**20, 8 * 2**20, 64 * 2**20
_ROWS, _MOST_ROWS = 512, 2**16
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class Array:
    """A `.npy` file as an array whose rows are read when they are asked for.

    Args:
        path: of the file.

    Attributes:
        path: of the file.
        shape, dtype: of the array, of real numbers or booleans.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a whole `.npy` file, or one of columns or objects.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no file {self.path}")
        with open(self.path, "rb") as file:
            try:
                version = np.lib.format.read_magic(file)
                self.shape, by_column, self.dtype = _HEADERS[version](file)
            except (ValueError, KeyError) as error:
                raise ValueError(
                    f"{self.path} is not a .npy file of numbers: write it by np.save"
                ) from error
            self._start = file.tell()
            size = os.fstat(file.fileno()).st_size
        if self.dtype.kind not in "biuf" or (by_column and len(self.shape) > 1):
            order = "column by column" if by_column else "row by row"
            raise ValueError(
                f"{self.path} holds {self.dtype} {order}; it must hold real numbers "
                "row by row, as np.save(path, np.ascontiguousarray(x)) writes them"
            )
        expected = self._start + math.prod(self.shape) * self.dtype.itemsize
        if size < expected:
            raise ValueError(
                f"{self.path} has {size} bytes, but its header tells of {expected}; it "
                "is incomplete: get it again"
            )

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, at least 1."""
        return max(1, math.prod(self.shape[1:]) * self.dtype.itemsize)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Rows by their numbers from 0, or from the end below it, in any order,
        `[len(rows), ...]`."""
        rows = np.asarray(rows)
        rows = np.where(rows < 0, rows + len(self), rows)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"{self.path} has {len(self)} rows, numbered from 0")
        size = max(1, _WINDOW // self.row_bytes)
        with open(self.path, "rb") as file:
            if len(self) <= size:
                return self._gathered(file, 0, len(self), rows)
            order = np.argsort(rows)
            ordered, first = np.asarray(rows)[order], 0
            result = np.empty((len(rows), *self.shape[1:]), self.dtype)
            while first < len(ordered):
                low = int(ordered[first])
                last = int(np.searchsorted(ordered, low + size))
                count = int(ordered[last - 1]) + 1 - low
                few = ordered[first:last] - low
                result[order[first:last]] = self._gathered(file, low, count, few)
                first = last
        return result

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Rows by a slice, a mask `[n]` or numbers."""
        if isinstance(rows, slice):
            first, last, step = rows.indices(len(self))
            if step == 1:
                return self._between(first, max(first, last))
            return self.take(np.arange(first, last, step))
        rows = np.asarray(rows)
        if rows.ndim == 0:
            return self.take(rows[None])[0]
        if rows.dtype != bool:
            return self.take(rows)
        if rows.shape != (len(self),):
            raise IndexError(f"a mask of {rows.shape} is not one of {len(self)} rows")
        return self.take(np.flatnonzero(rows))

    def _gathered(self, file, low, count, rows):
        """Rows, counted from `low` on, of a window of so many."""
        start = self._start + low * self.row_bytes
        page = start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        size = start - page + count * self.row_bytes
        with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ, offset=page) as m:
            view = np.ndarray((count, *self.shape[1:]), self.dtype, m, start - page)
            found = np.take(view, rows, axis=0)
            del view  # or the map could not be closed
        return found

    def _between(self, first, last):
        with open(self.path, "rb") as file:
            file.seek(self._start + first * self.row_bytes)
            count = (last - first) * math.prod(self.shape[1:])
            flat = np.fromfile(file, self.dtype, count)
        return flat.reshape(last - first, *self.shape[1:])


def take(x: Any, rows: np.ndarray) -> np.ndarray:
    """Rows of an `Array` or of NumPy's, in any order; read in that of the file."""
    if isinstance(x, Array):
        return x.take(rows)
    order = np.argsort(rows)
    result = np.empty((len(rows), *x.shape[1:]), x.dtype)
    result[order] = x[np.asarray(rows)[order]]
    return result


def blocks(x: Any) -> Iterator[slice]:
    """Slices of consecutive rows, of some megabytes each."""
    row = max(1, math.prod(x.shape[1:]) * x.dtype.itemsize)
    step = min(_MOST_ROWS, max(1, _BLOCK // row, min(_ROWS, _LARGE // row)))
    return (slice(i, i + step) for i in range(0, len(x), step))
