r"""Why a row has its score: which columns, which pixels, which known examples.

    found = explain(calibrated.load("pump"), new_rows)
    print(*found.reasons(0), sep="\n")      # pressure is 7.2, usual 2.1 to 3.4

What is usual, and where the ways of `attributions` begin, are normal rows that travel
with the model.
"""

import contextlib
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from deepsad_jax import (
    attributions,
    calibrated,
    columns,
    examples,
    fields,
    forward,
    objectives,
    training,
)
from deepsad_jax import model as models
from deepsad_jax import preprocessing as preprocessings

_REFERENCES = 8
# Sums of gradients that lack more than this share are of a score with jumps.
_JUMPS = 0.05


class Reason(NamedTuple):
    """What a column does to the score of a row.

    Attributes:
        column: its name.
        value, usual: in the user's units, as texts; most normal values are `usual`.
        attribution: what it adds to the score.
        share: of all that raises the score, in (0, 1].
    """

    column: str
    value: str
    usual: str
    attribution: float
    share: float

    def __str__(self) -> str:
        return f"{self.column} is {self.value}, usual {self.usual}"


class Neighbors(NamedTuple):
    """The nearest known examples, nearest first.

    Attributes:
        places: in `Explanation.examples`, `[n, k]`.
        distances: of the embeddings, or of the prepared rows where a model has none.
    """

    places: np.ndarray
    distances: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Explanation:
    """What is said of some rows.

    Attributes:
        x: the rows, as `preprocessing.encoded` gives them.
        found: what each part adds to the score, `attributions.Attributions`; parts are
            columns, pixels (channels are summed) or the values of a series.
        way: "integrated gradients", or "permutations" where the score has jumps.
        shape: of the parts of a row.
        errors: squared reconstruction error of each part, `[n, parts]`, where the model
            has an autoencoder; else None.
        examples: to which rows are compared.
        normal, anomalies: the nearest normal ones, and the nearest known anomalies.
        columns: of a table, which know how values are shown; else empty.
    """

    x: np.ndarray
    found: attributions.Attributions
    way: str
    shape: tuple[int, ...]
    errors: np.ndarray | None
    examples: examples.Examples
    normal: Neighbors
    anomalies: Neighbors
    columns: tuple[fields.Column, ...] = ()

    @property
    def maps(self) -> np.ndarray:
        """The attributions in the shape of the rows, `[n, height, width]` of images."""
        return self.found.values.reshape(-1, *self.shape)

    def shown(self, x: np.ndarray) -> dict[str, str]:
        """An encoded row in the user's units, by column."""
        named = zip(self.columns, x, strict=True)
        return {column.name: column.shown(value) for column, value in named}

    @functools.cached_property
    def usual(self) -> tuple[str, ...]:
        """What is usual in each column."""
        x = self.examples.x[self.examples.normal]
        return tuple(c.usual(x[:, i]) for i, c in enumerate(self.columns))

    def reasons(self, row: int, most: int = 3) -> list[Reason]:
        """The columns that raise the score of a row, those that do most first.

        Args:
            row: its number in x.
            most: how many are told.

        Raises:
            ValueError: if the rows are not of a table.
        """
        if not self.columns:
            raise ValueError("the rows are not a table; look at maps instead")
        added = self.found.values[row]
        whole, order = added[added > 0].sum(), np.argsort(-added, kind="stable")[:most]
        return [
            Reason(
                self.columns[i].name,
                self.columns[i].shown(self.x[row, i]),
                self.usual[i],
                float(added[i]),
                float(added[i] / whole),
            )
            for i in order
            if added[i] > 0
        ]


