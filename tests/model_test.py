"""One model: saved, loaded elsewhere, scored; and a pure function when it is traced."""

import copy
import functools
import os
import pathlib
import pickle
import re
import subprocess
import sys
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import export

import deepsad_jax as sad
from deepsad_jax import networks, objectives, preprocessing, training
from deepsad_jax.detectors import hybrid

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(64, 6)) * [1, 10, 0.1, 5, 2, 1] + 5.0
IMAGES = RNG.integers(0, 256, (64, 5, 6, 1), dtype=np.uint8)
SERIES = RNG.normal(size=(64, 6, 2)).astype(np.float32)
TARGETS = RNG.integers(-1, 2, 64)
STAGE = training.Stage(optax.adam(1e-3), epochs=1, batch_size=32)
NOTHING = training.Stage(epochs=0, batch_size=32)
OLD = pathlib.Path(__file__).parent / "data" / "models-0.1"

# A module of a user's, which is on Python's path in both processes.
OWN = """
import flax.linen as nn
import jax.numpy as jnp
from flax import nnx


class Linen(nn.Module):
    sizes: list
    rep_dim: int = 4

    @nn.compact
    def __call__(self, x, train):
        for size in self.sizes:
            x = nn.relu(nn.Dense(size, use_bias=False)(x))
        x = nn.BatchNorm(not train, use_bias=False, use_scale=False)(x)
        return nn.Dense(self.rep_dim, use_bias=False)(x)


class NNX(nnx.Module):
    def __init__(self, *, rngs, width=8):
        layers = [nnx.Linear(6, width, use_bias=False, rngs=rngs)]
        self.layers = nnx.List([*layers, nnx.Dropout(0.1, rngs=rngs)])
        self.last = nnx.Linear(width, 3, use_bias=False, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.last(nnx.relu(x))


def init(key, x):
    return jnp.full((x.shape[1], 3), 0.1)


def apply(weights, x):
    return jnp.tanh(x @ weights)


def focal(embeddings, semi_targets, center, *, gamma=2.0):
    distance = jnp.square(embeddings - center).sum(axis=-1)
    return jnp.where(semi_targets == -1, 1 / (distance + 1e-3), distance) * gamma
"""
# Another process: loads every model and scores the same raw rows.
LOADING = """
import functools, pathlib, sys
import flax.linen as nn
import numpy as np
import deepsad_jax as sad

class Main(nn.Module):
    width: int = 3

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.width, use_bias=False)(x)

folder = pathlib.Path(sys.argv[1])
own = {"main": {"encoder": Main(), "loss": lambda z, t, c: ((z - c) ** 2).sum(1)}}
rows, scores = np.load(folder / "rows.npz"), {}
for name in rows:
    model = sad.load(folder / name, **own.get(name, {}))
    scores[name] = sad.score(model, rows[name])
    if model.base is not None:
        scores[name + ".base"] = sad.score(model.base, rows[name])
np.savez(folder / "scores.npz", **scores)
"""


class Main(nn.Module):
    """As in the program of the other process, where it has no import path."""

    width: int = 3

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.width, use_bias=False)(x)


Main.__module__ = "__main__"


def fit(x, **options):
    options = {"train": NOTHING, "pretrain": None, **options}
    return sad.fit(KEY, training.training_set(x, TARGETS), **options)[0]


def fit_method(name, x, **options):
    data = training.training_set(x, TARGETS)
    return sad.detectors.METHODS[name](**options).fit(KEY, data)[0]


@pytest.fixture(scope="module")
def table():
    encoder, decoder = networks.MLPEncoder((8,), 4), networks.MLPDecoder((8,), 6)
    stages = {"train": STAGE, "pretrain": STAGE}
    return fit(TABLE, encoder=encoder, decoder=decoder, **stages)


@pytest.fixture(scope="module")
def images():
    return fit(IMAGES)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The module of a user, and its folder."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "networks_of_a_user.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        import networks_of_a_user

        yield networks_of_a_user, folder
        del sys.modules["networks_of_a_user"]


