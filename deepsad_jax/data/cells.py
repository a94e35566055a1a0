"""Cells of text files: what columns of them hold, and their values."""

import collections
import contextlib
import dataclasses
import re
import warnings
from collections.abc import Sequence

import numpy as np

from deepsad_jax.data import frames

# Those that pandas takes for missing, so that both read the same.
MISSING = frozenset(
    "|#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|"
    "None|n/a|nan|null".split("|")
)
INTEGERS = "integers"  # numbers that float64 would round
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False}
_BOOLEANS["0"] = False
# Numbers with the other mark of decimals, and with marks of thousands.
_OTHER_MARK = {
    own: re.compile(rf"[+-]?\d+[{other}]\d+(e[+-]?\d+)?", re.IGNORECASE)
    for own, other in ((".", ","), (",", "."))
}
_THOUSANDS = {
    own: re.compile(rf"[+-]?\d{{1,3}}([{other}']\d{{3}})+([{own}]\d+)?")
    for own, other in ((".", ","), (",", "."))
}
# A column of so many numbers, or more than this share of them, was meant to be one.
_FEWEST, _MOSTLY = 20, 0.95


class CellError(ValueError):
    """A cell is not what its column holds; `index` is its row in the piece."""

    def __init__(self, index: int, message: str):
        super().__init__(message)
        self.index = index


@dataclasses.dataclass(frozen=True)
class Notation:
    """How numbers and gaps are written.

    Attributes:
        decimal: the mark of decimals, "." or ",".
        missing: texts that stand for what is missing.
    """

    decimal: str = "."
    missing: frozenset[str] = MISSING

    def number(self, cell: str) -> float | None:
        """The number that a text is; NaN for what is missing, None for other texts."""
        if cell in self.missing:
            return np.nan
        if "_" in cell or (self.decimal == "," and "." in cell):
            return None
        try:
            return float(cell if self.decimal == "." else cell.replace(",", "."))
        except ValueError:
            return None

    def numbers(self, cells: Sequence[str]) -> np.ndarray | None:
        """All of them, `[n]` float64; None if some are none."""
        if self.decimal == ".":
            try:
                found = np.fromiter(map(float, cells), np.float64, len(cells))
                return None if "_" in "".join(cells) else found
            except ValueError:
                pass
        found = [self.number(cell) for cell in cells]
        return None if None in found else np.array(found, np.float64)

    def converted(self, cells: Sequence[str], kind: str) -> np.ndarray:
        """A column of a frame.

        Raises:
            CellError: for the first cell that is of another kind.
        """
        if kind == INTEGERS:
            with contextlib.suppress(ValueError):  # 1e20, inf
                found = np.array([int(cell) for cell in cells])
                if found.dtype.kind in "iu":
                    return found
            kind = frames.NUMBER
        if kind == frames.NUMBER:
            if (found := self.numbers(cells)) is not None:
                return found
            i = next(i for i, c in enumerate(cells) if self.number(c) is None)
            raise CellError(i, f"{cells[i][:40]!r} is not a number")
        if kind == frames.MISSING:
            return np.full(len(cells), np.nan)
        found = np.empty(len(cells), object)
        if kind == frames.TEXT:
            found[:] = [None if cell in self.missing else cell for cell in cells]
            return found
        for i, cell in enumerate(cells):
            if cell in self.missing:
                continue
            found[i] = _BOOLEANS.get(cell.lower())
            if found[i] is None:
                raise CellError(i, f"{cell[:40]!r} is none of true, false, yes and no")
        return found


class Column:
    """Finds out what a column holds, piece by piece."""

    def __init__(self, notation: Notation):
        self._notation = notation
        self._counts = {frames.NUMBER: 0, frames.BOOLEAN: 0, frames.TEXT: 0}
        self._marked, self._has_missing, self._is_whole = 0, False, True
        self._grouped: str | None = None
        self._is_wide = False
        self._first: tuple[int, str] | None = None

    def see(self, cells: Sequence[str], lines: Sequence[int]) -> None:
        """Takes some more cells, and the lines of the file where they stand."""
        if not (self._counts[frames.TEXT] or self._counts[frames.BOOLEAN]):
            if (found := self._notation.numbers(cells)) is not None:
                return self._see_numbers(found)
        for cell, number in collections.Counter(cells).items():
            value = self._notation.number(cell)
            if value is not None:
                self._see_numbers(np.full(number, value))
                continue
            kind = frames.TEXT
            if cell.lower() in frames.WORDS:
                kind = frames.BOOLEAN
            self._counts[kind] += number
            has_other = _OTHER_MARK[self._notation.decimal].fullmatch(cell)
            has_groups = _THOUSANDS[self._notation.decimal].fullmatch(cell)
            if has_other or has_groups:
                self._marked += number
                self._grouped = self._grouped or (None if has_other else cell)
            elif self._first is None and kind == frames.TEXT:
                self._first = lines[cells.index(cell)], cell
        return None

    def _see_numbers(self, found):
        known = found[~np.isnan(found)]
        self._has_missing |= len(known) < len(found)
        self._counts[frames.NUMBER] += len(known)
        wide = np.abs(known) > 2**53
        self._is_wide |= bool(wide.any())
        self._is_whole &= bool((known == np.floor(known)).all())

    def decided(self, name: str) -> str:
        """What it holds, as `Notation.converted` takes it.

        Raises:
            ValueError: for another mark of decimals, and marks of thousands.
        """
        numbers, booleans, texts = self._counts.values()
        if not (numbers or booleans or texts):
            return frames.MISSING
        if not (booleans or texts):
            is_integer = self._is_wide and self._is_whole and not self._has_missing
            return INTEGERS if is_integer else frames.NUMBER
        if not (numbers or texts):
            return frames.BOOLEAN
        if self._marked and self._marked == texts and not booleans:
            self._refuse(name)
        total = numbers + booleans + texts
        if self._first and numbers >= max(_FEWEST, _MOSTLY * total):
            line, cell = self._first
            warnings.warn(
                f"column {name!r} is read as texts because of {total - numbers} of its "
                f"{total} cells, such as {cell[:40]!r} in line {line}; the others are "
                "numbers, so leave those cells empty if they are gaps",
                UserWarning,
                stacklevel=2,
            )
        return frames.TEXT

    def _refuse(self, name):
        """Raises ValueError for numbers in another notation."""
        if self._grouped:
            raise ValueError(
                f"column {name!r} holds numbers with marks of thousands, such as "
                f"{self._grouped[:40]!r}; write them without"
            )
        if self._notation.decimal == ",":
            raise ValueError(
                f"column {name!r} holds numbers with a point; where it marks decimals "
                "write a comma, as elsewhere, and nothing where it marks thousands"
            )
        raise ValueError(
            f"column {name!r} holds numbers with a decimal comma; say so by "
            'decimal=",", or write them without if the comma marks thousands'
        )
