"""Raw data sets as arrays: embedded, downloaded, or from files of your own.

`load(name)` knows `digits` and `breast_cancer` (shipped with scikit-learn), the image
sets `mnist`, `fmnist` and `cifar10` (tensorflow-datasets), the six ODDS tables
(downloaded once and checked against their SHA-256), and the path of any `.npz`, `.csv`
or `.mat` file. A file `NAME.npz`, `NAME.mat` or `NAME.csv` in `data_dir` comes before
all of them, so nothing is downloaded where the data are at hand.
"""

import os
import pathlib
import zipfile
from typing import NamedTuple

import numpy as np

from deepsad_jax.data import matlab, tfds_images


class Source(NamedTuple):
    """A data set as it was published.

    Attributes:
        x: examples, `[n, columns]` for tables, `[n, height, width, channels]` for
            images (uint8, or floating in [0, 1]).
        labels: classes, `[n]` integers; 0 normal and 1 anomaly for tables. None if
            `semi_targets` are given.
        x_test: test examples, or None where the scenario has to split.
        labels_test: their classes.
        semi_targets: +1, 0 or -1 for each of `x`, where an expert has labelled them.
    """

    x: np.ndarray
    labels: np.ndarray | None
    x_test: np.ndarray | None = None
    labels_test: np.ndarray | None = None
    semi_targets: np.ndarray | None = None


EMBEDDED = ("digits", "breast_cancer")
IMAGES = ("mnist", "fmnist", "cifar10")
_PYOD = (
    "https://raw.githubusercontent.com/yzhao062/pyod/"
    "34f7996effac700a5166d882d5e94c6e6078fae3/notebooks/data/"
)
_DEEPOD = (
    "https://raw.githubusercontent.com/xuhongzuo/DeepOD/"
    "bb8c20c5c7e860a7c5f6dde4b4a9981bd0eb739d/data/"
)
# Address and SHA-256. The mirror of thyroid holds the table as .npz, not as the .mat of
# the other five; the numbers are those of the ODDS library.
ODDS = {
    "arrhythmia": (
        _PYOD + "arrhythmia.mat",
        "e4d47e499591ae31e5d7f0cd983367092353eac240f48e14c9b36457edb3460d",
    ),
    "cardio": (
        _PYOD + "cardio.mat",
        "5e568b6a73711012c481fa6cc984ab9c68e9a4fa44d6aeb3b43efa381c3f695b",
    ),
    "satellite": (
        _PYOD + "satellite.mat",
        "6feac3112b9c14e1c3e60afc437f2f3d29dc1000119c9f950c628078778d6aa0",
    ),
    "satimage-2": (
        _PYOD + "satimage-2.mat",
        "95c37a07cea2cb201f6900d14f521510e10b6b2f0074c06ac46d3157440ec67b",
    ),
    "shuttle": (
        _PYOD + "shuttle.mat",
        "b6e396c92354d5dcf5036901e36dc58e2913f2d1a5e138c35a2bedf9c69db899",
    ),
    "thyroid": (
        _DEEPOD + "38_thyroid.npz",
        "8de161b3f235b7647bb0b39a836d983ff61d67bf234edac461da2d71e889cb87",
    ),
}
NAMES = (*EMBEDDED, *IMAGES, *ODDS)
SUFFIXES = (".npz", ".mat", ".csv")
# What to do about a file that cannot be read.
_DAMAGED = "it may be incomplete or not what its name says: get it again"
_ADVICE = {
    ".npz": _DAMAGED,
    ".mat": f"{_DAMAGED}, or save it by save -v7",
    ".csv": "every cell must be a number, the label included",
}
# What the arrays are called, in the library and in files.
_FIELDS = Source(*Source._fields)
_SPLIT = Source("x_train", "y_train", "x_test", "y_test", "semi_targets")
_WHOLE = Source("X", "y")
_MEANINGS = {1: "known normal", 0: "unlabelled", -1: "known anomaly"}