@pytest.fixture(scope="module")
def models(table, images, own):
    """Models of every kind, and raw rows."""
    own, _ = own
    squares = lambda z, t, c: ((z - c) ** 2).sum(1)  # noqa: E731
    m1_m2 = fit_method("m1_m2", TABLE, train=NOTHING, pretrain=NOTHING)
    detector = sad.detectors.METHODS["ocsvm"]()
    on_codes = hybrid.Hybrid(None, detector, initial=table)
    return {
        "table": (table, TABLE),
        "autoencoder": (table.base, TABLE),
        "images": (images, IMAGES),
        "series": (fit(SERIES), SERIES),
        "linen": (fit(TABLE, encoder=own.Linen([8]), loss=own.focal), TABLE),
        "nnx": (
            fit(
                TABLE,
                encoder=functools.partial(own.NNX, width=5),
                loss=functools.partial(own.focal, gamma=3.0),
            ),
            TABLE,
        ),
        "functions": (fit(TABLE, encoder=(own.init, own.apply)), TABLE),
        "main": (fit(TABLE, encoder=Main(), loss=squares), TABLE),
        "soft_boundary": (fit(TABLE, loss="soft_boundary"), TABLE),
        "vae": (m1_m2.base, TABLE),
        "m1_m2": (m1_m2, TABLE),
        "m2": (fit_method("m2", TABLE, train=NOTHING), TABLE),
        "supervised": (fit_method("supervised", TABLE, train=NOTHING), TABLE),
        **{
            name: (fit_method(name, TABLE, **options), TABLE)
            for name, options in (
                *((name, {"selection": "none"}) for name in ("ssad", "ocsvm", "kde")),
                ("isoforest", {}),
            )
        },
        "hybrid": (on_codes.fit(KEY, training.training_set(TABLE))[0], TABLE),
    }


def test_models_score_bit_by_bit_alike_in_another_process(models, own, tmp_path):
    for name, (model, _) in models.items():
        sad.save(model, tmp_path / name)
    np.savez(tmp_path / "rows.npz", **{name: x for name, (_, x) in models.items()})
    (tmp_path / "loading.py").write_text(LOADING)
    path = os.pathsep.join([str(own[1]), str(pathlib.Path(sad.__file__).parents[1])])
    subprocess.run(
        [sys.executable, tmp_path / "loading.py", tmp_path],
        env={**os.environ, "PYTHONPATH": path},
        check=True,
        cwd=tmp_path,
    )
    found = dict(np.load(tmp_path / "scores.npz"))
    for name, (model, x) in models.items():
        np.testing.assert_array_equal(found.pop(name), sad.score(model, x), name)
        if model.base is not None:
            np.testing.assert_array_equal(
                found.pop(f"{name}.base"), sad.score(model.base, x), name
            )
    assert not found


def test_what_is_loaded_is_equal_and_can_be_trained_on(models, tmp_path):
    for name in ("table", "linen", "nnx", "functions", "soft_boundary"):
        model, x = models[name]
        sad.save(model, tmp_path / name)
        loaded = sad.load(tmp_path / name)
        assert loaded.objective == model.objective, name
        assert jax.tree.structure(loaded) == jax.tree.structure(model), name
        jax.tree.map(np.testing.assert_array_equal, loaded, model)
    more = fit(TABLE, train=STAGE, initial=sad.load(tmp_path / "linen"))
    assert more.objective.encoder == models["linen"][0].objective.encoder
    assert np.any(sad.score(more, TABLE) != sad.score(models["linen"][0], TABLE))


def test_modules_without_import_path_are_passed(models, tmp_path):
    model, _ = models["main"]
    folder = tmp_path / "main"
    sad.save(model, folder)
    with pytest.raises(ValueError, match="encoder must be passed, since .*Main has no"):
        sad.load(folder)
    with pytest.raises(
        ValueError, match="loss must be passed, since .*lambda.* has no"
    ):
        sad.load(folder, encoder=Main())
    with pytest.raises(ValueError, match=r"center is float32\[3\], not float32\[4\]"):
        sad.load(folder, encoder=Main(4), loss="deep_sad")
    with pytest.raises(ValueError, match="its arrays are not those of its networks"):
        sad.load(folder, encoder=networks.MLPEncoder((8,), 3), loss="deep_sad")
    with pytest.raises(ValueError, match="loss is 3; it must be a function"):
        sad.load(folder, encoder=Main(), loss=3)
    with pytest.raises(ValueError, match="encoder is 3; it must be a Linen module"):
        sad.load(folder, encoder=3)
    loaded = sad.load(folder, encoder=Main(), loss="one_class")
    np.testing.assert_array_equal(sad.score(loaded, TABLE), sad.score(model, TABLE))


