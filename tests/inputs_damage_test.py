"""Files that are damaged, or meant to do harm."""

import gzip
import io
import tarfile
import types
import unittest.mock
import zipfile

import hypothesis
import numpy as np
import pooch
import pytest
from hypothesis import strategies as st
from inputs import FOLDER, HTML, TRIED, Payload, attempt, refused, valid_bytes

from deepsad_jax.data import protocol as protocols
from deepsad_jax.data import sources, tfds_images


@st.composite
def damaged(draw, suffix):
    content = valid_bytes(suffix)
    kind = draw(st.integers(0, 4))
    position = draw(st.integers(0, len(content) - 1))
    if kind == 0:
        return content[:position]
    if kind == 1:
        flipped = bytearray(content)
        for place in draw(st.lists(st.integers(0, len(content) - 1), max_size=8)):
            flipped[place] ^= draw(st.integers(1, 255))
        return bytes(flipped)
    if kind == 2:
        return content[:position] + draw(st.binary(max_size=40)) + content[position:]
    if kind == 3:
        return draw(st.binary(max_size=200))
    whole = st.sampled_from(
        [b"", HTML, gzip.compress(content), b"PK\x05\x06" + 18 * b"\0"]
    )
    return draw(whole)


@pytest.mark.parametrize("suffix", sources.SUFFIXES)
@hypothesis.settings(max_examples=150)
@hypothesis.given(st.data())
def test_damaged_files(suffix, data):
    path = FOLDER / f"damaged{suffix}"
    path.write_bytes(data.draw(damaged(suffix)))
    source = attempt("damaged files", lambda: sources.load(str(path)), path)
    if source is not None:
        attempt(
            "damaged files", lambda: protocols.make(source, protocols.Protocol(), 0)
        )


def test_what_is_in_a_damaged_file_is_not_printed():
    path, content = FOLDER / "damaged.npz", bytearray(valid_bytes(".npz"))
    content[27] = 2  # so that the name of the first member takes in 512 bytes more
    path.write_bytes(content)
    refused("damaged files", "File name in directory", lambda: sources.load(str(path)))


def test_pickles_are_never_loaded():
    path = FOLDER / "payload.npz"
    harmful = np.array([Payload()], object)
    for arrays in (
        {"X": harmful, "y": [0]},
        {"X": [[1.0]], "y": [0], "extra": harmful},
    ):
        np.savez(path, **arrays)
        refused(
            "damaged files",
            "payload.npz cannot be read as .npz .*allow_pickle=False",
            lambda: sources.load(str(path)),
        )
    for suffix in (".npz", ".mat", ".csv"):
        path = FOLDER / f"payload{suffix}"
        with path.open("wb") as file:
            np.save(file, harmful)
        refused(
            "damaged files",
            f"payload{suffix} cannot be read",
            lambda path=path: sources.load(str(path)),
        )
    assert not (FOLDER / "harm").exists()


def test_archives_of_other_things_are_no_arrays():
    path = FOLDER / "mine.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("X", "y", "../../escaped.npy"):
            archive.writestr(name, b"1,2\n3,4\n")
    refused("damaged files", "mine.npz", lambda: sources.load(str(path)))
    assert not (FOLDER / "../../escaped.npy").resolve().exists()


def test_a_cached_table_of_another_hash_is_not_taken():
    folder = FOLDER / "cache"
    folder.mkdir(exist_ok=True)
    (folder / "cardio.mat").write_bytes(valid_bytes(".mat"))
    with unittest.mock.patch.object(pooch, "os_cache", lambda _: folder):
        refused(
            "damaged files",
            "cardio.mat is not the table cardio .its SHA-256 differs.* delete it",
            lambda: sources.load("cardio", download=False),
        )


def test_nothing_is_unpacked_from_archives():
    path = FOLDER / "cifar.tar"
    records = np.zeros((2, 3073), np.uint8).tobytes()
    with tarfile.open(path, "w") as archive:
        for name, content in (
            ("../../names.txt", b"a\nb\n"),
            ("../../escaped.bin", records),
            ("/escaped/test.bin", records),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    info = types.SimpleNamespace(
        url="",
        label_files=["names.txt"],
        train_files=["escaped.bin"],
        test_files=["test.bin"],
    )
    label = types.SimpleNamespace(names=None)
    builder = types.SimpleNamespace(
        _cifar_info=info, info=types.SimpleNamespace(features={"label": label})
    )
    before = {p for p in FOLDER.rglob("*")}
    with unittest.mock.patch.object(tfds_images, "_download", lambda *_: path):
        splits = tfds_images._cifar10_splits(builder, None)
    TRIED["damaged files"] += 1
    assert len(list(splits["train"])) == 2 and label.names == ["a", "b"]
    assert {p for p in FOLDER.rglob("*")} == before
    assert not (FOLDER / "../../escaped.bin").resolve().exists()
