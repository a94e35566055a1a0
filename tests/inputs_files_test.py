"""Files of the user's own, of all three kinds."""

import csv

import hypothesis
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import scipy.sparse
from hypothesis import strategies as st
from inputs import (
    ANYTHING,
    FOLDER,
    METHODS,
    attempt,
    check_problem,
    config_of,
    labels_for,
    raw_sources,
    refused,
    tables,
    until_ready,
    write_mat,
    write_npz,
)

from deepsad_jax.data import protocol as protocols
from deepsad_jax.data import sources


@hypothesis.settings(max_examples=200)
@hypothesis.given(
    raw_sources(),
    st.sampled_from(list(METHODS)),
    st.booleans(),
    st.booleans(),
)
def test_npz_files(source, method, whole, hybrid):
    path = FOLDER / "mine.npz"
    if whole:
        arrays = {"X": source.x, "y": source.labels}
    else:
        arrays = {
            "x_train": source.x,
            "y_train": source.labels,
            "x_test": source.x_test,
            "y_test": source.labels_test,
            "semi_targets": source.semi_targets,
        }
    try:
        write_npz(path, arrays)
    except Exception:  # no array at all
        hypothesis.reject()
    if attempt("files", lambda: sources.load(str(path)), path) is not None:
        config = config_of(method, **{"data.name": str(path), "hybrid": hybrid})
        attempt("files", lambda: until_ready(config))


@hypothesis.given(st.one_of(tables(), ANYTHING), st.data())
def test_mat_files(x, data):
    path = FOLDER / "mine.mat"
    n = len(x) if isinstance(x, np.ndarray) and x.ndim else 3
    try:
        write_mat(path, {"X": x, "y": data.draw(labels_for(n))})
    except Exception:  # no MATLAB type for it
        hypothesis.reject()
    source = attempt("files", lambda: sources.load(str(path)), path)
    if source is not None:
        drawn = protocols.Protocol(n_known_outlier_classes=0)
        problem = attempt("files", lambda: protocols.make(source, drawn, 0))
        if problem is not None:
            check_problem(problem)


def test_sparse_and_complex_matrices_and_structures_of_mat_files():
    path = FOLDER / "mine.mat"
    x = np.eye(6)[:, :2]
    for other in (scipy.sparse.csc_array(x), x + 1j, {"a": x}, "text"):
        write_mat(path, {"X": other, "y": np.arange(6) % 2})
        message = "holds y; it must hold X and y"
        refused("files", message, lambda: sources.load(str(path)))


NUMBERS = st.floats(-1e6, 1e6)
CELLS = st.one_of(
    st.integers(-3, 300).map(str),
    st.sampled_from(["", "nan", "inf", "red", '"1"', "1;2", "1e999", "#", "0x1", "é"]),
)


@hypothesis.given(
    st.sampled_from(["", "a,b,label", "label,a,b", "x,y,label", "y,y,a", "#a,b,c"]),
    st.lists(st.lists(CELLS, min_size=1, max_size=4), max_size=4),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
)
def test_csv_files(header, rows, encoding, end):
    path = FOLDER / "mine.csv"
    lines = [header, *(",".join(row) for row in rows), "1,2,0", "3,4,1"]
    path.write_bytes(end.join(lines).encode(encoding))
    source = attempt("files", lambda: sources.load(str(path)), path)
    if source is not None:
        attempt("files", lambda: protocols.make(source, protocols.Protocol(), 0))


@hypothesis.given(
    hnp.arrays(
        np.float64, st.tuples(st.integers(2, 6), st.integers(1, 4)), elements=NUMBERS
    ),
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["utf-8", "utf-8-sig"]),
    st.sampled_from(["label", "Label", "y", "LABEL"]),
    st.integers(0, 4),
    st.booleans(),
)
def test_csv_dialects(x, separator, quoting, end, encoding, name, place, spaced):
    path, n = FOLDER / "mine.csv", len(x)
    y, place = np.arange(n) % 2, min(place, x.shape[1])
    names = [f"f{i}" for i in range(x.shape[1])]
    if spaced:
        names = [f"{column} of it" for column in names]
    table = np.insert(x, place, y, axis=1).tolist()
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(
            file, delimiter=separator, quoting=quoting, lineterminator=end
        )
        writer.writerows([[*names[:place], name, *names[place:]], *table])
    source = attempt("files", lambda: sources.load(str(path)))
    np.testing.assert_array_equal(source.x, x)
    np.testing.assert_array_equal(source.labels, y)
    assert source.label == f"column {name!r}"


def test_the_column_label_comes_before_y():
    path = FOLDER / "mine.csv"
    path.write_text("x,y,label\n5,6,0\n7,8,1\n")
    source = sources.load(str(path))
    np.testing.assert_array_equal(source.x, [[5, 6], [7, 8]])
    path.write_text("label,a,Label\n0,6,0\n1,8,1\n")
    refused("files", "2 columns label", lambda: sources.load(str(path)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"semi_targets": [2, 0, 0, 0]},
            "semi_targets contains 2; allowed are 1 known",
        ),
        ({"y_test": [-1, 1, 1, 1]}, "y_test contains -1; allowed are 0 normal, 1 anom"),
        ({"y_test": [0, 1, np.nan, 1]}, "y_test must hold integers.* but has nan"),
        ({"y_test": np.eye(2)}, r"y_test has 4 entries of shape \(2, 2\)"),
        ({"x_test": np.full((4, 2), np.nan)}, "test part of the table contains nan"),
        ({"x_test": np.full((4, 2), 1e30)}, "too far from the training part's"),
        ({"x_train": (2 * np.eye(4)[:, :2] - 1) * [1, 1e308]}, "column 1 .* far ap"),
        ({"x_train": np.full((4, 8, 8), np.nan)}, "values from nan to nan; they must"),
        ({"X_train": np.eye(4)}, "differ in upper and lower case alone"),
    ],
)
def test_labels_and_values_outside_the_convention(changes, message):
    path = FOLDER / "mine.npz"
    x = np.random.default_rng(0).random((4, 2))
    arrays = {"x_train": x, "semi_targets": [1, 0, 0, -1], "x_test": x}
    write_npz(path, {**arrays, "y_test": [0, 1, 1, 1], **changes})
    with np.errstate(over="ignore"):
        refused(
            "files",
            message,
            lambda: protocols.make(sources.load(str(path)), protocols.Protocol(), 0),
        )


@pytest.mark.parametrize("name", [3, None, "", "mine.csv.gz", "a\0.npz", "n" * 300])
def test_names_that_are_no_files(name):
    refused("files", "data set|no file", lambda: sources.load(name))
    long = f"{name}.npz"
    refused("files", "no data|no file|too long", lambda: sources.load(long))