def test_an_nnx_instance_is_passed_and_its_weights_do_not_count(own, tmp_path):
    make = own[0].NNX
    model = fit(TABLE, encoder=make(rngs=nnx.Rngs(0)))
    sad.save(model, tmp_path / "model")
    with pytest.raises(ValueError, match="encoder must be passed, since a NNX has no"):
        sad.load(tmp_path / "model")
    for encoder in (make, make(rngs=nnx.Rngs(1))):
        loaded = sad.load(tmp_path / "model", encoder=encoder)
        np.testing.assert_array_equal(sad.score(loaded, TABLE), sad.score(model, TABLE))


def test_a_model_is_never_overwritten(table, tmp_path):
    for there in ("file", "folder"):
        path = tmp_path / there
        path.mkdir() if there == "folder" else path.write_text("mine")
        with pytest.raises(FileExistsError, match="exists; a model is never overwri"):
            sad.save(table, path)
    assert (tmp_path / "file").read_text() == "mine"
    assert not list((tmp_path / "folder").iterdir())
    with pytest.raises(
        ValueError, match="model is a tuple; it must be a Model, the fir"
    ):
        sad.save((table, None), tmp_path / "pair")
    assert not (tmp_path / "pair").exists()


def test_models_can_be_copied(table):
    for other in (copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
        assert other.objective == table.objective and other != table
        np.testing.assert_array_equal(sad.score(other, TABLE), sad.score(table, TABLE))


@pytest.mark.parametrize(
    "name",
    ["deep_sad", "soft_boundary", "m2", "m1_m2", "vae", "supervised", "digits"],
)
def test_models_of_version_0_1_score_as_they_did(name):
    expected = np.load(OLD / "scores.npz")
    x = expected["x_images" if name == "digits" else "x_table"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = sad.load(OLD / name)
    assert any("version 0.1" in str(w.message) for w in caught) == (name != "digits")
    found = sad.score(model, x)
    np.testing.assert_allclose(found, expected[name], rtol=1e-5, atol=1e-6)
    reference = {"deep_sad": "deep_sad_ae", "m1_m2": "m1_m2_vae"}.get(name)
    if reference:
        errors = sad.score(model.base, x)
        np.testing.assert_allclose(errors, expected[reference], rtol=1e-5)


BAD_ROWS = {
    "NaN": (np.where(TABLE > 20, np.nan, TABLE), r"x contains nan \(row \d+, column 1"),
    "infinity": (np.where(TABLE > 20, np.inf, TABLE), "x contains inf .row"),
    "complex": (TABLE * 1j, "dtype complex128; it must hold real numbers"),
    "truths": (TABLE > 0, "dtype bool; it must hold real numbers"),
    "texts": (TABLE.astype(str), "dtype <U.*; it must hold real numbers"),
    "objects": (TABLE.astype(object), "dtype object; it must hold real numbers"),
    "masked": (np.ma.masked_less(TABLE, 0), r"x has \d+ masked values"),
    "fewer columns": (TABLE[:, :5], r"x has shape \(64, 5\); it must be \[n, 6\]"),
    "one row": (TABLE[0], r"x has shape \(6,\)"),
    "another rank": (TABLE[:, None], r"x has shape \(64, 1, 6\); it must be \[n, 6\]"),
    "no rows": (TABLE[:0], r"x has shape \(0, 6\).* not be empty"),
    "nothing": (None, r"x has shape \(\) and dtype object"),
    "a ragged list": ([[1, 2], [3]], "x is not an array of numbers"),
    "huge": (TABLE * 1e300, "x has a value too far from the training part's"),
    "no batch": (iter([]), "x has no batch; it must have at least one"),
    "a bad batch": (iter([TABLE, TABLE[:, :5]]), r"x has shape \(64, 5\)"),
}


@pytest.mark.parametrize("x, message", BAD_ROWS.values(), ids=BAD_ROWS)
def test_rows_that_cannot_be_scored_are_named(table, x, message):
    with pytest.raises(ValueError, match=message):
        sad.score(table, x)


def test_what_has_no_embeddings_says_so(models):
    with pytest.raises(ValueError, match="a model of vae has no embeddings"):
        sad.embed(models["vae"][0], TABLE)
    with pytest.raises(ValueError, match="model is a dict; it must be a Model"):
        sad.score({}, TABLE)


UNLIKE = {
    "standardized": (TABLE - TABLE.mean(axis=0)) / TABLE.std(axis=0),
    "scaled already": (TABLE - TABLE.min(axis=0)) / np.ptp(TABLE, axis=0),
    "in another unit": 1000 * TABLE,
}


@pytest.mark.parametrize("x", UNLIKE.values(), ids=UNLIKE)
def test_rows_that_are_scaled_in_another_way_are_warned_of(table, x):
    with pytest.warns(UserWarning, match="x looks scaled in another way than the trai"):
        sad.score(table, x)


@pytest.mark.parametrize(
    "convert",
    {
        "float32": lambda x: x.astype(np.float32),
        "a list": np.ndarray.tolist,
        "a JAX array": jnp.asarray,
        "of another order": np.asfortranarray,
        "one at a time": lambda x: x[::-1][::-1],
    }.values(),
)
def test_rows_of_any_type_are_scored_alike_and_without_a_word(table, convert):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = sad.score(table, convert(TABLE))
    assert scores.dtype == np.float32 and scores.shape == (64,)
    np.testing.assert_allclose(scores, sad.score(table, TABLE), rtol=1e-4)


def test_bytes_and_unit_floats_are_the_same_images(images):
    assert images.preprocessing == preprocessing.Bytes()
    expected = sad.score(images, IMAGES)
    np.testing.assert_array_equal(sad.score(images, IMAGES.astype(np.int64)), expected)
    for x in (IMAGES / 255, (IMAGES / 255).astype(np.float32)):
        np.testing.assert_allclose(sad.score(images, x), expected, atol=1e-6)
    for x in (IMAGES.astype(float), IMAGES / 255 - 0.1, IMAGES.astype(int) - 1):
        with pytest.raises(
            ValueError, match="but the training rows were bytes; give u"
        ):
            sad.score(images, x)
    floats = fit(IMAGES / 255)
    np.testing.assert_allclose(
        sad.score(floats, IMAGES), sad.score(floats, IMAGES / 255), atol=1e-6
    )
    with pytest.warns(UserWarning, match="x looks scaled in another way"):
        sad.score(floats, IMAGES.astype(float))


@pytest.fixture(params=["table", "images"])
def pure(request):
    """A model and raw rows that JAX can trace."""
    model = request.getfixturevalue(request.param)
    x = {"table": TABLE.astype(np.float32), "images": IMAGES}[request.param]
    return model, x


@pytest.mark.parametrize("name", ["score", "embed"])
def test_scores_and_embeddings_are_pure_functions_of_rows(pure, name):
    model, x = pure
    apply = getattr(sad, name)
    expected = apply(model, x)

    def of_rows(rows):
        return apply(model, rows)

    def of_row(row):
        return apply(model, row[None])[0]

    np.testing.assert_allclose(jax.jit(of_rows)(x), expected, atol=1e-5)
    np.testing.assert_allclose(jax.vmap(of_row)(x), expected, atol=1e-5)
    in_loop = jax.jit(lambda x: jax.lax.map(of_row, x))
    np.testing.assert_allclose(in_loop(x[:3]), expected[:3], atol=1e-5)
    first = x[:1].astype(np.float32) / (1 if x.dtype == np.float32 else 255)
    total = jax.jit(lambda rows: jnp.sum(of_rows(rows)))
    slopes = jax.jit(jax.grad(total))(first)
    step = 1e-3 * np.sign(slopes)
    change = (total(first + step) - total(first - step)) / 2e-3
    np.testing.assert_allclose(change, np.abs(slopes).sum(), rtol=0.05)


@pytest.mark.parametrize("name", ["score", "embed"])
def test_models_are_exported_for_any_number_of_rows(pure, name):
    model, x = pure
    shape = export.symbolic_shape(f"b, {', '.join(map(str, x.shape[1:]))}")
    function = jax.jit(lambda rows: getattr(sad, name)(model, rows))
    exported = export.export(function)(jax.ShapeDtypeStruct(shape, x.dtype))
    for count in (1, 7):
        expected = getattr(sad, name)(model, x[:count])
        np.testing.assert_allclose(exported.call(x[:count]), expected, atol=1e-5)


def test_exported_models_are_bytes(table):
    pytest.importorskip("flatbuffers")
    shape = jax.ShapeDtypeStruct(export.symbolic_shape("b, 6"), np.float32)
    exported = export.export(jax.jit(lambda rows: sad.score(table, rows)))(shape)
    again = export.deserialize(exported.serialize())
    x = TABLE.astype(np.float32)
    np.testing.assert_allclose(again.call(x), sad.score(table, x), atol=1e-5)


def test_shapes_are_checked_where_values_are_traced(table):
    for x in (TABLE[:, :1], TABLE[:, :5], TABLE[:, None]):  # the first would broadcast
        with pytest.raises(ValueError, match=r"x has shape .*; it must be \[n, 6\]"):
            jax.jit(lambda x: sad.score(table, x))(x)


def test_what_cannot_be_traced_says_so():
    data, keys = training.training_set(TABLE), jax.random.split(KEY)
    with pytest.raises(
        ValueError, match="key is traced by jit, vmap or grad; a fit ca"
    ):
        jax.vmap(lambda key: sad.fit(key, data)[0])(keys)
    for arguments in ((TABLE,), (TABLE, TARGETS), (TABLE, TARGETS, np.arange(64))):
        *front, last = arguments
        with pytest.raises(
            ValueError, match=" is traced by jit, vmap or grad; it must"
        ):
            jax.jit(lambda last, front=front: training.training_set(*front, last))(last)


def test_models_can_be_stacked(table):
    other = jax.tree.map(lambda leaf: 2 * leaf, table)
    both = jax.tree.map(lambda *leaves: np.stack(leaves), table, other)
    scores = jax.vmap(sad.score, in_axes=(0, None))(both, TABLE)
    for model, found in zip((table, other), scores, strict=True):
        np.testing.assert_allclose(found, sad.score(model, TABLE), rtol=1e-4, atol=1e-6)


def test_a_plan_that_does_not_split_batches_is_named(table):
    for plan in (3, sad.parallel.Plan(many=True)):
        with pytest.raises(
            ValueError, match="plan is .*; it must be one of parallel.spl"
        ):
            sad.score(table, TABLE, plan=plan)
    alone = sad.score(table, TABLE, plan=sad.parallel.one())
    np.testing.assert_array_equal(alone, sad.score(table, TABLE))


def test_a_model_is_a_pytree(pure, compiled):
    model, x = pure
    expected = sad.score(model, x)
    scored = jax.jit(sad.score)

    def used():
        np.testing.assert_allclose(scored(model, x), expected, atol=1e-5)
        doubled = jax.tree.map(lambda leaf: 2 * leaf, model)
        assert np.any(scored(doubled, x) != scored(model, x))

    assert compiled(used).count("jit(score)") == 1
    slopes = jax.jit(jax.grad(lambda model: jnp.sum(sad.score(model, x))))(model)
    assert np.all(slopes.variables["center"] != 0)
    np.testing.assert_allclose(
        slopes.variables["center"],
        -2 * np.sum(sad.embed(model, x) - model.variables["center"], axis=0),
        rtol=1e-4,
        atol=1e-4,
    )


def made(columns, rep_dim):
    """A model that nobody has trained."""
    objective = objectives.DeepSAD(networks.MLPEncoder((5,), rep_dim))
    x = jnp.zeros((1, columns))
    variables = jax.jit(objective.init)(KEY, x)
    variables["center"] = np.ones(rep_dim, np.float32)
    unchanged = preprocessing.Unchanged()
    return sad.model.make("deep_sad", objective, variables, unchanged, (columns,))


def test_any_number_of_rows_needs_two_programs_at_most(compiled):
    model, x, scores = made(9, 2), RNG.random((600, 9)), []
    names = compiled(
        lambda: scores.extend(sad.score(model, x[:count]) for count in (1, 7, 600))
    )
    assert 1 <= len(names) <= 2
    for found in scores:
        np.testing.assert_allclose(found, scores[-1][: len(found)], rtol=1e-6)


def test_iterables_of_batches_are_scored_like_arrays(table):
    expected = sad.score(table, TABLE)
    batches = [TABLE[:40], TABLE[40:]]

    def labeled():
        yield from ((x, np.zeros(len(x))) for x in batches)

    for source in (iter(batches), labeled, labeled()):
        np.testing.assert_array_equal(sad.score(table, source), expected)
    alone = sad.score(table, (row[None] for row in TABLE[:5]))
    np.testing.assert_allclose(alone, expected[:5], rtol=1e-5)


def test_a_model_says_what_it_is(table):
    assert table.info["method"] == "deep_sad" and table.info["shape"] == (6,)
    assert table.info["labels"]["-1"] == "known anomaly"
    versions = table.info["versions"]
    assert versions["deepsad_jax"] == sad.__version__
    assert re.match(r"\d+\.\d+", versions["jax"])
