"""Batches from any iterable: one pass is one epoch, and nothing else is held."""

import dataclasses
import os
import pathlib
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import deepsad_jax as sad
from deepsad_jax import checkpoints, networks, preprocessing, streams, training

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 6)).astype(np.float32)
TARGETS = RNG.integers(-1, 2, 64)
ADAM = optax.adam(1e-2)
STAGE = training.Stage(ADAM, epochs=2, batch_size=16)
ONCE = training.Stage(ADAM, epochs=1, batch_size=16)


class Batches:
    """Starts anew at each pass, and counts them."""

    def __init__(self, x=X, size=16):
        self.x, self.size, self.passes = x, size, 0

    def __iter__(self):
        self.passes += 1
        for start in range(0, len(self.x), self.size):
            rows = slice(start, start + self.size)
            yield self.x[rows], TARGETS[rows]


class Sized(Batches):
    def __len__(self):
        return -(-len(self.x) // self.size)


def linear(key, x):
    return 0.5 * jax.random.normal(key, (x.shape[1], 3))


# Compiles quickly.
LINEAR = (linear, lambda weights, x: jnp.tanh(x @ weights))


def fit(data, **options):
    options = {"encoder": LINEAR, "train": STAGE, "pretrain": None, **options}
    return sad.fit(KEY, data, **options)


@pytest.fixture(scope="module")
def streamed():
    return fit(Batches())[0]


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a.variables, b.variables)


def test_any_iterable_that_starts_anew_will_do(streamed, tmp_path):
    np.save(tmp_path / "rows.npy", X)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")

    def generator():
        yield from Batches(mapped)

    for data in (generator, Sized(), Batches, list(Batches()), tuple(Batches())):
        model, _ = fit(data)
        assert_equal(model, streamed)
    of_jax = [(jnp.asarray(x), jnp.asarray(targets)) for x, targets in Batches()]
    assert_equal(fit(of_jax)[0], streamed)


def test_the_default_networks_are_pretrained_from_streams():
    images = RNG.integers(0, 256, (48, 5, 6, 1), dtype=np.uint8)
    model, record = fit(Batches(images), encoder=None, train=ONCE, pretrain=ONCE)
    assert list(record.history) == ["pretrain", "train"]
    assert model.preprocessing == preprocessing.Bytes()
    assert np.isfinite(sad.score(model, images)).all()
    assert np.all(sad.score(model.base, images) < 1)


def test_the_same_order_gives_the_same_model():
    seen = []

    def apply(weights, x, train):
        if train:
            jax.debug.callback(seen.append, x[:, 0], ordered=True)
        return jnp.tanh(x @ weights)

    options = {"encoder": (linear, apply), "preprocessing": preprocessing.Unchanged()}
    model, record = fit(training.training_set(X, TARGETS), **options)
    jax.effects_barrier()
    order = [np.array([np.argmax(X[:, 0] == v) for v in x]) for x in seen]
    assert len(order) == 8 and sorted(np.concatenate(order[:4])) == list(range(64))
    passes = iter([range(4), range(4), range(4, 8)])  # the first for the center

    def batches():
        for step in next(passes):
            yield X[order[step]], TARGETS[order[step]]

    other, other_record = fit(batches, **options)
    for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    np.testing.assert_allclose(
        record.history["train"]["loss"],
        other_record.history["train"]["loss"],
        rtol=1e-5,
    )


def test_it_is_passed_through_as_often_as_is_needed(streamed):
    unchanged = {"preprocessing": preprocessing.Unchanged()}
    by_steps = training.Stage(training.Adam(), epochs=2)
    cases = {
        "survey, center, epochs": (Batches(), {}, 4),
        "center, epochs": (Batches(), unchanged, 3),
        "number of steps": (Batches(), {**unchanged, "train": by_steps}, 4),
        "number of steps by len": (Sized(), {**unchanged, "train": by_steps}, 3),
        "soft boundary": (Batches(), {**unchanged, "loss": "soft_boundary"}, 4),
        "one epoch more": (Batches(), {"train": ONCE, "initial": streamed}, 1),
    }
    for name, (data, options, passes) in cases.items():
        fit(data, **options)
        assert data.passes == passes, name


