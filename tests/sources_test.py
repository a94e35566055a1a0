import concurrent.futures
import pathlib
import threading
import time
import zipfile

import numpy as np
import pooch
import pytest
import requests
import scipy.io

from deepsad_jax import stored
from deepsad_jax.data import memory, sources

ODDS_SHAPES = {  # rows, columns, outliers, as the ODDS library lists them
    "arrhythmia": (452, 274, 66),
    "cardio": (1831, 21, 176),
    "satellite": (6435, 36, 2036),
    "satimage-2": (5803, 36, 71),
    "shuttle": (49097, 9, 3511),
    "thyroid": (3772, 6, 93),
}
SHARED = pathlib.Path(__file__).parents[2] / "shared" / "data" / "odds"


def test_embedded_digits_are_images_in_the_unit_interval():
    source = sources.load("digits")
    assert source.x.shape == (1797, 8, 8, 1) and source.x.dtype == np.float32
    assert source.x.min() == 0 and source.x.max() == 1
    np.testing.assert_array_equal(np.unique(source.labels), np.arange(10))


def test_embedded_breast_cancer_has_the_malignant_as_anomalies():
    source = sources.load("breast_cancer")
    assert source.x.shape == (569, 30)
    assert source.labels.sum() == 212  # malignant, says the data set's description
    radius = source.x[:, 0]
    assert radius[source.labels == 1].mean() > radius[source.labels == 0].mean()


@pytest.mark.parametrize("name", ODDS_SHAPES)
def test_odds_tables_are_read_from_a_folder(name):
    if not SHARED.is_dir():
        pytest.skip("the ODDS tables are not here")
    source = sources.load(name, SHARED)
    rows, columns, outliers = ODDS_SHAPES[name]
    assert source.x.shape == (rows, columns)
    assert source.labels.sum() == outliers


@pytest.mark.parametrize("name", ODDS_SHAPES)
def test_odds_files_have_the_hashes_that_downloads_are_checked_against(name):
    path = SHARED / f"{name}.mat"
    if not path.exists() or name == "thyroid":  # its mirror holds an .npz instead
        pytest.skip("no file with that hash here")
    assert pooch.file_hash(path) == sources.ODDS[name][1]


def test_downloads_are_cached_and_checked(tmp_path, monkeypatch):
    x, y = np.random.default_rng(0).random((20, 3)), np.tile([0, 1], 10)
    served = tmp_path / "served.mat"
    scipy.io.savemat(served, {"X": x, "y": y[:, None]})
    calls = []

    class Downloader:
        def __call__(self, url, output_file, pooch):
            calls.append(url)
            pathlib.Path(output_file).write_bytes(served.read_bytes())

    monkeypatch.setattr("pooch.core.choose_downloader", lambda *a, **k: Downloader())
    url = "https://example.org/cardio.mat"
    monkeypatch.setitem(sources.ODDS, "cardio", (url, pooch.file_hash(served)))
    folder = tmp_path / "data"
    folder.mkdir()
    for _ in range(2):
        source = sources.load("cardio", folder)
        np.testing.assert_array_equal(source.x, x)
        np.testing.assert_array_equal(source.labels, y)
    assert calls == [url]

    monkeypatch.setitem(sources.ODDS, "shuttle", (url, "0" * 64))
    with pytest.raises(ValueError, match="SHA-256 differs.*shuttle.mat into a folder"):
        sources.load("shuttle", folder)
    assert not (folder / "shuttle.mat").exists()


