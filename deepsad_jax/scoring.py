"""The commands `deepsad score` and `deepsad evaluate`: a model, and rows of a file.

Tables are read, scored and written in pieces, so that memory is bounded. The scores are
those of all rows at once, bit for bit.
"""

import contextlib
import csv
import io
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple

import numpy as np

from deepsad_jax import (
    calibrated,
    columns,
    console,
    evaluation,
    fitting,
    labels,
    writing,
)
from deepsad_jax.data import delimited, folders, frames, parquet

# Rows that are scored at once: as many as `model.score` takes.
_BLOCK = 2**16
_CELLS = 2**19  # that are read at once
_ADDED = calibrated.Judgement._fields


class Block(NamedTuple):
    """Rows that are scored together.

    Attributes:
        x: as the model takes them.
        rows: what they were: texts of lines, tables of pyarrow or paths.
        semi_targets: +1, 0 or -1, where a column tells.
    """

    x: np.ndarray
    rows: list[Any]
    semi_targets: np.ndarray


def score(folder: str, source: str, options: Any) -> None:
    """Scores a file and writes its columns with some more.

    Args:
        folder: where the model is.
        source: the file, or a folder of images.
        options: the flags of the command, see `cli`.

    Raises:
        ValueError: for what is wrong with the model, the file or a flag.
        OSError: if the output cannot be written.
    """
    made = calibrated.load(folder)
    given = _opened(source, made, options)
    total = alarms = 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(given)
        blocks = given.blocks()
        first = next(blocks, None)  # what is wrong at once leaves no file behind
        if first is None:
            console.say(f"warning: {given.where} has no rows")
        file = stack.enter_context(_output(options.output))
        sink = stack.enter_context(given.sink(file, options.output))
        bar = stack.enter_context(console.bar(given.total, "score", "row"))
        for block in _chained(first, blocks):
            found = given.judged(block, options.false_alarm_rate)
            sink(block, found)
            total, alarms = total + len(block.x), alarms + int(found.is_anomaly.sum())
            bar.update(len(block.x))
        bar.total = total
    given.warn()
    rate = options.false_alarm_rate or made.false_alarm_rate
    said = f"{total} rows, {alarms} of them alarms at a false alarm rate of {rate:g}"
    if options.output == "-":
        console.say(said)
    else:
        print(f"{said}\nwritten to {options.output}")


def evaluate(folder: str, source: str, options: Any) -> None:
    """Says how well a model tells the labeled rows of a file.

    Args:
        folder, source, options: as of `score`.

    Raises:
        ValueError: as `score`, or if no row is labeled.
    """
    made = calibrated.load(folder)
    known = set(made.details.get("command", {}).get("known", []))
    parts, seen, unlabeled = [], 0, 0
    with _opened(source, made, options, labeled=True) as given:
        with console.bar(given.total, "evaluate", "row") as bar:
            for block in given.blocks():
                found, targets = (
                    given.judged(block, options.false_alarm_rate),
                    block.semi_targets,
                )
                kept = targets != 0
                parts.append(
                    (found.score[kept], targets[kept] == -1, found.is_anomaly[kept])
                )
                seen += sum(
                    text in known for text in fitting.fingerprints(made, block.x[kept])
                )
                unlabeled += int((~kept).sum())
                bar.update(len(block.x))
    given.warn()
    rate = options.false_alarm_rate or made.false_alarm_rate
    merged = tuple(np.concatenate(each) for each in zip(*parts, strict=True))
    if not len(merged[0]):
        raise ValueError(f"{given.where} has no labeled rows")
    if seen:
        console.say(
            f"warning: {seen} of the {len(merged[0])} labeled rows are among those of "
            "the training, which makes what follows look better than it is"
        )
    lines = evaluation.measured([merged], "known normal", rate).sentences()
    if unlabeled:
        lines.append(f"{unlabeled} rows are unlabeled and not looked at")
    print("\n".join(lines))


def _chained(first: Block | None, rest: Iterator[Block]) -> Iterator[Block]:
    if first is not None:
        yield first
        yield from rest


class _Source:
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
        """A context whose value writes a block and its judgement.

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
            found = self.made.judge(block.x, rate)
        for warning in caught:
            text = re.sub("^x ", f"{self.where} ", str(warning.message))
            kind = text.split(":")[0]
            if columns.UNLIKE not in kind and kind not in self._said:
                self._said.add(kind)
                console.say(f"warning: {text}")
        return found

    def warn(self) -> None:
        """Warns of values that the training did not see."""


class _Table(_Source):
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
        if labeled:
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
        """Pieces, with their rows and what they are called, as blocks."""
        parts, size = [], 0
        for frame, rows, called in pieces:
            try:
                parts.append((*self._encoded(frame), rows))
            except ValueError as error:
                raise ValueError(f"{called}{error}") from error
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
            self.total = _lines(source) - self.reader.has_names

    def blocks(self):
        kinds = self.kinds
        if kinds is None:
            kinds = dict.fromkeys(self._names, frames.NUMBER)
            kinds = {n: k for n, k in kinds.items() if n not in self._left_out}
        for_chunks = self.reader.chunks(kinds, self._size())
        yield from self._gathered(
            (chunk.frame, chunk.records, _from(chunk.lines[0])) for chunk in for_chunks
        )

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
        read = parquet.chunks(self._path, self._size())
        kept = [n for n in self._names if n == self._label or n not in self._left_out]
        pieces = ((frames.read(t.select(kept), self.where), [t]) for t in read)
        yield from self._gathered((frame, rows, "") for frame, rows in pieces)

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


class _Images(_Source):
    """A folder of images."""

    def __init__(self, source, made, options, labeled=False):
        super().__init__(made)
        del options, labeled
        self.where = source
        self._images = folders.read(source, tuple(made.model.info["shape"]))
        self.total = len(self._images.x)

    def blocks(self):
        x, targets, paths = self._images
        for first in range(0, len(x), _BLOCK):
            part = slice(first, first + _BLOCK)
            yield Block(x[part], paths[part], targets[part])

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


def _opened(source, made, options, labeled=False) -> _Source:
    kind = _Csv
    if os.path.isdir(source):
        kind = _Images
    elif source.endswith(fitting.PARQUET):
        kind = _Parquet
    return kind(source, made, options, labeled)


def _joined(parts) -> Block:
    x, targets, rows = zip(*parts, strict=True)
    together = [row for some in rows for row in some]
    return Block(np.concatenate(x), together, np.concatenate(targets))


@contextlib.contextmanager
def _output(path: str) -> Iterator[IO[bytes]]:
    if path == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with writing.atomic(path, replace=False) as file:
        yield file


def _lines(path: str) -> int:
    """About as many as the file has, for the bar."""
    with open(path, "rb") as file:
        return sum(part.count(b"\n") for part in iter(lambda: file.read(2**20), b""))