def test_what_starts_once_is_refused_where_it_is_needed_twice(streamed):
    source = Batches()
    message = "data can be passed through only once, but 4 passes are needed .epochs, t"
    with pytest.raises(ValueError, match=message):
        fit(iter(source))
    assert source.passes == 0  # before it is touched
    once, _ = fit(iter(Batches()), train=ONCE, initial=streamed)
    assert_equal(once, fit(Batches(), train=ONCE, initial=streamed)[0])


def test_what_dries_up_is_named():
    class Draining:
        def __init__(self):
            self.rest = iter(Batches())

        def __iter__(self):
            return (batch for batch in self.rest)

    with pytest.raises(ValueError, match="data has no batch; it must have at least on"):
        fit(Draining())


def second(x, targets):
    return lambda: iter([(X[:16], TARGETS[:16]), (x, targets)])


NARROW, WIDE = X[16:32, :5], X[16:32].astype(np.float64)
WITH_NAN = np.where(np.arange(16)[:, None] == 3, np.nan, X[16:32]).astype(np.float32)
ROWS, LABELS = X[16:32], TARGETS[16:32]
BAD_BATCHES = {
    "columns": (second(NARROW, LABELS), r"batch 1 of data has x of shape \(16, 5\)"),
    "dtype": (second(WIDE, LABELS), "batch 1 of data has x .* float64; those before"),
    "NaN": (second(WITH_NAN, LABELS), r"x of batch 1 contains nan \(row 3, column 0"),
    "masked": (second(np.ma.masked_less(ROWS, 0), LABELS), r"x of batch 1 has \d+ mas"),
    "complex": (
        second(1j * ROWS, LABELS),
        "x of batch 1 has .* must hold real numbers",
    ),
    "a vector": (second(ROWS[:, 0], LABELS), r"x of batch 1 has shape \(16,\)"),
    "a number": (second(3, LABELS), r"x of batch 1 has shape \(\)"),
    "no rows": (second(ROWS[:0], LABELS[:0]), "x of batch 1 has .* not be empty"),
    "fewer labels": (
        second(ROWS, LABELS[1:]),
        "semi_targets of batch 1 has 15 entries",
    ),
    "no labels": (second(ROWS, None), "semi_targets of batch 1 has 1 entries"),
    "truths": (second(ROWS, LABELS > 0), "semi_targets of batch 1 holds booleans"),
    "other labels": (second(ROWS, 2 * LABELS), "semi_targets of batch 1 contains -?2"),
    "alone": (lambda: iter([X, X]), "batch 0 of data is a ndarray; it must be .x, sem"),
    "three": (lambda: iter([(X, TARGETS, 1)]), "batch 0 of data is a tuple; it must"),
    "half a mapping": (
        lambda: iter([{"x": X}]),
        "batch 0 of data is a dict; it must be",
    ),
    "no batch": (lambda: iter(()), "data has no batch; it must have at least one"),
    "no iterator": (lambda: 3, "data returns a int; it must return an iterator of ba"),
    "whole arrays": ((X, TARGETS), "batch 0 of data is a ndarray; .*whole arrays go"),
    "a bare array": (X, "batch 0 of data is a ndarray"),
    "a number as data": (3, "data is a int; it must be a training set"),
}


@pytest.mark.parametrize("known", [False, True], ids=["surveyed", "scaled"])
@pytest.mark.parametrize("data, message", BAD_BATCHES.values(), ids=BAD_BATCHES)
def test_bad_batches_are_named_by_their_number(data, message, known):
    scaling = preprocessing.Unchanged() if known else None
    with pytest.raises(ValueError, match=message):
        made = streams.Stream(data, passes=3, needs_steps=False, scaling=scaling)
        list(made.batches())


def test_errors_of_the_iterable_come_through():
    class Failing:
        def __iter__(self):
            yield X[:16], TARGETS[:16]
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        fit(Failing())


