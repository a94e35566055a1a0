import jax
import numpy as np
import pytest

from deepsad_jax import (
    checkpoints,
    deep_sad,
    dgm,
    networks,
    supervised,
    training,
)


def model(network):
    shape = networks.resolve(network).input_shape
    x = np.random.default_rng(0).random((40, *shape), np.float32)
    once = training.Optimization(epochs=1, batch_size=16)
    data = training.training_set(x)
    fitted = deep_sad.fit(
        jax.random.key(0), data, network=network, train=once, pretrain=once
    )
    return fitted, x


@pytest.mark.parametrize(
    "network", ["digits_LeNet", networks.mlp_for_table(5)], ids=["named", "of a table"]
)
def test_a_model_comes_back_as_it_was(tmp_path, network):
    fitted, x = model(network)
    checkpoints.save_model(tmp_path / "model", fitted)
    loaded = checkpoints.load_model(tmp_path / "model")
    assert loaded.network == network
    for part in ("encoder", "center", "autoencoder"):
        jax.tree.map(
            np.testing.assert_array_equal, getattr(loaded, part), getattr(fitted, part)
        )
    np.testing.assert_array_equal(deep_sad.score(loaded, x), deep_sad.score(fitted, x))
    with pytest.raises(FileExistsError, match="never overwritten"):
        checkpoints.save_model(tmp_path / "model", fitted)


ONCE = training.Optimization(epochs=1, batch_size=16)


@pytest.mark.parametrize("method", [*dgm.METHODS, "supervised"])
@pytest.mark.parametrize("network", ["digits_LeNet", networks.mlp_for_table(5)])
def test_other_models_come_back_as_they_were(tmp_path, method, network):
    shape = networks.resolve(network).input_shape
    x = np.random.default_rng(0).random((40, *shape), np.float32)
    data, key = training.training_set(x, [-1, 0] * 20), jax.random.key(0)
    if method == "supervised":
        fitted = supervised.fit(key, data, network=network, train=ONCE)
        score = supervised.score
    else:
        options = {"network": network, "train": ONCE, "pretrain": ONCE}
        fitted = dgm.fit(key, data, method=method, **options)
        score = dgm.score
    checkpoints.save_model(tmp_path / "model", fitted)
    loaded = checkpoints.load_model(tmp_path / "model")
    assert (loaded.network, loaded.method) == (network, method)
    np.testing.assert_array_equal(score(loaded, x), score(fitted, x))
    # What is loaded can be trained on.
    fit = supervised.fit if method == "supervised" else dgm.fit
    options = {} if method == "supervised" else {"method": method}
    more = fit(key, data, network=network, train=ONCE, initial=loaded, **options)
    assert np.isfinite(score(more, x)).all()


def test_the_radius_of_a_soft_boundary_is_kept(tmp_path):
    x = np.random.default_rng(0).random((40, 5), np.float32)
    options = {"network": networks.mlp_for_table(5), "train": ONCE, "pretrain": None}
    fitted = deep_sad.fit(
        jax.random.key(0), training.training_set(x), loss="soft_boundary", **options
    )
    checkpoints.save_model(tmp_path / "model", fitted)
    loaded = checkpoints.load_model(tmp_path / "model")
    assert loaded.radius == fitted.radius > 0 and loaded.autoencoder is None
    np.testing.assert_array_equal(deep_sad.score(loaded, x), deep_sad.score(fitted, x))


def test_missing_and_damaged_models_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model folder .*nothing"):
        checkpoints.load_model(tmp_path / "nothing")
    fitted, _ = model(networks.mlp_for_table(5))
    checkpoints.save_model(tmp_path / "model", fitted)
    for file in (tmp_path / "model" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match="does not hold a complete model"):
        checkpoints.load_model(tmp_path / "model")
