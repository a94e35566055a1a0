"""CSV files against the csv module and pandas."""

import csv
import io
import itertools
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepsad_jax.data import cells, delimited, frames, parquet

PEOPLE = (
    'id;p;q;make;ok;note\r\n1;1,5;2;"a;b";yes; x\r\n2;;3;c "y";no;""\r\n'
    '3;-2,5e1;NA;"two\r\nlines";YES;"say ""hi"""\r\n'
)
KINDS = {"a": frames.NUMBER, "b": frames.NUMBER}


def _file(text):
    return io.StringIO(text, newline="")


def test_files_of_people_are_read():
    frame = delimited.read(_file(PEOPLE), decimal=",")
    expected = {
        "id": [1.0, 2.0, 3.0],
        "p": [1.5, np.nan, -25.0],
        "q": [2.0, 3.0, np.nan],
        "make": ["a;b", 'c "y"', "two\r\nlines"],
        "ok": [True, False, True],
        "note": ["x", None, 'say "hi"'],
    }
    assert frame.named and frame.names == tuple(expected)
    for name, values in expected.items():
        is_number = frame[name].dtype == np.float64
        np.testing.assert_array_equal(
            frame[name], np.array(values, float if is_number else object)
        )
    kinds = [frames.kind_of(values) for values in frame.columns.values()]
    assert kinds == [*["numbers"] * 3, "texts", "booleans", "texts"]


def test_lines_are_kept_as_they_are():
    found = list(delimited.chunks(_file(PEOPLE), rows=2, decimal=","))
    assert [len(chunk.frame) for chunk in found] == [2, 1]
    records = [record for chunk in found for record in chunk.records]
    assert [line for chunk in found for line in chunk.lines] == [2, 3, 4]
    with delimited.Reader(_file(PEOPLE), decimal=",") as reader:
        text = "".join(record + reader.line_end for record in (reader.header, *records))
        assert text == PEOPLE
        added = [np.float32([0.1, 2e-9, 3]), np.array([True, False, False])]
        lines = list(delimited.extended(records, added, reader))
    assert lines[0] == '1;1,5;2;"a;b";yes; x;0,1;true\r\n'
    assert lines[1].endswith(';"";2e-09;false\r\n')


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_separators_are_found(separator, quoting):
    text, names = io.StringIO(), ["name", "size, in mm", "kind"]
    writer = csv.writer(text, delimiter=separator, quoting=quoting)
    writer.writerow(names)
    writer.writerows([f"part; {i}", i / 7, "a|b"] for i in range(9))
    with delimited.Reader(_file(text.getvalue())) as reader:
        assert reader.separator == separator and reader.names == names


@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_files_without_names_have_numbers_in_every_line(start):
    frame = delimited.read(_file(start + "1,2\n\n3,\n"))
    assert not frame.named and frame.names == ("0", "1")
    np.testing.assert_array_equal(frame["1"], [2, np.nan])
    assert delimited.read(_file(start + "a,2\n3,4\n")).names == ("a", "2")


def test_a_first_line_like_the_others_is_told_of(recwarn):
    delimited.read(_file("part,2025,2026\n1,1,2\n3,3,4\n"))
    delimited.read(_file("id,2025\n1,2\n"))
    assert not recwarn.list
    with pytest.warns(
        UserWarning, match="first line is taken for .* rows below it ..1."
    ):
        delimited.read(_file("1.5,red\n2,blue\n"))


def test_a_column_is_what_all_of_its_cells_are(monkeypatch):
    monkeypatch.setattr(delimited, "_ROWS", 2)
    text = "a,b,c\n1,yes,1\n2,no,2\n3,x,3\nNA,yes,4\n"
    frame = delimited.read(_file(text))
    assert frame["b"].tolist() == ["yes", "no", "x", "yes"]
    np.testing.assert_array_equal(frame["a"], [1, 2, 3, np.nan])
    for chunk in delimited.chunks(_file(text), rows=1):
        assert frames.kind_of(chunk.frame["b"]) == frames.TEXT


