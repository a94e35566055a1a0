"""A trained model as a program of its own, which needs nothing of this library.

    export(detector, "pump.export")                       # StableHLO, by jax.export
    export(detector, "pump.onnx", format="onnx")          # see onnx_programs

The folder holds the program and `export.json`, which says what goes in and comes out.
Preprocessing, score, p-value and decision are inside; what a program cannot take are
texts, so tables go in as numbers, and `export.json` has the number of each text.
docs/serving.md has servers of a few lines.
"""

import contextlib
import datetime
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from deepsad_jax import (
    __version__,
    calibrated,
    columns,
    decisions,
    fields,
    model,
    preprocessing,
    writing,
)
from deepsad_jax.data import frames

FORMATS = ("stablehlo", "onnx")
PLATFORMS = ("cpu", "cuda", "tpu")
BATCH = "b"
_PROMISE = (
    "jax.export promises that it runs, by jax.export alone, where jaxlib is up to 6 "
    "months newer or up to 3 weeks older than the one of versions; keep the model, and "
    "export it again"
)
_MEANINGS = {
    "score": "higher = more anomalous; NaN where values are not finite, or too far "
    "from those of the training",
    "p_value": "conformal: of normal rows, at most a share a has p-values up to a",
    "is_anomaly": "whether the score is above the threshold; false where it is NaN",
}
# Prepared values beyond are refused by `model.score`, too.
_FARTHEST = 1e12
_EXAMPLES = 7


class Program(NamedTuple):
    """What leaves.

    Attributes:
        prepare: raw rows `[batch, ...]`, traced with 64-bit types, as each network or
            forest reads them, float32.
        judge: of these a dictionary of `score`, and of `p_value` and `is_anomaly` where
            there is a calibration, `[batch]` each.
        shape: of a raw row.
        dtype: of raw rows.
        is_wide: whether to judge takes 64-bit types, too.
        examples: some raw rows, drawn from the ranges of the training.
        about: JSON: what goes in, and what comes out.
    """

    prepare: Callable[[jax.Array], list[jax.Array]]
    judge: Callable[[list[jax.Array]], dict[str, jax.Array]]
    shape: tuple[int, ...]
    dtype: np.dtype
    is_wide: bool
    examples: np.ndarray
    about: dict[str, Any]

    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """What is said of raw rows, to be traced with 64-bit types."""
        return self.judge(self.prepare(x))

    def rows(self) -> jax.ShapeDtypeStruct:
        """Any number of raw rows, at least one."""
        sides = ", ".join([BATCH, *map(str, self.shape)])
        return jax.ShapeDtypeStruct(jax.export.symbolic_shape(sides), self.dtype)


