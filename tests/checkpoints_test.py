"""Folders of arrays and JSON: whole, or refused in a sentence."""

import functools
import pathlib
import shutil
import tempfile
import warnings

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

import deepsad_jax as sad
from deepsad_jax import checkpoints, networks, training
from deepsad_jax.detectors import METHODS

KEY = jax.random.key(0)
ONCE = training.Stage(optax.adam(1e-3), epochs=1, batch_size=16)
NOTHING = training.Stage(epochs=0, batch_size=16)
TABLE = np.random.default_rng(0).random((40, 6), np.float32)
OLD = pathlib.Path(__file__).parent / "data" / "models-0.1"


@pytest.fixture(scope="module")
def table():
    """A model with an autoencoder, as they begin."""
    data = training.training_set(TABLE)
    return sad.fit(KEY, data, train=NOTHING, pretrain=NOTHING)[0]


@pytest.fixture(scope="module")
def saved(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    sad.save(table, folder)
    return folder


def test_arrays_of_any_type_come_back_with_their_json(tmp_path):
    leaves = [
        np.arange(6, dtype=np.float32).reshape(2, 3).T,
        np.float64(0.1),
        np.arange(3, dtype=np.uint32),
        np.array([True, False]),
        np.zeros((0, 4), np.int8),
        jnp.arange(4, dtype=jnp.bfloat16),
    ]
    meta = {"name": "päivä", "numbers": [1, 0.1, None, True], "inner": {"b": {}}}
    checkpoints.write(tmp_path / "folder", leaves, meta)
    found, content = checkpoints.read(tmp_path / "folder")
    assert {name: content[name] for name in meta} == meta
    for leaf, other in zip(leaves, found, strict=True):
        assert leaf.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(leaf), other)
    checkpoints.write(tmp_path / "nothing", [], {})
    assert checkpoints.read(tmp_path / "nothing")[0] == []


def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("text")
    with pytest.raises(OSError, match="file/model cannot be written: ") as caught:
        checkpoints.write(tmp_path / "file" / "model", [np.zeros(3)], {})
    assert "\n" not in str(caught.value)
    with pytest.raises(FileExistsError, match="a model is never overwritten"):
        checkpoints.write(tmp_path / "file", [np.zeros(3)], {})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


SHAPES = {"digits": networks.PAPER["digits_LeNet"].input_shape, "table": (5,)}