def test_two_downloads_at_once_both_get_the_whole_file(tmp_path, monkeypatch):
    x, y = np.random.default_rng(0).random((20, 3)), np.tile([0, 1], 10)
    served = tmp_path / "served.mat"
    scipy.io.savemat(served, {"X": x, "y": y[:, None]})
    both_write = threading.Barrier(2, timeout=30)

    class Downloader:
        def __call__(self, url, output_file, pooch):
            content = served.read_bytes()
            with open(output_file, "wb") as file:
                file.write(content[:100])
                file.flush()
                both_write.wait()  # half of each is there
                assert not (folder / "cardio.mat").exists()
                both_write.wait()
                file.write(content[100:])

    monkeypatch.setattr("pooch.core.choose_downloader", lambda *a, **k: Downloader())
    url = "https://example.org/cardio.mat"
    monkeypatch.setitem(sources.ODDS, "cardio", (url, pooch.file_hash(served)))
    folder = tmp_path / "data"
    folder.mkdir()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for source in pool.map(lambda _: sources.load("cardio", folder), range(2)):
            np.testing.assert_array_equal(source.x, x)
    assert [path.name for path in folder.iterdir()] == ["cardio.mat"]


def test_a_folder_that_cannot_be_written_is_named_before_a_download(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setattr("pooch.retrieve", lambda *_, **__: pytest.fail("a download"))
    message = f"thyroid.npz is not there, and nothing can be written to {tmp_path}; put"
    with pytest.raises(FileNotFoundError, match=message):
        sources.load("thyroid", tmp_path)


def test_without_a_network_the_advice_is_a_local_file(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise requests.exceptions.ConnectionError("no route")

    monkeypatch.setattr("requests.get", fail)
    with pytest.raises(FileNotFoundError, match="thyroid could not be downloaded"):
        sources.load("thyroid", tmp_path)
    with pytest.raises(FileNotFoundError, match="downloading is off; put a file"):
        sources.load("thyroid", tmp_path, download=False)


def test_a_file_in_the_folder_comes_first(tmp_path):
    x = np.zeros((4, 28, 28), np.uint8)
    y = np.arange(4)
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    source = sources.load("mnist", tmp_path)
    assert source.x.shape == (4, 28, 28, 1) and source.x_test.shape == (2, 28, 28, 1)


def test_npz_with_semi_targets(tmp_path):
    path = tmp_path / "mine.npz"
    x = np.random.default_rng(0).random((5, 2))
    labels = np.array([1, 0, 0, -1, 0])
    np.savez(path, x_train=x, semi_targets=labels, x_test=x, y_test=np.ones(5))
    source = sources.load(str(path))
    np.testing.assert_array_equal(source.semi_targets, labels)
    assert source.labels is None and source.labels_test.dtype == np.int64


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("a,y,b\n1,0,2\n3,1,4\n", ""),
        ("a,b,class\n1,2,0\n3,4,1\n", "class"),
        ("a,B,c\n1,0,2\n3,1,4\n", "b"),
        ("1,2,0\n3,4,1\n", "3"),
        ("1,0,2\n3,1,4\n", "2"),
    ],
)
def test_csv_takes_the_named_column_as_label(tmp_path, text, label):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    source = sources.load(str(path), label=label)
    np.testing.assert_array_equal(source.x, [[1, 2], [3, 4]])
    np.testing.assert_array_equal(source.labels, [0, 1])


@pytest.mark.parametrize(
    ("text", "label", "message"),
    [
        (
            "a,class\n1,0\n",
            "",
            "label is '', but .*mine.csv has no column label or y; ",
        ),
        ("a,class\n1,0\n", "", "it must be one of a, class"),
        ("a,y\n1,0\n", "status", "has no column status; it must be one of a, y"),
        ("1,0\n2,1\n", "", "has no names of columns; it must be a number from 1 to 2"),
        ("1,0\n2,1\n", "3", "label is '3', but .* a number from 1 to 2"),
    ],
)
def test_no_column_is_silently_taken_for_the_label(tmp_path, text, label, message):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        sources.load(str(path), label=label)


def test_only_csv_files_have_columns_of_labels(tmp_path):
    write_npz(tmp_path / "mine.npz", X=X, y=np.arange(6) % 2)
    for name in (str(tmp_path / "mine.npz"), "digits"):
        with pytest.raises(ValueError, match="label is 'y', the column of a .csv file"):
            sources.load(name, label="y")


def write_npz(path, **arrays):
    np.savez(path, **arrays)


