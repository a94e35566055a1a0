"""From a user's rows to what a network reads: values that travel with the model.

`auto(x)` chooses one for the training rows. Applied to NumPy arrays it works on the
host, in float64 (integers are subtracted before they are cast, so that differences
survive beyond 2^53); applied to a traced array it becomes part of the program, in
float32. All are hashable, equal by value, and exact in JSON.
"""

import dataclasses
import functools
import math
import numbers
import warnings
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deepsad_jax import checks, likeness

# Values further from a column's training minimum, in widths of its training part, would
# overflow float32 once they are squared.
_FARTHEST = 1e12
_BYTE = np.float32(1 / 255)  # XLA multiplies by this, too, where it reads / 255


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What all have in common; `kind` is its name in JSON."""

    kind: ClassVar[str] = ""

    def __call__(self, x: Any) -> Any:
        """Raw rows `[n, ...]` as float32: in NumPy, or traced if they are."""
        if isinstance(x, jax.core.Tracer):
            return self._traced(x)
        x = np.asarray(x)
        result = np.empty(x.shape, np.float32)
        with np.errstate(over="ignore"):
            for rows in checks.chunks(x):
                result[rows] = self._scaled(x[rows])
        return result

    def check(
        self, x: Any, name: str = "x", example_shape: tuple[int, ...] | None = None
    ) -> np.ndarray:
        """The rows as an array; warns if they look scaled unlike the training rows.

        Args:
            x: raw rows.
            name: what they are called, for messages.
            example_shape: that of the training rows; where None, only what the
                preprocessing knows of it is compared.

        Raises:
            ValueError: if they are not finite real numbers, of another shape, or so far
                from the training rows that float32 would overflow.
        """
        x = checks.rows(x, name)
        self.check_shape(x, name, example_shape)
        with np.errstate(over="ignore", invalid="ignore"):
            for part in checks.chunks(x):
                if self._is_far(x[part]).any():
                    checks.check_finite(x, name)
                    self._refuse_far(x, name)
        if len(x) >= likeness.FEWEST:
            unlike = self._unlike(likeness.sample(x))
            if unlike:
                warnings.warn(
                    f"{name} looks scaled in another way than the training rows: "
                    f"{unlike}; give rows as they were given in training",
                    UserWarning,
                    stacklevel=3,
                )
        return x

    def encoded(self, x: Any, name: str = "x") -> Any:
        """Rows as an array, where they are a table whose columns are known."""
        return x

    def features(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a prepared example, from that of a raw one."""
        return tuple(shape)

    def raw(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a raw example, from that of a raw or a prepared one."""
        return tuple(shape)

    def to_json(self) -> dict[str, Any]:
        """Its kind and fields, for `from_json`."""
        return {"kind": self.kind, **dataclasses.asdict(self)}

    def check_shape(self, x: Any, name: str, example_shape: Any = None) -> None:
        """Raises ValueError unless rows, or what has their shape, are of a shape."""
        if example_shape is not None and x.shape[1:] != tuple(example_shape):
            takes = ", ".join(str(side) for side in example_shape)
            raise ValueError(f"{name} has shape {x.shape}; it must be [n, {takes}]")

    def _is_far(self, x: np.ndarray) -> np.ndarray:
        return ~(np.abs(self._scaled(x)) <= _FARTHEST)

    def _refuse_far(self, x, name):
        position, number = checks.locate(x, self._is_far)
        raise ValueError(
            f"{name} has a value beyond {_FARTHEST:g} ({checks.place(position)}; "
            f"{number} such values in all); clip, rescale or remove them"
        )

    def _scaled(self, x: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _traced(self, x: jax.Array) -> jax.Array:
        raise NotImplementedError

    def _unlike(self, x: np.ndarray) -> str:
        """In which way a sample is unlike the training rows; empty if it is not."""
        return ""


@dataclasses.dataclass(frozen=True)
class Bytes(Preprocessing):
    """Images of bytes, divided by 255.

    Integers of any type are bytes; floating values must lie in [0, 1], and are taken
    as divided already.
    """

    kind: ClassVar[str] = "bytes"

    def _scaled(self, x):
        scaled = x.astype(np.float32)
        return scaled * _BYTE if x.dtype.kind in "iu" else scaled

    def _traced(self, x):
        scaled = x.astype(jnp.float32)
        return scaled * _BYTE if jnp.issubdtype(x.dtype, jnp.integer) else scaled

    def check(self, x, name="x", example_shape=None):
        x = super().check(x, name, example_shape)
        low, high = x.min(), x.max()
        most = 255 if x.dtype.kind in "iu" else 1
        if low < 0 or high > most:
            raise ValueError(
                f"{name} has values from {low} to {high}, but the training rows were "
                "bytes; give uint8, or floating values in [0, 1]"
            )
        return x


@dataclasses.dataclass(frozen=True)
class Unchanged(Preprocessing):
    """Values as they are; bytes of rank 3 and more (images) are divided by 255.

    Attributes:
        low, high: the range of the training rows, if it is known; rows that are mostly
            outside are warned of.
    """

    kind: ClassVar[str] = "unchanged"

    low: float | None = None
    high: float | None = None

    def __post_init__(self):
        known = [v for v in (self.low, self.high) if v is not None]
        if not all(checks.is_number(v) for v in known) or known != sorted(known):
            raise ValueError(
                f"low is {self.low!r} and high is {self.high!r}; they must be numbers, "
                "low <= high, or None"
            )

    def _scaled(self, x):
        scaled = x.astype(np.float32)
        return scaled * _BYTE if x.dtype == np.uint8 and x.ndim > 2 else scaled

    def _traced(self, x):
        scaled = x.astype(jnp.float32)
        return scaled * _BYTE if x.dtype == jnp.uint8 and x.ndim > 2 else scaled

    def _unlike(self, x):
        if self.low is None or self.high is None:
            return ""
        x, span = self._scaled(x), self.high - self.low
        if 0 < x.max() - x.min() < 0.01 * span:
            return "they fill less than 1 % of its range"
        outside = np.mean((x < self.low - 0.1 * span) | (x > self.high + 0.1 * span))
        if outside < 0.1:  # noise may leave the range a little
            return ""
        return f"{outside:.0%} of the values lie outside of its range"


@dataclasses.dataclass(frozen=True)
class MinMax(Preprocessing):
    """Each column (of images and series, each channel) scaled to the training's [0, 1].

    Standardizing first, as the original does, would change nothing: min-max scaling
    undoes any affine map. A constant column carries nothing, and is only shifted.

    Attributes:
        low, high: minima and maxima of the training rows, one per column.
        lower, upper: their 5th and 95th percentiles once scaled, by which rows that are
            scaled in another way are told; they change no value. Empty if unknown.
    """

    kind: ClassVar[str] = "min_max"

    low: tuple[numbers.Real, ...]
    high: tuple[numbers.Real, ...]
    lower: tuple[float, ...] = ()
    upper: tuple[float, ...] = ()

    def __post_init__(self):
        sizes = []
        for field in dataclasses.fields(self):
            values = getattr(self, field.name)
            values = tuple(values) if isinstance(values, (list, tuple)) else (None,)
            if not all(checks.is_number(value) for value in values):
                raise ValueError(
                    f"{field.name} must hold finite numbers, one per column"
                )
            object.__setattr__(self, field.name, values)
            sizes.append(len(values))
        columns, *others = sizes
        if not columns or others not in ([columns, 0, 0], [columns] * 3):
            raise ValueError("low and high must hold one number per column")
        if any(a > b for a, b in zip(self.low, self.high, strict=True)):
            raise ValueError("low must not be above high")
        for column, span in enumerate(self._span):
            if not math.isfinite(span):
                raise ValueError(
                    f"column {column} has values from {self.low[column]} to "
                    f"{self.high[column]}, too far apart for float64; rescale it"
                )

    @classmethod
    def fit(cls, x: Any, name: str = "x") -> "MinMax":
        """That of some training rows, `[n, ..., columns]` of any real dtype.

        Raises:
            ValueError: if they are not finite numbers, or too far apart.
        """
        x = checks.rows(x, name)
        flat = x.reshape(-1, x.shape[-1])
        if x.dtype.kind not in "iu":
            checks.check_finite(x, name)
        low, high = (f(flat, axis=0) for f in (np.min, np.max))
        if x.dtype.kind not in "iu":
            low, high = low.astype(np.float64), high.astype(np.float64)
        try:
            fitted = cls(tuple(low.tolist()), tuple(high.tolist()))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        return fitted.with_usual(likeness.sample(flat))

    def with_usual(self, few: np.ndarray) -> "MinMax":
        """The same with `lower` and `upper` as of a few training rows, flat."""
        ends = np.quantile(self(few), (0.05, 0.95), axis=0).tolist()
        return dataclasses.replace(self, lower=tuple(ends[0]), upper=tuple(ends[1]))

    @functools.cached_property
    def _span(self) -> np.ndarray:
        # In Python's numbers: integers are subtracted exactly.
        span = [float(b - a) for a, b in zip(self.low, self.high, strict=True)]
        return np.array([s if s > 0 else 1.0 for s in span])

    @functools.cached_property
    def _low(self) -> np.ndarray:
        return np.array(self.low, np.float64)

    def _scaled(self, x):
        if x.dtype.kind not in "iu" or x.dtype.itemsize < 8:
            return (x.astype(np.float64) - self._low) / self._span
        # Halves of 32 bits, of which float64 holds all differences.
        halves = [divmod(low, 2**32) for low in self.low]
        top, rest = np.array(halves, np.float64).T
        x = ((x >> 32) - top) * 2.0**32 + ((x & 0xFFFFFFFF) - rest)
        return x / self._span

    def _traced(self, x):
        kind = x.dtype
        wide = np.finfo(np.float64 if kind.itemsize == 8 else np.float32)
        most = wide.max / 4
        # What the first number cannot say of the minimum, the second does.
        low = np.clip(self._low, -most, most).astype(wide.dtype)
        rest = np.clip(self._low - low, -most, most).astype(wide.dtype)
        span = np.clip(self._span, wide.tiny, most).astype(wide.dtype)
        if jnp.issubdtype(kind, jnp.integer) and kind.itemsize == 4:
            part = (x & 0xFFF).astype(wide.dtype)
            x = (x - (x & 0xFFF)).astype(wide.dtype) - low  # 20 bits are left
            rest = rest - part
        else:
            x = x.astype(wide.dtype) - low
        if isinstance(rest, jax.Array) or rest.any():
            # XLA would add up both constants first.
            x = lax.optimization_barrier(x) - rest
        return (x / span).astype(jnp.float32)

    def check_shape(self, x, name, example_shape=None):
        super().check_shape(x, name, example_shape)
        if x.shape[-1] != len(self.low):
            raise ValueError(
                f"{name} has {x.shape[-1]} columns (images and series: channels); it "
                f"must have {len(self.low)}, as in training"
            )

    def _refuse_far(self, x, name):
        position, number = checks.locate(x, self._is_far)
        raise ValueError(
            f"{name} has a value too far from the training part's, which are from "
            f"{self.low[position[-1]]} to {self.high[position[-1]]} ("
            f"{checks.place(position)}; {number} in all); clip or remove such values"
        )

    def _unlike(self, x):
        rows = x.reshape(-1, x.shape[-1])
        ranges = (self.low, self.high, self.lower, self.upper)
        return likeness.unlike(rows, self._scaled(rows), *ranges, x.ndim > 2)


KINDS = {cls.kind: cls for cls in (Bytes, Unchanged, MinMax)}


def auto(x: Any, name: str = "x") -> Preprocessing:
    """What suits some training rows: `Bytes` for uint8 of rank 3 and more, `MinMax` for
    tables, `Unchanged` for other examples within [0, 1], else `MinMax` of each channel.

    Args:
        x: raw training rows, `[n, ...]`.
        name: what they are called, for messages.

    Raises:
        ValueError: if they are not finite real numbers, or too far apart for float64.
    """
    x = checks.rows(x, name)
    if x.ndim > 2 and x.dtype == np.uint8:
        return Bytes()
    if x.ndim > 2 and x.dtype.kind not in "iu" and 0 <= x.min() and x.max() <= 1:
        return Unchanged(0.0, 1.0)
    return MinMax.fit(x, name)


def standard(x: Any, name: str = "x") -> Preprocessing:
    """Columns of tables to mean 0 and deviation 1; other examples as `auto` does.

    Raises:
        ValueError: as `auto`.
    """
    if np.ndim(x) != 2:
        return auto(x, name)
    MinMax.fit(x, name)  # checks
    x = np.asarray(x, np.float64)
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    # An affine map is one, whatever its two points are called.
    made = MinMax(tuple(mean.tolist()), tuple((mean + deviation).tolist()))
    return made.with_usual(likeness.sample(x))


def of_range(rank: int, low: np.ndarray, high: np.ndarray) -> Preprocessing:
    """As `auto`, from the minima and maxima of the last axis of rows of a rank."""
    if rank > 2 and low.dtype.kind not in "iu" and low.min() >= 0 and high.max() <= 1:
        return Unchanged(0.0, 1.0)
    if low.dtype.kind not in "iu":
        low, high = low.astype(np.float64), high.astype(np.float64)
    return MinMax(tuple(low.tolist()), tuple(high.tolist()))


def prepared(preprocessing: Preprocessing, x: np.ndarray) -> np.ndarray:
    """Raw rows as they go to the device: bytes of images as they are, else float32."""
    if x.ndim > 2 and x.dtype == np.uint8 and not isinstance(preprocessing, MinMax):
        return x
    return preprocessing(x)


def from_json(content: Any) -> Preprocessing:
    """The inverse of `to_json`.

    Raises:
        ValueError: if it is not what `to_json` writes.
    """
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind == "columns":
        from deepsad_jax import columns  # which stands on this module

        return columns.Columns.from_json(content)
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(
            f"the preprocessing is of kind {kind!r}; known are {', '.join(KINDS)}"
        )
    fields = {name: value for name, value in content.items() if name != "kind"}
    names = {field.name for field in dataclasses.fields(KINDS[kind])}
    if fields.keys() != names:
        raise ValueError(
            f"the preprocessing {kind} has fields {sorted(fields)}, not {sorted(names)}"
        )
    return KINDS[kind](**fields)
