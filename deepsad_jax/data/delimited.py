"""CSV files as people have them: any separator, quotes, a decimal comma, gaps.

    frame = delimited.read("parts.csv")
    for chunk in delimited.chunks("new.csv", kinds=scaling.kinds):
        chunk.frame, chunk.records             # the columns, and the lines as they are

What a column holds is decided by the whole file: numbers, booleans (true and false, or
yes and no) or texts. Lines are counted as an editor does, from 1.
"""

import csv
import io
import itertools
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any, NamedTuple

import numpy as np

from deepsad_jax.data import cells, frames

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
_SNIFFED = 50  # records
_INDEX = ("Unnamed: 0",)  # as pandas calls a first column without a name
_ROWS = 2**11  # that are looked at at once, while they are in the processor's cache

Source = str | os.PathLike | IO[str]


class Record(NamedTuple):
    """A row of a file.

    Attributes:
        line: the one where it begins.
        cells: stripped.
        text: all of it, without the end of the line.
    """

    line: int
    cells: list[str]
    text: str


class Chunk(NamedTuple):
    """Some rows of a file.

    Attributes:
        frame: their columns.
        records: their texts, as they are in the file, without the ends of the lines.
        lines: where they begin.
    """

    frame: frames.Frame
    records: list[str]
    lines: list[int]


def read(source: Source, **options: Any) -> frames.Frame:
    """All rows of a file; options and Raises are those of `Reader`."""
    with Reader(source, **options) as reader:
        parts = [chunk.frame for chunk in reader.chunks()]
    columns = {n: np.concatenate([part[n] for part in parts]) for n in parts[0].names}
    return frames.Frame(columns, parts[0].named)


def chunks(
    source: Source,
    kinds: Mapping[str, str] | None = None,
    rows: int = 2**16,
    **options: Any,
) -> Iterator[Chunk]:
    """A file in pieces; Args and Raises are those of `Reader` and `Reader.chunks`."""
    with Reader(source, **options) as reader:
        yield from reader.chunks(kinds, rows)


