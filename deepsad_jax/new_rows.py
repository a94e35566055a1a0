"""Rows of files for a model, in pieces, and what is written of them.

    with opened("new.csv", model, options) as given:
        for block in given.blocks():
            given.judged(block, None)

Memory is bounded, and the scores are those of all rows at once, bit for bit.
"""

import contextlib
import csv
import io
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple

import numpy as np

from deepsad_jax import calibrated, columns, console, fitting, labels
from deepsad_jax.data import delimited, folders, frames, parquet

# Rows that are scored at once: as many as `model.score` takes.
_BLOCK = 2**16
_CELLS = 2**19  # that are read at once
_NONE = "has none of the columns of the training; its first line must be their names"
_ADDED = calibrated.Judgement._fields


class Block(NamedTuple):
    """Rows that are scored together.

    Attributes:
        x: as the model takes them.
        rows: what they were: texts of lines, tables of pyarrow or paths.
        semi_targets: +1, 0 or -1, where a column tells.
        begins: where, for messages; empty where the file does.
    """

    x: np.ndarray
    rows: list[Any]
    semi_targets: np.ndarray
    begins: str = ""


def opened(
    source: str,
    made: calibrated.Calibrated,
    options: Any,
    labeled: bool | None = False,
) -> "Source":
    """Rows of a file.

    Args:
        source: a CSV or Parquet file, "-", or a folder of images.
        made: the model.
        options: the flags of the command, see `cli`.
        labeled: whether it must have a column that tells what is known; None where it
            may have one.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, or does not fit.
    """
    kind = _Csv
    if os.path.isdir(source):
        kind = _Images
    elif source.endswith(fitting.PARQUET):
        kind = _Parquet
    return kind(source, made, options, labeled)