@pytest.mark.parametrize("method", ["deep_sad", "vae", "m2", "m1_m2", "supervised"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_models_come_back_as_they_were_and_are_trained_on(tmp_path, method, shape):
    x = np.random.default_rng(0).random((40, *shape), np.float32)
    data = training.training_set(x, [-1, 0] * 20)
    stages = {"train": NOTHING}
    if method not in ("m2", "supervised"):
        stages["pretrain"] = NOTHING
    model, _ = METHODS[method](**stages).fit(KEY, data)
    sad.save(model, tmp_path / "model")
    loaded = sad.load(tmp_path / "model")
    assert loaded.objective == model.objective
    assert loaded.info == model.info and loaded.info["method"] == method
    assert jax.tree.structure(loaded) == jax.tree.structure(model)
    jax.tree.map(np.testing.assert_array_equal, loaded, model)
    np.testing.assert_array_equal(sad.score(loaded, x), sad.score(model, x))
    if (method, len(shape)) in (("m2", 1), ("m1_m2", 3)):
        return  # the other of the two, which compile for long, is trained on
    # What is loaded can be trained on; of a VAE, nothing is left to train.
    more, record = METHODS[method](train=ONCE, initial=loaded).fit(KEY, data)
    assert list(record.history) == ([] if method == "vae" else ["train"])
    assert np.isfinite(sad.score(more, x)).all()


def test_the_radius_of_a_soft_boundary_is_kept(tmp_path):
    options = {"loss": "soft_boundary", "train": NOTHING, "pretrain": None}
    model, _ = sad.fit(KEY, training.training_set(TABLE), **options)
    sad.save(model, tmp_path / "model")
    loaded = sad.load(tmp_path / "model")
    assert loaded.variables["radius"] == model.variables["radius"] > 0
    assert loaded.base is None and loaded.objective.nu == model.objective.nu
    np.testing.assert_array_equal(sad.score(loaded, TABLE), sad.score(model, TABLE))


def set_at(*path):
    """Changes the JSON at a path to a value, or removes it."""

    def change(meta, leaves):
        *front, last, value = path
        for name in front:
            meta = meta[name]
        if value is None:
            del meta[last]
        else:
            meta[last] = value

    return change


MODULE = ("objective", "fields", "encoder", "fields", "module")


def without_numbers(meta, leaves):
    leaves[5][0, 0] = np.nan


def infinite(meta, leaves):
    leaves[5][0, 0] = np.inf


def double_precision(meta, leaves):
    leaves[5] = leaves[5].astype(np.float64)


def another_shape(meta, leaves):
    leaves[5] = leaves[5].T


def fewer_arrays(meta, leaves):
    del leaves[0], meta["paths"][0]


EDITS = {
    "a float as rep_dim": (set_at(*MODULE, "fields", "rep_dim", 4.0), ""),
    "another rep_dim": (
        set_at(*MODULE, "fields", "rep_dim", 5),
        r"its array center is float32\[4\], not float32\[5\]",
    ),
    "negative hidden": (set_at(*MODULE, "fields", "hidden", [32, -16]), ""),
    "hidden as text": (set_at(*MODULE, "fields", "hidden", "32"), ""),
    "an unknown field": (set_at(*MODULE, "fields", "depth", 3), ""),
    "a missing field": (set_at("objective", "fields", "encoder", None), "'encoder'"),
    "another shape": (set_at("info", "shape", [7]), "has 7 columns"),
    "an unknown type": (
        set_at(*MODULE, "type", "no_such_module:Encoder"),
        "a type is 'no_such_module:Encoder', which cannot be imported",
    ),
    "a type of no value": (
        set_at(*MODULE, "type", "subprocess:Popen"),
        "subprocess:Popen is not a module or a dataclass",
    ),
    "a number as loss": (set_at("objective", "fields", "loss_function", 3), ""),
    "a foreign loss": (
        set_at("objective", "fields", "loss_function", {"object": "builtins:print"}),
        "builtins:print is of Python's own library",
    ),
    "another format": (set_at("format", 3), "of format 3, which another version"),
    "no objective": (set_at("objective", 3), ""),
    "other columns": (set_at("preprocessing", "low", [0.0]), "one number per column"),
    "an unknown preprocessing": (set_at("preprocessing", "kind", "log"), "of kind 'lo"),
    "no preprocessing": (set_at("preprocessing", None), "'preprocessing'"),
    "fewer arrays than said": (set_at("paths", [["center"]]), "its arrays are not"),
    "fewer arrays": (fewer_arrays, ""),
    "NaN": (
        without_numbers,
        "its array params/code/kernel has values that are not fin",
    ),
    "infinity": (infinite, "its array params/code/kernel has values that are not fin"),
    "another type of numbers": (double_precision, "is float64.*, not float32"),
    "a transposed array": (another_shape, r"is float32\[4, 16\], not float32\[16, 4\]"),
    "an edited autoencoder": (set_at("base", "info", "shape", [5]), ""),
}


@pytest.mark.parametrize("edit, message", EDITS.values(), ids=EDITS)
def test_edited_models_are_refused_and_spoil_no_other(
    table, saved, tmp_path, edit, message
):
    """Whoever edits them has mended the checksum, too."""
    expected = sad.score(table, TABLE)
    leaves, meta = checkpoints.read(saved)
    leaves = [np.array(leaf) for leaf in leaves]
    edit(meta, leaves)
    checkpoints.write(tmp_path / "edited", leaves, meta)
    with pytest.raises(
        ValueError, match=f"does not hold a whole model: .*{message}"
    ) as e:
        sad.load(tmp_path / "edited")
    assert "\n" not in str(e.value) and len(str(e.value)) < 400
    np.testing.assert_array_equal(sad.score(table, TABLE), expected)
    again = sad.load(saved)
    np.testing.assert_array_equal(sad.score(again, TABLE), expected)


def places(content, path=()):
    """All paths into JSON, of long lists the first two items."""
    items = content.items() if isinstance(content, dict) else enumerate(content[:2])
    for name, inner in items:
        yield (*path, name)
        if isinstance(inner, (dict, list)):
            yield from places(inner, (*path, name))


VALUES = [None, -1, 4.0, 10**30, True, "x", "subprocess:Popen", [], {}, [[]], "nan"]
VALUES += [{"type": "subprocess:Popen", "fields": {}}, {"object": "os:getcwd"}]


@hypothesis.settings(deadline=None, max_examples=20, derandomize=True)
@hypothesis.given(data=st.data(), value=st.sampled_from(VALUES))
def test_any_edit_is_refused_in_a_sentence_or_harmless(table, saved, data, value):
    leaves, meta = checkpoints.read(saved)
    path = data.draw(st.sampled_from(list(places(meta))))
    set_at(*path, value)(meta, leaves)
    with tempfile.TemporaryDirectory() as folder:
        edited = pathlib.Path(folder) / "edited"
        checkpoints.write(edited, leaves, meta)
        try:
            loaded = sad.load(edited)
        except ValueError as error:
            assert "\n" not in str(error) and len(str(error)) < 400
        else:
            assert np.isfinite(sad.score(loaded, TABLE)).all()
    np.testing.assert_array_equal(sad.score(table, TABLE), table_scores(table))


@functools.cache
def table_scores(table):
    return sad.score(table, TABLE)


def test_json_that_was_edited_by_hand_is_refused(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "model")
    file = tmp_path / "model" / "meta" / "metadata"
    text = file.read_text()
    assert '"slope": 0.01' in text
    file.write_text(text.replace('"slope": 0.01', '"slope": 0.02'))
    with pytest.raises(ValueError, match="is not complete: its checksum is wrong"):
        sad.load(tmp_path / "model")


def files_of(folder):
    """What holds the arrays and the JSON."""
    found = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return [f for f in found if f.parent.name == "d" or f.name == "metadata"]


# Orbax leaves loops of events open where it fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_models_are_refused(saved, table, tmp_path):
    count = len(files_of(saved))
    damages = {
        "truncated": lambda content: content[: len(content) // 2],
        "empty": lambda content: b"",
        "zeros": lambda content: bytes(len(content)),
    }
    for name, damage in damages.items():
        folder = tmp_path / name
        shutil.copytree(saved, folder)
        for file in files_of(folder):
            file.write_bytes(damage(file.read_bytes()))
        with pytest.raises(ValueError, match="is not complete") as caught:
            sad.load(folder)
        assert "\n" not in str(caught.value)
    refused = 0
    for i in range(count):
        folder = tmp_path / f"flipped{i}"
        shutil.copytree(saved, folder)
        file = files_of(folder)[i]
        content = bytearray(file.read_bytes())
        for place in range(len(content) // 3, len(content), max(1, len(content) // 3)):
            content[place] ^= 0x10
        file.write_bytes(bytes(content))
        try:  # some bytes mean nothing
            loaded = sad.load(folder)
        except ValueError:
            refused += 1
        else:
            np.testing.assert_array_equal(
                sad.score(loaded, TABLE), sad.score(table, TABLE)
            )
    assert refused


def test_what_is_no_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder .*nothing"):
        sad.load(tmp_path / "nothing")
    (tmp_path / "file").write_text("text")
    with pytest.raises(FileNotFoundError, match="there is no folder .*file"):
        sad.load(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty is not complete"):
        sad.load(tmp_path / "empty")
    checkpoints.write(tmp_path / "other", [np.zeros(3)], {"colors": 3})
    with pytest.raises(ValueError, match="other does not hold a whole model"):
        sad.load(tmp_path / "other")


def test_edited_models_of_version_0_1_are_refused(tmp_path):
    folder = tmp_path / "model"
    for change in (
        ('"rep_dim": 4', '"rep_dim": 4.0'),
        ('"hidden": [32', '"hidden": [-3'),
    ):
        shutil.copytree(OLD / "deep_sad", folder)
        file = folder / "meta" / "metadata"
        assert change[0] in file.read_text()
        file.write_text(file.read_text().replace(*change))
        with warnings.catch_warnings(), pytest.raises(ValueError, match="whole model"):
            warnings.simplefilter("ignore")
            sad.load(folder)
        shutil.rmtree(folder)


def state_of(number):
    return {"params": np.full((2, 3), number, np.float32), "count": np.int32(number)}


def offer(keeper, epoch, key=KEY, last=False):
    history = {"loss": np.arange(6, dtype=np.float32) * (np.arange(6) < epoch)}
    keeper.offer("train", epoch, 1.5, state_of(epoch), history, key, last=last)


def kept(path):
    return sorted(folder.name for folder in (path / "train").glob("*"))


def test_a_keeper_finds_the_newest_whole_state(tmp_path, caplog):
    keeper = checkpoints.Keeper(tmp_path / "kept", epochs=1, seconds=0, keep=2)
    assert keeper.restore("train", state_of(0), KEY, 6) is None and keeper.is_training
    for epoch in (1, 2, 3):
        offer(keeper, epoch)
    keeper.close()
    assert kept(tmp_path / "kept") == ["2", "3"] and keeper.newest().name == "3"
    for file in keeper.newest().rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:-7])
    keeper = checkpoints.Keeper(tmp_path / "kept", epochs=1, seconds=0)
    epoch, seconds, state, history = keeper.restore("train", state_of(0), KEY, 6)
    assert (epoch, seconds) == (2, 1.5)
    jax.tree.map(np.testing.assert_array_equal, state, state_of(2))
    np.testing.assert_array_equal(history["loss"], [0, 1, 0, 0, 0, 0])
    assert "train/3 cannot be used" in caplog.text and "moved to" in caplog.text
    assert kept(tmp_path / "kept") == ["2"] and list(tmp_path.glob("kept/unused-*"))
    keeper.discard()
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    "like, key, epochs, fit, reason",
    [
        (state_of(0), jax.random.key(1), 6, "", "belongs to another random key"),
        (state_of(0), KEY, 7, "", "a stage with another number of epochs"),
        ({"params": np.zeros(3)}, KEY, 6, "", "belongs to another fit: its arrays"),
        (state_of(0), KEY, 6, "other", "belongs to other data or settings"),
    ],
    ids=["key", "epochs", "shapes", "settings"],
)
def test_the_state_of_another_fit_is_put_aside(
    tmp_path, caplog, like, key, epochs, fit, reason
):
    keeper = checkpoints.Keeper(tmp_path, epochs=1, seconds=0)
    offer(keeper, 2)
    keeper.close()
    keeper = checkpoints.Keeper(tmp_path)
    assert keeper.restore("train", like, key, epochs, fit) is None
    assert reason in caplog.text and list(tmp_path.glob("unused-train-2-*"))


def test_a_keeper_saves_when_it_is_due_last_or_stopped(tmp_path):
    keeper = checkpoints.Keeper(tmp_path, epochs=3, seconds=0)
    keeper.restore("train", state_of(0), KEY, 6)
    offer(keeper, 2)
    assert not keeper.newest()
    offer(keeper, 3)
    offer(keeper, 4, last=True)
    assert not keeper.is_training
    keeper.close()
    assert kept(tmp_path) == ["3", "4"]
    keeper.stop()
    with pytest.raises(
        checkpoints.Interrupted, match="after epoch 5 of train, which is"
    ):
        offer(keeper, 5)
    assert keeper.restore("train", state_of(0), KEY, 6)[0] == 5