def test_options_are_refused_before_the_first_pass():
    source = Batches()
    for options in ({"eta": "1"}, {"initial": "x"}, {"dtype": "abc"}, {"train": None}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} is "):
            fit(source, **options)
    assert source.passes == 0


def test_a_stream_without_anomalies_is_refused_by_what_learns_from_them():
    m2 = sad.detectors.METHODS["m2"](train=ONCE)
    normal = [(X[:16], np.zeros(16)), (X[16:32], np.zeros(16))]
    with pytest.raises(
        ValueError, match="m2 learns from known anomalies, but there ar"
    ):
        m2.fit(KEY, normal)


def test_ones_without_anomalies_are_warned_of_once():
    ones = [(X[:16], np.ones(16)), (X[16:32], np.zeros(16)), (X[32:48], np.ones(16))]
    with pytest.warns(UserWarning, match="semi_targets has 1 and no -1") as caught:
        fit(ones)
    assert len(caught) == 1


def test_a_survey_finds_the_ranges_of_all_rows():
    def scaling(x):
        data = Batches(x, size=10)
        return streams.Stream(data, passes=2, needs_steps=False).preprocessing

    for x in (X, X.astype(np.float64), (100 * X).astype(np.int64) + 2**60):
        found, expected = scaling(x), preprocessing.auto(x)
        assert (found.low, found.high) == (expected.low, expected.high)
        np.testing.assert_array_equal(found(x), expected(x))
    series = X.reshape(64, 3, 2)
    found, expected = scaling(series), preprocessing.auto(series)
    assert (found.low, found.high) == (expected.low, expected.high)
    for x in (series**2 / 20, (series > 0).astype(np.uint8)):
        assert scaling(x) == preprocessing.auto(x)