def export(made: Any, folder: str | os.PathLike, *, format: str = "stablehlo") -> None:
    """Writes a model as a program to a new folder.

    Args:
        made: a fitted estimator, what `calibrated.load` gives, or a `model.Model`,
            which has no calibration, so that its program says scores alone.
        folder: to write: the program, and `export.json`.
        format: "stablehlo", for cpu, cuda and tpu at once, or "onnx", for which there
            must be jax2onnx.

    Raises:
        FileExistsError: if the folder exists.
        ImportError: if there is no jax2onnx.
        OSError: if it cannot be written.
        ValueError: if the model cannot be exported.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; it must be one of {FORMATS}")
    writing.check_new(folder)
    found = program(made)
    if format == "onnx":
        from deepsad_jax import onnx_programs

        name, content, more = "model.onnx", *onnx_programs.convert(found)
    else:
        name, content = "model.stablehlo", stablehlo(found)
        more = {"platforms": PLATFORMS, "promise": _PROMISE}
        more["needs"] = "jax.config.update('jax_enable_x64', True)"
    about = {
        "format": format,
        "file": name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {"deepsad_jax": __version__, "jax": jax.__version__},
        **found.about,
    }
    about["versions"] |= more.pop("versions", {})
    text = json.dumps({**about, **more}, indent=1, ensure_ascii=False)
    writing.folder(folder, {name: content, "export.json": f"{text}\n".encode()})


def program(made: Any) -> Program:
    """The program of a model.

    Args:
        made: as of `export`.

    Raises:
        ValueError: if it is not a model.
    """
    made = getattr(made, "calibrated_", made)  # of an estimator
    if not isinstance(made, (model.Model, calibrated.Calibrated)):
        raise ValueError(
            f"model is a {type(made).__name__}; it must be a fitted estimator, what "
            "calibrated.load gives, or a Model"
        )
    parts = [made]
    if isinstance(made, calibrated.Calibrated):
        parts = [made.model, *made.folds]
    fitted = parts[0]
    scaling, shape = fitted.preprocessing, tuple(fitted.info["shape"])
    found = Program(
        lambda x: [_prepared(part.preprocessing, x) for part in parts],
        functools.partial(_judged, made, parts),
        shape,
        _dtype(scaling),
        getattr(fitted.objective, "float64", False),
        _drawn(scaling, shape).astype(_dtype(scaling)),
        {},
    )
    with jax.enable_x64(True):
        row = jax.ShapeDtypeStruct((1, *shape), found.dtype)
        outputs = jax.eval_shape(found, row)
    about = {
        "method": fitted.info["method"],
        "inputs": [_input(scaling, shape, found.dtype)],
        "outputs": [
            {
                "name": name,
                "dtype": str(outputs[name].dtype),
                "shape": [BATCH],
                "meaning": meaning,
            }
            for name, meaning in _MEANINGS.items()
            if name in outputs
        ],
        "decision": _decision(made),
    }
    return found._replace(about=about)


def stablehlo(found: Program) -> bytes:
    """A program by `jax.export`, for any number of rows from one on."""
    with jax.enable_x64(True), _without_places():
        made = jax.export.export(jax.jit(found.__call__), platforms=PLATFORMS)
        return bytes(made(found.rows()).serialize())


@contextlib.contextmanager
def _without_places() -> Iterator[None]:
    """Leaves out in which files of this machine operations were written."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _dtype(scaling):
    if isinstance(scaling, preprocessing.Bytes):
        return np.dtype(np.uint8)
    is_as_it_is = isinstance(scaling, preprocessing.Unchanged)
    return np.dtype(np.float32 if is_as_it_is else np.float64)


def _drawn(scaling, shape):
    share = np.random.default_rng(0).random((_EXAMPLES, *shape))
    if isinstance(scaling, preprocessing.Bytes):
        return 256 * share
    if isinstance(scaling, preprocessing.MinMax):
        low, high = (np.array(side, float) for side in (scaling.low, scaling.high))
        return low + share * (high - low)
    if isinstance(scaling, columns.Columns):
        for i, column in enumerate(scaling.columns):
            if isinstance(column, fields.Numeric):
                share[:, i] = column.low + share[:, i] * (column.high - column.low)
            else:
                levels = len(getattr(column, "levels", "01"))
                share[:, i] = np.floor(levels * share[:, i])
    return share


def _prepared(scaling, x):
    """Prepared rows; infinite where a robust scaling would hide values that are too far
    from those of the training."""
    rows, far = scaling(x), False
    for i, column in enumerate(getattr(scaling, "columns", ())):
        if getattr(column, "width", None) is not None:
            span = (column.high - column.low) or 1.0
            far |= jnp.abs((x[:, i] - column.low) / span) > _FARTHEST
    return rows if far is False else jnp.where(far[:, None], jnp.inf, rows)


def _judged(made, parts, rows):
    scores = [_score(*pair) for pair in zip(parts, rows, strict=True)]
    if isinstance(made, model.Model):
        return {"score": scores[0]}
    if made.way == "cross":
        return _of_folds(made, scores[0], scores[1:])
    found = {"score": scores[0]}
    if made.way == "split":
        count = 1 + _at_least(made.scores[0], scores[0])
        found["p_value"] = _share(count, len(made.scores[0]), ~jnp.isnan(scores[0]))
    return {**found, "is_anomaly": scores[0] > made.threshold}


