import struct
import zlib

import numpy as np
import pytest
import scipy.io

from deepsad_jax.data import matlab

TYPES = "f8 f4 i1 u1 i2 u2 i4 u4 i8 u8"


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", TYPES.split())
def test_arrays_are_those_that_scipy_writes(tmp_path, kind, compressed):
    path = tmp_path / "mine.mat"
    x = np.arange(24).reshape(2, 3, 4).astype(kind)
    content = {"X": x, "a_longer_name": x[0, 0], "text": "no", "complex": x + 1j}
    scipy.io.savemat(path, content, do_compression=compressed)
    arrays = matlab.read(path)
    assert arrays.keys() == {"X", "a_longer_name"}
    assert arrays["X"].dtype == x.dtype
    np.testing.assert_array_equal(arrays["X"], x)
    np.testing.assert_array_equal(arrays["a_longer_name"], x[:1, 0])


def test_doubles_may_be_stored_as_bytes_in_either_order(tmp_path):
    # As MATLAB does for whole numbers; element by element, after the format's manual.
    for order, mark in (("<", b"IM"), (">", b"MI")):
        parts = (
            struct.pack(f"{order}IIII", 6, 8, 6, 0),  # class double
            struct.pack(f"{order}IIii", 5, 8, 1, 3),  # 1 x 3
            struct.pack(f"{order}I4s", 1 << 16 | 1, b"X"),  # the name, small form
            struct.pack(f"{order}I4s", 3 << 16 | 2, bytes([1, 2, 255])),
        )
        body = b"".join(parts)
        version = struct.pack(f"{order}H", 0x0100)
        header = b"MATLAB 5.0".ljust(124) + version + mark
        path = tmp_path / "mine.mat"
        path.write_bytes(header + struct.pack(f"{order}II", 14, len(body)) + body)
        (x,) = matlab.read(path).values()
        assert x.dtype == np.float64
        np.testing.assert_array_equal(x, [[1, 2, 255]])


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "no MATLAB file of version 5"),
        (b"<html>".ljust(200), "no MATLAB file of version 5"),
        (b"MATLAB 7.3".ljust(124) + b"\x00\x02IM", "of version 0x200, not 5"),
        (b"MATLAB 5.0".ljust(124) + b"\x00\x01IM\x0e", "it is damaged"),
        (
            b"MATLAB 5.0".ljust(124) + b"\x00\x01IM" + struct.pack("<II", 14, 80),
            "it ends too early",
        ),
    ],
)
def test_other_files_are_refused(tmp_path, header, message):
    path = tmp_path / "mine.mat"
    path.write_bytes(header)
    with pytest.raises(ValueError, match=message):
        matlab.read(path)


@pytest.mark.parametrize("declared", [16, 2**20])
def test_compressed_parts_hold_what_they_declare(tmp_path, declared):
    packed = zlib.compress(struct.pack("<II", 14, declared) + bytes(2**16))
    path = tmp_path / "mine.mat"
    header = b"MATLAB 5.0".ljust(124) + b"\x00\x01IM"
    path.write_bytes(header + struct.pack("<II", 15, len(packed)) + packed)
    with pytest.raises(ValueError, match="it is damaged|it ends too early"):
        matlab.read(path)


def test_checksums_of_compressed_parts_are_checked(tmp_path):
    path = tmp_path / "mine.mat"
    scipy.io.savemat(path, {"X": np.arange(99.0)}, do_compression=True)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="it is damaged"):
        matlab.read(path)
