"""The page that shows rows with their reasons, and asks an expert what they are."""

import base64
import hashlib
import io
import os
from typing import Any

import numpy as np

from deepsad_jax.report import page as pages

_SHOWN, _MOST = 6, 60  # columns of a row: at once, and in all
_QUIET, _RAISES, _LOWERS = (246, 246, 246), (178, 34, 24), (33, 92, 170)


def page(asked: Any, source: str, made: Any, *, asks: bool) -> str:
    """The page, HTML.

    Args:
        asked: an `asking.Asked`.
        source: what the file is called.
        made: the calibrated model.
        asks: whether it asks for labels, or only shows why.
    """
    why, count = asked.why, len(asked.rows)
    name = os.path.basename(source) if source != "-" else "the standard input"
    noun = "rows" if why.columns else "images"
    title = f"What are these {noun} of {name}?"
    if not asks:
        title = f"Why these {noun} of {name} are anomalous"
    text = "".join(row.fingerprint for row in asked.rows)
    most = float(np.abs(why.found.values).max()) or 1.0
    return pages.render(
        "sheet.html",
        title=title,
        noun=noun,
        asks=asks,
        count=count,
        total=asked.total,
        method=made.model.info["method"],
        threshold=f"{made.threshold:.4g}" if np.isfinite(made.threshold) else "",
        is_cross=made.way == "cross",
        usual=f"{why.found.usual_score:.4g}",
        way=why.way,
        most=f"{most:.2g}",
        is_table=bool(why.columns),
        cards=[_card(asked, i, most) for i in range(count)],
        keys=[[row.number, row.fingerprint] for row in asked.rows],
        sheet=hashlib.blake2b(text.encode(), digest_size=8).hexdigest(),
    )


def _card(asked, i, most):
    row, why = asked.rows[i], asked.why
    others = asked.cells[i]
    card = {
        "number": row.number,
        "score": f"{row.score:.4g}",
        "p_value": "" if np.isnan(row.p_value) else f"{row.p_value:.2g}",
        "is_anomaly": row.is_anomaly,
    }
    if why.columns:
        names = {column.name for column in why.columns}
        others = {n: v for n, v in others.items() if n not in names and v}
        reasons = why.reasons(i)
        return {
            **card,
            "others": others,
            "reasons": [(str(r), round(100 * r.share)) for r in reasons],
            **_table(why, i),
        }
    pictures = [
        ("this image", _image(why.x[i])),
        ("what raises its score", _heat(why, i, most)),
    ]
    for name, near in (("normal", why.normal), ("known anomaly", why.anomalies)):
        for place in near.places[i]:
            pictures.append((f"a near one: {name}", _image(why.examples.x[place])))
    return {**card, "others": others, "pictures": pictures}


def _table(why, i):
    """The columns of a row beside those of its neighbors, those that do most first."""
    known = [("usual", why.usual)]
    for name, near in (("normal row", why.normal), ("known anomaly", why.anomalies)):
        if near.places.shape[1]:
            values = why.shown(why.examples.x[near.places[i, 0]])
            known.append((f"nearest {name}", list(values.values())))
    own, added = list(why.shown(why.x[i]).values()), why.found.values[i]
    used = [j for j in np.argsort(-added) if why.columns[j].kind != "dropped"]
    largest = max(float(np.abs(added).max()), 1e-12)
    lines = [
        {
            "name": why.columns[j].name,
            "value": own[j],
            "known": [values[j] for _, values in known],
            "added": f"{added[j]:+.2g}",
            "width": round(100 * abs(float(added[j])) / largest),
            "raises": bool(added[j] > 0),
        }
        for j in used[:_MOST]
    ]
    return {
        "heads": [name for name, _ in known],
        "lines": lines[:_SHOWN],
        "more": lines[_SHOWN:],
        "left_out": max(0, len(used) - _MOST),
    }


def _heat(why, i, most):
    """A row's map on the scale that all share: white for nothing."""
    part = np.clip(why.maps[i] / most, -1, 1)[..., None]
    color = np.where(part > 0, _RAISES, _LOWERS)
    return _png(_QUIET + np.abs(part) * (color - np.array(_QUIET)))


def _image(x):
    if x.dtype != np.uint8:
        x = 255 * np.clip(x, 0, 1)
    return _png(x)


def _png(x):
    """An image as the address of itself."""
    import PIL.Image

    pixels = np.round(x).astype(np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(
        file, "png"
    )
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
