"""M2 and M1+M2: the published implementation's numbers, closed forms and training.

The oracles hold that implementation's bounds, losses, gradients and scores with every
Gaussian draw, so that the sums can be replayed. Two travel with the tests; the others
are tested where their folder is at hand.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepsad_jax import generative, losses, torch_weights

HERE = pathlib.Path(__file__).parent / "data" / "oracles"
FULL = pathlib.Path(__file__).parents[2] / "shared" / "reference" / "semidgm"
NAMES = ("cardio_DGM_M2", "thyroid_DGM_M2", "mnist_DGM_M2", "mnist_DGM_M1M2")
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=NAMES)
def oracle(request):
    return load(request.param)


def load(name):
    path = HERE / f"{name}.npz"
    if not path.exists():
        path = FULL / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"the oracle of {name} is not here")
    with np.load(path) as content:
        return name, {key: content[key] for key in content.files}


def subtree(arrays, prefix):
    return {
        k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)
    }


def dense(arrays, prefix):
    kernel, bias = arrays[f"{prefix}.weight"].T, arrays[f"{prefix}.bias"]
    return {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}


def coder(arrays):
    """Encoder and decoder of a VAE or M2, from the names of the original."""
    return {
        "encoder": {
            "hidden1": dense(arrays, "encoder.hidden.0"),
            "hidden2": dense(arrays, "encoder.hidden.1"),
            "mean": dense(arrays, "encoder.sample.mu"),
            "log_var": dense(arrays, "encoder.sample.log_var"),
        },
        "decoder": {
            "hidden1": dense(arrays, "decoder.hidden.0"),
            "hidden2": dense(arrays, "decoder.hidden.1"),
            "output": dense(arrays, "decoder.reconstruction"),
        },
    }


def m2_variables(arrays, lenet=None):
    params = coder(arrays) | {"logits": dense(arrays, "classifier.logits")}
    if lenet is None:
        return {"params": params | {"dense": dense(arrays, "classifier.dense")}}
    encoder = torch_weights.from_state_dict(lenet, subtree(arrays, "classifier.net."))
    return {
        "params": params | {"lenet": encoder["params"]},
        "batch_stats": {"lenet": encoder["batch_stats"]},
    }


def variables_of(name, arrays, prefix, statistics="init/"):
    """Weights or, since they convert alike, gradients; with the running statistics."""
    buffers = {k: v for k, v in subtree(arrays, statistics).items() if "running" in k}
    arrays = buffers | subtree(arrays, prefix)
    if name.endswith("M1M2"):
        variables = {"params": {"m2": m2_variables(arrays)["params"]}}
        if features := subtree(arrays, "features."):
            variables["params"]["m1"] = coder(features)
        return variables
    is_image = name.startswith("mnist")
    return m2_variables(arrays, "mnist_LeNet" if is_image else None)


def batches(name, arrays):
    """Labelled and unlabelled examples, each with targets and noise `[draws, 2, ...]`.

    The original encodes labelled examples with their class alone and enumerates the
    classes of the others: 0 for all of them, then 1.
    """
    x = arrays["x"]
    if name == "mnist_DGM_M2":
        x = x.reshape(-1, 28, 28, 1)
    is_labelled = arrays["semi_targets"] != 0
    draws = 2 if name.endswith("M1M2") else 1
    labelled = [arrays[f"noise_L/{i}"] for i in range(draws)]
    unlabelled = [arrays[f"noise_U/{i}"] for i in range(draws)]
    return (
        (
            x[is_labelled],
            1 - 2 * arrays["labels"][is_labelled],
            np.stack([np.stack([noise, noise]) for noise in labelled]),
        ),
        (
            x[~is_labelled],
            np.zeros(np.sum(~is_labelled), int),
            np.stack([noise.reshape(2, -1, noise.shape[1]) for noise in unlabelled]),
        ),
    )


def apply(model, variables, x, noise):
    return train(model, variables, x, noise)[0]


@functools.partial(jax.jit, static_argnums=0)
def train(model, variables, x, noise):
    return model.apply(variables, x, noise, True, mutable=["batch_stats"])


def assert_close(actual, expected):
    scale = np.abs(expected).max() + 1e-12
    np.testing.assert_allclose(actual / scale, expected / scale, atol=TOLERANCE)


def test_bounds_and_classification_of_the_original(oracle):
    name, arrays = oracle
    model, variables = generative.build(name), variables_of(name, arrays, "init/")
    labelled, unlabelled = batches(name, arrays)
    x, targets, noise = labelled
    bounds, log_q = apply(model, variables, x, noise)
    assert_close(np.exp(log_q), arrays["q_labeled"])
    bound = np.mean(losses.m2_loss(bounds, log_q, targets, alpha=0.0))
    assert_close(bound, arrays["L"])
    of_class = losses.m2_loss(np.zeros_like(bounds), log_q, targets, alpha=1.0)
    assert_close(-np.mean(of_class), arrays["classification"])
    x, targets, noise = unlabelled
    bound = np.mean(losses.m2_loss(*apply(model, variables, x, noise), targets))
    assert_close(bound, arrays["U"])


def test_loss_and_gradients_of_the_original(oracle):
    name, arrays = oracle
    model, variables = generative.build(name), variables_of(name, arrays, "init/")
    alpha = float(arrays["alpha"])

    def loss(params):
        # Each group on its own, as the original normalises them.
        tree = {**variables, "params": {**variables["params"], **params}}
        per_example, targets = [], []
        for x, semi_targets, noise in batches(name, arrays):
            terms = apply(model, tree, x, noise)
            per_example.append(losses.m2_loss(*terms, semi_targets, alpha=alpha))
            targets.append(semi_targets)
        together = jnp.concatenate(per_example)
        return jnp.mean(losses.balanced(together, np.concatenate(targets)))

    trained = {k: v for k, v in variables["params"].items() if k != "m1"}
    value, gradients = jax.jit(jax.value_and_grad(loss))(trained)
    assert_close(value, arrays["loss"])
    expected = variables_of(name, arrays, "grad/")["params"]
    jax.tree.map(assert_close, gradients, expected)


def test_scores_of_the_original(oracle):
    name, arrays = oracle
    model, variables = generative.build(name), variables_of(name, arrays, "init/")
    # The loss was computed before, which moved the running statistics.
    labelled, unlabelled = batches(name, arrays)
    for x, _, noise in (unlabelled, labelled):
        _, moved = train(model, variables, x, noise)
        variables |= moved
    x = arrays["x"].reshape(-1, *labelled[0].shape[1:])
    log_q = model.apply(variables, x, False, method=model.classify)
    assert_close(np.exp(log_q[:, 1]), arrays["scores"])


def test_vae_of_the_original():
    _, arrays = load("mnist_DGM_M1M2")
    model = generative.build_vae("mnist_LeNet")
    params = coder(subtree(arrays, "vae_init/"))
    x, noise = arrays["x"], arrays["vae_noise"]

    mean, log_var = model.apply({"params": params}, x, method=model.encode)
    z = mean + np.exp(log_var / 2) * noise
    decoder = model.bind({"params": params}).decoder
    assert_close(jax.nn.sigmoid(decoder(z)), arrays["vae_reconstruction"])
    kl = losses.gaussian_log_density(z, mean, log_var) - losses.gaussian_log_density(z)
    assert_close(kl, arrays["vae_kl"])

    def loss(params):
        return -jnp.mean(model.apply({"params": params}, x, noise))

    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    assert_close(value, arrays["vae_loss"])
    jax.tree.map(assert_close, gradients, coder(subtree(arrays, "vae_grad/")))
