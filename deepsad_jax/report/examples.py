"""The examples that a page shows: the most normal, anomalous and uncertain ones."""

import base64
import io
import os
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from deepsad_jax import writing

_NUMBER = 8  # of each group
_SIDE = 96  # pixels of an image
_COLUMNS = 12  # of a row, where nothing tells which matter
# What is a reason: column, its value, what is usual, share of the score in [-1, 1].
Reason = tuple[str, str, str, float]


class Kept(NamedTuple):
    """Raw examples of a test set.

    Attributes:
        places: where they are in the test set, `[k]`.
        x: as they are, `[k, ...]`; images as bytes, made small.
        columns: their names, for rows of a table.
    """

    places: np.ndarray
    x: np.ndarray
    columns: list[str]


class Shown(NamedTuple):
    """One example on a page.

    Attributes:
        number: that a user knows its row by.
        score: higher = more anomalous.
        kind: what it is known to be.
        look: a class of the style for the kind.
        image: a data URI, or empty.
        line: points of a series as SVG has them, or empty.
        values: pairs of a column and its value.
        more: how many columns are not shown.
        reasons: instead of values, where there are explanations; or None.
    """

    number: int
    score: float
    kind: str
    look: str
    image: str = ""
    line: str = ""
    values: Sequence[tuple[str, str]] = ()
    more: int = 0
    reasons: Sequence[Reason] | None = None


def picked(scores: np.ndarray, threshold: float | None) -> dict[str, np.ndarray]:
    """Places of the examples of each group, the clearest first.

    Args:
        scores: `[n]`.
        threshold: around which an example is uncertain; without one that is the median.
    """
    order = np.argsort(scores, kind="stable")
    middle = np.median(scores) if threshold is None else threshold
    # By ranks: scores may be spread over orders of magnitude.
    border = int(np.searchsorted(scores[order], middle, side="right"))
    first = max(0, min(border - _NUMBER // 2, len(order) - _NUMBER))
    near = order[first : first + _NUMBER]
    return {
        "Most anomalous": order[::-1][:_NUMBER],
        "Most uncertain": near[::-1],
        "Most normal": order[:_NUMBER],
    }


def kept(
    x: np.ndarray, places: np.ndarray, columns: Sequence[str] | None = None
) -> Kept:
    """What is kept of a test set for a page.

    Args:
        x: raw examples, `[n, ...]`.
        places: which.
        columns: their names, for rows of a table.
    """
    places = np.unique(places)
    found = np.asarray(x[places])
    if is_images(found.shape):
        found = np.stack([_small(image) for image in _bytes(found)])
    if found.ndim == 2 and columns is None:
        columns = [column_name(i) for i in range(found.shape[1])]
    return Kept(places, found, list(columns or ()))


def column_name(i: int) -> str:
    """What a column without a name is called."""
    return f"column {i}"


def save(path: str | os.PathLike, content: Kept) -> None:
    """Writes them as `.npz`, atomically."""
    with writing.atomic(path) as file:
        np.savez_compressed(
            file,
            place=content.places,
            x=content.x,
            columns=np.array(content.columns, str),
        )


def load(path: str | os.PathLike) -> Kept | None:
    """What `save` has written; None without a file.

    Raises:
        ValueError: if the file is damaged.
    """
    if not os.path.exists(path):
        return None
    try:
        with np.load(path, allow_pickle=False) as found:
            return Kept(found["place"], found["x"], found["columns"].tolist())
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def is_images(shape: tuple[int, ...]) -> bool:
    """Whether examples `[n, ...]` are images."""
    return len(shape) == 4 and shape[-1] in (1, 3)


def shown(
    groups: Mapping[str, np.ndarray],
    content: Kept | None,
    scores: np.ndarray,
    kinds: Sequence[tuple[str, str]],
    numbers: np.ndarray,
    reasons: Mapping[int, Sequence[Reason]] | None = None,
) -> dict[str, list[Shown]]:
    """The examples of each group as a page shows them.

    Args:
        groups: places by title.
        content: what is known of them.
        scores, kinds, numbers: of all examples: `[n]`, pairs of kind and look, the
            number that a user knows a row by.
        reasons: by place, where there are explanations.
    """
    where = {} if content is None else {int(p): i for i, p in enumerate(content.places)}
    found = {}
    for title, places in groups.items():
        found[title] = []
        for place in map(int, places):
            parts = _parts(content, where[place]) if place in where else {}
            found[title].append(
                Shown(
                    int(numbers[place]),
                    float(scores[place]),
                    *kinds[place],
                    reasons=None if reasons is None else reasons.get(place),
                    **parts,
                )
            )
    return found


def _parts(content: Kept, i: int) -> dict[str, Any]:
    one = content.x[i]
    if is_images(content.x.shape):
        return {"image": data_uri(one)}
    if one.ndim == 1:
        names = content.columns[:_COLUMNS]
        values = [(n, _text(v)) for n, v in zip(names, one, strict=False)]
        return {"values": values, "more": len(content.columns) - len(names)}
    if one.ndim == 2:
        return {"line": _line(one[:, 0])}
    return {}


def _text(value) -> str:
    if isinstance(value, (float, np.floating)):
        return "missing" if np.isnan(value) else f"{value:.4g}"
    return str(value)


def data_uri(image: np.ndarray) -> str:
    """An image `[H, W, C]` uint8 as a PNG inside of a page."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _bytes(images):
    """Images as uint8; others than those in [0, 1] on a scale of their own."""
    if images.dtype == np.uint8:
        return images
    low, high = float(images.min()), float(images.max())
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    return np.uint8(np.round(255 * (images - low) / ((high - low) or 1.0)))


def _small(image):
    from PIL import Image

    if max(image.shape[:2]) <= _SIDE:
        return image
    flat = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    flat.thumbnail((_SIDE, _SIDE))
    small = np.asarray(flat)
    return small.reshape(*small.shape[:2], image.shape[-1])


def _line(values) -> str:
    """A series in a box of 120 x 40."""
    values = np.asarray(values, float)[:: max(1, len(values) // 240)]
    low, high = np.nanmin(values), np.nanmax(values)
    x = np.linspace(1, 119, len(values))
    y = 38 - 36 * (values - low) / ((high - low) or 1.0)
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
