"""Tables of any kind as columns: pandas, polars, pyarrow, mappings, arrays, lists.

    frame = frames.read(table)
    frame["pressure"]             # float64, int64, uint64, bool, or texts and None

Texts are stripped; an empty one is missing. What is missing is NaN or None.
"""

import dataclasses
import datetime
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

NUMBER, BOOLEAN, TEXT, MISSING = "numbers", "booleans", "texts", "nothing"
_DATES = (datetime.date, datetime.time, datetime.timedelta, np.datetime64)
_DATES = (*_DATES, np.timedelta64)
ADVICE = "give numbers made of them, such as hours since a start or the day of the week"
WORDS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}
_NO_VALUES = ("NAType", "NaTType")  # of pandas, which need not be there


class NoValueError(ValueError, TypeError):
    """A cell holds what is neither a number, nor a text, nor a boolean."""


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """Columns of one length, in their order.

    Attributes:
        columns: float64, int64, uint64 or bool arrays, or object arrays of texts (or
            booleans) and None, by name.
        named: whether the table had names; otherwise they are "0", "1" and so on.
    """

    columns: Mapping[str, np.ndarray]
    named: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self.columns)

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(next(iter(self.columns.values()), ()))

    def __len__(self) -> int:
        return self.n_rows

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def without(self, *names: str) -> "Frame":
        """The same without some columns."""
        kept = {n: values for n, values in self.columns.items() if n not in names}
        return Frame(kept, self.named)

    def rows(self, chosen: Any) -> "Frame":
        """Some rows: a slice, row numbers or booleans."""
        return Frame({n: v[chosen] for n, v in self.columns.items()}, self.named)


def is_table(x: Any) -> bool:
    """Whether something is read as a table, and not as an array of real numbers."""
    if isinstance(x, (jax.Array, jax.core.Tracer)):
        return False
    if isinstance(x, (Frame, Mapping)) or _is_foreign(x):
        return True
    if isinstance(x, (list, tuple)):
        try:
            x = np.asarray(x)
        except ValueError:  # ragged
            return False
    kind = getattr(getattr(x, "dtype", None), "kind", "")
    return isinstance(x, np.ndarray) and kind in "OUSTVb" and not _is_real(x)


def read(table: Any, name: str = "X") -> Frame:
    """The columns of a table.

    Args:
        table: a DataFrame of pandas or polars, a table of pyarrow, a mapping from names
            to values, a structured array, or rows `[n, columns]` of any dtype.
        name: what it is called, for messages.

    Raises:
        ValueError: if it is none, or a column holds dates, lists or a mixture.
    """
    if isinstance(table, Frame):
        return table
    if hasattr(table, "toarray"):
        raise ValueError(f"{name} is a sparse matrix; give {name}.toarray()")
    if isinstance(table, np.ma.MaskedArray):
        raise ValueError(f"{name} is a masked array; give {name}.filled(np.nan)")
    if isinstance(table, Mapping):
        columns = {str(n): _column(str(n), v) for n, v in table.items()}
        return _checked(Frame(columns), name)
    if _is_foreign(table):
        return _checked(_of_foreign(table, name), name)
    rows = table
    if isinstance(rows, (list, tuple)):
        rows = _of_lists(rows, name)
    rows = np.asarray(rows)
    if rows.dtype.names:
        return _checked(Frame({n: _column(n, rows[n]) for n in rows.dtype.names}), name)
    if rows.ndim != 2:
        raise ValueError(
            f"{name} has shape {rows.shape}; it must be a table, [n, columns]. "
            "Reshape your data: [-1, 1] makes one column of it, [1, -1] one row"
        )
    columns = {str(i): _column(str(i), rows[:, i]) for i in range(rows.shape[1])}
    return _checked(Frame(columns, named=False), name)


def kind_of(values: np.ndarray) -> str:
    """What a column holds: "numbers", "booleans", "texts", or "nothing"."""
    if values.dtype.kind == "b":
        return BOOLEAN
    if values.dtype.kind != "O":
        is_empty = values.dtype.kind == "f" and np.isnan(values).all()
        return MISSING if is_empty else NUMBER
    first = next((value for value in values if value is not None), None)
    return {str: TEXT, bool: BOOLEAN}.get(type(first), MISSING)


