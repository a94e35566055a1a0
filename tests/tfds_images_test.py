"""Tests of deepsad_jax.data.tfds_images: real tfds, a local server, no TensorFlow.

The original files are made here, in their published formats, from seeded random
images: IDX (http://yann.lecun.com/exdb/mnist) and the binary version of CIFAR-10
(https://www.cs.toronto.edu/~kriz/cifar.html). Only addresses and checksums are
replaced; tfds downloads, writes and, in the read-back tests, reads by itself.
"""

import contextlib
import gzip
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds

from deepsad_jax.data import tfds_images

N_TRAIN, N_TEST = 40, 15
SHAPES = {"mnist": (28, 28, 1), "fmnist": (28, 28, 1), "cifar10": (32, 32, 3)}
FOLDERS = {
    "mnist": "mnist/3.0.1",
    "fmnist": "fashion_mnist/3.0.1",
    "cifar10": "cifar10/3.0.2",
}
ALTERNATIVE = r"put a file {}\.npz with x_train, y_train, x_test, y_test into"


def make_arrays(name):
    rng = np.random.default_rng(sorted(SHAPES).index(name))
    arrays = {}
    for split, n in (("train", N_TRAIN), ("test", N_TEST)):
        arrays[f"x_{split}"] = rng.integers(0, 256, (n, *SHAPES[name]), np.uint8)
        arrays[f"y_{split}"] = rng.integers(0, 10, n)
    return tuple(arrays.values())


def idx_gz(array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes(), mtime=0)


def cifar_records(images, labels):
    return b"".join(
        bytes([label]) + image.transpose(2, 0, 1).tobytes()
        for image, label in zip(images, labels, strict=True)
    )