def test_wide_integers_keep_all_digits():
    text = f"a,b,c\n{2**62 + 1},{2**62 + 1},x\n{2**53 + 1},,y\n"
    frame = delimited.read(_file(text))
    assert frame["a"].tolist() == [2**62 + 1, 2**53 + 1]
    assert frame["b"].dtype == np.float64
    frame = delimited.read(
        _file("a,b,c\n1e15,1,1\n2e17,inf,123456789012345678901234\n")
    )
    np.testing.assert_array_equal(frame["a"], [1e15, 2e17])
    np.testing.assert_array_equal(frame["b"], [1, np.inf])
    np.testing.assert_array_equal(frame["c"], [1, 123456789012345678901234.0])


def test_numbers_and_gaps_are_those_of_pandas(tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "x": rng.normal(size=99) * 10.0 ** rng.integers(-300, 300, 99),
            "n": rng.integers(-9, 9, 99),
            "t": rng.choice(["a", "b c", ""], 99),
            "b": rng.choice([True, False], 99),
        }
    )
    gaps = itertools.cycle(sorted(cells.MISSING))
    text = table.assign(g=[next(gaps) if i % 2 else i for i in range(99)])
    text.to_csv(tmp_path / "t.csv", index=False)
    read = pd.read_csv(tmp_path / "t.csv")
    expected, found = frames.read(read), delimited.read(tmp_path / "t.csv")
    assert found.names == expected.names
    for name in found.names:
        np.testing.assert_array_equal(found[name], expected[name])
        assert frames.kind_of(found[name]) == frames.kind_of(expected[name])


def test_columns_without_names_are_called_as_by_pandas(tmp_path):
    pd.DataFrame({"x": [1.5, 2.5]}).to_csv(tmp_path / "t.csv")
    names = tuple(pd.read_csv(tmp_path / "t.csv").columns)
    assert delimited.read(tmp_path / "t.csv").names == names == ("Unnamed: 0", "x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a,b\n1,2\n\n1,2,3\n",
            "the file, line 4 has 3 cells, not 2, separated by a c",
        ),
        ('a,b\n1,2\n1,"2\n1,2\n', "line 3: a quote is opened that is never closed"),
        ("a,b\n1,2\n3,x\n", "line 3, column 'b': 'x' is not a number; it must hold"),
        ("a,b\n1,2\n3,1_0\n", "line 3, column 'b': '1_0' is not a number"),
        ("a,b\n", "the file has no rows below its names"),
        ("a,b,a\n1,2,3\n", "the file has 2 columns 'a'; give each a name"),
        ("", "the file is empty"),
        (" \n\n", "the file is empty"),
    ],
)
def test_errors_name_the_line(text, message):
    kinds = None if text.count("\n") < 3 else KINDS
    with pytest.raises(ValueError, match=re.escape(message)):
        list(delimited.chunks(_file(text), kinds))


def test_booleans_of_a_known_column_are_checked():
    kinds = {"b": frames.BOOLEAN}
    (chunk,) = delimited.chunks(_file("b,c\nTrue,1\n0,2\n,x\n"), kinds)
    assert chunk.frame["b"].tolist() == [True, False, None]
    assert chunk.frame["c"].tolist() == ["1", "2", "x"]
    with pytest.raises(ValueError, match="line 2, column 'b': 'on' is none of true"):
        list(delimited.chunks(_file("b,c\non,1\n"), kinds))


def test_decimal_commas_are_asked_for():
    with pytest.raises(ValueError, match="column 'a' holds numbers with a decimal com"):
        delimited.read(_file("a;b\n1,5;2\n2;3\n"))
    with pytest.raises(ValueError, match="'a' holds numbers with a point; where"):
        delimited.read(_file("a;b\n1.5;2\n2,5;3\n"), decimal=",")
    with pytest.raises(ValueError, match="line 2, column 'a': '1.5' is not a number"):
        list(delimited.chunks(_file("a;b\n1.5;2\n2;3\n"), KINDS, decimal=","))


@pytest.mark.parametrize("index", [False, True])
def test_columns_that_pandas_counts_are_named_so(index):
    written = pd.DataFrame(np.eye(3) + 0.5).to_csv(index=index)
    frame = delimited.read(_file(written))
    assert frame.n_rows == 3 and frame.named
    assert list(frame.names)[-3:] == ["0", "1", "2"] and len(frame.names) == 3 + index
    # A row of data is one, whatever is in it.
    assert delimited.read(_file("0,1,3\n1,2,3\n")).n_rows == 2


