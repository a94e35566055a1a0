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

from deepsad_jax.data import tfds_images


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
    * `.mat` (version 5): `X` and `y`.
    * `.csv`: numbers, optionally under a line of names; the label is the column named
      `label` or `y`, else the last.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read or does not hold this.
    """
    path = pathlib.Path(path)
    readers = {".npz": _read_npz, ".mat": _read_mat, ".csv": _read_csv}
    if path.suffix not in readers:
        raise ValueError(f"{path} must end in one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        arrays = readers[path.suffix](path)
    except Exception as error:  # the readers raise many kinds for damaged files
        advice = (
            "every cell must be a number, the label included"
            if path.suffix == ".csv"
            else "it may be incomplete or not what its name says: get it again"
        )
        raise ValueError(
            f"{path} cannot be read as {path.suffix} ({error}); {advice}"
        ) from error
    return _source(path, {name.lower(): array for name, array in arrays.items()})


def _source(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> Source:
    if {"x_train", "semi_targets", "x_test", "y_test"} <= arrays.keys():
        source = Source(
            _examples(path, "x_train", arrays),
            None,
            _examples(path, "x_test", arrays),
            _labels(path, "y_test", arrays, len(arrays["x_test"])),
            _labels(path, "semi_targets", arrays, len(arrays["x_train"])),
        )
    elif {"x_train", "y_train", "x_test", "y_test"} <= arrays.keys():
        source = Source(
            _examples(path, "x_train", arrays),
            _labels(path, "y_train", arrays, len(arrays["x_train"])),
            _examples(path, "x_test", arrays),
            _labels(path, "y_test", arrays, len(arrays["x_test"])),
        )
    elif {"x", "y"} <= arrays.keys():
        x = _examples(path, "x", arrays)
        return Source(x, _labels(path, "y", arrays, len(x)))
    else:
        raise ValueError(
            f"{path} holds {', '.join(arrays) or 'nothing'}; it must hold X and y, or "
            "x_train, x_test and y_test with y_train or semi_targets"
        )
    if source.x.shape[1:] != source.x_test.shape[1:]:
        raise ValueError(
            f"{path}: training examples have shape {source.x.shape[1:]}, but test "
            f"examples {source.x_test.shape[1:]}"
        )
    return source


def _examples(path, name, arrays) -> np.ndarray:
    x = arrays[name]
    if x.ndim == 3:  # grey images
        x = x[..., np.newaxis]
    numeric = np.issubdtype(x.dtype, np.integer) or np.issubdtype(x.dtype, np.floating)
    if x.ndim not in (2, 4) or not x.size or not numeric:
        raise ValueError(
            f"{path}: {name} has shape {x.shape} and dtype {x.dtype}; it must hold "
            "numbers, [n, columns] or [n, height, width, channels], and not be empty"
        )
    if x.ndim == 4 and x.dtype != np.uint8:
        x = x.astype(np.float32)
        if x.min() < 0 or x.max() > 1:
            raise ValueError(
                f"{path}: the images {name} have values from {x.min()} to {x.max()}; "
                "they must be uint8, or floating in [0, 1]"
            )
    return x


def _labels(path, name, arrays, expected: int) -> np.ndarray:
    labels = arrays[name]
    if labels.size != expected:
        raise ValueError(
            f"{path}: {name} has {labels.size} entries for {expected} examples"
        )
    labels = labels.reshape(-1)
    integers = labels.astype(np.int64) if labels.dtype.kind in "iufb" else None
    if integers is None or not np.array_equal(integers, labels):
        raise ValueError(f"{path}: {name} must hold integers, one for each example")
    return integers


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    if not zipfile.is_zipfile(path):
        raise ValueError("it is no archive of arrays")
    # Never unpickle: an object array could run code.
    with np.load(path, allow_pickle=False) as content:
        return {name: content[name] for name in content.files}


def _read_mat(path: pathlib.Path) -> dict[str, np.ndarray]:
    import scipy.io

    content = scipy.io.loadmat(path)
    return {k: v for k, v in content.items() if not k.startswith("__")}


def _read_csv(path: pathlib.Path) -> dict[str, np.ndarray]:
    with path.open(encoding="utf-8-sig") as file:
        names = [name.strip() for name in file.readline().split(",")]
        if not file.readline():
            raise ValueError("it has less than two lines")
    has_names = not all(_is_number(name) for name in names)
    table = np.loadtxt(
        path, delimiter=",", skiprows=int(has_names), ndmin=2, encoding="utf-8-sig"
    )
    labels = [i for i, name in enumerate(names) if name.lower() in ("label", "y")]
    column = labels[0] if has_names and labels else table.shape[1] - 1
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
    if not download and not path.exists():
        raise FileNotFoundError(f"{path} is not there and downloading is off; {advice}")
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