def is_missing(values: np.ndarray) -> np.ndarray:
    """Which values of a column are missing, `[n]` bool."""
    if values.dtype.kind == "O":
        return np.fromiter((value is None for value in values), bool, len(values))
    return np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(values), bool)


def texts(values: Sequence[Any]) -> np.ndarray:
    """Stripped texts; None for empty ones."""
    found = np.empty(len(values), object)
    found[:] = [(v.strip() or None) if v is not None else None for v in values]
    return found


def words(values: np.ndarray) -> np.ndarray:
    """1 for true and yes, 0 for false and no, in any case; NaN for all else."""
    found = [WORDS.get(v.lower(), np.nan) if v else np.nan for v in values]
    return np.array(found, np.float64)


def _is_real(x: np.ndarray) -> bool:
    return x.dtype.kind in "iuf" or jnp.issubdtype(x.dtype, jnp.floating)


def _is_foreign(table: Any) -> bool:
    """Whether it may be a data frame of a package."""
    package = type(table).__module__.partition(".")[0]
    return package not in ("numpy", "builtins") and (
        hasattr(table, "__narwhals_dataframe__")
        or hasattr(table, "__narwhals_lazyframe__")
        or hasattr(table, "__dataframe__")
        or hasattr(table, "__arrow_c_stream__")
        or hasattr(table, "collect_schema")
    )


def _checked(frame: Frame, name: str) -> Frame:
    lengths = {len(values) for values in frame.columns.values()}
    if len(lengths) > 1:
        raise ValueError(
            f"the columns of {name} have from {min(lengths)} to {max(lengths)} rows; "
            "they must have the same number"
        )
    if not frame.columns:
        raise ValueError(f"{name} has no columns")
    return frame


def _of_lists(rows: Any, name: str) -> np.ndarray:
    try:
        found = np.asarray(rows)
        if found.dtype.kind in "USTO":  # numbers beside texts would become texts
            found = np.array(rows, dtype=object)
    except ValueError as error:
        raise ValueError(f"the rows of {name} are of unlike length") from error
    return found


def _of_foreign(table: Any, name: str) -> Frame:
    import narwhals.stable.v2 as nw

    try:
        frame = nw.from_native(table)
        if isinstance(frame, nw.LazyFrame):
            frame = frame.collect()
        series = list(frame.iter_columns())
    except Exception as error:  # each package has its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name} is not a table that can be read: {reason}") from error
    given = [column.name for column in series]
    named = all(isinstance(n, str) for n in given)
    if not named and any(isinstance(n, str) for n in given):
        raise ValueError(
            f"{name} has column names that are texts, and others that are not, such as "
            f"{next(n for n in given if not isinstance(n, str))!r}; make all texts"
        )
    names = given if named else [str(i) for i in range(len(given))]
    found = {n: _of_series(n, c) for n, c in zip(names, series, strict=True)}
    return Frame(found, named)


def _of_series(name: str, series: Any) -> np.ndarray:
    import narwhals.stable.v2 as nw

    kind = series.dtype
    missing = np.asarray(series.is_null().to_numpy(), bool)
    if missing.all():
        return np.full(len(series), np.nan)
    if kind.is_integer() and not missing.any():
        return _integers(np.asarray(series.to_numpy()))
    if kind.is_numeric():
        values = np.array(series.cast(nw.Float64).to_numpy(), np.float64)
        values[missing] = np.nan
        if kind.is_integer():
            _check_exact(name, values)
        return values
    if kind == nw.Boolean and not missing.any():
        return np.asarray(series.to_numpy(), bool)
    if kind == nw.Boolean:
        return _objects(name, series.to_list(), missing)
    if kind in (nw.String, nw.Categorical, nw.Enum):
        given = series.cast(nw.String).to_list()
        return texts([None if m else v for v, m in zip(given, missing, strict=True)])
    if kind == nw.Object:
        return _objects(name, series.to_list(), missing)
    if kind.is_temporal():
        raise ValueError(f"column {name!r} holds dates or times ({kind}); {ADVICE}")
    raise ValueError(
        f"column {name!r} holds values of type {kind}; it must hold numbers, booleans "
        "or texts"
    )