@pytest.mark.parametrize(
    ("cell", "decimal"),
    [
        ("1,234,567", "."),
        ("-1,234.5", "."),
        ("1'234", "."),
        ("1.234,56", ","),
        ("1.234.567", ","),
    ],
)
def test_marks_of_thousands_are_refused(cell, decimal):
    with pytest.raises(ValueError, match=f"thousands, such as {cell!r}; write them"):
        delimited.read(_file(f"a;b\n{cell};x\n5;y\n"), decimal=decimal)
    # Among texts of other kinds they are texts.
    frame = delimited.read(_file(f"a;b\n{cell};x\nn5;y\n"), decimal=decimal)
    assert frame["a"].tolist() == [cell, "n5"]


def test_a_few_texts_among_numbers_are_said():
    text = "a,b\n" + "".join(f"{i},1\n" for i in range(40)) + "err,1\n"
    with pytest.warns(UserWarning, match="column 'a'.*1 of its 41.*'err' in line 42"):
        assert delimited.read(_file(text))["a"][3] == "3"
    frame = delimited.read(_file(text), missing=["err"])
    assert np.isnan(frame["a"][40]) and frame["a"][39] == 39


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\nM\xfcller,3\n", "line 3 has a byte 0xfc, which is not UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "is encoded in UTF-16; save it in UTF-8"),
    ],
)
def test_other_encodings_are_named(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ValueError, match=f"t.csv.*{message}"):
        delimited.read(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"separator": ";;"}, "separator is ';;'; it must be one character"),
        ({"separator": '"'}, "must be one character, and neither a quote"),
        ({"separator": ",", "decimal": ","}, "nor the mark of decimals"),
        ({"decimal": "'"}, 'decimal is "\'"; it must be a point or a comma'),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        delimited.read(_file(PEOPLE), **options)


def test_files_that_are_not_there_are_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file .*t.csv"):
        delimited.read(tmp_path / "t.csv")
    with pytest.raises(ValueError, match="source is 3; it must be a path or an open"):
        delimited.read(3)


def test_the_standard_input_is_read_once():
    program = (
        "from deepsad_jax.data import delimited\n"
        "frame = delimited.read('-')\n"
        "print(frame.names, frame['b'].tolist())"
    )
    text = "a,b\n1,x\n2,é\n".encode()
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=text,
        capture_output=True,
        env={"PYTHONIOENCODING": "utf-8", "JAX_PLATFORMS": "cpu"},
        cwd=__file__.rpartition("/tests/")[0],
    )
    assert done.stdout.decode().strip() == "('a', 'b') ['x', 'é']", done.stderr


CELL = st.text(st.sampled_from('a1,;"\n .é'), max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(CELL, min_size=2, max_size=2), min_size=1, max_size=5))
def test_any_cells_are_those_of_the_csv_module(rows):
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerows([["name", "other"], *rows])
    found = delimited.records(_file(text.getvalue()), ",", "it")
    kept = [record for record in found if record.cells != ["name", "other"]]
    assert [r.cells for r in kept] == [[c.strip() for c in row] for row in rows]
    joined = "".join(f"{record.text}\r\n" for record in kept)
    assert '"name","other"\r\n' + joined == text.getvalue()


def test_parquet_is_read_in_pieces(tmp_path):
    table = pd.DataFrame({"x": [1.5, None, 3], "t": ["a", None, "b"], "n": [1, 2, 3]})
    table.to_parquet(tmp_path / "t.parquet")
    frame = parquet.read(tmp_path / "t.parquet")
    expected = frames.read(table)
    parts = [frames.read(p) for p in parquet.chunks(tmp_path / "t.parquet", 2)]
    assert [len(part) for part in parts] == [2, 1]
    schema, rows = parquet.described(tmp_path / "t.parquet")
    assert tuple(schema.names) == frame.names and rows == 3
    for name in expected.names:
        np.testing.assert_array_equal(frame[name], expected[name])
        whole = np.concatenate([part[name] for part in parts])
        np.testing.assert_array_equal(whole, expected[name])
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(ValueError, match="bad.parquet cannot be read as Parquet"):
        parquet.read(tmp_path / "bad.parquet")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        parquet.read(tmp_path / "none.parquet")
