"""M2, M1+M2 and the VAE: the published implementation's numbers and closed forms.

The oracles hold that implementation's bounds, losses, gradients and scores with every
Gaussian draw, so that the sums can be replayed.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import scipy.special
import scipy.stats

from deepsad_jax import (
    generative,
    layers,
    losses,
    networks,
    objectives,
    torch_weights,
)

# As users get it: sums of the quick programs of conftest are too coarse here.
EFFORT = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=oracles.GENERATIVE)
def oracle(request):
    return request.param, oracles.load(request.param)


def model_of(name):
    """The model of a name of the original, `SET_DGM_M2` or `SET_DGM_M1M2`."""
    data, _, kind = name.partition("_DGM_")
    (pair,) = (p for n, p in networks.PAPER.items() if n.rpartition("_")[0] == data)
    made = {"M2": generative.m2_for, "M1M2": generative.m1_m2_for}[kind]
    return made(pair.encoder, pair.input_shape)


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
    """Labeled and unlabeled examples, each with targets and noise `[draws, 2, ...]`.

    The original encodes labeled examples with their class alone and enumerates the
    classes of the others: 0 for all of them, then 1.
    """
    x = arrays["x"]
    if name == "mnist_DGM_M2":
        x = x.reshape(-1, 28, 28, 1)
    is_labeled = arrays["semi_targets"] != 0
    draws = 2 if name.endswith("M1M2") else 1
    labeled = [arrays[f"noise_L/{i}"] for i in range(draws)]
    unlabeled = [arrays[f"noise_U/{i}"] for i in range(draws)]
    return (
        (
            x[is_labeled],
            1 - 2 * arrays["labels"][is_labeled],
            np.stack([np.stack([noise, noise]) for noise in labeled]),
        ),
        (
            x[~is_labeled],
            np.zeros(np.sum(~is_labeled), int),
            np.stack([noise.reshape(2, -1, noise.shape[1]) for noise in unlabeled]),
        ),
    )


@functools.partial(jax.jit, static_argnums=0)
def train(model, variables, x, noise):
    return model.apply(variables, x, noise, True, mutable=["batch_stats"])


def assert_close(actual, expected):
    scale = np.abs(expected).max() + 1e-12
    np.testing.assert_allclose(actual / scale, expected / scale, atol=TOLERANCE)


def test_bounds_and_classification_of_the_original(oracle):
    name, arrays = oracle
    model, variables = model_of(name), variables_of(name, arrays, "init/")
    labeled, unlabeled = batches(name, arrays)
    x, targets, noise = labeled
    (bounds, log_q), _ = train(model, variables, x, noise)
    assert_close(np.exp(log_q), arrays["q_labeled"])
    bound = np.mean(losses.m2_loss(bounds, log_q, targets, alpha=0.0))
    assert_close(bound, arrays["L"])
    of_class = losses.m2_loss(np.zeros_like(bounds), log_q, targets, alpha=1.0)
    assert_close(-np.mean(of_class), arrays["classification"])
    x, targets, noise = unlabeled
    terms, _ = train(model, variables, x, noise)
    assert_close(np.mean(losses.m2_loss(*terms, targets)), arrays["U"])


def test_loss_and_gradients_of_the_original(oracle):
    name, arrays = oracle
    model, variables = model_of(name), variables_of(name, arrays, "init/")
    alpha = float(arrays["alpha"])

    def loss(params):
        # Each group on its own, as the original normalizes them.
        tree = {**variables, "params": {**variables["params"], **params}}
        per_example, targets = [], []
        for x, semi_targets, noise in batches(name, arrays):
            terms, _ = train(model, tree, x, noise)
            per_example.append(losses.m2_loss(*terms, semi_targets, alpha=alpha))
            targets.append(semi_targets)
        together = jnp.concatenate(per_example)
        return jnp.mean(losses.balanced(together, np.concatenate(targets)))

    trained = {k: v for k, v in variables["params"].items() if k != "m1"}
    compiled = jax.jit(jax.value_and_grad(loss), compiler_options=EFFORT)
    value, gradients = compiled(trained)
    assert_close(value, arrays["loss"])
    expected = variables_of(name, arrays, "grad/")["params"]
    jax.tree.map(assert_close, gradients, expected)


def test_scores_of_the_original(oracle):
    name, arrays = oracle
    model, variables = model_of(name), variables_of(name, arrays, "init/")
    # The loss was computed before, which moved the running statistics.
    labeled, unlabeled = batches(name, arrays)
    for x, _, noise in (unlabeled, labeled):
        _, moved = train(model, variables, x, noise)
        variables |= moved
    params = dict(variables["params"])
    frozen = {"m1": params.pop("m1")} if "m1" in params else {}
    variables = {"batch_stats": {}, **variables, "params": params, **frozen}
    x = arrays["x"].reshape(-1, *labeled[0].shape[1:])
    scores = jax.jit(objectives.M2(model).score)(variables, x)
    assert_close(scores, arrays["scores"])


def test_vae_of_the_original():
    arrays = oracles.load("mnist_DGM_M1M2")
    encoder, _, shape = networks.pair("mnist_LeNet")
    model = generative.vae_for(encoder, shape)
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


def test_the_score_of_a_vae_is_its_bound_decoded_from_the_mean():
    model = generative.VAE((6, 5), 3, 7)
    x = np.random.default_rng(0).integers(0, 2, (9, 7)).astype(np.float32)
    objective = objectives.Elbo(model)
    variables = jax.jit(objective.init)(jax.random.key(0), x)

    def layer(part, name, x):
        found = variables["params"][part][name]
        return x @ np.asarray(found["kernel"], np.float64) + found["bias"]

    def hidden(part, x):
        for name in ("hidden1", "hidden2"):
            x = np.maximum(layer(part, name, x), 0)
        return x

    code = hidden("encoder", x)
    mean = layer("encoder", "mean", code)
    log_var = np.log1p(np.exp(layer("encoder", "log_var", code)))
    kl = 0.5 * np.sum(mean**2 + np.exp(log_var) - 1 - log_var, axis=1)
    ones = scipy.special.expit(layer("decoder", "output", hidden("decoder", mean)))
    likelihood = scipy.stats.bernoulli.logpmf(x, ones).sum(axis=1)
    scores = objective.score(variables, x)
    np.testing.assert_allclose(scores, kl - likelihood, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "hidden", "latent", "features"),
    [
        ("mnist_DGM_M2", (128, 64), 32, 784),
        ("fmnist_DGM_M1M2", (256, 128), 64, 784),
        ("cifar10_DGM_M1M2", (512, 256), 128, 3072),
        ("arrhythmia_DGM_M2", (128, 64), 32, 274),
        ("satimage-2_DGM_M2", (32, 16), 8, 36),
        ("thyroid_DGM_M2", (32, 16), 4, 6),
    ],
)
def test_sizes_of_the_paper(name, hidden, latent, features):
    model = model_of(name)
    assert (model.hidden, model.latent, model.features) == (hidden, latent, features)


class Pooling(nn.Module):
    """An encoder of a user's own: means of rows and columns."""

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(5)(jnp.concatenate([x.mean((1, 3)), x.mean((2, 3))], axis=1))