def _column(name: str, values: Any) -> np.ndarray:
    for method in ("to_list", "to_pylist"):  # of pandas and polars, of pyarrow
        if hasattr(values, method):
            values = getattr(values, method)()
    if isinstance(values, jax.Array):
        values = np.asarray(values)
    if not isinstance(values, np.ndarray):
        listed = list(values)
        values = np.empty(len(listed), object)
        values[:] = listed
    if values.ndim != 1:
        raise ValueError(f"column {name!r} has shape {values.shape}; it must be [n]")
    if values.dtype.kind in "mM":
        raise ValueError(f"column {name!r} holds dates or times; {ADVICE}")
    if values.dtype.kind == "b":
        return values
    if values.dtype.kind in "iu":
        return _integers(values)
    if _is_real(values):
        return values.astype(np.float64)
    if values.dtype.kind in "UT":
        return texts([str(value) for value in values])
    if values.dtype.kind == "c":
        raise ValueError(
            f"column {name!r} holds complex numbers. Complex data not supported"
        )
    return _objects(name, values.tolist())


def _integers(values: np.ndarray) -> np.ndarray:
    return values.astype(np.uint64 if values.dtype.kind == "u" else np.int64)


def _check_exact(name: str, values: np.ndarray) -> None:
    with np.errstate(invalid="ignore"):
        if (np.abs(values) > 2**53).any():
            raise ValueError(
                f"column {name!r} holds integers beyond 2^53 and missing ones, or "
                "beyond 2^63; subtract an offset"
            )


def _objects(name: str, values: list, missing: Any = None) -> np.ndarray:
    """A column of Python's objects, by what they are."""
    kinds = {kind: _kind_of_type(name, kind) for kind in set(map(type, values))}
    if missing is None:
        missing = [kinds[type(v)] is None or v != v for v in values]
    rest = [v for v, m in zip(values, missing, strict=True) if not m]
    found = {kinds[type(value)] for value in rest}
    if not found:
        return np.full(len(values), np.nan)
    if len(found) > 1:
        examples = [next(v for v in rest if kinds[type(v)] == k) for k in sorted(found)]
        shown = " and ".join(
            f"{k} ({v!r})" for k, v in zip(sorted(found), examples, strict=True)
        )
        raise ValueError(f"column {name!r} holds {shown}; make all of one kind")
    (kind,) = found
    if kind == NUMBER:
        is_whole = all(isinstance(v, numbers.Integral) for v in rest)
        if is_whole and len(rest) == len(values) and max(map(abs, rest)) < 2**63:
            return np.array(values, np.int64)
        filled = zip(values, missing, strict=True)
        try:
            result = np.array([np.nan if m else float(v) for v, m in filled])
        except OverflowError as error:
            raise ValueError(
                f"column {name!r} holds numbers beyond float64; rescale it"
            ) from error
        if is_whole:
            _check_exact(name, result)
        return result
    if kind == TEXT:
        filled = zip(values, missing, strict=True)
        return texts([None if m else str(v) for v, m in filled])
    if not any(missing):
        return np.array(values, bool)
    result = np.empty(len(values), object)
    filled = zip(values, missing, strict=True)
    result[:] = [None if m else bool(v) for v, m in filled]
    return result


def _kind_of_type(name: str, kind: type) -> str | None:
    if kind is type(None) or kind.__name__ in _NO_VALUES:
        return None
    if issubclass(kind, (bool, np.bool_)):
        return BOOLEAN
    if issubclass(kind, _DATES) or kind.__name__ == "Timestamp":
        raise ValueError(f"column {name!r} holds dates or times; {ADVICE}")
    if issubclass(kind, str):
        return TEXT
    if issubclass(kind, numbers.Real) or kind.__name__ == "Decimal":
        return NUMBER
    raise NoValueError(
        f"column {name!r} holds a {kind.__name__}, but each argument must be a string "
        "or a number"
    )
