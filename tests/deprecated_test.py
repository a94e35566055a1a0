"""What version 0.1 called otherwise gives what the new names give, and says so."""

import jax
import numpy as np
import pytest

import deepsad_jax as sad
from deepsad_jax import preprocessing
from deepsad_jax.detectors import kde, kernel_machines


@pytest.fixture(scope="module")
def data():
    x = np.random.default_rng(0).random((64, 6)).astype(np.float32)
    targets = np.zeros(64, int)
    targets[:4] = -1
    return sad.training_set(x, targets)


@pytest.fixture(scope="module")
def old(data):
    """A program of version 0.1, up to its model."""
    from deepsad_jax import deep_sad, training

    with pytest.deprecated_call(match=r"use deepsad_jax.Stage\(training.Adam"):
        stage = training.Optimization(1e-3, epochs=2, batch_size=32)
    with pytest.deprecated_call(match="deep_sad.fit is of version 0.1 .* use deepsad"):
        return stage, deep_sad.fit(
            jax.random.key(0), data, network="thyroid_mlp", train=stage, pretrain=stage
        )


def test_a_fit_is_that_of_today_on_rows_as_they_are(data, old):
    stage = sad.Stage(sad.training.Adam(1e-3), epochs=2, batch_size=32)
    assert old[0] == stage
    model, _ = sad.fit(
        jax.random.key(0),
        data,
        encoder="thyroid_mlp",
        train=stage,
        pretrain=stage,
        preprocessing=preprocessing.Unchanged(),
    )
    scores = sad.score(model, data.x)
    with pytest.deprecated_call(match="use deepsad_jax.score"):
        np.testing.assert_array_equal(sad.deep_sad.score(old[1], data.x), scores)
    with pytest.deprecated_call(match="use deepsad_jax.embed"):
        embeddings = sad.deep_sad.embed(old[1], data.x)
    np.testing.assert_array_equal(embeddings, sad.embed(model, data.x))
    with pytest.deprecated_call(match=r"score\(model.base, x\)"):
        errors = sad.deep_sad.reconstruction_score(old[1], data.x)
    np.testing.assert_array_equal(errors, sad.score(model.base, data.x))


def test_models_are_saved_and_loaded(data, old, tmp_path):
    with pytest.deprecated_call(match="save_model .* use deepsad_jax.model.save"):
        sad.checkpoints.save_model(tmp_path / "model", old[1])
    with pytest.deprecated_call(match="load_model .* use deepsad_jax.model.load"):
        loaded = sad.checkpoints.load_model(tmp_path / "model")
    expected = sad.score(old[1], data.x)
    np.testing.assert_array_equal(sad.score(loaded, data.x), expected)


def test_kernel_machines_and_densities_have_moved(data):
    x, targets = data.x, data.semi_targets
    with pytest.deprecated_call(match="kernel_machines.fit_ssad"):
        machine = sad.ssad.fit(x, targets, kappa=2.0)
    with pytest.deprecated_call(match="kernel_machines.score"):
        scores = sad.ssad.score(machine, x)
    new = kernel_machines.fit_ssad(x, targets, kappa=2.0)
    np.testing.assert_array_equal(scores, kernel_machines.score(new, x))
    with pytest.deprecated_call(match="detectors.kde.fit"):
        density = sad.kde.fit(x, bandwidth=0.5)
    with pytest.deprecated_call(match="detectors.kde.score"):
        scores = sad.kde.score(density, x)
    np.testing.assert_array_equal(scores, kde.score(kde.fit(x, bandwidth=0.5), x))


def test_methods_have_a_name_and_a_fit(data, old):
    key, options = jax.random.key(0), {"network": "thyroid_mlp", "train": old[0]}
    with pytest.deprecated_call(match=r"METHODS\['supervised'\]"):
        model = sad.supervised.fit(key, data, **options)
    new, _ = sad.detectors.METHODS["supervised"](
        encoder="thyroid_mlp", train=old[0]
    ).fit(key, data, preprocessing=preprocessing.Unchanged())
    with pytest.deprecated_call(match="use deepsad_jax.score"):
        scores = sad.supervised.score(model, data.x)
    np.testing.assert_array_equal(scores, sad.score(new, data.x))
    with pytest.deprecated_call(match=r"METHODS\['m2'\]"):
        assert sad.dgm.fit(key, data, **options).info["method"] == "m2"


def test_devices_are_a_plan():
    with pytest.deprecated_call(match=r"split_batch\(devices\)"):
        assert sad.parallel.Execution(devices=1) == sad.parallel.split_batch(1)


@pytest.mark.parametrize("module", ["training", "checkpoints", "parallel"])
def test_other_names_are_still_unknown(module):
    found = getattr(sad, module)
    with pytest.raises(AttributeError, match=f"deepsad_jax.{module}' has no .*'Other'"):
        _ = found.Other