def explain(made: calibrated.Calibrated, x: Any, *, neighbors: int = 3) -> Explanation:
    """Explains the scores of some rows.

    Args:
        made: what an estimator or `calibrated.load` gives.
        x: raw rows, as `model.score` takes them.
        neighbors: how many of the nearest known examples are found, of either kind.

    Raises:
        ValueError: if x is not what the model takes, or the model is of version 0.2,
            which kept no rows to compare with.
    """
    check(made)
    model, kept = made.model, made.examples
    scaling = model.preprocessing
    x = scaling.check(scaling.encoded(x), "x", tuple(model.info["shape"]))
    ready, others = (prepared(scaling, rows) for rows in (x, kept.x))
    shape, groups = _parts(model)
    parts = groups, int(np.prod(shape))
    normal = others[kept.normal]
    found, way = _attributed(model, ready, normal[:_REFERENCES], parts)
    codes, known = (embedded(model, rows) for rows in (ready, others))
    is_known = kept.semi_targets == 1
    is_normal = is_known if is_known.any() else kept.normal
    return Explanation(
        x,
        found,
        way,
        shape,
        _errors(model, ready, parts),
        kept,
        _nearest(codes, known, is_normal, neighbors),
        _nearest(codes, known, kept.semi_targets == -1, neighbors),
        _columns(model),
    )


def check(made: calibrated.Calibrated) -> None:
    """Raises ValueError for a model of version 0.2, which kept no rows."""
    if made.examples is None:
        raise ValueError(
            "the model was made by a version that kept no rows to compare with, so "
            "that its scores cannot be explained; fit it again"
        )


def _attributed(model, x, references, parts):
    """Gradients where they add up, else permutations."""
    if hasattr(model.objective, "init"):  # a network
        own = model.objective, model.variables
        found = attributions.integrated_gradients(*own, x, references, *parts)
        if np.abs(found.residuals).max() <= _JUMPS:
            return found, "integrated gradients"
    score = functools.partial(_evaluated, model, "score")
    found = attributions.permutations(score, x, references, *parts)
    return found, "permutations"


def prepared(scaling: preprocessings.Preprocessing, x: np.ndarray) -> np.ndarray:
    """Encoded rows as the network reads them, float32."""
    rows = preprocessings.prepared(scaling, x)
    return np.asarray(training.as_float(rows))


def _evaluated(model, name, rows):
    """A function of the objective, of prepared rows."""
    wide = getattr(model.objective, "float64", False)
    with jax.enable_x64(True) if wide else contextlib.nullcontext():
        return forward.evaluate(model.objective, name, model.variables, rows)


def _parts(model):
    """The shape of a row's parts, and the part of each prepared feature."""
    scaling, shape = model.preprocessing, tuple(model.info["shape"])
    if isinstance(scaling, columns.Columns):
        sizes = [len(column.features) for column in scaling.columns]
        return shape, np.repeat(np.arange(len(sizes)), sizes)
    if len(shape) < 3:
        return shape, np.arange(np.prod(shape))
    pixels = np.arange(np.prod(shape[:-1]))
    return shape[:-1], np.repeat(pixels, shape[-1])


def _columns(model):
    scaling, shape = model.preprocessing, model.info["shape"]
    if isinstance(scaling, columns.Columns):
        if scaling.named:
            return scaling.columns
        named = enumerate(scaling.columns)
        return tuple(dataclasses.replace(c, name=f"column {i}") for i, c in named)
    if len(shape) > 1:
        return ()
    return tuple(fields.Numeric(f"column {i}") for i in range(shape[0]))


def embedded(model: models.Model, rows: np.ndarray) -> np.ndarray:
    """Embeddings of prepared rows, or these, `[n, d]`, where a model has none."""
    if hasattr(model.objective, "embed"):
        return _evaluated(model, "embed", rows)
    return rows.reshape(len(rows), -1)


def _nearest(x, others, chosen, count):
    """The nearest of those that are chosen."""
    places = np.flatnonzero(chosen)
    squares = np.stack([np.square(others[places] - row).sum(axis=1) for row in x])
    order = np.argsort(squares, axis=1, kind="stable")[:, :count]
    return Neighbors(places[order], np.sqrt(np.take_along_axis(squares, order, axis=1)))


def _errors(model, rows, parts):
    """Squared errors of the autoencoder, summed over the features of each part."""
    base = model.base or model
    if not isinstance(base.objective, objectives.Autoencoder):
        return None
    made = _evaluated(base, "reconstruct", rows)
    errors = np.square(made - rows, dtype=np.float64)
    return attributions.grouped(errors.reshape(len(rows), -1), *parts)
