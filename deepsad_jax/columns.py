"""Preprocessing of tables whose columns are numbers, booleans and texts.

`tables.learn(X)` makes a `Columns` of training rows. A table is encoded first, on the
host: `[n, columns]` float64, with texts as the numbers of their levels (-1 is a text
that training did not see) and NaN for what is missing. Encoded rows become features
`[n, features]` float32, in NumPy, or as a part of the program where they are traced.
"""

import dataclasses
import functools
import math
import warnings
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from deepsad_jax import checks, preprocessing
from deepsad_jax.data import frames

_FARTHEST = 1e12  # in widths of the training part, as for `preprocessing.MinMax`


@dataclasses.dataclass(frozen=True)
class Column:
    """What all kinds have in common.

    Attributes:
        name: of the column.
        missing: whether values were missing in training, which a feature tells then.
    """

    kind: ClassVar[str] = ""
    holds: ClassVar[str] = ""

    name: str
    missing: bool = False

    def __post_init__(self):
        if not isinstance(self.name, str) or not isinstance(self.missing, bool):
            raise ValueError("a column has a name and is or is not missing")

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that become of it."""
        return (self.name, *self._indicator)

    @property
    def _indicator(self) -> tuple[str, ...]:
        return (f"{self.name} is missing",) if self.missing else ()

    def encode(self, values: np.ndarray) -> np.ndarray:
        """A column of a frame as `[n]` float64; raises ValueError for other kinds."""
        found = frames.kind_of(values)
        if found == frames.MISSING:
            return np.full(len(values), np.nan)
        if not self.accepts(found):
            row = int(np.argmin(frames.is_missing(values)))
            raise ValueError(
                f"column {self.name!r} holds {found} ({values[row]!r} in row {row}); "
                f"it must hold {self.holds}, as in training"
            )
        return self._encoded(values)

    def accepts(self, kind: str) -> bool:
        """Whether values of a kind can be encoded."""
        return kind == self.holds

    def _encoded(self, values: np.ndarray) -> np.ndarray:
        return values.astype(np.float64)


@dataclasses.dataclass(frozen=True)
class Numeric(Column):
    """Numbers, scaled to the training's [0, 1].

    Standardizing first, as the original does, would change nothing.

    Attributes:
        low, high: the range in training.
        fill: its median, which stands for what is missing.
        lower, upper: 5th and 95th percentile once scaled to [0, 1], by which rows that
            are scaled in another way are told.
        center, width: median and interquartile range z = (x - center) / width of the
            robust scaling 0.5 + 0.5 z / (2 + |z|), or None.
    """

    kind: ClassVar[str] = "numeric"
    holds: ClassVar[str] = frames.NUMBER

    low: float = 0.0
    high: float = 1.0
    fill: float = 0.0
    lower: float = 0.0
    upper: float = 1.0
    center: float | None = None
    width: float | None = None

    def __post_init__(self):
        super().__post_init__()
        own = (self.low, self.high, self.fill, self.lower, self.upper)
        robust = (self.center, self.width)
        is_robust = robust != (None, None)
        own = own + robust if is_robust else own
        if not all(type(v) is float and math.isfinite(v) for v in own):
            raise ValueError(f"column {self.name!r} needs finite numbers")
        if self.low > self.high or (is_robust and self.width <= 0):
            raise ValueError(f"column {self.name!r} has a range below 0")


@dataclasses.dataclass(frozen=True)
class Boolean(Column):
    """Booleans, or the words true, false, yes and no.

    Attributes:
        fill: the more frequent one, which stands for what is missing.
    """

    kind: ClassVar[str] = "boolean"
    holds: ClassVar[str] = frames.BOOLEAN

    fill: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.fill not in (0.0, 1.0):
            raise ValueError(f"column {self.name!r} must be filled with 0 or 1")

    def accepts(self, kind: str) -> bool:
        return True

    def _encoded(self, values):
        kind = frames.kind_of(values)
        if kind == frames.TEXT:
            found = frames.words(values)
        elif kind == frames.BOOLEAN and values.dtype.kind == "O":
            found = np.array([np.nan if v is None else float(v) for v in values])
        else:
            found = values.astype(np.float64)
        strange = ~np.isin(found, (0.0, 1.0)) & ~frames.is_missing(values)
        if strange.any():
            row = int(np.argmax(strange))
            raise ValueError(
                f"column {self.name!r} has {values[row]!r} in row {row}; it must hold "
                "booleans, as in training"
            )
        return found


@dataclasses.dataclass(frozen=True)
class Categorical(Column):
    """Texts, one feature each; of many, one feature, the text's relative frequency.

    Attributes:
        levels: the texts of training, in their order.
        frequencies: of each, 1 for the most frequent one; empty where each has a
            feature of its own.
    """

    kind: ClassVar[str] = "categorical"
    holds: ClassVar[str] = frames.TEXT

    levels: tuple[str, ...] = ()
    frequencies: tuple[float, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        for field in ("levels", "frequencies"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        is_text = all(isinstance(level, str) for level in self.levels)
        if not is_text or len(set(self.levels)) < max(1, len(self.levels)):
            raise ValueError(f"column {self.name!r} must have levels, texts")
        if self.frequencies and not (
            len(self.frequencies) == len(self.levels)
            and all(type(f) is float and 0 <= f <= 1 for f in self.frequencies)
        ):
            raise ValueError(f"column {self.name!r} must have a frequency for each")

    @property
    def features(self) -> tuple[str, ...]:
        if self.frequencies:
            return (f"{self.name} is frequent", *self._indicator)
        return (*(f"{self.name} = {level}" for level in self.levels), *self._indicator)

    def _encoded(self, values):
        numbers = {level: float(i) for i, level in enumerate(self.levels)}
        numbers[None] = np.nan
        return np.array([numbers.get(value, -1.0) for value in values])


@dataclasses.dataclass(frozen=True)
class Dropped(Column):
    """A column that carries nothing; it may be absent, and hold what it likes.

    Attributes:
        reason: why, to be read behind its name.
    """

    kind: ClassVar[str] = "dropped"
    holds: ClassVar[str] = frames.MISSING

    reason: str = ""

    @property
    def features(self) -> tuple[str, ...]:
        return ()

    def encode(self, values):
        return np.zeros(len(values))


KINDS = {cls.kind: cls for cls in (Numeric, Boolean, Categorical, Dropped)}


@dataclasses.dataclass(frozen=True)
class Columns(preprocessing.Preprocessing):
    """The preprocessing of a table.

    Attributes:
        columns: what becomes of each column, in the order of training.
        named: whether columns are known by their names, or by their order.
    """

    kind: ClassVar[str] = "columns"

    columns: tuple[Column, ...]
    named: bool = True

    def __post_init__(self):
        object.__setattr__(self, "columns", tuple(self.columns))
        names = [column.name for column in self.columns]
        if len(set(names)) < len(names):
            raise ValueError("two columns have the same name")
        if not self.feature_names:
            raise ValueError("no column carries anything")

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.columns, self.named))

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Columns":
        """The inverse of `to_json`."""
        if content.keys() != {"kind", "columns", "named"}:
            raise ValueError("the preprocessing columns has other fields")
        found = []
        for fields in content["columns"]:
            kind, *_ = (fields := dict(fields)).pop("kind"), None
            if kind not in KINDS:
                raise ValueError(f"a column is of kind {kind!r}")
            try:
                found.append(KINDS[kind](**fields))
            except TypeError as error:
                raise ValueError(f"a column has other fields: {error}") from error
        return cls(tuple(found), bool(content["named"]))

    def to_json(self) -> dict[str, Any]:
        described = [{"kind": c.kind, **dataclasses.asdict(c)} for c in self.columns]
        return {"kind": self.kind, "columns": described, "named": self.named}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(column.name for column in self.columns)

    @property
    def kinds(self) -> dict[str, str]:
        """What the columns hold that are not dropped, by name."""
        kept = (c for c in self.columns if not isinstance(c, Dropped))
        return {column.name: column.holds for column in kept}

    @functools.cached_property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the features."""
        return tuple(name for column in self.columns for name in column.features)

    def features(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (len(self.feature_names),)

    def raw(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (len(self.columns),)

    def encode(self, table: Any, name: str = "x") -> np.ndarray:
        """A table as `[n, columns]` float64.

        Args:
            table: whatever `frames.read` takes; columns with names in any order.
            name: what it is called, for messages.

        Raises:
            ValueError: if columns are missing, surplus or of another type.
        """
        frame = frames.read(table, name)
        if not frame.n_rows:
            raise ValueError(f"{name} has no rows")
        order = self._order(frame, name)
        result = np.zeros((frame.n_rows, len(self.columns)))
        for i, column in enumerate(self.columns):
            if order[i] is None:
                continue
            try:
                result[:, i] = column.encode(frame[order[i]])
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        return result

    def _order(self, frame, name):
        """For each column its name in a frame; None if it is not there."""
        if not (self.named and frame.named):
            if len(frame.columns) != len(self.columns):
                raise ValueError(
                    f"{name} has {len(frame.columns)} columns; it must have "
                    f"{len(self.columns)}, as in training"
                )
            return frame.names
        needed = self.kinds
        absent = [n for n in needed if n not in frame.columns]
        surplus = [n for n in frame.names if n not in self.names]
        if absent or surplus:
            found = [f"has no column {_listed(absent)}"] if absent else []
            found += [f"has a column {_listed(surplus)} too many"] if surplus else []
            raise ValueError(
                f"{name} {' and '.join(found)}; it must have the columns of training"
            )
        return tuple(n if n in frame.columns else None for n in self.names)

    def check(self, x, name="x", example_shape=None):
        """Encoded rows, of a table or of encoded rows.

        Warns of texts that training did not see, and of values that are missing where
        they never were in training; `strange` counts them.

        Raises:
            ValueError: if they are no rows of the training's columns, or too far from
                them.
        """
        if frames.is_table(x):
            x = self.encode(x, name)
        x = checks.rows(x, name)
        self.check_shape(x, name, example_shape)
        for part in checks.chunks(x):
            self._check_values(x[part], name, part.start)
        counts = [
            f"{unseen} of {column!r} {what}"
            for what, number in (("not seen in training", 0), ("missing", 1))
            for column, pair in self.strange(x).items()
            if (unseen := pair[number])
        ]
        if counts:
            warnings.warn(
                f"{name} has values unlike those of training, which count as the most "
                f"usual: {_joined(counts)}",
                UserWarning,
                stacklevel=3,
            )
        if len(x) >= 8 and self._ranges is not None:
            sample = preprocessing.sample(x)[:, self._numeric]
            fill = self._ranges_fill
            unlike = self._ranges._unlike(np.where(np.isnan(sample), fill, sample))
            if unlike:
                warnings.warn(
                    f"{name} looks scaled in another way than the training rows: "
                    f"{unlike}; give rows as they were given in training",
                    UserWarning,
                    stacklevel=3,
                )
        return x

    def check_shape(self, x, name, example_shape=None):
        if x.ndim != 2 or x.shape[1] != len(self.columns):
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}; it must be [n, "
                f"{len(self.columns)}], the columns of training"
            )

    def strange(self, x: np.ndarray) -> dict[str, tuple[int, int]]:
        """How many values of encoded rows training did not see, and how many are
        missing where they never were, by column; only those with any."""
        unseen, missing = (x == -1).sum(axis=0), np.isnan(x).sum(axis=0)
        found = {}
        for i, column in enumerate(self.columns):
            is_text = isinstance(column, Categorical)
            pair = is_text * int(unseen[i]), (not column.missing) * int(missing[i])
            if any(pair) and not isinstance(column, Dropped):
                found[column.name] = pair
        return found

    def _check_values(self, x, name, start):
        for i, column in enumerate(self.columns):
            values = x[:, i]
            if isinstance(column, Numeric):
                span = (column.high - column.low) or 1.0
                with np.errstate(over="ignore", invalid="ignore"):
                    bad = np.abs((values - column.low) / span) > _FARTHEST
                why = (
                    "too far from the training part's, which are from "
                    f"{column.low:g} to {column.high:g}"
                )
            elif isinstance(column, Dropped):
                continue
            else:
                most = len(column.levels) if isinstance(column, Categorical) else 2
                least = -isinstance(column, Categorical)
                codes = np.arange(least, most)
                bad, why = ~np.isin(values, codes), f"not the code of {column.holds}"
                bad &= ~np.isnan(values)
            if bad.any():
                row = int(np.argmax(bad))
                raise ValueError(
                    f"{name} contains {values[row]} (row {start + row}, column "
                    f"{column.name!r}), {why}"
                )

    def __call__(self, x):
        if isinstance(x, jax.core.Tracer):
            return self._traced(x)
        if frames.is_table(x):
            x = self.encode(x)
        x = np.asarray(x)
        result = np.empty((len(x), len(self.feature_names)), np.float32)
        for rows in checks.chunks(x):
            for places, values in self._parts(x[rows].astype(np.float64), np):
                result[rows, places] = values
        return result

    def _traced(self, x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            x = x.astype(jnp.float32)
        parts = list(self._parts(x, jnp))
        order = np.argsort(np.concatenate([places for places, _ in parts]))
        parts = [values.astype(jnp.float32) for _, values in parts]
        return jnp.concatenate(parts, axis=1)[:, order]

    def _parts(self, x, xp):
        """Places of features, and their values, in NumPy or traced."""
        starts = self._starts
        if self._ranges is not None:
            rows = x[:, self._numeric]
            filled = xp.where(xp.isnan(rows), self._ranges_fill.astype(x.dtype), rows)
            yield starts[self._numeric], self._numbers(filled, xp)
        for i, column in enumerate(self.columns):
            values, place = x[:, i], starts[i]
            if isinstance(column, Boolean):
                filled = xp.where(xp.isnan(values), column.fill, values)
                yield np.array([place]), filled[:, None]
            elif isinstance(column, Categorical) and column.frequencies:
                codes = xp.where(xp.isnan(values), -1, values).astype(np.int32)
                table = xp.asarray((*column.frequencies, 0.0))  # -1 is the last
                yield np.array([place]), table[codes][:, None]
            elif isinstance(column, Categorical):
                levels = np.arange(len(column.levels))
                yield place + levels, values[:, None] == levels
        gaps = np.array([i for i, c in enumerate(self.columns) if c.missing], int)
        if len(gaps):
            ends = np.array([starts[i] + len(self.columns[i].features) for i in gaps])
            yield ends - 1, xp.isnan(x[:, gaps])

    def _numbers(self, x, xp):
        columns = [c for c in self.columns if isinstance(c, Numeric)]
        if xp is np:
            scaled = self._ranges._scaled(x)
        else:
            scaled = self._ranges._traced(x)
        robust = np.array([c.center is not None for c in columns])
        if not robust.any():
            return scaled
        center = np.array([c.center or 0.0 for c in columns], x.dtype)
        width = np.array([c.width or 1.0 for c in columns], x.dtype)
        z = (x - center) / width
        return xp.where(robust, 0.5 + 0.5 * z / (2 + xp.abs(z)), scaled)

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        sizes = [len(column.features) for column in self.columns]
        return np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(int)

    @functools.cached_property
    def _numeric(self) -> np.ndarray:
        return np.array(
            [i for i, c in enumerate(self.columns) if isinstance(c, Numeric)], int
        )

    @functools.cached_property
    def _ranges(self) -> preprocessing.MinMax | None:
        found = [c for c in self.columns if isinstance(c, Numeric)]
        if not found:
            return None
        fields = ("low", "high", "lower", "upper")
        return preprocessing.MinMax(
            *(tuple(getattr(c, field) for c in found) for field in fields)
        )

    @functools.cached_property
    def _ranges_fill(self) -> np.ndarray:
        return np.array([c.fill for c in self.columns if isinstance(c, Numeric)])


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:5]))
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


def _joined(counts: list[str]) -> str:
    return ", ".join(counts[:5]) + (", ..." if len(counts) > 5 else "")
