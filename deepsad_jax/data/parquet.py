"""Parquet files, by pyarrow."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

from deepsad_jax.data import frames


def read(path: str | os.PathLike) -> frames.Frame:
    """All rows of a file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, or a column holds dates, lists or the like.
    """
    with _opened(path) as file:
        return frames.read(file.read(), os.fspath(path))


def chunks(path: str | os.PathLike, rows: int = 2**16) -> Iterator[Any]:
    """Its rows in pieces, tables of pyarrow, which `frames.read` takes."""
    import pyarrow

    with _opened(path) as file:
        for batch in file.iter_batches(rows):
            yield pyarrow.Table.from_batches([batch])


def described(path: str | os.PathLike) -> tuple[Any, int]:
    """Its schema, of pyarrow, and the number of its rows; Raises as `read`."""
    with _opened(path) as file:
        return file.schema_arrow, file.metadata.num_rows


@contextlib.contextmanager
def extending(
    file: IO[bytes], schema: Any, added: Iterable[str], as_csv: bool
) -> Iterator[Callable[[Any, Iterable[Any]], None]]:
    """Writes tables that have some more columns.

    Args:
        file: to write to.
        schema: of the tables.
        added: names of two columns of float64, and of one of booleans.
        as_csv: whether to write CSV.

    Returns:
        Called with a table and the columns that are added, NumPy arrays.
    """
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    kinds = (pyarrow.float64(), pyarrow.float64(), pyarrow.bool_())
    for name, kind in zip(added, kinds, strict=True):
        schema = schema.append(pyarrow.field(name, kind))
    kind = pyarrow.csv.CSVWriter if as_csv else pyarrow.parquet.ParquetWriter
    with kind(file, schema) as writer:

        def write(table, columns):
            arrays = [pyarrow.array(column, from_pandas=True) for column in columns]
            everything = [*table.columns, *arrays]
            writer.write_table(pyarrow.table(everything, schema=schema))

        yield write


def _opened(path):
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(
            f"{path} is Parquet, which needs pyarrow: pip install pyarrow"
        ) from error
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no file {path}")
    try:
        return pyarrow.parquet.ParquetFile(path)
    except Exception as error:  # pyarrow has many kinds
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read as Parquet ({reason})") from error
