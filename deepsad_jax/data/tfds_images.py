"""MNIST, Fashion-MNIST and CIFAR-10 through tensorflow-datasets, without TensorFlow.

tensorflow-datasets (tfds) itself needs no TensorFlow, but its image builders call it to
unpack the downloaded files and to encode PNG. The builders made here inherit everything
else from tfds (addresses, checksums, download manager, names, versions, features), and
do those two steps with the standard library and Pillow. What they leave on disk is an
ordinary tfds data set in ArrayRecord format, which any other program reads with
`tfds.data_source`. (`tfds.load` reads TFRecord alone, which only TensorFlow writes.)

Data sets that were prepared before, by this module or by any tfds program, are read
from where they are, as ArrayRecord or TFRecord. tfds shuffles when it writes, by a hash
of each example's position in the original files: the order is therefore not the
original one, but it is the same on every machine and in both formats.
"""

import collections.abc
import contextlib
import functools
import gzip
import importlib.util
import io
import logging
import os
import pathlib
import struct
import tarfile

import numpy as np

_LOGGER = logging.getLogger(__name__)

# Seconds to wait for the first answer of a server, before anything is downloaded.
_TIMEOUT = 10.0

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def load(
    name: str, data_dir: str | os.PathLike | None = None, *, download: bool = True
) -> Arrays:
    """Loads an image data set, preparing it on the first call.

    The first call downloads the original files (MNIST 12 MB, Fashion-MNIST 31 MB,
    CIFAR-10 170 MB) and writes them as a tfds data set; it may be interrupted at any
    time, and several processes may make it at once. Without a network, tfds also takes
    the original files from `data_dir/downloads/manual`.

    Args:
        name: "mnist", "fmnist" or "cifar10".
        data_dir: the folder of tfds data sets; by default that of tfds, which is
            `TFDS_DATA_DIR` from the environment or `~/tensorflow_datasets`.
        download: whether a data set that is not there may be downloaded and prepared.

    Returns:
        `x_train, y_train, x_test, y_test`: images, uint8, `[N, H, W, C]` with C = 1 or
        3, and class labels 0 to 9, int64, `[N]`.

    Raises:
        ValueError: if there is no such data set, if a downloaded file has not the
            checksum that tfds expects, or if the prepared files are corrupt.
        FileNotFoundError: if the data set is not prepared and may not be, or cannot be,
            downloaded, or if the package array_record is missing.
    """
    if name not in _BUILDERS:
        known = ", ".join(_BUILDERS)
        raise ValueError(f"no image data set is called {name!r}; choose from {known}")
    builder = _builder(name, data_dir)
    if not _is_prepared(builder):
        if not download:
            raise FileNotFoundError(
                f"{name} is not prepared in {builder.data_dir}; allow the download "
                f"once, or {_alternative(name)}"
            )
        builder = _prepare(name, builder)
    with _unreadable_is_value_error(name, builder.data_dir):
        return *_read_split(builder, "train"), *_read_split(builder, "test")


def _alternative(name: str) -> str:
    return (
        f"put a file {name}.npz with x_train, y_train, x_test, y_test into a folder "
        "and give it as data_dir"
    )


@contextlib.contextmanager
def _unreadable_is_value_error(name, folder):
    # Broken files surface as almost any exception: RuntimeError from ArrayRecord,
    # ParseError from protobuf, JSONDecodeError, UnidentifiedImageError, ...
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        cause = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(
            f"the prepared files of {name} in {folder} cannot be read ({cause}); "
            f"delete that folder to have them prepared again, or {_alternative(name)}"
        ) from error


# --- Builders: the two steps for which tfds needs TensorFlow.


def _png(image: np.ndarray) -> bytes:
    import PIL.Image

    buffer = io.BytesIO()
    PIL.Image.fromarray(np.ascontiguousarray(image)).save(buffer, format="png")
    return buffer.getvalue()


