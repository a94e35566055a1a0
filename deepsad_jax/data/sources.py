"""Raw data sets as arrays: embedded, downloaded, or from files of your own.

`load(name)` knows `digits` and `breast_cancer` (shipped with scikit-learn), the image
sets `mnist`, `fmnist` and `cifar10` (tensorflow-datasets), the six ODDS tables
(downloaded once and checked against their SHA-256), and the path of any `.npz`, `.csv`
or `.mat` file, or of a folder of `.npy` files. A file `NAME.npz`, `NAME.mat` or
`NAME.csv` in `data_dir` comes before all of them, so nothing is downloaded where the
data are at hand.
"""

import os
import pathlib
from typing import NamedTuple

import numpy as np

from deepsad_jax import checks, labels
from deepsad_jax.data import files, tfds_images


class Source(NamedTuple):
    """A data set as it was published.

    Attributes:
        x: examples, `[n, columns]` for tables, `[n, height, width, channels]` for
            images, `[n, time, channels]` for series.
        labels: classes, `[n]` integers; 0 normal and 1 anomaly for tables. None if
            `semi_targets` are given.
        x_test: test examples, or None where the scenario has to split.
        labels_test: their classes.
        semi_targets: +1, 0 or -1 for each of `x`, where an expert has labeled them.
        label: what the labels are called where they come from, in words.
        series: whether arrays of rank 3 are series; `[n, height, width]` otherwise,
            which are gray images, uint8 or floating in [0, 1].
    """

    x: np.ndarray
    labels: np.ndarray | None
    x_test: np.ndarray | None = None
    labels_test: np.ndarray | None = None
    semi_targets: np.ndarray | None = None
    label: str = ""
    series: bool = False


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
SUFFIXES = tuple(files.READERS)
# What the arrays are called, in the library and in files.
_FIELDS = Source(*Source._fields)
_SPLIT = Source("x_train", "y_train", "x_test", "y_test", "semi_targets")
_WHOLE = Source("X", "y")
_SERIES = {"x_train": "series_train", "x_test": "series_test", "X": "series"}


