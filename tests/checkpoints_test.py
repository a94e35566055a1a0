import jax
import numpy as np
import pytest

from deepsad_jax import checkpoints, deep_sad, networks, training


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