def test_another_encoder_lends_its_code_and_classifies():
    model = generative.m2_for(Pooling(), (4, 3, 2))
    assert (model.hidden, model.latent, model.features) == ((20, 10), 5, 24)
    params = jax.eval_shape(
        objectives.M2(model).init, jax.random.key(0), jnp.zeros((1, 4, 3, 2))
    )["params"]
    assert params["lenet"]["Dense_0"]["kernel"].shape == (7, 5)
    assert params["logits"]["kernel"].shape == (5, 2)


def test_initial_weights_have_glorots_variance_and_no_bias(monkeypatch):
    init = jax.jit(objectives.M2(model_of("mnist_DGM_M2")).init)
    params = init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))["params"]
    kernel = params["encoder"]["hidden1"]["kernel"]
    np.testing.assert_allclose(np.std(kernel), np.sqrt(2 / (786 + 128)), rtol=0.02)
    assert scipy.stats.kstest(kernel.ravel() / np.std(kernel), "norm").pvalue > 1e-3
    assert not np.any(params["decoder"]["output"]["bias"])
    # Even where the draw is the end of its range, whose quantile is infinite.
    extreme = jnp.array([[-1.0, 0.0, 1.0]])
    monkeypatch.setattr(jax.random, "uniform", lambda *_, **__: extreme)
    layer = nn.Dense(3, kernel_init=layers.Glorot())
    variables = layer.init(jax.random.key(0), jnp.zeros((1, 1)))
    assert np.isfinite(variables["params"]["kernel"]).all()


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="encoder has no hidden layer"):
        generative.m2_for(networks.MLPEncoder((), 4), (10,))
    model = generative.vae_for(networks.MLPEncoder((24, 12), 4), (10,))
    with pytest.raises(ValueError, match="takes examples of 10 features"):
        model.init(jax.random.key(0), np.zeros((2, 9), np.float32), 0.0)