X = np.random.default_rng(0).random((6, 3))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: p.write_bytes(b"<html>404</html>"), "cannot be read as .npz"),
        (lambda p: p.write_bytes(b""), "cannot be read as .npz"),
        (lambda p: write_npz(p, X=np.array([{}], object)), "cannot be read as .npz"),
        (lambda p: write_npz(p, data=X), "holds data; it must hold X and y"),
        (lambda p: write_npz(p, X=X, y=np.zeros(5)), "y has 5 entries for 6 examples"),
        (lambda p: write_npz(p, X=X, y=X[:, 0]), "y must hold integers"),
        (lambda p: write_npz(p, X=X[:0], y=np.zeros(0)), "not be empty"),
        (
            lambda p: write_npz(p, X=np.array(["a"]), y=np.zeros(1)),
            "must hold real numbers",
        ),
        (
            lambda p: write_npz(p, X=np.full((2, 8, 8), 7.0), y=np.zeros(2)),
            "values from 7.0 to 7.0; they must be uint8",
        ),
        (
            lambda p: write_npz(
                p, x_train=X, y_train=np.zeros(6), x_test=X[:, :2], y_test=np.zeros(6)
            ),
            r"training examples have shape \(3,\), but test examples \(2,\)",
        ),
    ],
)
def test_unusable_npz_files_are_refused(tmp_path, write, message):
    path = tmp_path / "mine.npz"
    write(path)
    with pytest.raises(ValueError, match=message) as error:
        sources.load(str(path))
    assert str(path) in str(error.value)


@pytest.mark.parametrize("suffix", [".mat", ".csv"])
def test_damaged_tables_are_refused(tmp_path, suffix):
    path = tmp_path / f"mine{suffix}"
    path.write_bytes(b"a,b\n1,2\n3\n")
    with pytest.raises(ValueError, match=f"cannot be read as {suffix}"):
        sources.load(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "mine.csv is empty"),
        ("a,label\n", "it has less than two lines"),
        ("a,label\n1,0\n,1\n", "every cell must be a number"),
        ("a,label\n1,0\nred,1\n", "every cell must be a number"),
    ],
)
def test_incomplete_csv_files_are_refused(tmp_path, content, message):
    path = tmp_path / "mine.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        sources.load(str(path))


def test_unknown_names_and_missing_files(tmp_path):
    with pytest.raises(ValueError, match="no data set 'emnist'; known are digits"):
        sources.load("emnist")
    with pytest.raises(FileNotFoundError, match="no file .*mine.csv"):
        sources.load(str(tmp_path / "mine.csv"))
    with pytest.raises(FileNotFoundError, match="folder .*nowhere does not exist"):
        sources.load("mnist", tmp_path / "nowhere")