def load(
    name: str, data_dir: str | os.PathLike | None = None, *, download: bool = True
) -> Source:
    """Reads a data set.

    Args:
        name: one of `NAMES`, or the path of a `.npz`, `.mat` or `.csv` file;
            `read_file` says what it must hold.
        data_dir: folder that is looked in first, for `NAME.npz`, `NAME.mat` or
            `NAME.csv`; downloads go there too. By default they go to the caches of
            pooch and tensorflow-datasets.
        download: whether missing data may be downloaded.

    Raises:
        ValueError: if there is no such data set, or a file does not hold what it must.
        FileNotFoundError: if the data are not there and cannot be downloaded.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise ValueError(f"the data set is {name!r}; it must be a name or a path")
    if pathlib.Path(name).suffix in SUFFIXES:
        return read_file(name)
    if name not in NAMES:
        raise ValueError(
            f"there is no data set {name!r}; known are {', '.join(NAMES)}, and files "
            f"that end in {', '.join(SUFFIXES)}"
        )
    if data_dir is not None:
        if not os.path.isdir(data_dir):
            raise FileNotFoundError(f"the data folder {data_dir} does not exist")
        for suffix in SUFFIXES:
            path = pathlib.Path(data_dir, name + suffix)
            if path.exists():
                return read_file(path)
    if name in EMBEDDED:
        return _embedded(name)
    if name in IMAGES:
        x, labels, x_test, labels_test = tfds_images.load(
            name, data_dir, download=download
        )
        return Source(x, labels, x_test, labels_test)
    return read_file(_download(name, data_dir, download))


def read_file(path: str | os.PathLike) -> Source:
    """Reads a data set from a file.

    * `.npz`: arrays `x_train`, `y_train`, `x_test`, `y_test`; or `X` and `y`, to be
      split; or `x_train`, `semi_targets` (+1 known normal, 0 unlabelled, -1 known
      anomaly), `x_test`, `y_test` (0 normal, 1 anomaly), where labels are your own.
    * `.mat` (version 5, which is up to -v7): `X` and `y`, dense and numeric.
    * `.csv`: numbers, optionally under a line of names; the label is the column named
      `label`, else `y`, else the last.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read or does not hold this.
    """
    path = pathlib.Path(path)
    readers = {".npz": _read_npz, ".mat": matlab.read, ".csv": _read_csv}
    if path.suffix not in readers:
        raise ValueError(f"{path} must end in one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        arrays = readers[path.suffix](path)
    except Exception as error:  # the readers raise many kinds for damaged files
        cause = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{path} cannot be read as {path.suffix} ({cause.rstrip('.')}); "
            f"{_ADVICE[path.suffix]}"
        ) from error
    return _source(path, arrays)


def _source(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> Source:
    found = {name.lower(): array for name, array in arrays.items()}
    if len(found) < len(arrays):
        raise ValueError(
            f"{path} holds {', '.join(arrays)}, some of which differ in upper and "
            "lower case alone; rename them"
        )
    if {"x_train", "semi_targets", "x_test", "y_test"} <= found.keys():
        names = _SPLIT
        found["y_train"] = None
    elif {"x_train", "y_train", "x_test", "y_test"} <= found.keys():
        names = _SPLIT
    elif {"x", "y"} <= found.keys():
        names = _WHOLE
    else:
        raise ValueError(
            f"{path} holds {', '.join(arrays) or 'nothing'}; it must hold X and y, or "
            "x_train, x_test and y_test with y_train or semi_targets"
        )
    raw = Source(*(found.get((name or "").lower()) for name in names))
    return checked(raw, str(path), names)


def checked(source: Source, where: str = "the data", names: Source = _FIELDS) -> Source:
    """The same source, as NumPy arrays of which the rest of the library can be sure.

    Values of tables are left to `scenario.make`, which scales them.

    Args:
        source: anything with arrays, or what NumPy makes arrays of.
        where: where they come from, for messages.
        names: what the arrays are called there.

    Raises:
        ValueError: if they are not as `Source` says, or do not fit each other.
    """
    x = _examples(where, names.x, source.x)
    if source.labels is None and source.semi_targets is None:
        raise ValueError(f"{where}: there must be {names.labels} or semi_targets")
    labels = _labels(where, names.labels, source.labels, len(x))
    semi_targets = _labels(
        where, names.semi_targets, source.semi_targets, len(x), _MEANINGS
    )
    if source.x_test is None and semi_targets is None:
        return Source(x, labels)
    if source.x_test is None or source.labels_test is None:
        raise ValueError(
            f"{where}: there must be test examples with labels, 0 normal and 1 anomaly"
        )
    x_test = _examples(where, names.x_test, source.x_test)
    labels_test = _labels(
        where,
        names.labels_test,
        source.labels_test,
        len(x_test),
        None if semi_targets is None else {0: "normal", 1: "anomaly"},
    )
    if x.shape[1:] != x_test.shape[1:]:
        raise ValueError(
            f"{where}: training examples have shape {x.shape[1:]}, but test "
            f"examples {x_test.shape[1:]}"
        )
    return Source(x, labels, x_test, labels_test, semi_targets)


def _array(where, name, values) -> np.ndarray:
    try:
        return np.asarray(values)
    except Exception as error:  # ragged lists, and whatever else is no array
        raise ValueError(f"{where}: {name} is no array of numbers") from error


def _examples(where, name, values) -> np.ndarray:
    x = _array(where, name, values)
    if x.ndim == 3:  # grey images
        x = x[..., np.newaxis]
    if x.ndim not in (2, 4) or not x.size or x.dtype.kind not in "iuf":
        raise ValueError(
            f"{where}: {name} has shape {x.shape} and dtype {x.dtype}; it must hold "
            "numbers, [n, columns] or [n, height, width, channels], and not be empty"
        )
    if x.ndim == 4 and x.dtype != np.uint8:
        low, high = x.min(), x.max()
        if not (low >= 0 and high <= 1):  # or NaN
            raise ValueError(
                f"{where}: the images {name} have values from {low} to {high}; "
                "they must be uint8, or floating in [0, 1]"
            )
        x = x.astype(np.float32, copy=False)
    return x


def _labels(where, name, values, expected: int, meanings=None) -> np.ndarray | None:
    if values is None:
        return None
    labels = _array(where, name, values)
    if labels.size != expected or max(labels.shape, default=1) != expected:
        shape = f" of shape {labels.shape}" if labels.ndim > 1 else ""
        raise ValueError(
            f"{where}: {name} has {labels.size} entries{shape} for {expected} examples"
        )
    labels = labels.reshape(-1)
    if labels.dtype.kind not in "iufb":
        raise ValueError(
            f"{where}: {name} must hold integers, one for each example, but has dtype "
            f"{labels.dtype}"
        )
    with np.errstate(invalid="ignore"):  # NaN, and what int64 does not hold
        integers = labels.astype(np.int64)
    strange = labels[integers != labels]
    if len(strange):
        raise ValueError(
            f"{where}: {name} must hold integers, one for each example, but has "
            f"{strange[0]}"
        )
    strange = np.setdiff1d(integers, list(meanings)) if meanings else []
    if len(strange):
        allowed = ", ".join(f"{value} {meaning}" for value, meaning in meanings.items())
        raise ValueError(
            f"{where}: {name} contains {strange[0]}; allowed are {allowed}"
        )
    return integers


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    if not zipfile.is_zipfile(path):
        raise ValueError("it is no archive of arrays")
    # Never unpickle: an object array could run code.
    with np.load(path, allow_pickle=False) as content:
        arrays = {name: content[name] for name in content.files}
    # Members that are no .npy files come as bytes.
    return {n: array for n, array in arrays.items() if isinstance(array, np.ndarray)}


def _read_csv(path: pathlib.Path) -> dict[str, np.ndarray]:
    with path.open(encoding="utf-8-sig") as file:
        names = [name.strip() for name in file.readline().split(",")]
        if not file.readline():
            raise ValueError("it has less than two lines")
    has_names = not all(_is_number(name) for name in names)
    table = np.loadtxt(
        path, delimiter=",", skiprows=int(has_names), ndmin=2, encoding="utf-8-sig"
    )
    names = [name.lower() for name in names]
    label = next((name for name in ("label", "y") if name in names), None)
    if names.count(label) > 1:
        raise ValueError(f"it has {names.count(label)} columns {label}")
    column = names.index(label) if label else table.shape[1] - 1
    return {"x": np.delete(table, column, axis=1), "y": table[:, column]}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _embedded(name: str) -> Source:
    import sklearn.datasets

    if name == "digits":
        content = sklearn.datasets.load_digits()
        images = (content.images / 16.0).astype(np.float32)
        return Source(images[..., np.newaxis], content.target.astype(np.int64))
    content = sklearn.datasets.load_breast_cancer()
    # There, 0 is malignant: the anomaly.
    return Source(content.data, (content.target == 0).astype(np.int64))


def _download(name: str, data_dir, download: bool) -> str:
    import pooch

    url, sha256 = ODDS[name]
    folder = pathlib.Path(data_dir or pooch.os_cache("deepsad_jax"))
    path = folder / f"{name}{pathlib.PurePosixPath(url).suffix}"
    advice = f"put a file {name}.mat into a folder and pass it as --config.data.dir"
    if not download:
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is not there and downloading is off; {advice}"
            )
        if pooch.file_hash(path) != sha256:
            raise ValueError(
                f"{path} is not the table {name} (its SHA-256 differs) and downloading "
                f"is off; delete it, and {advice}"
            )
    try:
        return pooch.retrieve(url, f"sha256:{sha256}", fname=path.name, path=folder)
    except ValueError as error:  # the hash differs
        raise ValueError(
            f"what {url} sent is not the table {name} (its SHA-256 differs); {advice}"
        ) from error
    except OSError as error:  # requests' exceptions are among these
        raise FileNotFoundError(
            f"the table {name} could not be downloaded from {url} "
            f"({type(error).__name__}); check the network, or {advice}"
        ) from error
