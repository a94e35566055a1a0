"""Numeric arrays of MATLAB files of version 5, which `save` writes up to -v7.

SciPy's reader may crash on a damaged file; this one raises ValueError. Format:
https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf.
"""

import os
import pathlib
import struct
import zlib
from collections.abc import Iterator

import numpy as np

from deepsad_jax.data import memory

_HEADER = 128  # bytes
_MATRIX, _COMPRESSED = 14, 15
# Types of elements, and classes of arrays; cells, structures, text and sparse arrays
# are none of these.
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8"}
_TYPES |= {12: "i8", 13: "u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4"}
_CLASSES |= {14: "i8", 15: "u8"}
_COMPLEX = 0x0800


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The real, dense, numeric arrays of a file; other variables are left out.

    Raises:
        ValueError: if the file is damaged, of another version, or declares more than
            the memory holds.
    """
    data = pathlib.Path(path).read_bytes()
    order = {b"IM": "<", b"MI": ">"}.get(data[_HEADER - 2 : _HEADER])
    if order is None:
        raise ValueError("it is no MATLAB file of version 5")
    (version,) = struct.unpack(f"{order}H", data[_HEADER - 4 : _HEADER - 2])
    if version != 0x0100:
        raise ValueError(f"it is a MATLAB file of version {version:#x}, not 5")
    try:
        return dict(_variables(memoryview(data)[_HEADER:], order, [0]))
    except (struct.error, zlib.error, IndexError) as error:
        raise ValueError("it is damaged") from error


def _variables(
    data: memoryview, order: str, taken: list[int]
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays; `taken[0]` counts the bytes that they declare."""

    def take(size):
        taken[0] += size
        memory.check(taken[0])

    for kind, content in _elements(data, order):
        if kind == _COMPRESSED:
            unpacker = zlib.decompressobj()
            start = unpacker.decompress(content, 8)
            (size,) = struct.unpack_from(f"{order}I", start, 4)
            take(size)
            rest = unpacker.decompress(unpacker.unconsumed_tail, size + 1)
            if len(rest) > size or not unpacker.eof:  # at its end, a checksum
                raise ValueError("it is damaged")
            content = start + rest
            yield from _variables(memoryview(content), order, taken)
        elif kind == _MATRIX:
            parts = list(_elements(content, order))
            (flags,) = struct.unpack(f"{order}I", parts[0][1][:4])
            if flags & 0xFF in _CLASSES and not flags & _COMPLEX:
                shape, name, values = (_numbers(part, order) for part in parts[1:4])
                if shape.min() < 0:
                    raise ValueError("it has an array of negative size")
                class_ = np.dtype(_CLASSES[flags & 0xFF])
                take(values.size * class_.itemsize)
                array = values.astype(class_)
                yield name.tobytes().decode("ascii"), array.reshape(shape, order="F")


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Types and contents: eight bytes of type and size before, or four if small."""
    start = 0
    while start < len(data):
        (word,) = struct.unpack_from(f"{order}I", data, start)
        if word >> 16:
            kind, size, start = word & 0xFFFF, word >> 16, start + 4
            padded = 4
        else:
            kind, size = struct.unpack_from(f"{order}II", data, start)
            start += 8
            padded = size if kind == _COMPRESSED else -(-size // 8) * 8
        if size > min(padded, len(data) - start):
            raise ValueError("it ends too early")
        yield kind, data[start : start + size]
        start += padded


def _numbers(element: tuple[int, memoryview], order: str) -> np.ndarray:
    kind, content = element
    if kind not in _TYPES:
        raise ValueError(f"it has numbers of an unknown type {kind}")
    return np.frombuffer(content, order + _TYPES[kind])
