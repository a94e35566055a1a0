"""Models and checkpoints that are damaged, or of something else."""

import io

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from inputs import (
    FOLDER,
    HTML,
    Payload,
    attempt,
    config_of,
    refused,
    table_file,
    until_ready,
    valid_bytes,
    write_npz,
)

from deepsad_jax import model, networks, objectives, preprocessing, torch_weights

NETWORK = "thyroid_mlp"


def encoder_state():
    shapes = {"hidden.0.linear": (32, 6), "hidden.1.linear": (16, 32), "code": (4, 16)}
    state = {f"{name}.weight": np.ones(shape) for name, shape in shapes.items()}
    for i, width in enumerate((32, 16)):
        for name in ("running_mean", "running_var"):
            state[f"hidden.{i}.bn.{name}"] = np.ones(width)
    return {name: array.astype(np.float32) for name, array in state.items()}


def without_a_key(content):
    content["net_dict"].popitem()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("net_dict"), "model.tar is not a model.tar of the original"),
        (lambda c: c.update(net_dict=None), "is not a model.tar of the original"),
        (lambda c: c.update(net_dict=[1]), "is not a model.tar of the original"),
        (lambda c: c.update(net_dict={}), "model.tar: the shapes in the checkpoint"),
        (lambda c: c.update(c="here"), "is not a model.tar of the original"),
        (lambda c: c.update(c=[1.0]), "model.tar: c has 1 values; thyroid_mlp needs 4"),
        (lambda c: c.update(c=[np.nan] * 4), "c has 4 values; .* needs 4, finite"),
        (lambda c: c.update(c=Payload()), "is not a model.tar of the original"),
        (without_a_key, "the shapes in the checkpoint fit none"),
        (lambda c: c.update(ae_net_dict={}), "state dict for thyroid_mlp lacks"),
        (lambda c: c.update(ae_net_dict=c["net_dict"]), "net_dict must be of an enc"),
        (lambda c: c["net_dict"]["code.weight"].fill_(np.inf), "fit none|not finite"),
    ],
)
def test_checkpoints_of_pytorch(change, message):
    torch = pytest.importorskip("torch")
    path = FOLDER / "model.tar"
    state = {key: torch.tensor(value) for key, value in encoder_state().items()}
    content = {"c": [0.1] * 4, "net_dict": state, "ae_net_dict": None}
    torch.save(content, path)
    assert torch_weights.load_checkpoint(path).network == NETWORK
    change(content)
    torch.save(content, path)
    refused("checkpoints", message, lambda: torch_weights.load_checkpoint(path))
    assert not (FOLDER / "harm").exists()


@hypothesis.settings(max_examples=40)
@hypothesis.given(st.data())
def test_damaged_checkpoints_of_pytorch(data):
    torch = pytest.importorskip("torch")
    path = FOLDER / "model.tar"
    buffer = io.BytesIO()
    state = {key: torch.tensor(value) for key, value in encoder_state().items()}
    torch.save({"c": [0.1] * 4, "net_dict": state, "ae_net_dict": None}, buffer)
    content = buffer.getvalue()
    end = data.draw(st.integers(0, len(content) - 1))
    path.write_bytes(
        data.draw(st.sampled_from([content[:end], HTML, b"", content[end:]]))
    )
    attempt("checkpoints", lambda: torch_weights.load_checkpoint(path), path)


def saved(folder, network=NETWORK):
    """A model of that network in a folder."""
    encoder, decoder, shape = networks.pair(network)
    objective = objectives.Autoencoder(encoder, decoder)
    variables = objective.init(jax.random.key(0), np.zeros((1, *shape), np.float32))
    scaling = preprocessing.Unchanged()
    made = model.make("autoencoder", objective, variables, scaling, shape)
    if not folder.exists():
        model.save(made, folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"{", "config.json, next to config.load_model, is damaged"),
        ("config.json", b"[]", "config.json, next to config.load_model, is damaged"),
        ("config.json", b'{"data": {}}', "config.json, next to .* is damaged"),
        ("scores.npz", HTML, "scores.npz, next to config.load_model, is damaged"),
        ("scores.npz", valid_bytes(".npz"), "scores.npz, next to .* is damaged"),
    ],
)
def test_models_with_damaged_neighbours(name, content, message):
    rng = np.random.default_rng(0)
    path = FOLDER / "six.npz"
    write_npz(path, {"X": rng.random((60, 6)), "y": np.arange(60) % 3})
    folder = FOLDER / "earlier"
    folder.mkdir(exist_ok=True)
    saved(folder / "model")
    changes = {"data.name": str(path), "load_model": str(folder / "model")}
    config = config_of("kde", hybrid=True, **changes)
    (folder / "config.json").write_text(config.to_json_best_effort())
    (folder / name).write_bytes(content)
    refused("checkpoints", message, lambda: until_ready(config))
    (folder / name).unlink()


@pytest.mark.parametrize("method", ["deep_sad", "kde"])
def test_a_model_of_another_network_than_the_configs(method):
    x = np.random.default_rng(0).random((60, 6))
    path = FOLDER / "six.npz"
    write_npz(path, {"X": x, "y": np.arange(60) % 3})
    other = FOLDER / "satellite"
    saved(other, "satellite_mlp")
    changes = {"data.name": str(path), "load_model": str(other), "network": NETWORK}
    config = config_of(method, hybrid=method == "kde", **changes)
    message = r"takes examples of shape \(36,\), but the data have \(6,\)"
    refused("checkpoints", message, lambda: until_ready(config))


def test_folders_that_hold_no_model():
    folder = FOLDER / "empty"
    folder.mkdir(exist_ok=True)
    config = config_of(**{"data.name": table_file(), "load_model": str(folder)})
    with pytest.raises(ValueError, match="empty .*complete|empty does not hold a"):
        until_ready(config)