def read_csv(folder, text, label=""):
    path = folder / "mine.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return sources.load(str(path), label=label)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ('"label","b","c"\n0,1,2\n1,3,4\n', "column 'label'"),
        ('\ufeff"label","b","c"\n0,1,2\n1,3,4\n', "column 'label'"),
        ("b; label ;c\n1;0;2\n3;1;4\n", "column 'label'"),
        ("b\tc\tclass\n1\t2\t0\n\n3\t4\t1\n", "column 'class'"),
        ("b|c|class\n1|2|0\n\n3|4|1\n", "column 'class'"),
        ('1, "2", 0\r\n3,4,1\r\n', "column 3"),
        ('"a, b","c\nd",Y\n1,2,0\n3,4,1\n', "column 'Y'"),
    ],
)
def test_csv_dialects(tmp_path, text, label):
    own = {"column 'class'": "class", "column 3": "3"}.get(label, "")
    source = read_csv(tmp_path, text, own)
    np.testing.assert_array_equal(source.x, [[1, 2], [3, 4]])
    np.testing.assert_array_equal(source.labels, [0, 1])
    assert source.label == label


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,label\n1#x,0\n2,1\n", "line 2, column 1 'a' is '1#x', no number"),
        ("a,label\n1,0\n\n,1\n", "line 4, column 1 'a' is empty"),
        ("1,,0\n3,4,1\n", "label is ''.*has no names of columns"),
        ("a;label\n1,5;0\n2;1\n", "is '1,5', no number.* separated by a semicolon"),
        ("a,label\n1,0\n2,1,3\n", "line 3 has 3 cells, not 2, separated by a comma"),
        ("a.label\n1.0\n2.1\n", "single column.* a comma, semicolon, tab or pipe"),
        ("a,label\n1,0\n2,1\n".encode("utf-16"), "encoded in UTF-16; save it in UTF-8"),
        ("a,label\n1,0\n2,\xe91\n".encode("latin-1"), "line 3 has a byte 0xe9.*UTF-8"),
        ('a,label\n1,0\n"2,1\n', "line 3: a quote is opened that is never closed"),
        ("a,label\n1,1\n2,0\n3,-1\n", "column 'label' holds 1, 0 and -1.*semi_targets"),
    ],
)
def test_csv_files_are_refused_by_line_and_column(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_csv(tmp_path, text)


def test_bad_cells_far_down_are_located(tmp_path):
    lines = ["a,b,label"] + ["1,2,0"] * 9999
    lines[7000] = "1,x,0"
    with pytest.raises(ValueError, match="line 7001, column 2 'b' is 'x', no number"):
        read_csv(tmp_path, "\n".join(lines))


def test_wide_integers_of_csv_files_are_exact(tmp_path):
    source = read_csv(tmp_path, f"a,label\n{2**60 + 1},0\n{2**60 + 2},1\n")
    assert source.x.tolist() == [[2**60 + 1], [2**60 + 2]]
    with pytest.warns(UserWarning, match="column 1 has numbers beyond 2.53"):
        read_csv(tmp_path, f"a,b,label\n{2**60 + 1},0.5,0\n{2**60 + 2},1,1\n")


def test_an_index_without_a_name_is_told_of(tmp_path):
    with pytest.warns(
        UserWarning, match="first column has no name and counts the rows"
    ):
        read_csv(tmp_path, ",a,label\n0,5,0\n1,7,0\n2,6,1\n")


def test_large_csv_files_are_read_in_seconds(tmp_path):
    table = np.random.default_rng(0).random((100_000, 10)).round(6)
    table[:, -1] = table[:, -1] > 0.5
    path = tmp_path / "mine.csv"
    np.savetxt(path, table, delimiter=",", fmt="%.6g")
    start = time.perf_counter()
    source = sources.load(str(path), label="10")
    assert time.perf_counter() - start < 10  # about 1
    np.testing.assert_array_equal(source.x, table[:, :-1])


@pytest.mark.parametrize("suffix", [".npz", ".mat"])
def test_files_that_unpack_to_more_than_the_memory_are_refused_unread(
    tmp_path, monkeypatch, suffix
):
    path = tmp_path / f"mine{suffix}"
    x, y = np.zeros((2**18, 8)), np.zeros(2**18)
    if suffix == ".npz":
        np.savez_compressed(path, X=x, y=y)
    else:
        scipy.io.savemat(path, {"X": x, "y": y}, do_compression=True)
    assert path.stat().st_size < 2**20
    sources.load(str(path))
    monkeypatch.setattr(memory, "available", lambda: 2**23)
    with pytest.raises(
        ValueError,
        match=r"is too large .unpacked, it would take 0.01\d+ GiB.* 0.00781 GiB",
    ):
        sources.load(str(path))


def test_arrays_shorter_than_they_say_are_refused(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, X=X, y=np.zeros(6))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["X.npy"] = members["X.npy"].replace(b"(6, 3)", b"(1099511627776, 3)", 1)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match="X.npy is shorter than its shape|header"):
        sources.load(str(path))


