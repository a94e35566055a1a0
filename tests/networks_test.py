import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepsad_jax import layers, networks

# Sums of the kernel sizes in the paper's appendix: encoder, decoder. For example
# mnist_LeNet's encoder: 25 1 8 + 25 8 4 + 196 32.
PARAMETER_COUNTS = {
    "digits_LeNet": (
        25 * 1 * 16 + 25 * 16 * 32 + 128 * 32,
        25 * 8 * 16 + 25 * 16 * 1,
    ),
    "mnist_LeNet": (
        25 * 1 * 8 + 25 * 8 * 4 + 196 * 32,
        25 * 2 * 4 + 25 * 4 * 8 + 25 * 8 * 1,
    ),
    "fmnist_LeNet": (
        25 * 1 * 16 + 25 * 16 * 32 + 1568 * 128 + 128 * 64,
        64 * 128 + 25 * 8 * 32 + 25 * 32 * 16 + 25 * 16 * 1,
    ),
    "cifar10_LeNet": (
        25 * 3 * 32 + 25 * 32 * 64 + 25 * 64 * 128 + 2048 * 128,
        25 * 8 * 128 + 25 * 128 * 64 + 25 * 64 * 32 + 25 * 32 * 3,
    ),
    "arrhythmia_mlp": (274 * 128 + 128 * 64 + 64 * 32,) * 2,
    "cardio_mlp": (21 * 32 + 32 * 16 + 16 * 8,) * 2,
    "satellite_mlp": (36 * 32 + 32 * 16 + 16 * 8,) * 2,
    "satimage-2_mlp": (36 * 32 + 32 * 16 + 16 * 8,) * 2,
    "shuttle_mlp": (9 * 32 + 32 * 16 + 16 * 8,) * 2,
    "thyroid_mlp": (6 * 32 + 32 * 16 + 16 * 4,) * 2,
}


@pytest.fixture(params=networks.ARCHITECTURES)
def name(request):
    return request.param


def initial(model, key=0):
    x = jnp.zeros((2, *model.architecture.input_shape))
    return model.init(jax.random.key(key), x, train=False)


def test_parameter_counts_are_pinned(name):
    params = initial(networks.build_autoencoder(name))["params"]
    counts = tuple(
        networks.parameter_count(params[part]) for part in ("encoder", "decoder")
    )
    assert counts == PARAMETER_COUNTS[name]


def test_every_array_of_the_variables_is_float32(name):
    tree = initial(networks.build_autoencoder(name))
    assert set(tree) == {"params", "batch_stats"}
    assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {np.dtype("float32")}


def test_autoencoder_maps_inputs_to_the_unit_interval(name):
    model = networks.build_autoencoder(name)
    x = np.random.default_rng(0).random((2, *model.architecture.input_shape))
    output = model.apply(initial(model), x.astype(np.float32), train=False)
    assert output.shape == x.shape
    assert (output > 0).all() and (output < 1).all()


def test_encoder_is_the_first_half_of_the_autoencoder(name):
    encoder = networks.build_encoder(name)
    variables = networks.encoder_variables(initial(networks.build_autoencoder(name)))
    shapes = jax.tree.map(jnp.shape, initial(encoder))
    assert jax.tree.map(jnp.shape, variables) == shapes
    x = jnp.ones((3, *encoder.architecture.input_shape))
    embeddings = encoder.apply(variables, x, train=False)
    assert embeddings.shape == (3, encoder.architecture.rep_dim)


def test_one_draw_initialises_like_flax(name):
    model = networks.build_autoencoder(name)
    ours, flax = networks.initialize(model, jax.random.key(1)), initial(model)
    assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, flax)
    jax.tree.map(
        np.testing.assert_array_equal, ours["batch_stats"], flax["batch_stats"]
    )

    def check(a, b):
        # Both are uniform: the larger the array, the closer its largest draw.
        slack = 1 + 8 / a.size
        assert np.abs(a).max() <= np.abs(b).max() * slack
        assert np.abs(b).max() <= np.abs(a).max() * slack

    jax.tree.map(check, ours["params"], flax["params"])


@pytest.mark.parametrize("initialise", [initial, None], ids=["flax", "one draw"])
def test_initial_ranges_are_pytorchs(name, initialise):
    model = networks.build_autoencoder(name)
    if initialise is None:
        tree = networks.initialize(model, jax.random.key(0))
    else:
        tree = initialise(model)
    for path, kernel in jax.tree_util.tree_leaves_with_path(tree["params"]):
        part, layer = path[0].key, path[1].key
        transposed = part == "decoder" and layer.startswith("conv")
        if transposed and name == "cifar10_LeNet":
            bound = layers.xavier_bound(kernel.shape)
        elif transposed:  # torch takes the output channels for the inputs
            bound = (25 * kernel.shape[-1]) ** -0.5
        else:
            bound = np.prod(kernel.shape[:-1]) ** -0.5
        assert np.abs(kernel).max() <= bound
        assert np.abs(kernel).max() > bound * (1 - 12 / kernel.size)
        assert np.var(kernel) == pytest.approx(bound**2 / 3, rel=6 / kernel.size**0.5)


def test_bfloat16_computes_with_float32_variables_and_output():
    model = networks.build_autoencoder("mnist_LeNet", dtype=jnp.bfloat16)
    exact = networks.build_autoencoder("mnist_LeNet")
    x = np.random.default_rng(0).random((4, 28, 28, 1), np.float32)
    tree = initial(exact)
    output, expected = (
        jax.jit(functools.partial(m.apply, train=False))(tree, x)
        for m in (model, exact)
    )
    assert output.dtype == jnp.float32
    assert jax.tree.leaves(initial(model)["params"])[0].dtype == jnp.float32
    np.testing.assert_allclose(output, expected, atol=0.02)


@pytest.mark.parametrize(
    ("columns", "hidden", "rep_dim"),
    [(274, (128, 64), 32), (21, (32, 16), 8), (9, (32, 16), 8), (6, (32, 16), 4)],
)
def test_mlp_for_table_gives_the_papers_sizes(columns, hidden, rep_dim):
    spec = networks.mlp_for_table(columns)
    assert spec == networks.MLPArchitecture((columns,), hidden, rep_dim)


@pytest.mark.parametrize(
    ("network", "numbers"), [("fmnist_LeNet", 28 * 28 * 16), ("arrhythmia_mlp", 128)]
)
def test_largest_activation(network, numbers):
    assert networks.largest_activation(network) == numbers


def test_default_network_fits_the_examples():
    assert networks.default_network((28, 28, 1)) == "mnist_LeNet"
    assert networks.default_network((32, 32, 3)) == "cifar10_LeNet"
    assert networks.default_network((30,)) == networks.mlp_for_table(30)
    with pytest.raises(ValueError, match=r"no network for examples of shape \(3, 32"):
        networks.default_network((3, 32, 32))


def test_wrong_inputs_are_named():
    model = networks.build_encoder("mnist_LeNet")
    tree = initial(model)
    with pytest.raises(ValueError, match="channels last"):
        model.apply(tree, jnp.zeros((2, 1, 28, 28)), train=False)
    with pytest.raises(ValueError, match="dtype uint8; scale it"):
        model.apply(tree, jnp.zeros((2, 28, 28, 1), jnp.uint8), train=False)
    with pytest.raises(ValueError, match="network is 'lenet'; it must be one of"):
        networks.build_encoder("lenet")
    with pytest.raises(ValueError, match="input_dim is 0"):
        networks.mlp_for_table(0)