def _score(fitted, rows):
    """Scores of prepared rows; NaN where `model.score` would refuse them."""
    # Networks are of float32, whatever else is not.
    with jax.enable_x64(getattr(fitted.objective, "float64", False)):
        scores = fitted.objective.score(fitted.variables, rows)
        is_near = jnp.all(jnp.abs(rows) <= _FARTHEST, axis=tuple(range(1, rows.ndim)))
        return jnp.where(is_near & jnp.isfinite(scores), scores, jnp.nan)


def _of_folds(made, own, by_fold):
    size = sum(map(len, made.scores))
    count = 1 + sum(map(_at_least, made.scores, by_fold))
    is_known = ~jnp.isnan(own + sum(by_fold))
    p_value = _share(count, size, is_known)
    fraction = calibrated.fraction(own, made.details, jnp)
    return {
        "score": 1 - p_value + fraction / (1 + size),
        "p_value": p_value,
        # What comparing scores says, but for rounding.
        "is_anomaly": is_known
        & (count <= decisions.steps(size, made.false_alarm_rate)),
    }


def _share(count, size, is_known):
    """The p-values as they are elsewhere, or the next number below in float32: XLA
    would divide by way of the reciprocal, and be above some rates that they equal."""
    exact = np.arange(size + 2) / (size + 1)
    shares = exact.astype(jax.dtypes.canonicalize_dtype(float))
    above = shares.astype(float) > exact
    shares[above] = np.nextafter(shares[above], np.zeros_like(shares[above]))
    return jnp.where(is_known, jnp.asarray(shares)[count], jnp.nan)


def _at_least(calibration, scores):
    """How many of the calibration's scores each score is not above."""
    ordered = np.sort(calibration).astype(scores.dtype)
    # Bisection of a power of two, written out: the first half begins at 0 or there.
    step = 1 << len(ordered).bit_length()
    padded = jnp.asarray(np.append(ordered, np.full(step - len(ordered), np.inf)))
    below = jnp.zeros(scores.shape, jnp.int32)
    while step := step // 2:
        below = below + step * (padded[below + (step - 1)] < scores).astype(jnp.int32)
    return len(ordered) - below


def _input(scaling, shape, dtype):
    described = {
        "name": "x",
        "dtype": str(dtype),
        "shape": [BATCH, *shape],
        "meaning": "raw rows, as those of the training",
    }
    if dtype == np.uint8:
        described["meaning"] = "bytes of images, 0 to 255"
    if isinstance(scaling, columns.Columns):
        described["meaning"] = (
            "columns in their order: numbers as they are, others by their codes, of "
            "texts without one unknown, NaN where a value is missing"
        )
        described["named"] = scaling.named
        described["columns"] = [_column(column) for column in scaling.columns]
    return described


def _column(column):
    """How values of a column become numbers."""
    described = {"name": column.name, "holds": column.holds, "codes": None}
    if isinstance(column, fields.Numeric):
        described["range"] = [column.low, column.high]
    elif isinstance(column, fields.Boolean):
        ways = (str.lower, str.capitalize, str.upper)
        words = {**frames.WORDS, "1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0}
        described["codes"] = {w(word): v for word, v in words.items() for w in ways}
    elif isinstance(column, fields.Categorical):
        described["codes"] = {level: i for i, level in enumerate(column.levels)}
        described["unknown"] = -1
    return described


def _decision(made):
    if isinstance(made, model.Model):
        return {"way": None, "said": "no calibration, so there are scores alone"}
    found = {"way": made.way, "false_alarm_rate": made.false_alarm_rate}
    found["threshold"] = made.threshold if np.isfinite(made.threshold) else None
    found["calibration_rows"] = sum(map(len, made.scores))
    if made.way == "none":
        found["said"] = "no rows were held out, so there are no p-values"
    return found