class Reader:
    """An open file whose first lines are known.

    Args:
        source: a path, "-" for the standard input, or an open text file.
        separator: of cells; found in the first lines by default.
        decimal: the mark of decimals, "." or ",".
        missing: more texts that stand for what is missing, beside `cells.MISSING`.

    Attributes:
        where: what the file is called, for messages.
        names: of the columns; "0", "1" and so on where the file has none.
        has_names: whether it has.
        separator: as given or found.
        header: the text of the line of names, or "".
        line_end: of the first line.
        rest: the records that are not yet read.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a table in UTF-8; with the line.
    """

    def __init__(
        self,
        source: Source,
        *,
        separator: str | None = None,
        decimal: str = ".",
        missing: Iterable[str] = (),
    ):
        if decimal not in (".", ","):
            raise ValueError(f"decimal is {decimal!r}; it must be a point or a comma")
        is_one = separator is None or (len(separator) == 1 and separator not in '"\r\n')
        if not is_one or separator == decimal:
            raise ValueError(
                f"separator is {separator!r}; it must be one character, and neither a "
                "quote nor the mark of decimals"
            )
        self.notation = cells.Notation(decimal, cells.MISSING | set(missing))
        self._path, self.where, self._file = _opened(source)
        try:
            self._begin(separator)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file, if it was opened here."""
        if self._path is not None:
            self._file.close()

    def _begin(self, separator):
        lines = iter(self._file)
        head = list(itertools.islice(lines, 4 * _SNIFFED))
        if head:
            head[0] = head[0].removeprefix("\ufeff")
            _check_text(head[0], 1, self.where)
        if not any(line.strip() for line in head):
            raise ValueError(f"{self.where} is empty")
        if separator is None:
            separator = _sniffed(head, self.notation)
        self.separator = separator
        self.line_end = "\r\n" if head[0].endswith("\r\n") else "\n"
        found = records(itertools.chain(head, lines), separator, self.where)
        first = next(found)
        numbers = map(self.notation.number, first.cells)
        is_counted = _are_counted(first.cells)
        self.has_names = is_counted or any(number is None for number in numbers)
        self.names = [str(i) for i in range(len(first.cells))]
        self.header, self.rest = "", itertools.chain([first], found)
        if self.has_names:
            self.header, self.rest = first.text, found
            # As pandas calls columns without a name.
            self.names = [n or f"Unnamed: {i}" for i, n in enumerate(first.cells)]
        for name in self.names:
            if self.names.count(name) > 1:
                raise ValueError(
                    f"{self.where} has {self.names.count(name)} columns {name[:40]!r}; "
                    "give each a name of its own"
                )

    def inferred(self) -> dict[str, str]:
        """What each column holds, by name; the whole file is read for it.

        Raises:
            ValueError: if it has no rows, or a line is not like the others.
        """
        columns = [cells.Column(self.notation) for _ in self.names]
        if self._path is None:  # what can be read once is kept
            kept = list(self.rest)
            self.rest = iter(kept)
            self._look(iter(kept), columns)
        else:
            options = {"separator": self.separator, "decimal": self.notation.decimal}
            with Reader(
                self._path, **options, missing=self.notation.missing
            ) as another:
                self._look(another.rest, columns)
        try:
            named = zip(self.names, columns, strict=True)
            kinds = {name: column.decided(name) for name, column in named}
        except ValueError as error:
            raise ValueError(f"{self.where}: {error}") from error
        numbers = {n for n in self.names if self.notation.number(n) is not None}
        of_numbers = {n for n in kinds if kinds[n] in (frames.NUMBER, cells.INTEGERS)}
        is_counted = _are_counted([n for n in self.names if n not in _INDEX])
        if self.has_names and numbers and numbers == of_numbers and not is_counted:
            warnings.warn(
                f"{self.where}: the first line is taken for the names of the columns, "
                f"but looks like the rows below it ({self.header[:40]!r}); if it is "
                "one, put a line of names above",
                UserWarning,
                stacklevel=2,
            )
        return kinds

    def _look(self, found, columns):
        seen = False
        while piece := list(itertools.islice(found, _ROWS)):
            seen, lines = True, [record.line for record in piece]
            for column, values in zip(columns, self._columns(piece), strict=True):
                column.see(values, lines)
        if not seen:
            raise ValueError(f"{self.where} has no rows below its names")

    def chunks(
        self, kinds: Mapping[str, str] | None = None, rows: int = 2**16
    ) -> Iterator[Chunk]:
        """The rows, in pieces.

        Args:
            kinds: what columns hold, by name, as `columns.Columns.kinds` says; others
                are read as texts. By default the whole file is looked at first.
            rows: of a piece.

        Raises:
            ValueError: if a cell is of another kind; with its line and column.
        """
        if kinds is None:
            kinds = self.inferred()
        while True:
            parts, texts, lines = [], [], []
            left = itertools.islice(self.rest, rows)
            while piece := list(itertools.islice(left, _ROWS)):
                parts.append(self._converted(piece, kinds))
                texts += [record.text for record in piece]
                lines += [record.line for record in piece]
            if not parts:
                return
            found = zip(self.names, zip(*parts, strict=True), strict=True)
            columns = {name: np.concatenate(values) for name, values in found}
            yield Chunk(frames.Frame(columns, self.has_names), texts, lines)

    def _converted(self, piece, kinds):
        """The values of each column."""
        found = []
        for name, values in zip(self.names, self._columns(piece), strict=True):
            kind = kinds.get(name, frames.TEXT)
            try:
                found.append(self.notation.converted(values, kind))
            except cells.CellError as error:
                raise ValueError(
                    f"{self.where}, line {piece[error.index].line}, column {name!r}: "
                    f"{error}; it must hold {kind}, as the column does elsewhere"
                ) from error
        return found

    def _columns(self, piece):
        """The cells of each column."""
        width = len(self.names)
        for line, found, _ in piece:
            if len(found) != width:
                called = SEPARATORS.get(self.separator, repr(self.separator))
                raise ValueError(
                    f"{self.where}, line {line} has {len(found)} cells, not {width}, "
                    f"separated by a {called}"
                )
        flat = list(itertools.chain.from_iterable(record.cells for record in piece))
        return [flat[i::width] for i in range(width)]


def _are_counted(cells: list[str]) -> bool:
    """Whether they are the names that pandas gives to columns without, behind that of
    an index if there is one."""
    rest = cells[1:] if cells[0] == "" else cells
    return len(rest) > 2 and rest == [str(i) for i in range(len(rest))]


def extended(
    records: Iterable[str], added: Iterable[Iterable[Any]], reader: Reader
) -> Iterator[str]:
    """Lines that have some more cells, and are otherwise as they were.

    Args:
        records: their texts, such as `Chunk.records`.
        added: more columns, of numbers or booleans; of a header, texts.
        reader: that of the file, which tells how it is written.
    """
    for record, *values in zip(records, *added, strict=True):
        more = [_written(value, reader.notation.decimal) for value in values]
        yield reader.separator.join([record, *more]) + reader.line_end


def _written(value: Any, decimal: str) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    return str(value) if isinstance(value, str) else str(value).replace(".", decimal)


def records(lines: Iterable[str], separator: str, where: str) -> Iterator[Record]:
    """The records of lines that are not empty.

    Args:
        lines: with their ends.
        separator: of cells.
        where: where they come from, for messages.

    Raises:
        ValueError: for what is not UTF-8, and quotes that are never closed.
    """
    taken: list[str] = []

    def watched():
        for line in lines:
            taken.append(line)
            yield line

    first = 1
    reader = csv.reader(
        watched(), delimiter=separator, skipinitialspace=True, strict=True
    )
    try:
        for found in reader:
            text = "".join(taken) if len(taken) > 1 else taken[0]
            taken.clear()
            text = text.rstrip("\r\n")
            if not text.isascii():
                _check_text(text, first, where)
            if " " in text or not text.isprintable():
                found = [cell.strip() for cell in found]
            if len(found) > 1 or (found and found[0]):
                yield Record(first, found, text)
            first = reader.line_num + 1
    except csv.Error as error:
        what = "a quote is opened that is never closed"
        what = what if "unexpected end" in str(error) else str(error)
        raise ValueError(f"{where}, line {first}: {what}") from error


def ends_of_lines(path: str) -> int:
    """About as many lines as a file has, for a bar."""
    with open(path, "rb") as file:
        return sum(part.count(b"\n") for part in iter(lambda: file.read(2**20), b""))


def _opened(source: Source) -> tuple[Any, str, IO[str]]:
    """The path, if there is one, what it is called, and the open file."""
    options = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    if isinstance(source, str) and source == "-":
        return None, "the standard input", io.TextIOWrapper(sys.stdin.buffer, **options)
    if isinstance(source, (str, os.PathLike)):
        if not os.path.isfile(source):
            raise FileNotFoundError(f"there is no file {source}")
        return source, os.fspath(source), open(source, **options)
    if not hasattr(source, "read"):
        raise ValueError(f"source is {source!r}; it must be a path or an open file")
    name = getattr(source, "name", "")
    return None, name if isinstance(name, str) and name else "the file", source


def _check_text(text: str, line: int, where: str) -> None:
    """Raises ValueError if some of it was not UTF-8."""
    if text.startswith(("\udcff\udcfe", "\udcfe\udcff")):
        raise ValueError(f"{where} is encoded in UTF-16; save it in UTF-8")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}, line {line} has a byte {ord(text[error.start]) - 0xDC00:#x}, "
            "which is not UTF-8 (perhaps Latin-1 or Windows-1252); save it in UTF-8"
        ) from error


def _sniffed(head: list[str], notation: cells.Notation) -> str:
    """The separator that makes columns of the first lines, of numbers if possible."""
    best, choice = (False, False, 0.0, 0), ","
    for separator in SEPARATORS:
        if separator == notation.decimal:
            continue
        found = []
        try:
            for record in itertools.islice(records(head, separator, ""), _SNIFFED):
                found.append(record.cells)
        except ValueError:  # perhaps a quote that is closed further on
            pass
        if not found:
            continue
        widths = {len(row) for row in found}
        body = list(itertools.chain.from_iterable(found[1:]))
        good = sum(notation.number(cell) is not None for cell in body)
        share = good / max(1, len(body))
        score = (min(widths) > 1, len(widths) == 1, share, min(widths))
        if score > best:
            best, choice = score, separator
    return choice