def test_three_kinds_of_labels_are_no_three_classes():
    source = sources.Source(X, [1, 0, -1, 0, 0, 0])
    with pytest.raises(ValueError, match="1, 0 and -1, which are no three classes"):
        sources.checked(source)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"x": X + 1j},
            "x has shape .* and dtype complex128; it must hold real numbers",
        ),
        ({"x": X > 0.5}, "dtype bool; it must hold real numbers"),
        ({"x": np.ma.masked_less(X, 0.5)}, r"x has \d+ masked values; fill or remove"),
        (
            {"labels": np.ma.masked_equal([0, 0, 0, 1, 1, 1], 1)},
            "labels has 3 masked values",
        ),
        ({"labels": [0, 1, None, 0, 1, 0]}, "must hold integers.* dtype object"),
        ({"labels": [0, 1, np.nan, 0, 1, 0]}, "has nan .of row 2; 1 in all"),
        (
            {
                "x_test": X,
                "labels_test": np.zeros(6),
                "semi_targets": [True] + [False] * 5,
            },
            "semi_targets holds booleans.* give 1 known normal, 0 unlabeled, -1 known",
        ),
    ],
)
def test_arrays_that_are_not_what_they_seem(changes, message):
    source = sources.Source(X, np.zeros(6, int))._replace(**changes)
    with pytest.raises(ValueError, match=message):
        sources.checked(source)


def test_series_are_told_from_grey_images_by_their_name(tmp_path):
    path = tmp_path / "mine.npz"
    x, y = np.random.default_rng(0).normal(size=(6, 20, 3)), np.arange(6) % 2
    np.savez(path, X=x, y=y)
    with pytest.raises(ValueError, match="gray images X.*series_train, series_test or"):
        sources.load(str(path))
    np.savez(path, series=x, y=y)
    assert sources.load(str(path)).x.shape == (6, 20, 3)
    np.savez(path, series_train=x, y_train=y, series_test=x, y_test=y)
    assert sources.load(str(path)).x_test.shape == (6, 20, 3)
    np.savez(path, series=x[0], y=y)
    with pytest.raises(ValueError, match="series have shape|y has 6 entries|must be"):
        sources.load(str(path))


FOLDER = {
    "x_train": np.random.default_rng(0).random((9, 3), np.float32),
    "semi_targets": np.array([-1, 1, *[0] * 7]),
    "x_test": np.random.default_rng(1).random((5, 3), np.float32),
    "y_test": np.array([0, 1, 0, 0, 1]),
}


def save(folder, **changes):
    folder.mkdir()
    for name, array in (FOLDER | changes).items():
        if array is not None:
            np.save(folder / f"{name}.npy", array)
    return folder


def test_a_folder_of_arrays_is_read_or_stays_on_disk(tmp_path, monkeypatch):
    folder = save(tmp_path / "folder")
    read, kept = sources.load(str(folder)), sources.on_disk(folder)
    for source in (read, kept):
        assert source.labels is None
        for name in ("x", "x_test", "semi_targets", "labels_test"):
            key = {"x": "x_train", "labels_test": "y_test"}.get(name, name)
            np.testing.assert_array_equal(getattr(source, name)[:], FOLDER[key])
    assert isinstance(read.x, np.ndarray) and isinstance(kept.x, stored.Array)
    monkeypatch.setattr(memory, "available", lambda: 100)
    with pytest.raises(
        ValueError, match="is too large .* read it batch by batch, by -"
    ):
        sources.load(str(folder))
    sources.on_disk(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"semi_targets": None}, "to be streamed it must also hold semi_targets"),
        ({"x_test": np.zeros((5, 2))}, r"have shape \(3,\), but test examples \(2,\)"),
        ({"x_train": np.zeros((9, 3, 3))}, "x_train has shape .* called series_train"),
        ({"semi_targets": np.zeros(8)}, "semi_targets has 8 entries"),
        ({"y_test": np.array([0, 2, 0, 1, 1])}, "y_test contains 2|y_test holds 2"),
    ],
)
def test_folders_that_cannot_be_streamed(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        sources.on_disk(save(tmp_path / "folder", **changes))
    with pytest.raises(ValueError, match="is not a folder of .npy files, which alone"):
        sources.on_disk(tmp_path / "none")
