"""Preprocessing of tables whose columns are numbers, booleans and texts.

`tables.learn(X)` makes a `Columns` of training rows. A table is encoded first, on the
host: `[n, columns]` float64, with texts as the numbers of their levels (-1 is a text
that training did not see) and NaN for what is missing. Encoded rows become features
`[n, features]` float32, in NumPy, or as a part of the program where they are traced.
"""

import dataclasses
import functools
import warnings
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from deepsad_jax import checks, fields, likeness, preprocessing
from deepsad_jax.data import frames

# How warnings of what training never had begin, behind the name of the rows.
UNLIKE = "has values that training never had"


@dataclasses.dataclass(frozen=True)
class Columns(preprocessing.Preprocessing):
    """The preprocessing of a table.

    Attributes:
        columns: what becomes of each column, in the order of training.
        named: whether columns are known by their names, or by their order.
    """

    kind: ClassVar[str] = "columns"

    columns: tuple[fields.Column, ...]
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

    def __getstate__(self) -> dict[str, Any]:
        # Hashes of texts are others in another process.
        return {"columns": self.columns, "named": self.named}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Columns":
        """The inverse of `to_json`."""
        if content.keys() != {"kind", "columns", "named"}:
            raise ValueError("the preprocessing columns has other fields")
        found = [fields.from_json(described) for described in content["columns"]]
        return cls(tuple(found), bool(content["named"]))

    def to_json(self) -> dict[str, Any]:
        described = [column.to_json() for column in self.columns]
        return {"kind": self.kind, "columns": described, "named": self.named}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(column.name for column in self.columns)

    @property
    def kinds(self) -> dict[str, str]:
        """What the columns hold that are not dropped, by name."""
        kept = (c for c in self.columns if not isinstance(c, fields.Dropped))
        return {column.name: column.holds for column in kept}

    @functools.cached_property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the features."""
        return tuple(name for column in self.columns for name in column.features)

    def features(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (len(self.feature_names),)

    def raw(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (len(self.columns),)

    def encoded(self, x, name="x"):
        return self.encode(x, name) if frames.is_table(x) else x

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
        """Encoded rows, of a table or as they are.

        Warns of texts that training did not have, and of values that are missing where
        none was; `strange` counts them.

        Raises:
            ValueError: if they are not rows of the training's columns, or too far from
                them.
        """
        x = checks.rows(self.encoded(x, name), name)
        self.check_shape(x, name, example_shape)
        for part in checks.chunks(x):
            self._check_values(x[part], name, part.start)
        if said := self.said_of(self.strange(x)):
            warnings.warn(f"{name} {UNLIKE}: {said}", UserWarning, stacklevel=3)
        if len(x) >= likeness.FEWEST and (unlike := self._unlike(likeness.sample(x))):
            warnings.warn(
                f"{name} looks scaled in another way than the training rows: {unlike}; "
                "give rows as they were given in training",
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
        """What training never had.

        Args:
            x: encoded rows.

        Returns:
            How many texts are unknown, and how many values are missing where none was,
            by column; only those with any.
        """
        unseen, missing = (x == -1).sum(axis=0), np.isnan(x).sum(axis=0)
        found = {}
        for i, column in enumerate(self.columns):
            unknown = int(unseen[i]) if isinstance(column, fields.Categorical) else 0
            gaps = 0 if column.missing else int(missing[i])
            if (unknown or gaps) and not isinstance(column, fields.Dropped):
                found[column.name] = unknown, gaps
        return found

    def said_of(self, strange: dict[str, tuple[int, int]]) -> str:
        """The same in words; empty if there is nothing of the kind."""
        parts = []
        for name, (unknown, gaps) in strange.items():
            if unknown:
                texts = "text" if unknown == 1 else "texts"
                parts.append(f"{unknown} unknown {texts} in column {name!r}")
            if gaps:
                parts.append(
                    f"{gaps} missing in column {name!r}, for which its usual one counts"
                )
        more = f" and {len(parts) - 5} more such columns" if len(parts) > 5 else ""
        return ", ".join(parts[:5]) + more

    def _check_values(self, x, name, start):
        for i, column in enumerate(self.columns):
            values = x[:, i]
            with np.errstate(over="ignore", invalid="ignore"):
                bad = column.is_bad(values)
            if bad.any():
                row = int(np.argmax(bad))
                raise ValueError(
                    f"{name} contains {values[row]} (row {start + row}, column "
                    f"{column.name!r}), {column.allowed}"
                )

    def _unlike(self, x):
        if self._ranges is None:
            return ""
        z = self._ranges._scaled(rows := self._filled(x, np))
        lower, upper = self._ranges.lower, self._ranges.upper
        return likeness.unlike(
            rows, z, self._ranges.low, self._ranges.high, lower, upper
        )

    def __call__(self, x):
        if isinstance(x, jax.core.Tracer):
            return self._traced(x)
        x = np.asarray(self.encoded(x))
        result = np.empty((len(x), len(self.feature_names)), np.float32)
        for rows in checks.chunks(x):
            for places, values in self._parts(x[rows].astype(np.float64), np):
                result[rows, places] = values
        return result

    def _traced(self, x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            x = x.astype(jnp.float32)
        parts = list(self._parts(x, jnp))
        places = np.concatenate([places for places, _ in parts])
        order = np.argsort(places).astype(np.int32)
        values = [values.astype(jnp.float32) for _, values in parts]
        return jnp.concatenate(values, axis=1)[:, order]

    def _parts(self, x, xp):
        """Places of features, and their values, in NumPy or traced."""
        if self._ranges is not None:
            yield self._starts[self._numeric], self._numbers(self._filled(x, xp), xp)
        for i, column in enumerate(self.columns):
            if isinstance(column, (fields.Boolean, fields.Categorical)):
                values = column.prepared(x[:, i], xp)
                yield self._starts[i] + np.arange(values.shape[1]), values
        gaps = [i for i, c in enumerate(self.columns) if c.missing]
        if gaps:
            sizes = np.array([len(self.columns[i].features) for i in gaps])
            gaps = np.array(gaps, np.int32)
            yield self._starts[gaps] + sizes - 1, xp.isnan(x[:, gaps])

    def _filled(self, x, xp):
        """The columns of numbers, without gaps."""
        rows, fill = x[:, self._numeric], [c.fill for c in self._numbered]
        return xp.where(xp.isnan(rows), np.array(fill, x.dtype), rows)

    def _numbers(self, x, xp):
        scaled = self._ranges._scaled(x) if xp is np else self._ranges._traced(x)
        robust = np.array([c.center is not None for c in self._numbered])
        if not robust.any():
            return scaled
        center = np.array([c.center or 0.0 for c in self._numbered], x.dtype)
        width = np.array([c.width or 1.0 for c in self._numbered], x.dtype)
        z = (x - center) / width
        return xp.where(robust, 0.5 + 0.5 * z / (2 + xp.abs(z)), scaled)

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        sizes = [len(column.features) for column in self.columns]
        return np.cumsum([0, *sizes[:-1]], dtype=np.int32)

    @functools.cached_property
    def _numbered(self) -> list[fields.Numeric]:
        return [c for c in self.columns if isinstance(c, fields.Numeric)]

    @functools.cached_property
    def _numeric(self) -> np.ndarray:
        numeric = [isinstance(column, fields.Numeric) for column in self.columns]
        return np.flatnonzero(numeric).astype(np.int32)

    @functools.cached_property
    def _ranges(self) -> preprocessing.MinMax | None:
        if not self._numbered:
            return None
        names = ("low", "high", "lower", "upper")
        return preprocessing.MinMax(
            *(tuple(getattr(c, name) for c in self._numbered) for name in names)
        )


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:5]))
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