def load(
    name: str,
    data_dir: str | os.PathLike | None = None,
    *,
    download: bool = True,
    label: str = "",
) -> Source:
    """Reads a data set.

    Args:
        name: one of `NAMES`, or the path of a `.npz`, `.mat` or `.csv` file or of a
            folder of `.npy` files; `read_file` says what it must hold.
        data_dir: folder that is looked in first, for `NAME.npz`, `NAME.mat` or
            `NAME.csv`; downloads go there too. By default they go to the caches of
            pooch and tensorflow-datasets.
        download: whether missing data may be downloaded.
        label: the column of a `.csv` file that holds the labels, see `read_file`.

    Raises:
        ValueError: if there is no such data set, or a file does not hold what it must.
        FileNotFoundError: if the data are not there and cannot be downloaded.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise ValueError(f"the data set is {name!r}; it must be a name or a path")
    if pathlib.Path(name).suffix in SUFFIXES or is_folder(name):
        return read_file(name, label)
    if name not in NAMES:
        raise ValueError(
            f"there is no data set {name!r}; known are {', '.join(NAMES)}, and files "
            f"that end in {', '.join(SUFFIXES)} and folders"
        )
    if data_dir is not None:
        if not os.path.isdir(data_dir):
            raise FileNotFoundError(f"the data folder {data_dir} does not exist")
        for suffix in SUFFIXES:
            path = pathlib.Path(data_dir, name + suffix)
            if path.exists():
                return read_file(path, label)
    if label:
        raise ValueError(
            f"label is {label!r}, the column of a .csv file, but {name} is none; it "
            "must be empty"
        )
    if name in EMBEDDED:
        return _embedded(name)
    if name in IMAGES:
        x, classes, x_test, classes_test = tfds_images.load(
            name, data_dir, download=download
        )
        return Source(x, classes, x_test, classes_test, label="the class")
    return read_file(_download(name, data_dir, download))


def is_folder(name: str | os.PathLike) -> bool:
    """Whether a name is that of a folder of `.npy` files."""
    return os.path.isdir(name) and name not in NAMES


def on_disk(path: str | os.PathLike) -> Source:
    """A folder of `.npy` files, of which the examples stay there: `stored.Array`.

    Args:
        path: of the folder, with `x_train`, `semi_targets`, `x_test` and `y_test` (0
            normal, 1 anomaly), or `series_train` and `series_test`.

    Raises:
        ValueError: if it does not hold this.
    """
    path = pathlib.Path(path)
    if not is_folder(path):
        raise ValueError(
            f"{path} is not a folder of .npy files, which alone can be streamed"
        )
    found, names = files.in_folder(path), _SPLIT._replace(labels=None)
    if "series_train" in found:
        names = Source(*(_SERIES.get(n, n) if n else n for n in names[:5]))
    needed = [name for name in names[:5] if name]
    if missing := [name for name in needed if name not in found]:
        raise ValueError(
            f"{path} holds {', '.join(f'{n}.npy' for n in found) or 'no .npy file'}; "
            f"to be streamed it must also hold {' and '.join(missing)}"
        )
    x, x_test = found[names.x], found[names.x_test]
    for name, array in ((names.x, x), (names.x_test, x_test)):
        if not 2 <= array.ndim <= 5 or (array.ndim == 3 and names.x == "x_train"):
            raise ValueError(
                f"{path}: {name} has shape {array.shape}; it must be [n, columns], or "
                "[n, height, width, channels] of images (series [n, time, channels] "
                "are called series_train and series_test)"
            )
    if x.shape[1:] != x_test.shape[1:]:
        raise ValueError(
            f"{path}: training examples have shape {x.shape[1:]}, but test "
            f"examples {x_test.shape[1:]}"
        )
    semi_targets = labels.check_semi_targets(
        f"{path}: {names.semi_targets}", found[names.semi_targets][:], len(x)
    )
    labels_test = labels.integers(
        f"{path}: {names.labels_test}",
        found[names.labels_test][:],
        len(x_test),
        {0: "normal", 1: "anomaly"},
    )
    return Source(x, None, x_test, labels_test, semi_targets, "semi_targets")


def read_file(path: str | os.PathLike, label: str = "") -> Source:
    """Reads a data set from a file.

    * `.npz`: arrays `x_train`, `y_train`, `x_test`, `y_test`; or `X` and `y`, to be
      split; or `x_train`, `semi_targets` (+1 known normal, 0 unlabeled, -1 known
      anomaly), `x_test`, `y_test` (0 normal, 1 anomaly), where labels are your own.
      Series `[n, time, channels]` are called `series_train`, `series_test` or `series`
      instead of `x_train`, `x_test` or `X`; under those names, `[n, height, width]`
      are gray images.
    * `.mat` (version 5, which is up to -v7): the same, dense and numeric.
    * a folder: the same, each in a `.npy` file of its name.
    * `.csv`: numbers, separated by commas, semicolons, tabs or pipes, optionally under
      a line of names; the labels are the column `label`, else `y`.

    Args:
        path: of the file.
        label: another column of labels: its name, or its number from 1 where the file
            has no names.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read or does not hold this.
    """
    path = pathlib.Path(path)
    arrays, where = files.read(path, label)
    found = {name.lower(): array for name, array in arrays.items()}
    if len(found) < len(arrays):
        raise ValueError(
            f"{path} holds {', '.join(arrays)}, some of which differ in upper and "
            "lower case alone; rename them"
        )
    series = any(name in found for name in _SERIES.values())
    renamed = _SERIES if series else {}
    for names in (
        _SPLIT._replace(labels=None),
        _SPLIT._replace(semi_targets=None),
        _WHOLE,
    ):
        names = Source(*(renamed.get(name, name) for name in names[:5]))
        needed = [name.lower() for name in names[:5] if name]
        if found.keys() >= set(needed):
            break
    else:
        raise ValueError(
            f"{path} holds {', '.join(arrays) or 'nothing'}; it must hold X and y, or "
            "x_train, x_test and y_test with y_train or semi_targets"
        )
    raw = Source(
        *(found[name.lower()] if name else None for name in names[:5]),
        where or names.labels or "semi_targets",
        series,
    )
    return checked(raw, str(path), names)


def checked(source: Source, where: str = "the data", names: Source = _FIELDS) -> Source:
    """The same source, as NumPy arrays of which the rest of the library can be sure.

    Values are left to `protocol.make`, which fits a preprocessing to them.

    Args:
        source: anything with arrays, or what NumPy makes arrays of.
        where: where they come from, for messages.
        names: what the arrays are called there.

    Raises:
        ValueError: if they are not as `Source` says, or do not fit each other.
    """
    x = _examples(where, names.x, source.x, source.series)
    if source.labels is None and source.semi_targets is None:
        raise ValueError(f"{where}: there must be {names.labels} or semi_targets")
    given = semi_targets = None
    if source.labels is not None:
        given = labels.integers(f"{where}: {names.labels}", source.labels, len(x))
        if set(np.unique(given)) == {-1, 0, 1}:
            raise ValueError(
                f"{where}: {source.label or names.labels} holds 1, 0 and -1, which are "
                "no three classes but labels of an expert (known normal, unlabeled, "
                "known anomaly); fit them by the command deepsad, with --label, "
                "--normal=1 and --anomaly=-1, give a .npz file with x_train, "
                "semi_targets, x_test and y_test (0 normal, 1 anomaly), or number "
                "classes from 0"
            )
    if source.semi_targets is not None:
        semi_targets = labels.check_semi_targets(
            f"{where}: {names.semi_targets}", source.semi_targets, len(x)
        )
    if source.x_test is None and semi_targets is None:
        return source._replace(x=x, labels=given)
    if source.x_test is None or source.labels_test is None:
        raise ValueError(
            f"{where}: there must be test examples with labels, 0 normal and 1 anomaly"
        )
    x_test = _examples(where, names.x_test, source.x_test, source.series)
    labels_test = labels.integers(
        f"{where}: {names.labels_test}",
        source.labels_test,
        len(x_test),
        None if semi_targets is None else {0: "normal", 1: "anomaly"},
    )
    if x.shape[1:] != x_test.shape[1:]:
        raise ValueError(
            f"{where}: training examples have shape {x.shape[1:]}, but test "
            f"examples {x_test.shape[1:]}"
        )
    return source._replace(
        x=x,
        labels=given,
        x_test=x_test,
        labels_test=labels_test,
        semi_targets=semi_targets,
    )


def _examples(where: str, name: str, values, series: bool) -> np.ndarray:
    x = checks.rows(values, f"{where}: {name}")
    if series and x.ndim != 3:
        raise ValueError(
            f"{where}: the series {name} have shape {x.shape}; they must be [n, time, "
            "channels]"
        )
    if x.ndim == 3 and not series:
        low, high = (0, 1) if x.dtype == np.uint8 else (x.min(), x.max())
        if not (low >= 0 and high <= 1):  # or NaN
            raise ValueError(
                f"{where}: the gray images {name}, {list(x.shape)}, have values from "
                f"{low} to {high}; they must be uint8, or floating in [0, 1] (series "
                "[n, time, channels] are called series_train, series_test or series)"
            )
        x = x[..., np.newaxis]
    return x


def _embedded(name: str) -> Source:
    import sklearn.datasets

    if name == "digits":
        content = sklearn.datasets.load_digits()
        images = (content.images / 16.0).astype(np.float32)
        return Source(
            images[..., np.newaxis],
            content.target.astype(np.int64),
            label="the digit",
        )
    content = sklearn.datasets.load_breast_cancer()
    # There, 0 is malignant: the anomaly.
    return Source(
        content.data, (content.target == 0).astype(np.int64), label="malignant"
    )


def _download(name: str, data_dir, download: bool) -> str:
    import pooch

    url, sha256 = ODDS[name]
    folder = pathlib.Path(data_dir or pooch.os_cache("deepsad_jax"))
    path = folder / f"{name}{pathlib.PurePosixPath(url).suffix}"
    advice = f"put a file {name}.mat into a folder and give it as data_dir"
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
    if not path.is_file() and folder.is_dir() and not os.access(folder, os.W_OK):
        raise FileNotFoundError(
            f"{path} is not there, and nothing can be written to {folder}; {advice}"
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
