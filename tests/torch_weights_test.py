import jax
import numpy as np
import oracles
import pytest

from deepsad_jax import networks, torch_weights


@pytest.fixture
def state_dict():
    prefix = "ae_init/"
    return {
        key.removeprefix(prefix): value
        for key, value in oracles.load("mnist_LeNet").items()
        if key.startswith(prefix)
    }


def encoder_of(state_dict, prefix="encoder."):
    return {
        prefix + key.removeprefix("encoder."): value
        for key, value in state_dict.items()
        if key.startswith("encoder.")
    }


def test_encoders_convert_with_prefix_and_without(state_dict):
    full = torch_weights.from_state_dict("mnist_LeNet", state_dict)
    expected = networks.encoder_variables(full)
    for prefix in ("encoder.", ""):
        actual = torch_weights.from_state_dict(
            "mnist_LeNet", encoder_of(state_dict, prefix)
        )
        jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("name", oracles.NETWORKS)
def test_converted_variables_have_the_shapes_of_the_network(name):
    model, shape = networks.build_autoencoder(name), networks.pair(name).input_shape
    state = {
        key.removeprefix("ae_init/"): value
        for key, value in oracles.load(name).items()
        if key.startswith("ae_init/")
    }
    expected = jax.eval_shape(
        lambda key: model.init(key, np.zeros((1, *shape), np.float32), train=False),
        jax.random.key(0),
    )
    actual = torch_weights.from_state_dict(name, state)
    assert jax.tree.map(np.shape, actual) == jax.tree.map(np.shape, expected)


def test_missing_surplus_and_misshapen_keys_are_named(state_dict):
    partial = dict(state_dict)
    kernel = partial.pop("decoder.deconv1.weight")
    with pytest.raises(ValueError, match="mnist_LeNet lacks decoder.deconv1.weight$"):
        torch_weights.from_state_dict("mnist_LeNet", partial)
    surplus = {**state_dict, "encoder.fc1.bias": np.zeros(32)}
    with pytest.raises(ValueError, match="has the surplus encoder.fc1.bias$"):
        torch_weights.from_state_dict("mnist_LeNet", surplus)
    misshapen = {**state_dict, "decoder.deconv1.weight": kernel.swapaxes(0, 1)}
    with pytest.raises(ValueError, match=r"deconv1.weight has shape \(4, 2, 5, 5\)"):
        torch_weights.from_state_dict("mnist_LeNet", misshapen)
    with pytest.raises(ValueError, match="state dict for fmnist_LeNet lacks"):
        torch_weights.from_state_dict("fmnist_LeNet", state_dict)


def test_checkpoint_of_the_original_is_read(tmp_path, state_dict):
    torch = pytest.importorskip("torch")
    tensors = {key: torch.tensor(value) for key, value in state_dict.items()}
    encoder = {
        key.removeprefix("encoder."): value
        for key, value in tensors.items()
        if key.startswith("encoder.")
    }
    path = tmp_path / "model.tar"
    torch.save({"c": [0.5] * 32, "net_dict": encoder, "ae_net_dict": tensors}, path)
    loaded = torch_weights.load_checkpoint(path)
    assert loaded.network == "mnist_LeNet"
    np.testing.assert_array_equal(loaded.center, np.full(32, 0.5))
    expected = torch_weights.from_state_dict("mnist_LeNet", state_dict)
    jax.tree.map(np.testing.assert_array_equal, loaded.autoencoder, expected)
    jax.tree.map(
        np.testing.assert_array_equal,
        loaded.encoder,
        networks.encoder_variables(expected),
    )


def test_checkpoints_that_could_run_code_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.tar"
    torch.save({"c": print, "net_dict": {}, "ae_net_dict": None}, path)
    with pytest.raises(ValueError, match="not a model.tar of the original"):
        torch_weights.load_checkpoint(path)


def test_missing_torch_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(ImportError, match=r"pip install 'deepsad_jax\[torch\]'"):
        torch_weights.load_checkpoint(tmp_path / "model.tar")


def test_missing_and_damaged_files_are_named(tmp_path):
    pytest.importorskip("torch")
    path = tmp_path / "model.tar"
    with pytest.raises(ValueError, match="there is no file .*model.tar"):
        torch_weights.load_checkpoint(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="not a model.tar of the original"):
        torch_weights.load_checkpoint(path)
