"""What becomes of one column of a table: numbers, booleans, texts, or nothing.

Each knows how values are encoded as float64, with NaN for what is missing, and which
features they become; `columns` computes these.
"""

import dataclasses
import math
from typing import Any, ClassVar

import numpy as np

from deepsad_jax.data import frames

_NAMED = 3  # usual values that are named
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
                f"column {self.name!r} holds {found} ({_shown(values, row)} in row "
                f"{row}); it must hold {self.holds}, as in training"
            )
        return self._encoded(values)

    def accepts(self, kind: str) -> bool:
        """Whether values of a kind can be encoded."""
        return kind == self.holds

    def _encoded(self, values: np.ndarray) -> np.ndarray:
        return values.astype(np.float64)

    def to_json(self) -> dict[str, Any]:
        """Its kind and fields, for `from_json`."""
        return {"kind": self.kind, **dataclasses.asdict(self)}

    def shown(self, value: float) -> str:
        """An encoded value as a person writes it."""
        return "missing" if np.isnan(value) else self._shown(value)

    def _shown(self, value: float) -> str:
        return f"{value:.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"

    def usual(self, values: np.ndarray) -> str:
        """What most encoded values are: the most frequent ones, nine tenths of all."""
        found, counts = np.unique(values, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        enough = int(np.argmax(np.cumsum(counts[order]) >= 0.9 * len(values))) + 1
        named = [self.shown(value) for value in found[order[: min(enough, _NAMED)]]]
        named = [f"{text!r}" if "," in text else text for text in named]
        if enough > _NAMED:
            named.append(f"{enough - _NAMED} more")
        return " or ".join(filter(None, [", ".join(named[:-1]), named[-1]]))

    @property
    def allowed(self) -> str:
        """What encoded values may be, behind one that may not."""
        return f"which is not a code of {self.holds}"

    def is_bad(self, values: np.ndarray) -> np.ndarray:
        """Which encoded values cannot be, or are too far from those of training."""
        raise NotImplementedError


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

    def usual(self, values):
        known = values[~np.isnan(values)]
        if 2 * len(known) <= len(values):
            return self.shown(np.nan)
        low, high = map(self.shown, np.quantile(known, (0.05, 0.95)))
        return low if low == high else f"{low} to {high}"

    @property
    def allowed(self) -> str:
        return (
            f"too far from the training part's, which are from {self.low:g} to "
            f"{self.high:g}; clip or remove such values"
        )

    def is_bad(self, values):
        span = (self.high - self.low) or 1.0
        return np.abs((values - self.low) / span) > _FARTHEST


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
                f"column {self.name!r} has {_shown(values, row)} in row {row}; it "
                "must hold booleans, as in training"
            )
        return found

    def _shown(self, value):
        return "true" if value else "false"

    def is_bad(self, values):
        return ~np.isnan(values) & (values != 0) & (values != 1)

    def prepared(self, values: Any, xp: Any) -> Any:
        """Encoded values as features without the last, in NumPy or traced."""
        return xp.where(xp.isnan(values), self.fill, values)[:, None]


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

    def _shown(self, value):
        return self.levels[int(value)] if value >= 0 else "a text never seen before"

    def is_bad(self, values):
        is_code = (values >= -1) & (values < len(self.levels))
        return ~np.isnan(values) & ~(is_code & (values == np.floor(values)))

    def prepared(self, values: Any, xp: Any) -> Any:
        """Encoded values as features without the last, in NumPy or traced."""
        if not self.frequencies:
            return values[:, None] == np.arange(len(self.levels))
        codes = xp.where(xp.isnan(values), -1, values).astype(np.int32)
        return xp.asarray((*self.frequencies, 0.0))[codes][:, None]  # -1 is the last


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

    def is_bad(self, values):
        return np.zeros(len(values), bool)


KINDS = {cls.kind: cls for cls in (Numeric, Boolean, Categorical, Dropped)}


def from_json(content: Any) -> Column:
    """The inverse of `Column.to_json`.

    Raises:
        ValueError: if it is not what that writes.
    """
    fields = dict(content) if isinstance(content, dict) else {}
    kind = fields.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"a column is of kind {kind!r}; known are {', '.join(KINDS)}")
    if fields.keys() != {field.name for field in dataclasses.fields(KINDS[kind])}:
        raise ValueError(f"a column of kind {kind} has other fields: {list(fields)}")
    return KINDS[kind](**fields)


def _shown(values: np.ndarray, row: int) -> str:
    return repr(values[row : row + 1].tolist()[0])