def raw_files(name, arrays):
    """The files that the data set's server holds, as {name: bytes}."""
    x_train, y_train, x_test, y_test = arrays
    if name != "cifar10":
        return {
            "train-images-idx3-ubyte.gz": idx_gz(x_train[..., 0]),
            "train-labels-idx1-ubyte.gz": idx_gz(y_train),
            "t10k-images-idx3-ubyte.gz": idx_gz(x_test[..., 0]),
            "t10k-labels-idx1-ubyte.gz": idx_gz(y_test),
        }
    members = {
        "batches.meta.txt": "\n".join(f"class{i}" for i in range(10)).encode() + b"\n",
        "test_batch.bin": cifar_records(x_test, y_test),
    }
    for i, part in enumerate(np.array_split(np.arange(N_TRAIN), 5), start=1):
        members[f"data_batch_{i}.bin"] = cifar_records(x_train[part], y_train[part])
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for member, content in members.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{member}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return {"cifar-10-binary.tar.gz": buffer.getvalue()}


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files`, counts GETs, and can hold back what `stall` names."""

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.server.gets.append(self.path)
        if self.server.stall and self.path.endswith(self.server.stall):
            self.server.stalled.set()
            self.server.release.wait(30)
        self.answer(with_body=True)

    def answer(self, with_body):
        content = self.server.files.get(self.path.lstrip("/"))
        self.send_response(self.server.status if content is not None else 404)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if with_body:
            # A client that was killed has closed the connection.
            with contextlib.suppress(OSError):
                self.wfile.write(content or b"")

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serve(files):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.files, server.gets, server.status = files, [], 200
    server.stall = ""
    server.stalled, server.release = threading.Event(), threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}/"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.release.set()
        server.shutdown()
        server.server_close()


def point_at(setattr_, name, url, files):
    """Replaces addresses and checksums; `setattr_` is the built-in or monkeypatch's."""
    from tensorflow_datasets.core.download import checksums

    builder_class = tfds_images._builder_class(name)
    if name == "cifar10":
        info = tfds_images._builder(name, "/nowhere")._cifar_info
        info = info._replace(url=f"{url}cifar-10-binary.tar.gz")
        setattr_(builder_class, "_cifar_info", info)
    else:
        setattr_(builder_class, "URL", url)
    url_infos = {
        url + file: checksums.UrlInfo(
            size=tfds.core.utils.Size(len(content)),
            checksum=hashlib.sha256(content).hexdigest(),
            filename=file,
        )
        for file, content in files.items()
    }
    setattr_(builder_class, "url_infos", url_infos)


@pytest.fixture
def source(request, monkeypatch):
    """A running server that stands in for the original one: `name, arrays, server`."""
    name = getattr(request, "param", "mnist")
    arrays = make_arrays(name)
    files = raw_files(name, arrays)
    with serve(files) as server:
        point_at(monkeypatch.setattr, name, server.url, files)
        yield name, arrays, server


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder that holds a prepared mnist, not to be written to."""
    data_dir = tmp_path_factory.mktemp("prepared")
    files = raw_files("mnist", make_arrays("mnist"))
    with pytest.MonkeyPatch.context() as patch, serve(files) as server:
        point_at(patch.setattr, "mnist", server.url, files)
        tfds_images.load("mnist", data_dir)
    return data_dir


@pytest.fixture
def copy(prepared, tmp_path):
    """A copy of `prepared` that a test may damage: the folder of the version."""
    shutil.copytree(prepared, tmp_path / "copy")
    return tmp_path / "copy" / "mnist" / "3.0.1"


CHILD = """
import json, pathlib, sys
sys.path.insert(0, sys.argv[1])
import tfds_images_test as t
name, data_dir, url, out = sys.argv[2:]
t.point_at(setattr, name, url, t.raw_files(name, t.make_arrays(name)))
arrays = t.tfds_images.load(name, data_dir)
t.np.savez(out, *arrays)
assert "tensorflow" not in sys.modules
print("loaded")
"""


def start_child(name, data_dir, url, out):
    """Another process that loads, and fails if TensorFlow was imported on the way."""
    here = os.path.dirname(os.path.abspath(__file__))
    root = os.path.dirname(here)
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, here, name, str(data_dir), url, str(out)],
        env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(child):
    stdout, stderr = child.communicate(timeout=60)
    assert child.returncode == 0, stderr
    assert stdout.rstrip().endswith("loaded")


def sorted_examples(images, labels):
    return sorted(
        (image.tobytes(), int(label))
        for image, label in zip(images, labels, strict=True)
    )


def assert_same_examples(loaded, arrays):
    """Equality in any order, as tfds shuffles when it writes."""
    assert sorted_examples(*loaded[:2]) == sorted_examples(*arrays[:2])
    assert sorted_examples(*loaded[2:]) == sorted_examples(*arrays[2:])


def assert_identical(first, second):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def to_tfrecord(folder):
    """Rewrites a prepared folder as TFRecord, tfds' default format."""
    builder = tfds.builder_from_directory(folder)
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    for split in ("train", "test"):
        source = builder.as_data_source(split, deserialize_method=raw)
        content = b""
        for record in source.__getitems__(range(len(source))):
            length = struct.pack("<Q", len(record))
            content += length + masked_crc(length) + record + masked_crc(record)
        old = folder / f"mnist-{split}.array_record-00000-of-00001"
        new = folder / f"mnist-{split}.tfrecord-00000-of-00001"
        old.unlink()
        new.write_bytes(content)
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))


def masked_crc(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


every_source = pytest.mark.parametrize("source", SHAPES, indirect=True)


@every_source
def test_downloads_prepares_and_returns_the_original_arrays(source, tmp_path):
    name, arrays, _ = source
    loaded = tfds_images.load(name, tmp_path)
    assert [a.shape for a in loaded] == [a.shape for a in arrays]
    assert [a.dtype for a in loaded] == [np.uint8, np.int64, np.uint8, np.int64]
    assert_same_examples(loaded, arrays)


@every_source
def test_second_call_reads_the_same_order_without_the_server(source, tmp_path):
    name, _, server = source
    first = tfds_images.load(name, tmp_path)
    server.status = 500
    n_gets = len(server.gets)
    assert_identical(first, tfds_images.load(name, tmp_path, download=False))
    assert len(server.gets) == n_gets > 0


@every_source
def test_unmodified_tfds_reads_what_was_written(source, tmp_path):
    name, arrays, _ = source
    loaded = tfds_images.load(name, tmp_path)
    builder = tfds.builder_from_directory(tmp_path / FOLDERS[name])
    assert builder.info.full_name == FOLDERS[name]
    read = []
    for split in ("train", "test"):
        examples = list(builder.as_data_source(split))
        read += [np.stack([e["image"] for e in examples])]
        read += [np.array([e["label"] for e in examples])]
        if name == "cifar10":
            ids = [e["id"].decode() for e in examples]
            x, y = (dict(zip(ids, a, strict=True)) for a in read[-2:])
            expected_x, expected_y = arrays[:2] if split == "train" else arrays[2:]
            in_order = [f"{split}_{i:05d}" for i in range(len(ids))]
            np.testing.assert_array_equal([x[i] for i in in_order], expected_x)
            np.testing.assert_array_equal([y[i] for i in in_order], expected_y)
    assert_identical(read, loaded)
    label = builder.info.features["label"]
    first_class = {"mnist": "0", "fmnist": "T-shirt/top", "cifar10": "class0"}
    assert label.int2str(0) == first_class[name]
    original = getattr(tfds.image_classification, tfds_images._BUILDERS[name][0])
    info = json.loads((tmp_path / FOLDERS[name] / "dataset_info.json").read_text())
    assert info["moduleName"] == original.__module__
    assert info["version"] == str(original.VERSION)


def test_default_folder_is_that_of_the_environment(prepared, tmp_path):
    script = (
        "from deepsad_jax.data import tfds_images; import sys\n"
        "light = {'tensorflow_datasets', 'PIL', 'jax'} & set(sys.modules)\n"
        "print(sorted(light), len(tfds_images.load('mnist', download=False)[0]))"
    )
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = {**os.environ, "TFDS_DATA_DIR": str(prepared), "PYTHONPATH": root}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert result.stdout == f"[] {N_TRAIN}\n", result.stderr


def test_tfrecord_of_another_program_is_read_in_the_same_order(prepared, copy):
    to_tfrecord(copy)
    expected = tfds_images.load("mnist", prepared, download=False)
    loaded = tfds_images.load("mnist", copy.parents[1], download=False)
    assert_identical(loaded, expected)


def test_crc32c_matches_published_values():
    # RFC 3720, appendix B.4, and the check value of the CRC catalogue.
    records = [bytes(32), b"123456789", b"", b"\xff" * 32, bytes(range(32))]
    expected = [0x8A9136AA, 0xE3069283, 0, 0x62A8AB43, 0x46DD794E]
    assert tfds_images._crc32c(records).tolist() == expected


def test_two_processes_at_once_prepare_once(source, tmp_path):
    name, arrays, server = source
    server.stall = "t10k-labels-idx1-ubyte.gz"
    first = start_child(name, tmp_path / "d", server.url, tmp_path / "0.npz")
    assert server.stalled.wait(30)
    second = start_child(name, tmp_path / "d", server.url, tmp_path / "1.npz")
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(3)
    server.release.set()
    finish(first)
    finish(second)
    assert sorted(server.gets) == sorted(f"/{file}" for file in server.files)
    loaded = [list(np.load(tmp_path / f"{i}.npz").values()) for i in range(2)]
    assert_same_examples(loaded[0], arrays)
    assert_identical(*loaded)


def test_program_without_the_lock_may_finish_first(source, tmp_path, monkeypatch):
    name, arrays, _ = source
    monkeypatch.setattr(tfds_images, "_lock", contextlib.nullcontext)
    download, raced = tfds_images._download, []

    def load_elsewhere_first(*args):
        if not raced:
            raced.append(True)
            tfds_images.load(name, tmp_path)
        return download(*args)

    monkeypatch.setattr(tfds_images, "_download", load_elsewhere_first)
    assert_same_examples(tfds_images.load(name, tmp_path), arrays)
    assert raced
    assert os.listdir(tmp_path / "mnist") == ["3.0.1"]


def test_killed_preparation_leaves_nothing_that_looks_prepared(source, tmp_path):
    name, arrays, server = source
    server.stall = "t10k-labels-idx1-ubyte.gz"
    child = start_child(name, tmp_path, server.url, tmp_path / "out.npz")
    assert server.stalled.wait(30)
    child.kill()
    child.communicate()
    with pytest.raises(FileNotFoundError, match="mnist is not prepared in"):
        tfds_images.load(name, tmp_path, download=False)
    server.stall = ""
    assert_same_examples(tfds_images.load(name, tmp_path), arrays)


def test_failure_while_writing_leaves_nothing_and_is_not_disguised(
    source, tmp_path, monkeypatch
):
    name, arrays, _ = source
    with monkeypatch.context() as patch:

        def disk_full(image):
            raise OSError(28, "No space left on device")

        patch.setattr(tfds_images, "_png", disk_full)
        with pytest.raises(OSError, match="No space left"):
            tfds_images.load(name, tmp_path)
    assert os.listdir(tmp_path / "mnist") == []
    assert_same_examples(tfds_images.load(name, tmp_path), arrays)


def test_original_files_placed_by_hand_need_no_server(source, tmp_path):
    name, arrays, server = source
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    for file, content in server.files.items():
        (manual / file).write_bytes(content)
    server.status = 500
    assert_same_examples(tfds_images.load(name, tmp_path), arrays)
    assert server.gets == []


def test_files_downloaded_before_need_no_server(source, tmp_path):
    name, arrays, server = source
    tfds_images.load(name, tmp_path)
    shutil.rmtree(tmp_path / "mnist")
    server.status = 500
    assert_same_examples(tfds_images.load(name, tmp_path), arrays)


def test_unknown_name_is_refused():
    with pytest.raises(ValueError, match="'svhn'; choose from mnist, fmnist, cifar10"):
        tfds_images.load("svhn")


@pytest.mark.parametrize("name", SHAPES)
def test_unprepared_without_download_says_where_and_what_to_do(name, tmp_path):
    message = (
        f"^{name} is not prepared in {re.escape(str(tmp_path / FOLDERS[name]))}; "
        f"allow the download once, or {ALTERNATIVE.format(name)}"
    )
    with pytest.raises(FileNotFoundError, match=message):
        tfds_images.load(name, tmp_path, download=False)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", SHAPES)
def test_no_connection_fails_at_once(name, tmp_path, monkeypatch):
    with serve({}) as server:
        url = server.url
    # The port is closed now.
    point_at(monkeypatch.setattr, name, url, raw_files(name, make_arrays(name)))
    message = (
        rf"^{name} is not prepared in .* could not be downloaded \(no connection to "
        rf"{url}.*\); connect .*, or {ALTERNATIVE.format(name)}"
    )
    start = time.monotonic()
    with pytest.raises(FileNotFoundError, match=message):
        tfds_images.load(name, tmp_path)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "status, cause", [(503, "503 Server Error"), (403, "HTTP code: 403")]
)
def test_refusing_server_is_reported(source, tmp_path, status, cause):
    name, _, server = source
    server.status = status
    with pytest.raises(FileNotFoundError, match=rf"downloaded \(.*{cause}.*\); conn"):
        tfds_images.load(name, tmp_path)
    assert os.listdir(tmp_path / "mnist") == []


def test_wrong_checksum_is_refused(source, tmp_path):
    name, _, server = source
    file = "train-images-idx3-ubyte.gz"
    server.files[file] = server.files[file][:-1] + b"?"
    message = (
        f"^mnist was not prepared in .*: the file from {server.url}{file} has the "
        f"wrong checksum .*, or {ALTERNATIVE.format(name)}"
    )
    with pytest.raises(ValueError, match=message):
        tfds_images.load(name, tmp_path)
    with pytest.raises(FileNotFoundError):
        tfds_images.load(name, tmp_path, download=False)


def test_missing_array_record_is_reported_before_the_download(
    source, tmp_path, monkeypatch
):
    name, _, server = source
    monkeypatch.setattr(tfds_images.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="package array_record, which is not"):
        tfds_images.load(name, tmp_path)
    assert server.gets == []


def one(folder, pattern):
    (path,) = folder.glob(pattern)
    return path


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[1000] ^= 16
    path.write_bytes(data)


def replace(path, old, new):
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def flip_a_bit_of_tfrecord(folder):
    to_tfrecord(folder)
    flip_a_bit(one(folder, "*-train.tfrecord*"))


def lose_examples_of_tfrecord(folder):
    to_tfrecord(folder)
    shutil.copy(one(folder, "*-test.tfrecord*"), one(folder, "*-train.tfrecord*"))


# What is done to the files, and what is said of it (where the words are ours).
DAMAGES = {
    "bit flipped": (lambda d: flip_a_bit(one(d, "*-train.array*")), ""),
    "emptied": (lambda d: one(d, "*-test.array*").write_bytes(b""), ""),
    "file missing": (lambda d: one(d, "*-test.array*").unlink(), ""),
    "half an info": (lambda d: (d / "dataset_info.json").write_text('{"name'), ""),
    "too few examples": (
        lambda d: replace(d / "dataset_info.json", f'"{N_TRAIN}"', '"41"'),
        "",
    ),
    "tfrecord bit flipped": (
        flip_a_bit_of_tfrecord,
        "record . of .*tfrecord.* has the wrong checksum",
    ),
    "tfrecord of too few examples": (
        lose_examples_of_tfrecord,
        f"train has {N_TEST} examples, expected {N_TRAIN}",
    ),
    "unknown format": (
        lambda d: replace(d / "dataset_info.json", "array_record", "riegeli"),
        r"unknown formats \['riegeli'\]",
    ),
}


@pytest.mark.parametrize("damage, cause", DAMAGES.values(), ids=DAMAGES)
def test_damaged_files_are_reported(damage, cause, copy):
    damage(copy)
    message = (
        rf"^the prepared files of mnist in {re.escape(str(copy))} cannot be read "
        rf"\(.*{cause}.*\); delete that folder .*, or {ALTERNATIVE.format('mnist')}"
    )
    with pytest.raises(ValueError, match=message):
        tfds_images.load("mnist", copy.parents[1], download=False)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    message = f"{tmp_path}/file cannot be written, where the data set would be prepared"
    with pytest.raises(OSError, match=message):
        with tfds_images._lock(tmp_path / "file" / ".mnist.lock"):
            pass


def test_folder_without_info_is_reported_not_reused(source, copy):
    (copy / "dataset_info.json").unlink()
    with pytest.raises(ValueError, match="exists, but is incomplete; delete it"):
        tfds_images.load("mnist", copy.parents[1])


def test_builders_are_those_of_tfds(tmp_path):
    for name, (class_name, _) in tfds_images._BUILDERS.items():
        original = getattr(tfds.image_classification, class_name)(data_dir=tmp_path)
        ours = tfds_images._builder(name, str(tmp_path))
        assert ours.data_dir == original.data_dir
        assert ours.info.features.to_json() == original.info.features.to_json()


@pytest.mark.parametrize("name", SHAPES)
def test_requested_addresses_have_registered_checksums(name, tmp_path, monkeypatch):
    from tensorflow_datasets.core.download import checksums

    arrays, asked = make_arrays(name), []
    files = raw_files(name, arrays)

    def serve_from_memory(url, dl_manager):
        asked.append(url)
        path = tmp_path / url.rsplit("/", 1)[-1]
        path.write_bytes(files[path.name])
        return path

    monkeypatch.setattr(tfds_images, "_download", serve_from_memory)
    assert_same_examples(tfds_images.load(name, tmp_path), arrays)
    assert len(asked) == (1 if name == "cifar10" else 4)
    assert set(asked) <= set(checksums.get_all_url_infos())