def _read_idx(path: os.PathLike) -> np.ndarray:
    """Reads a gzipped IDX file of bytes: 0, 0, 8, rank, sizes (big endian), data."""
    data = gzip.decompress(pathlib.Path(path).read_bytes())
    rank = data[3]
    shape = struct.unpack_from(f">{rank}I", data, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _mnist_splits(builder, dl_manager) -> dict[str, collections.abc.Iterator]:
    """Splits of MNIST and Fashion-MNIST: four IDX files, of the same names in both."""
    prefixes = {"train": "train", "test": "t10k"}
    paths = {
        (split, kind): _download(f"{builder.URL}{prefix}-{kind}-ubyte.gz", dl_manager)
        for split, prefix in prefixes.items()
        for kind in ("images-idx3", "labels-idx1")
    }

    def examples(split):
        images = _read_idx(paths[split, "images-idx3"])
        labels = _read_idx(paths[split, "labels-idx1"])
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": _png(image), "label": int(label)}

    return {split: examples(split) for split in prefixes}


def _cifar10_splits(builder, dl_manager) -> dict[str, collections.abc.Iterator]:
    """Splits of CIFAR-10: records of 1 label and 3 x 32 x 32 bytes, in a tar file."""
    source = builder._cifar_info
    with tarfile.open(_download(source.url, dl_manager)) as archive:
        files = {
            os.path.basename(member.name): archive.extractfile(member).read()
            for member in archive
            if member.isfile()
        }
    class_names = files[source.label_files[0]].decode().split()
    builder.info.features["label"].names = class_names

    def examples(split, names):
        records = np.frombuffer(b"".join(files[n] for n in names), np.uint8)
        for index, record in enumerate(records.reshape(-1, 1 + 3 * 32 * 32)):
            image = np.moveaxis(record[1:].reshape(3, 32, 32), 0, -1)
            example = {"image": _png(image), "label": int(record[0])}
            yield index, {"id": f"{split}_{index:05d}", **example}

    return {
        "train": examples("train", source.train_files),
        "test": examples("test", source.test_files),
    }


# Our name: the class in tfds.image_classification, and how its files are unpacked.
_BUILDERS = {
    "mnist": ("MNIST", _mnist_splits),
    "fmnist": ("FashionMNIST", _mnist_splits),
    "cifar10": ("Cifar10", _cifar10_splits),
}


@functools.cache
def _builder_class(dataset_name: str) -> type:
    import tensorflow_datasets as tfds

    class_name, splits = _BUILDERS[dataset_name]
    original = getattr(tfds.image_classification, class_name)

    class Builder(original, skip_registration=True):
        name = original.name
        # The download manager knows all checksums of tfds; looking them up by class
        # as well would need importlib_resources, which tfds does not declare.
        url_infos = None

        def _split_generators(self, dl_manager):
            return splits(self, dl_manager)

    # dataset_info.json names the module; the data are those of the original builder.
    Builder.__module__ = original.__module__
    return Builder


def _builder(name: str, data_dir: str | os.PathLike | None):
    from tensorflow_datasets.core import constants

    builder_class = _builder_class(name)
    data_dir = pathlib.Path(data_dir or constants.DATA_DIR).expanduser()
    # What is there already is read when the builder is made.
    folder = data_dir / builder_class.name / str(builder_class.VERSION)
    if not folder.exists():
        return builder_class(data_dir=data_dir)
    with _unreadable_is_value_error(name, folder):
        return builder_class(data_dir=data_dir)


def _is_prepared(builder) -> bool:
    # A folder without dataset_info.json makes tfds warn, and one that does not exist
    # has none.
    return builder.data_path.exists() and builder.is_prepared()


# --- Preparing.


def _download(url: str, dl_manager) -> os.PathLike:
    """Downloads one file with tfds, or finds it where tfds does.

    One at a time, because tfds does not stop its other downloads when one has failed;
    and after a short request, because without a connection it retries for minutes.
    """
    import requests

    folder = pathlib.Path(dl_manager.download_dir)
    by_hand = folder / "manual" / url.rsplit("/", 1)[-1]
    # The files that tfds has downloaded are described by JSON files next to them.
    infos = folder.glob("*/*.INFO")
    if not by_hand.exists() and not any(f'"{url}"' in p.read_text() for p in infos):
        try:
            response = requests.head(url, timeout=_TIMEOUT, allow_redirects=True)
        except requests.RequestException as error:
            raise requests.ConnectionError(f"no connection to {url}") from error
        # Below 500, any answer will do: some servers refuse HEAD, but serve GET.
        if response.status_code >= 500:
            response.raise_for_status()
    return dl_manager.download(url)


@contextlib.contextmanager
def _lock(path: pathlib.Path):
    """Holds an exclusive lock; the system releases it even if the process is killed."""
    try:
        import fcntl
    except ImportError:  # Windows: two processes both prepare, and one rename wins.
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise OSError(
            f"{path.parent} cannot be written, where the data set would be prepared: "
            f"{error.strerror}"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _LOGGER.warning("waiting for another process, which holds %s", path)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _prepare(name: str, builder):
    """Downloads and writes a data set, and returns a builder that reads it.

    tfds writes into a temporary folder and renames it at the end, so an interrupted
    call leaves nothing that looks prepared.
    """
    if importlib.util.find_spec("array_record") is None:
        raise FileNotFoundError(
            f"{name} is not prepared in {builder.data_dir}, and preparing it needs the "
            "package array_record, which is not installed (there is none for Windows); "
            f"install it, or {_alternative(name)}"
        )
    data_dir = pathlib.Path(builder.data_dir_root)
    with _lock(data_dir / f".{name}.lock"):
        builder = _builder(name, data_dir)
        if not _is_prepared(builder):
            _LOGGER.info("preparing %s in %s", name, builder.data_dir)
            try:
                _download_and_prepare(name, builder)
            except Exception:
                # A program that does not know the lock may have been quicker.
                if not _is_prepared(builder):
                    raise
            builder = _builder(name, data_dir)
    if not _is_prepared(builder):
        raise ValueError(
            f"the folder {builder.data_dir} of {name} exists, but is incomplete; "
            f"delete it to have the data prepared again, or {_alternative(name)}"
        )
    return builder


def _download_and_prepare(name: str, builder) -> None:
    import requests
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import download_manager

    config = tfds.download.DownloadConfig(
        try_download_gcs=False, force_checksums_validation=True
    )
    try:
        builder.download_and_prepare(download_config=config, file_format="array_record")
    except (requests.RequestException, tfds.download.DownloadError) as error:
        cause = str(error).splitlines()[0].rstrip(".")
        raise FileNotFoundError(
            f"{name} is not prepared in {builder.data_dir} and could not be downloaded "
            f"({cause}); connect this machine to the network, or {_alternative(name)}"
        ) from error
    except download_manager.NonMatchingChecksumError as error:
        # The message begins "Artifact URL, downloaded to PATH, has wrong checksum:".
        url = str(error).split(",")[0].removeprefix("Artifact ")
        raise ValueError(
            f"{name} was not prepared in {builder.data_dir}: the file from {url} has "
            "the wrong checksum (is it the login page of a network?); try again on "
            f"another network, or {_alternative(name)}"
        ) from error


# --- Reading.


def _read_split(builder, split: str) -> tuple[np.ndarray, np.ndarray]:
    import PIL.Image
    import tensorflow_datasets as tfds

    info = builder.info
    # Decoding the PNG bytes here saves a third of the time that tfds takes.
    decoders = {"image": tfds.decode.SkipDecoding()}
    formats = {file_format.value for file_format in info.available_file_formats()}
    if "array_record" in formats:
        source = builder.as_data_source(
            split, decoders=decoders, file_format="array_record"
        )
        examples = source.__getitems__(range(len(source)))
    elif "tfrecord" in formats:
        examples = [
            info.features.deserialize_example_np(record, decoders=decoders)
            for path in info.splits[split].filepaths
            for record in _read_tfrecord(path)
        ]
    else:
        raise ValueError(f"unknown formats {sorted(formats)}")
    expected = info.splits[split].num_examples
    if len(examples) != expected:
        raise ValueError(f"{split} has {len(examples)} examples, expected {expected}")
    images = np.empty((expected, *info.features["image"].shape), np.uint8)
    for image, example in zip(images, examples, strict=True):
        decoded = PIL.Image.open(io.BytesIO(example["image"]))
        image[...] = np.asarray(decoded).reshape(image.shape)
    return images, np.array([example["label"] for example in examples], np.int64)


def _read_tfrecord(path: os.PathLike) -> list[bytes]:
    """Reads a TFRecord file: per record the length, its CRC, the data, their CRC.

    Format: https://www.tensorflow.org/tutorials/load_data/tfrecord.
    """
    data = pathlib.Path(path).read_bytes()
    records, checksums, position = [], [], 0
    while position < len(data):
        (length,) = struct.unpack_from("<Q", data, position)
        start, end = position + 12, position + 12 + length
        records.append(data[start:end])
        checksums.append(struct.unpack_from("<I", data, end)[0])
        position = end + 4
    crc = _crc32c(records)
    masked = ((crc >> 15) | (crc << 17)) + np.uint32(0xA282EAD8)
    wrong = np.flatnonzero(masked != np.array(checksums, np.uint32))
    if wrong.size:
        raise ValueError(f"record {wrong[0]} of {path} has the wrong checksum")
    return records


def _crc32c(records: list[bytes]) -> np.ndarray:
    """CRC-32C (Castagnoli) of each record, uint32, `[N]`: all records in step."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(0x82F63B78), 0)
    result = np.empty(len(records), np.uint32)
    lengths = np.array([len(record) for record in records], np.int64)
    longest_first = np.argsort(-lengths, kind="stable")
    for block in np.array_split(longest_first, len(records) // 4096 + 1):
        size = lengths[block].max(initial=0)
        padded = b"".join(records[i].ljust(size, b"\0") for i in block)
        columns = np.frombuffer(padded, np.uint8).reshape(len(block), size).T
        # At byte k, the records still running are the first running[k] of the block.
        running = np.searchsorted(-lengths[block], -np.arange(size), side="left")
        crc = np.full(len(block), 0xFFFFFFFF, np.uint32)
        for column, n in zip(np.ascontiguousarray(columns), running, strict=True):
            crc[:n] = table[(crc[:n] ^ column[:n]) & 0xFF] ^ (crc[:n] >> 8)
        result[block] = ~crc
    return result