class Source:
    """Rows of a file for a model; the base of its kinds.

    Attributes:
        where: what the file is called.
        total: number of rows, as far as it is known.
    """

    where, total = "", None

    def __init__(self, made: calibrated.Calibrated):
        self.made, self._said = made, set()

    def __enter__(self):
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""

    def blocks(self) -> Iterator[Block]:
        """The rows."""
        raise NotImplementedError

    def sink(self, file: IO[bytes], path: str) -> Any:
        """A context whose value writes a block and its judgment.

        Args:
            file: to write to.
            path: what it is called, which says how to write.

        Raises:
            ValueError: if it would have two columns of a name, or be of another kind.
        """
        raise NotImplementedError

    def judged(self, block: Block, rate: float | None) -> calibrated.Judgement:
        """The scores and decisions of some rows; what is to warn of, is once."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                found = self.made.judge(block.x, rate)
            except ValueError as error:
                raise ValueError(f"{block.begins}{self._named(error)}") from error
        for warning in caught:
            text = self._named(warning.message)
            kind = text.split(":")[0]
            if columns.UNLIKE not in kind and kind not in self._said:
                self._said.add(kind)
                console.say(f"warning: {text}")
        return found

    def record(self, block: Block, row: int) -> Any:
        """What a row of a block was in the file; `cells` reads it."""
        return block.rows[row]

    def cells(self, record: Any) -> dict[str, str]:
        """The values of a record as they are in the file, by name."""
        raise NotImplementedError

    def warn(self) -> None:
        """Warns of values that the training did not see."""

    def _named(self, message: Any) -> str:
        return re.sub("^x ", f"{self.where} ", str(message))


class _Table(Source):
    """A table, whose columns are looked at by name."""

    def __init__(self, made, options, names, labeled):
        super().__init__(made)
        self._names, self._strange = names, {}
        command = made.details.get("command", {})
        self._label = getattr(options, "label", None) or command.get("label")
        self._meant = {
            name: getattr(options, name, None) or command.get(name, [])
            for name in ("normal", "anomaly")
        }
        self._labeled = labeled
        if labeled is None:
            self._labeled = self._label in names and any(self._meant.values())
        elif labeled:
            self._check_label()
        elif reason := _twice(names):
            raise ValueError(f"{self.where} {reason}")
        scaling = made.model.preprocessing
        self._scaling = scaling if isinstance(scaling, columns.Columns) else None
        self.kinds = self._scaling.kinds if self._scaling else None
        not_needed = {self._label, *command.get("ignored", [])}
        self._left_out = [name for name in names if name in not_needed]
        if self._scaling:
            self._left_out = [n for n in names if n not in self._scaling.names]
            if self._left_out == [*names]:
                raise ValueError(f"{self.where} {_NONE}")
        else:
            console.say(
                "warning: the model knows no names of columns, which are taken in "
                "their order"
            )
        surplus = [name for name in self._left_out if name not in not_needed]
        if surplus:
            shown = ", ".join(map(repr, surplus[:10]))
            console.say(
                f"warning: {self.where} has columns that the training had not, which "
                f"are not looked at: {shown}{', ...' if len(surplus) > 10 else ''}"
            )

    def warn(self):
        if self._strange:
            said = self._scaling.said_of(self._strange)
            console.say(f"warning: {self.where} {columns.UNLIKE}: {said}")

    def _check_label(self):
        if self._label is None or not any(self._meant.values()):
            raise ValueError(
                "the model was fitted without labels; say which rows are known by "
                "--label, --anomaly and --normal"
            )
        if self._label not in self._names:
            known = ", ".join(map(repr, self._names[:20]))
            raise ValueError(
                f"{self.where} has no column {self._label!r} of labels, but {known}"
            )

    def _encoded(self, frame: frames.Frame) -> tuple[np.ndarray, np.ndarray]:
        """Rows as the model takes them, and their labels."""
        targets = np.zeros(frame.n_rows, np.int8)
        if self._labeled:
            split = labels.split_labels(
                frame, self._label, **self._meant, must_occur=False
            )
            targets = split.semi_targets
        frame = frame.without(*self._left_out)
        if self._scaling is None:
            return self._numbers(frame), targets
        x = self._scaling.encode(frame, self.where)
        for name, pair in self._scaling.strange(x).items():
            before = self._strange.get(name, (0, 0))
            self._strange[name] = before[0] + pair[0], before[1] + pair[1]
        return x, targets

    def _numbers(self, frame):
        shape = tuple(self.made.model.info["shape"])
        if shape != (len(frame.names),):
            raise ValueError(
                f"{self.where} has {len(frame.names)} columns, but the model takes "
                f"examples of shape {shape}"
            )
        for name in frame.names:
            if frames.kind_of(frame[name]) != frames.NUMBER:
                raise ValueError(f"{self.where}: column {name!r} must hold numbers")
        return np.stack([frame[n].astype(np.float64) for n in frame.names], axis=1)

    def _gathered(self, pieces: Iterable[tuple[frames.Frame, Any, str]]):
        """Pieces, with their rows and where they begin, as blocks."""
        parts, size = [], 0
        for frame, rows, begins in pieces:
            try:
                parts.append((*self._encoded(frame), rows, begins))
            except ValueError as error:
                raise ValueError(f"{begins}{error}") from error
            size += frame.n_rows
            if size >= _BLOCK:
                yield _joined(parts)
                parts, size = [], 0
        if parts:
            yield _joined(parts)

    def _size(self) -> int:
        """Rows of a piece: a power of two, so that blocks are full."""
        rows = max(512, _CELLS // max(1, len(self._names)))
        return min(_BLOCK, 2 ** (rows.bit_length() - 1))


def _twice(names: list[str]) -> str:
    found = [name for name in _ADDED if name in names]
    if not found:
        return ""
    return f"has a column {found[0]!r} already; rename it, as one is added of that name"


class _Csv(_Table):
    """A CSV file."""

    def __init__(self, source, made, options, labeled=False):
        command = made.details.get("command", {})
        notation = fitting.notation(options, command.get("decimal", "."))
        self.reader = delimited.Reader(source, **notation)
        self.where, self.close = self.reader.where, self.reader.close
        try:
            super().__init__(made, options, self.reader.names, labeled)
        except BaseException:
            self.close()
            raise
        if source != "-":
            self.total = delimited.ends_of_lines(source) - self.reader.has_names

    def blocks(self):
        kinds = self.kinds
        if kinds is None:
            kinds = dict.fromkeys(self._names, frames.NUMBER)
            kinds = {n: k for n, k in kinds.items() if n not in self._left_out}
        yield from self._gathered(
            (chunk.frame, chunk.records, _from(chunk.lines[0]))
            for chunk in self.reader.chunks(kinds, self._size())
        )

    def cells(self, record):
        (found,) = delimited.records([record], self.reader.separator, self.where)
        return dict(zip(self._names, found.cells, strict=True))

    @contextlib.contextmanager
    def sink(self, file, path):
        reader = self.reader
        if path.endswith(fitting.PARQUET):
            raise ValueError(f"the output of a CSV file is CSV, but --output is {path}")
        if reader.has_names:
            _write(file, delimited.extended([reader.header], zip(_ADDED), reader))

        def write(block, found):
            _write(file, delimited.extended(block.rows, _cells(found), reader))

        yield write


def _write(file: IO[bytes], lines: Iterable[str]) -> None:
    file.write("".join(lines).encode())


def _cells(found: calibrated.Judgement) -> list[list[Any]]:
    """What is added to lines; numbers that are read again as the same ones."""
    score, p_value = (x.astype(np.float64).tolist() for x in found[:2])
    p_value = ["" if p != p else p for p in p_value]
    return [score, p_value, found.is_anomaly.tolist()]


def _from(line: int) -> str:
    return f"from line {line} on, " if line > 2 else ""


class _Parquet(_Table):
    """A Parquet file."""

    def __init__(self, source, made, options, labeled=False):
        self.where, self._path = source, source
        self.schema, self.total = parquet.described(source)
        super().__init__(made, options, list(self.schema.names), labeled)

    def blocks(self):
        kept = [n for n in self._names if n == self._label or n not in self._left_out]
        yield from self._gathered(
            (frames.read(table.select(kept), self.where), [table], "")
            for table in parquet.chunks(self._path, self._size())
        )

    def record(self, block, row):
        for table in block.rows:
            if row < len(table):
                return table.slice(row, 1).to_pylist()[0]
            row -= len(table)
        raise IndexError(row)

    def cells(self, record):
        return {n: "" if v is None else str(v) for n, v in record.items()}

    @contextlib.contextmanager
    def sink(self, file, path):
        as_csv = not path.endswith(fitting.PARQUET)
        with parquet.extending(file, self.schema, _ADDED, as_csv) as append:

            def write(block, found):
                first = 0
                for table in block.rows:
                    part = slice(first, first := first + len(table))
                    score, p_value, is_anomaly = (each[part] for each in found)
                    append(table, (score.astype(np.float64), p_value, is_anomaly))

            yield write


class _Images(Source):
    """A folder of images."""

    def __init__(self, source, made, options, labeled=False):
        super().__init__(made)
        del options, labeled
        self.where, shape = source, tuple(made.model.info["shape"])
        if len(shape) != 3:
            raise ValueError(f"{source} is a folder, but the model takes tables")
        self._images = folders.read(source, shape)
        self.total = len(self._images.x)

    def blocks(self):
        x, targets, paths = self._images
        for first in range(0, len(x), _BLOCK):
            part = slice(first, first + _BLOCK)
            yield Block(x[part], paths[part], targets[part])

    def cells(self, record):
        return {"path": str(record)}

    @contextlib.contextmanager
    def sink(self, file, path):
        if path.endswith(fitting.PARQUET):
            raise ValueError(f"the output of images is CSV, but --output is {path}")

        def write(block, found):
            text = io.StringIO()
            rows = zip(map(str, block.rows), *_cells(found), strict=True)
            csv.writer(text, lineterminator="\n").writerows(
                (path, score, p, str(is_anomaly).lower())
                for path, score, p, is_anomaly in rows
            )
            _write(file, [text.getvalue()])

        _write(file, [",".join(("path", *_ADDED)) + "\n"])
        yield write


def _joined(parts) -> Block:
    x, targets, rows, begins = zip(*parts, strict=True)
    together = [row for some in rows for row in some]
    return Block(np.concatenate(x), together, np.concatenate(targets), begins[0])
