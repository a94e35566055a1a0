"""Images in a folder, with what is known of them by the folder where they lie.

    images/normal/...  images/anomaly/...  images/unlabeled/...

Images of any size, mode and format that Pillow reads, made bytes of one size.
"""

import collections
import os
import pathlib
from typing import NamedTuple

import numpy as np

from deepsad_jax.data import memory

KINDS = {"normal": 1, "anomaly": -1, "unlabeled": 0, "unlabelled": 0}
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
_LONGEST = 64  # pixels, unless a size is given
_GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "F")


class Images(NamedTuple):
    """The images of a folder.

    Attributes:
        x: `[n, height, width, channels]` uint8.
        semi_targets: +1, 0 or -1 for each, int8.
        paths: where they come from.
    """

    x: np.ndarray
    semi_targets: np.ndarray
    paths: list[pathlib.Path]


def read(
    folder: str | os.PathLike, shape: tuple[int, int, int] | None = None
) -> Images:
    """Reads the images of a folder, in the order of their paths.

    Args:
        folder: with folders `normal`, `anomaly` and `unlabeled` (any of them, at any
            depth below), or with unlabeled images.
        shape: `(height, width, channels)` that all get, 1 channel for gray and 3 for
            colors. By default the size that all have, if they have one of at most 64
            pixels, else the median, scaled to that; in color if some are.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it has no images, or one cannot be read.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    paths, targets = _found(folder)
    if shape is None:
        shape = _common([_size(path) for path in paths])
    if len(shape) != 3 or min(shape) < 1 or shape[2] not in (1, 3):
        raise ValueError(
            f"shape is {tuple(shape)}; it must be (height, width, channels), with 1 "
            "channel for gray or 3 for colors"
        )
    memory.check(len(paths) * int(np.prod(shape)))
    x = np.empty((len(paths), *shape), np.uint8)
    for i, path in enumerate(paths):
        x[i] = _image(path, shape)
    return Images(x, np.array(targets, np.int8), paths)


def _found(folder):
    entries = sorted(entry for entry in folder.iterdir())
    kinds = [e for e in entries if e.is_dir() and e.name.lower() in KINDS]
    others = [e for e in entries if e.is_dir() and e not in kinds]
    loose = [e for e in entries if _is_image(e)]
    if kinds and (loose or others):
        raise ValueError(
            f"{folder} has {(loose or others)[0].name} beside {kinds[0].name}; images "
            "of which nothing is known belong into unlabeled"
        )
    parts = [(0, folder)] if not kinds else [(KINDS[k.name.lower()], k) for k in kinds]
    paths, targets = [], []
    for target, part in parts:
        images = sorted(path for path in part.rglob("*") if _is_image(path))
        paths += images
        targets += [target] * len(images)
    if not paths:
        raise ValueError(
            f"{folder} has no images ({', '.join(SUFFIXES)}), neither in itself nor in "
            "folders normal, anomaly and unlabeled"
        )
    return paths, targets


def _is_image(path: pathlib.Path) -> bool:
    is_hidden = path.name.startswith(".")
    return path.suffix.lower() in SUFFIXES and path.is_file() and not is_hidden


def _opened(path):
    import PIL.Image

    try:
        return PIL.Image.open(path)
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise ValueError(f"{path} cannot be read as an image ({error})") from error


def _size(path) -> tuple[int, int, int]:
    with _opened(path) as image:
        turned = image.getexif().get(0x0112, 1) >= 5  # the orientation
        width, height = image.size[::-1] if turned else image.size
        return height, width, 1 if image.mode in _GREY else 3


def _common(sizes) -> tuple[int, int, int]:
    channels = max(size[2] for size in sizes)
    counts = collections.Counter(size[:2] for size in sizes)
    (height, width), number = counts.most_common(1)[0]
    if number < len(sizes):
        height, width = np.median([size[:2] for size in sizes], axis=0)
    scale = min(1.0, _LONGEST / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale)), channels


def _image(path, shape) -> np.ndarray:
    import PIL.Image
    import PIL.ImageOps

    with _opened(path) as image:
        try:
            is_png = image.format == "PNG"
            image = PIL.ImageOps.exif_transpose(image)
            image = _of_bytes(image, is_png).convert("L" if shape[2] == 1 else "RGB")
        except Exception as error:
            raise ValueError(f"{path} cannot be read as an image ({error})") from error
        if image.size != (shape[1], shape[0]):
            size = (shape[1], shape[0])
            image = image.resize(size, PIL.Image.Resampling.BILINEAR, reducing_gap=None)
    return np.asarray(image).reshape(shape)


def _of_bytes(image, is_png):
    """An image of 16 bits as one of 8; others as they are, on black where clear."""
    import PIL.Image

    # PNG has no more than 16 bits, which older versions of Pillow open as 32.
    if image.mode in ("I;16", "I;16B") or (image.mode == "I" and is_png):
        values = np.asarray(image).astype(np.int64) // 257
        return PIL.Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits; save it with 8 or 16")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        below = PIL.Image.new("RGBA", image.size, (0, 0, 0, 255))
        return PIL.Image.alpha_composite(below, image)
    return image
