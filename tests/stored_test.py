"""Arrays in files, of which only the rows that are asked for are in memory."""

import re

import numpy as np
import pytest

from deepsad_jax import stored

RNG = np.random.default_rng(0)


@pytest.fixture(params=[(300, 7), (300, 3, 4, 1), (300,)], ids=str)
def saved(request, tmp_path):
    x = RNG.integers(0, 1000, request.param).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    return x, tmp_path / "x.npy"


@pytest.mark.parametrize("window", [1, 5000, 10**6], ids=["a row", "some", "all"])
def test_rows_are_those_of_numpy_whatever_their_order(saved, window, monkeypatch):
    monkeypatch.setattr(stored, "_WINDOW", window)
    x, path = saved
    array = stored.Array(path)
    assert (array.shape, array.dtype, array.ndim) == (x.shape, x.dtype, x.ndim)
    for rows in (RNG.integers(-300, 300, 90), np.array([299]), np.zeros(0, int)):
        np.testing.assert_array_equal(array.take(rows), x[rows])
        np.testing.assert_array_equal(array[rows], x[rows])
    mapped = np.load(path, mmap_mode="r")
    np.testing.assert_array_equal(stored.take(mapped, np.arange(299, 0, -7)), x[:0:-7])
    mask = RNG.random(300) < 0.3
    np.testing.assert_array_equal(array[mask], x[mask])
    np.testing.assert_array_equal(array[-3], x[-3])
    for rows in ([300], [-301], mask[:299]):
        with pytest.raises(IndexError, match="300 rows"):
            array[rows]


def test_slices_and_blocks_are_those_of_numpy(saved, monkeypatch):
    x, path = saved
    array = stored.Array(path)
    for rows in (slice(None), slice(3, 90), slice(-4, None), slice(9, 2), slice(7, 1)):
        np.testing.assert_array_equal(array[rows], x[rows])
    np.testing.assert_array_equal(array[::7], x[::7])
    monkeypatch.setattr(stored, "_BLOCK", 1000)
    monkeypatch.setattr(stored, "_LARGE", 1000)
    parts = [array[rows] for rows in stored.blocks(array)]
    assert max(part.nbytes for part in parts) <= 1000
    np.testing.assert_array_equal(np.concatenate(parts), x)


def test_what_is_no_whole_file_of_rows_is_refused(tmp_path):
    def refused(message, name="x.npy", error=ValueError):
        path = tmp_path / name
        with pytest.raises(error, match=re.escape(f"{path} {message}")):
            stored.Array(path)

    with pytest.raises(FileNotFoundError, match="there is no file"):
        stored.Array(tmp_path / "none.npy")
    (tmp_path / "x.npy").write_bytes(b"abc")
    refused("is not a .npy file of numbers: write it by np.save")
    np.save(tmp_path / "x.npy", np.array([1, "a", None], object))
    refused("holds object row by row; it must hold real numbers")
    np.save(tmp_path / "x.npy", np.zeros((4, 3)).T)
    refused("holds float64 column by column; it must hold real numbers row by row")
    np.save(tmp_path / "x.npy", np.zeros((4, 3)))
    content = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(content[:-1])
    refused("has 223 bytes, but its header tells of 224; it is incomplete")