def test_batches_of_any_size_are_trained_on_but_no_single_rows(streamed):
    sizes = [(0, 16), (16, 39), (39, 40), (40, 64)]
    uneven = [(X[a:b], TARGETS[a:b]) for a, b in sizes]
    scaling = streamed.preprocessing
    with pytest.warns(UserWarning, match="a batch of 1 rows: .* are left out"):
        model, _ = fit(uneven, preprocessing=scaling)
    del uneven[2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_equal(model, fit(uneven, preprocessing=scaling)[0])
    with pytest.raises(ValueError, match="no batch has two rows; there is no center"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit([(X[39:40], TARGETS[39:40])])


def test_schedules_count_the_batches_that_are_used():
    told = []

    def optimizer(steps):
        told.append(steps)
        return optax.sgd(1e-2)

    uneven = [(X[a:b], TARGETS[a:b]) for a, b in [(0, 32), (32, 63), (63, 64)]]
    stage = training.Stage(optimizer, epochs=1)
    with pytest.warns(UserWarning, match="1 of them are left out"):
        fit(lambda: iter(uneven), train=stage)
    assert {*told} == {2}
    scaling = preprocessing.Unchanged()
    with pytest.warns(UserWarning, match="3 batches by its length, of which 2 are use"):
        fit(uneven, train=stage, preprocessing=scaling)


@pytest.mark.parametrize("kind", [streams.OnDisk, lambda *rows: [rows]])
def test_generative_models_of_streams_want_the_unit_interval(kind):
    method = sad.detectors.METHODS["vae"](encoder=networks.MLPEncoder((8,), 3))
    method = dataclasses.replace(method, pretrain=training.Stage(ADAM, 1, 32))
    unchanged = preprocessing.Unchanged()
    with pytest.raises(ValueError, match=r"x has values from .* features in \[0, 1\]"):
        method.fit(KEY, kind(3 * X, TARGETS), preprocessing=unchanged)


def test_the_center_and_the_radius_are_those_of_all_rows():
    options = {"train": training.Stage(ADAM, epochs=0), "loss": "soft_boundary"}
    data = training.training_set(X, TARGETS)
    for more in ({}, {"center": "without_anomalies"}):
        expected = fit(data, **options, **more)[0].variables
        found = fit(Batches(size=10), **options, **more)[0].variables
        np.testing.assert_allclose(found["center"], expected["center"], rtol=1e-5)
        np.testing.assert_allclose(found["radius"], expected["radius"], rtol=1e-5)


def test_an_interrupted_stream_goes_on_where_it_stood(streamed, tmp_path):
    keeper = checkpoints.Keeper(tmp_path, epochs=1, seconds=0)
    observed = []

    def stop(stage, done, history):
        observed.append((stage, done))
        if done == 1:
            keeper.stop()

    with pytest.raises(checkpoints.Interrupted):
        fit(Batches(), keeper=keeper, observe=stop)
    keeper = checkpoints.Keeper(tmp_path, epochs=1, seconds=0)
    model, record = fit(Batches(), keeper=keeper)
    keeper.close()
    assert_equal(model, streamed)
    assert (
        observed == [("train", 1)]
        and np.isfinite(record.history["train"]["loss"]).all()
    )


def test_batches_may_be_mappings(streamed):
    named = [{"x": x, "semi_targets": targets} for x, targets in Batches()]
    model, _ = fit(named)
    assert_equal(model, streamed)
    np.testing.assert_array_equal(sad.score(model, iter(named)), sad.score(model, X))


def test_a_function_of_the_epoch_is_told_it_and_goes_on_exactly(streamed, tmp_path):
    told = []

    def batches(epoch):
        told.append(epoch)
        order = np.random.default_rng(epoch).permutation(64)
        return ((X[rows], TARGETS[rows]) for rows in order.reshape(4, 16))

    scaling = {"preprocessing": streamed.preprocessing}
    expected, _ = fit(batches, **scaling)
    assert told == [0, 0, 1]  # the center's, and the epochs
    keeper = checkpoints.Keeper(tmp_path, epochs=1, seconds=0)
    with pytest.raises(checkpoints.Interrupted):
        fit(batches, keeper=keeper, observe=lambda *_: keeper.stop(), **scaling)
    keeper = checkpoints.Keeper(tmp_path, epochs=1, seconds=0)
    assert_equal(fit(batches, keeper=keeper, **scaling)[0], expected)
    keeper.close()


# Examples on disk.


@pytest.fixture
def files(tmp_path):
    def save(x=X, targets=TARGETS):
        paths = tmp_path / "x.npy", tmp_path / "semi_targets.npy"
        for path, array in zip(paths, (x, targets), strict=True):
            np.save(path, array)
        return paths

    return save


@pytest.mark.parametrize("pieces", [1, 8])
def test_files_give_the_model_of_the_same_rows_in_memory(files, pieces, monkeypatch):
    monkeypatch.setattr(streams, "_PIECES", pieces)
    stage = training.Stage(training.Adam(1e-2), epochs=2, batch_size=10)
    options = {"encoder": None, "train": stage, "pretrain": stage}
    expected, record = fit(training.training_set(X, TARGETS), **options)
    mapped = tuple(np.load(path, mmap_mode="r") for path in files())
    for data in (streams.OnDisk(*files()), streams.OnDisk(*mapped)):
        model, found = fit(data, **options)
        assert model.preprocessing == expected.preprocessing
        for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(expected), strict=True):
            # Up to a ten-thousandth of a step of Adam: sums are in another order.
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        for name, history in record.history.items():
            loss = found.history[name]["loss"]
            np.testing.assert_allclose(loss, history["loss"], rtol=1e-5)
        np.testing.assert_allclose(sad.score(model, data), sad.score(model, X))


def test_images_on_disk_stay_bytes(files):
    images = RNG.integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    stage = training.Stage(ADAM, epochs=1, batch_size=16)
    options = {"encoder": None, "train": stage}
    targets = TARGETS[:40]
    expected, _ = fit(training.training_set(images, targets), **options)
    model, _ = fit(streams.OnDisk(*files(images, targets)), **options)
    assert model.preprocessing == preprocessing.Bytes()
    for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_every_row_but_those_of_no_full_batch_is_in_an_epoch(files):
    ids = np.arange(64, dtype=np.float32)[:, None].repeat(2, 1)
    data = streams.OnDisk(*files(ids, (np.arange(64) % 3 - 1)))
    seen = []
    for epoch in range(2):
        stream = streams.Stored(data, preprocessing.Unchanged())
        plan, key = sad.parallel.one(), jax.random.key(epoch)
        rows = []
        for piece, count in stream.pieces(plan, 10, epoch, key):
            rows += [*piece.x[:count, :, 0].reshape(-1).astype(int)]
            targets = piece.semi_targets[:count].reshape(-1)
            np.testing.assert_array_equal(
                targets, np.array(rows[-count * 10 :]) % 3 - 1
            )
        assert len(rows) == len({*rows}) == 60 and stream.steps(10) == 6
        seen.append(rows)
    assert seen[0] != seen[1]


def test_the_scaling_of_a_file_is_that_of_its_rows(files, monkeypatch):
    for name in ("_BLOCK", "_LARGE"):  # several blocks
        monkeypatch.setattr(sad.stored, name, 1000)
    series = X.reshape(64, 3, 2)
    for x in (X, X.astype(np.float64), (100 * X).astype(np.int64) + 2**60, series**2):
        array = streams.OnDisk(*files(x)).x
        expected = preprocessing.auto(x)
        found = streams.scaling_of(array)
        assert (found.low, found.high) == (expected.low, expected.high)
        if x.ndim == 2:
            assert found == expected
            found = streams.scaling_of(array, standard=True)
            expected = preprocessing.standard(x)
            np.testing.assert_allclose(found.low, expected.low)
            np.testing.assert_allclose(found(x), expected(x), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"x from row \d+ on contains nan .row"):
        streams.scaling_of(np.where(np.arange(64)[:, None] == 50, np.nan, X))


def test_wrong_files_are_refused_before_anything_is_read(files, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file .*none.npy"):
        streams.OnDisk(tmp_path / "none.npy")
    for x, targets, message in (
        (X[:, 0], TARGETS, r"x has shape \(64,\) and dtype float32; it must hold real"),
        (X > 0, TARGETS, "x has shape .* and dtype bool; it must hold real numbers"),
        (X, TARGETS[1:], "semi_targets has 63 entries"),
        (X, 2 * TARGETS, "semi_targets contains -?2"),
    ):
        with pytest.raises(ValueError, match=message):
            streams.OnDisk(*files(x, targets))
    data = streams.OnDisk(*files())
    with pytest.raises(ValueError, match="train: the training set has 64 examples, le"):
        fit(data, train=training.Stage(batch_size=65))
    with pytest.raises(ValueError, match="companions need all examples at once"):
        fit(data, companions=("forest",))
    m2 = sad.detectors.METHODS["m2"](train=ONCE)
    with pytest.raises(ValueError, match="m2 learns from known anomalies"):
        m2.fit(KEY, streams.OnDisk(files()[0]))


def check_devices():
    """Several devices share each batch, whoever wrote the network."""
    import flax.linen as nn
    from flax import nnx

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.Dense(8, use_bias=False)(x)
            x = nn.BatchNorm(not train, use_bias=False, use_scale=False)(x)
            return nn.Dense(3, use_bias=False)(nn.relu(x))

    class NNX(nnx.Module):
        def __init__(self, *, rngs):
            self.first = nnx.Linear(6, 8, use_bias=False, rngs=rngs)
            self.norm = nnx.BatchNorm(8, use_bias=False, use_scale=False, rngs=rngs)
            self.last = nnx.Linear(8, 3, use_bias=False, rngs=rngs)

        def __call__(self, x):
            return self.last(nnx.relu(self.norm(self.first(x))))

    plan = sad.parallel.split_batch(4)
    for encoder in (Linen(), NNX, LINEAR):
        for data in (
            Batches(),
            training.training_set(X, TARGETS),
            streams.OnDisk(X, TARGETS),
        ):
            one, _ = fit(data, encoder=encoder)
            four, _ = fit(data, encoder=encoder, plan=plan)
            scores = sad.score(one, X)
            for model in (one, four):
                found = sad.score(model, X, plan=plan)
                np.testing.assert_allclose(found, scores, rtol=1e-4, atol=1e-5)
    source = Batches(size=20)  # the last batch of 4 rows is too small for 4 devices
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(source, plan=plan)
    assert "a batch of 4 rows: 4 of them are left out" in str(
        [str(warning.message) for warning in caught]
    )
    found = sad.score(one, Batches(size=7), plan=plan)
    np.testing.assert_allclose(found, scores, rtol=1e-4, atol=1e-5)
    try:
        fit([(X[:7], TARGETS[:7])], plan=plan, preprocessing=one.preprocessing)
    except ValueError as error:
        assert "no batch of data has two rows for every device" in str(error), error
    else:
        raise AssertionError("7 rows on 4 devices")


def check_memory():
    """A limit holds for all memory of the process; the file is larger than it."""
    import resource
    import tempfile

    side = 256
    row, more = side * side, 150 * 2**20
    jnp.zeros(3).block_until_ready()
    status = pathlib.Path("/proc/self/status").read_text()
    (used,) = (line for line in status.splitlines() if line.startswith("VmData"))
    limit = 1024 * int(used.split()[1]) + more
    count = (limit + more // 2) // row

    with tempfile.TemporaryFile() as file:
        file.truncate(count * row)  # a file of holes
        rows = np.memmap(file, np.uint8, "r+", shape=(count, side, side, 1))
        rows[::2, 0, 0] = 255

        def batches():
            for start in range(0, count, 64):
                x = rows[start : start + 64]
                yield x, np.zeros(len(x))

        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        few = (
            lambda key, x: jnp.ones((1, 2)),
            lambda weights, x: x[:, 0, 0] @ weights,
        )
        bytes_ = preprocessing.Bytes()
        model, _ = fit(batches, encoder=few, train=ONCE, preprocessing=bytes_)
        np.testing.assert_allclose(model.variables["center"], 0.5, atol=1e-2)
        try:
            np.array(rows)
        except MemoryError:
            return
        raise AssertionError("the limit does not hold")


def check_address_space():
    """A file three times as large as all that the process may map."""
    import resource
    import tempfile

    side, few = 128, training.Stage(ADAM, 1, 512)
    x = np.zeros((512, side, side, 1), np.uint8)
    x[::2, 0, 0] = 255
    encoder = (
        lambda key, x: jnp.ones((1, 2)),
        lambda weights, x: x[:, 0, 0] @ weights,
    )
    options = {"encoder": encoder, "train": few}
    fit(streams.OnDisk(x), **options)  # compiles
    status = pathlib.Path("/proc/self/status").read_text()
    (used,) = (line for line in status.splitlines() if line.startswith("VmSize"))
    limit = 1024 * int(used.split()[1]) + 150 * 2**20
    count = 3 * limit // side**2 + 1
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "x.npy")
        x = np.lib.format.open_memmap(path, "w+", np.uint8, (count, side, side, 1))
        x[::2, 0, 0] = 255  # a file of holes
        del x
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        model, _ = fit(streams.OnDisk(path), **options)
        np.testing.assert_allclose(model.variables["center"], 0.5, atol=1e-2)
        try:
            np.load(path, mmap_mode="r")
        except (OSError, ValueError):
            return
        raise AssertionError("the limit does not hold")


@pytest.mark.parametrize("check", ["devices", "memory", "address_space"])
def test_in_a_process_of_its_own(check):
    if check != "devices" and not sys.platform.startswith("linux"):
        pytest.skip("limits on memory are those of Linux")
    subprocess.run(
        [sys.executable, __file__, check],
        env={
            **os.environ,
            "JAX_NUM_CPU_DEVICES": "4" if check == "devices" else "1",
            "MALLOC_ARENA_MAX": "2",
            "PYTHONPATH": str(pathlib.Path(sad.__file__).parents[1]),
        },
        check=True,
    )


if __name__ == "__main__":
    {
        "devices": check_devices,
        "memory": check_memory,
        "address_space": check_address_space,
    }[sys.argv[1]]()
