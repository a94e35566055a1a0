"""What a user calls an array, as one; whatever it lacks is said in a sentence."""

import inspect
import numbers
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_CHUNK = 2**20  # values that are looked at at once
# More epochs would be a mistake, and what is recorded of them would fill the memory.
MOST_EPOCHS = 1_000_000


def unmasked(name: str, values: Any) -> np.ndarray:
    """Values as an array.

    Raises:
        ValueError: if NumPy can make none of them, or some of them are masked.
    """
    if isinstance(values, jax.core.Tracer):
        raise ValueError(f"{name} is traced by jit, vmap or grad; it must be an array")
    if isinstance(values, np.ma.MaskedArray):
        if np.ma.is_masked(values):
            raise ValueError(
                f"{name} has {int(np.ma.count_masked(values))} masked values; fill or "
                "remove them"
            )
        return np.asarray(values.data)
    try:
        return np.asarray(values)
    except Exception as error:  # ragged lists, and whatever else is not an array
        raise ValueError(f"{name} is not an array of numbers") from error


def rows(x: Any, name: str = "x") -> np.ndarray:
    """Raw rows as a NumPy array `[n, ...]` of real numbers.

    Raises:
        ValueError: if they are none: of another type or rank, empty, or masked.
    """
    if hasattr(x, "toarray"):
        raise ValueError(f"{name} is a sparse matrix; give {name}.toarray()")
    x = unmasked(name, x)
    is_real = x.dtype.kind in "iuf" or jnp.issubdtype(x.dtype, jnp.floating)
    if x.ndim < 2 or not x.size or not is_real:
        raise ValueError(
            f"{name} has shape {x.shape} and dtype {x.dtype}; it must hold real numbers"
            ", [n, columns] or [n, ..., channels], and not be empty"
        )
    return x


def check_finite(x: np.ndarray, name: str = "x") -> None:
    """Raises ValueError that says where, if some values are NaN or infinite."""
    if x.dtype.kind in "iu":
        return
    found = locate(x, lambda part: ~np.isfinite(part.astype(np.float64)))
    if found:
        position, number = found
        raise ValueError(
            f"{name} contains {x[position]} ({place(position)}; {number} such values "
            "in all); remove or impute them"
        )


def chunks(x: np.ndarray) -> Iterator[slice]:
    """Slices of rows that hold about a million values."""
    step = max(1, _CHUNK * len(x) // max(1, x.size))
    return (slice(start, start + step) for start in range(0, len(x), step))


def locate(
    x: np.ndarray, is_bad: Callable[[np.ndarray], np.ndarray]
) -> tuple[tuple[int, ...], int] | None:
    """The first bad value's position, and how many there are."""
    first, number = None, 0
    with np.errstate(over="ignore", invalid="ignore"):
        for part in chunks(x):
            bad = is_bad(x[part])
            if first is None and bad.any():
                row, *rest = (int(i) for i in np.argwhere(bad)[0])
                first = (part.start + row, *rest)
            number += int(bad.sum())
    return None if first is None else (first, number)


def place(position: tuple[int, ...]) -> str:
    """A position in words."""
    if len(position) == 2:
        return f"row {position[0]}, column {position[1]}"
    return f"row {position[0]}, at {list(position[1:])}"


def is_number(value: Any) -> bool:
    """Whether a value is a finite number of Python's, no larger than arrays hold."""
    most = 2**64 if type(value) is int else sys.float_info.max
    return type(value) in (int, float) and abs(value) <= most


def is_number_like(value: Any) -> bool:
    """Whether it is one real number, of Python's or of an array without axes."""
    if getattr(value, "ndim", None) == 0:
        return value.dtype.kind in "iuf"
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def takes_rate(function: Callable) -> bool:
    """Whether it would take the number of steps for a learning rate: `optax.adam`."""
    try:
        return "learning_rate" in [*inspect.signature(function).parameters][:1]
    except (TypeError, ValueError):
        return False


def is_finite(value: Any) -> bool:
    """Whether it is a number that float32 holds."""
    most = float(np.finfo(np.float32).max)
    return isinstance(value, numbers.Real) and abs(value) <= most


def is_count(value: Any, least: int = 0, most: int = MOST_EPOCHS) -> bool:
    """Whether it is an integer of a range."""
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return is_integer and least <= value <= most


def require(name: str, value: Any, valid: bool, allowed: str) -> None:
    """Raises ValueError that says what is allowed, unless a value is valid."""
    if not valid:
        raise ValueError(f"{name} is {value!r}; it must be {allowed}")
