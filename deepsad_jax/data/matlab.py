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
        ValueError: if the file is damaged or of another version.
    """
    data = pathlib.Path(path).read_bytes()
    order = {b"IM": "<", b"MI": ">"}.get(data[_HEADER - 2 : _HEADER])
    if order is None:
        raise ValueError("it is no MATLAB file of version 5")
    (version,) = struct.unpack(f"{order}H", data[_HEADER - 4 : _HEADER - 2])
    if version != 0x0100:
        raise ValueError(f"it is a MATLAB file of version {version:#x}, not 5")
    try:
        return dict(_variables(data[_HEADER:], order))
    except (struct.error, zlib.error, IndexError) as error:
        raise ValueError("it is damaged") from error


def _variables(data: bytes, order: str) -> Iterator[tuple[str, np.ndarray]]:
    for kind, content in _elements(data, order):
        if kind == _COMPRESSED:
            yield from _variables(zlib.decompress(content), order)
        elif kind == _MATRIX:
            parts = list(_elements(content, order))
            (flags,) = struct.unpack(f"{order}I", parts[0][1][:4])
            if flags & 0xFF in _CLASSES and not flags & _COMPLEX:
                shape, name, values = (_numbers(part, order) for part in parts[1:4])
                if shape.min() < 0:
                    raise ValueError("it has an array of negative size")
                array = values.astype(_CLASSES[flags & 0xFF])
                yield name.tobytes().decode("ascii"), array.reshape(shape, order="F")


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
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


def _numbers(element: tuple[int, bytes], order: str) -> np.ndarray:
    kind, content = element
    if kind not in _TYPES:
        raise ValueError(f"it has numbers of an unknown type {kind}")
    return np.frombuffer(content, order + _TYPES[kind])
