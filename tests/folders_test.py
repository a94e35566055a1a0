"""Folders of images against what Pillow was given to write."""

import numpy as np
import PIL.Image
import pytest

from deepsad_jax.data import folders

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (8, 6), dtype=np.uint8)
COLORS = RNG.integers(0, 256, (8, 6, 3), dtype=np.uint8)


def _save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(path, **options)


def test_folders_say_what_is_known(tmp_path):
    _save(tmp_path / "normal" / "b.png", GREY)
    _save(tmp_path / "normal" / "a.png", 255 - GREY)
    _save(tmp_path / "anomaly" / "deep" / "c.png", GREY // 2)
    _save(tmp_path / "unlabelled" / "d.PNG", GREY // 3)
    (tmp_path / "normal" / ".hidden.png").write_text("no image")
    (tmp_path / "readme.txt").write_text("no image")
    x, targets, paths = folders.read(tmp_path)
    assert x.dtype == np.uint8 and x.shape == (4, 8, 6, 1)
    names = [path.name for path in paths]
    assert names == ["c.png", "a.png", "b.png", "d.PNG"]
    assert targets.tolist() == [-1, 1, 1, 0] and targets.dtype == np.int8
    expected = [GREY // 2, 255 - GREY, GREY, GREY // 3]
    np.testing.assert_array_equal(x[..., 0], expected)


def test_images_in_no_such_folder_are_unlabeled(tmp_path):
    _save(tmp_path / "one.png", COLORS)
    _save(tmp_path / "more" / "two.png", GREY)
    x, targets, _ = folders.read(tmp_path)
    assert targets.tolist() == [0, 0] and x.shape == (2, 8, 6, 3)
    np.testing.assert_array_equal(x[1], COLORS)
    np.testing.assert_array_equal(x[0], np.stack([GREY] * 3, axis=-1))


def test_images_of_any_mode_become_bytes(tmp_path):
    alpha = np.concatenate([COLORS, np.zeros((8, 6, 1), np.uint8)], axis=-1)
    alpha[0, :, 3] = 255
    _save(tmp_path / "a.png", alpha)
    PIL.Image.fromarray(COLORS).quantize(256).save(tmp_path / "b.png")
    x, *_ = folders.read(tmp_path)
    np.testing.assert_array_equal(x[0, 0], COLORS[0])
    assert not x[0, 1:].any()  # clear pixels are black
    np.testing.assert_array_equal(x[1], COLORS)
    wide = tmp_path / "wide"
    _save(wide / "c.png", GREY.astype(np.uint16) * 257)
    PIL.Image.fromarray(GREY > 99).save(wide / "d.png")
    _save(wide / "e.png", np.full((8, 6), 200, np.uint16))  # dark, of its 65,535
    x, *_ = folders.read(wide)
    np.testing.assert_array_equal(x[0, ..., 0], GREY)
    np.testing.assert_array_equal(x[1, ..., 0], 255 * (GREY > 99))
    assert not x[2].any()


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_images_of_32_bits_are_refused(tmp_path, kind):
    _save(tmp_path / "a.tif", GREY.astype(kind))
    with pytest.raises(ValueError, match="a.tif cannot .*32 bits; save it with 8 or"):
        folders.read(tmp_path)


def test_images_get_one_size(tmp_path):
    for i, size in enumerate([(200, 100), (100, 100), (300, 100)]):
        _save(tmp_path / f"{i}.png", np.full(size, 10 * i, np.uint8))
    x, *_ = folders.read(tmp_path)
    assert x.shape == (3, 64, 32, 1)
    assert [np.unique(image).tolist() for image in x] == [[0], [10], [20]]
    assert folders.read(tmp_path, (5, 7, 3)).x.shape == (3, 5, 7, 3)


def test_turned_photographs_are_upright(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    _save(tmp_path / "a.png", GREY, exif=exif)
    x, *_ = folders.read(tmp_path)
    np.testing.assert_array_equal(x[0, ..., 0], np.rot90(GREY, -1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: None, r"has no images \(.png, .*normal, anomaly and unlabeled"),
        (
            lambda f: _save(f / "other" / "a.png", GREY),
            "has other beside normal; images",
        ),
        (
            lambda f: _save(f / "a.png", GREY),
            "has a.png beside normal; images of which",
        ),
        (
            lambda f: (f / "normal" / "b.jpg").write_text("x"),
            "b.jpg cannot be read as an image",
        ),
    ],
)
def test_other_folders_are_refused(tmp_path, make, message):
    (tmp_path / "normal").mkdir()
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        folders.read(tmp_path)


def test_shapes_and_folders_are_checked(tmp_path):
    _save(tmp_path / "a.png", GREY)
    with pytest.raises(ValueError, match=r"shape is \(5, 5, 4\); it must be \(height"):
        folders.read(tmp_path, (5, 5, 4))
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        folders.read(tmp_path / "none")
