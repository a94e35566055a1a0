import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from deepsad_jax import layers, networks, torch_weights

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
# Of networks made for a shape: convolutions, the map before the code, the code.
COUNTS_OF_SHAPES = {
    (1, 1): (5 * 1 * 16 + 16 * 32,) * 2,
    (300, 2): (  # 300 150 75 38 19 10 5 3
        5 * (2 * 16 + 16 * 32 + 32 * 64 + 4 * 64 * 64) + 3 * 64 * 32,
    )
    * 2,
    (1, 1, 1): (9 * 1 * 16 + 16 * 32,) * 2,
    (17, 5, 3): (  # 17x5 9x3 5x3 3x3
        9 * (3 * 16 + 16 * 32 + 32 * 64) + 9 * 64 * 32,
    )
    * 2,
    (9, 10, 6, 2): (  # 9x10x6 5x5x3 3x3x3
        27 * (2 * 16 + 16 * 32) + 27 * 32 * 64,
    )
    * 2,
}


@pytest.fixture(params=networks.PAPER)
def name(request):
    return request.param


def initialize(pair, key=0, module=None, pooled=False):
    module = module or pair.autoencoder
    x = jnp.zeros((2, *pair.input_shape))

    def init(key):
        return module.init(key, x, train=False)

    if pooled:
        init = functools.partial(layers.init_from_one_draw, init)
    return jax.jit(init)(jax.random.key(key))


def shapes(pair, module=None):
    module = module or pair.autoencoder
    x = jnp.zeros((2, *pair.input_shape))
    init = functools.partial(module.init, train=False)
    return jax.eval_shape(init, jax.random.key(0), x)


def counts(params):
    return tuple(networks.parameter_count(params[p]) for p in ("encoder", "decoder"))


def random_inputs(pair, size=2):
    return np.random.default_rng(0).random((size, *pair.input_shape), np.float32)


def test_parameter_counts_are_pinned(name):
    assert counts(shapes(networks.pair(name))["params"]) == PARAMETER_COUNTS[name]


@pytest.mark.parametrize("shape", COUNTS_OF_SHAPES, ids=str)
def test_parameter_counts_for_other_shapes_are_pinned(shape):
    params = shapes(networks.for_shape(shape))["params"]
    assert counts(params) == COUNTS_OF_SHAPES[shape]


def test_every_array_of_the_variables_is_float32(name):
    pair = networks.pair(name, dtype=jnp.bfloat16)
    tree = shapes(pair)
    assert set(tree) == {"params", "batch_stats"}
    assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {np.dtype("float32")}


@pytest.mark.parametrize("shape", [(8, 8, 1), (6,), *COUNTS_OF_SHAPES], ids=str)
def test_autoencoder_maps_inputs_to_the_unit_interval(shape):
    pair = networks.for_shape(shape)
    x, variables = random_inputs(pair), initialize(pair)

    @functools.partial(jax.jit, static_argnums=2)
    def reconstruct(variables, x, train):
        outputs = pair.autoencoder.apply(variables, x, train, mutable=["batch_stats"])
        return outputs[0]

    for train in (False, True):
        output = reconstruct(variables, x, train)
        assert output.shape == x.shape and output.dtype == jnp.float32
        assert (output > 0).all() and (output < 1).all()


@pytest.mark.parametrize("shape", [(8, 8, 1), (21,), (17, 5, 3)], ids=str)
def test_every_kernel_has_a_gradient(shape):
    pair = networks.for_shape(shape)
    x, variables = random_inputs(pair, 8), initialize(pair)

    @jax.jit
    @jax.grad
    def gradients(params):
        full = variables | {"params": params}
        y, _ = pair.autoencoder.apply(full, x, train=True, mutable=["batch_stats"])
        return jnp.mean(jnp.square(y - x))

    for gradient in jax.tree.leaves(gradients(variables["params"])):
        assert np.isfinite(gradient).all() and np.any(gradient != 0)


def test_encoder_is_the_first_half_of_the_autoencoder(name):
    pair = networks.pair(name)
    variables = networks.encoder_variables(shapes(pair))
    encoder = networks.build_encoder(name)
    assert variables == shapes(pair, encoder)
    embeddings = jax.eval_shape(
        functools.partial(encoder.apply, train=False),
        variables,
        jnp.ones((3, *pair.input_shape)),
    )
    assert embeddings.shape == (3, encoder.rep_dim)


def test_networks_of_equal_fields_are_equal(name):
    for one, other in (
        (networks.pair(name), networks.pair(name)),
        (networks.build_autoencoder(name), networks.build_autoencoder(name)),
        (networks.for_shape((9, 9, 3)), networks.for_shape([9, 9, 3])),
    ):
        assert one == other and hash(one) == hash(other)
    assert networks.pair(name) == networks.PAPER[name]
    assert networks.build_encoder(name, dtype=jnp.bfloat16) != networks.PAPER[name][0]


@pytest.mark.parametrize("pooled", [False, True], ids=["flax", "one draw"])
def test_initial_ranges_are_pytorchs(name, pooled):
    params = initialize(networks.pair(name), pooled=pooled)["params"]
    for path, kernel in jax.tree_util.tree_leaves_with_path(params):
        part, layer = path[0].key, path[1].key
        *window, inputs, outputs = kernel.shape
        window = np.prod(window)
        if part == "encoder" or not layer.startswith("conv"):
            bound = (window * inputs) ** -0.5
        elif name == "cifar10_LeNet":  # torch's xavier_uniform_ with gain 1.414143
            bound = 1.414143 * (6 / (window * (inputs + outputs))) ** 0.5
        else:  # torch takes the output channels for the inputs
            bound = (window * outputs) ** -0.5
        assert np.abs(kernel).max() <= bound * 1.00001
        assert np.abs(kernel).max() > bound * (1 - 12 / kernel.size)
        assert np.var(kernel) == pytest.approx(bound**2 / 3, rel=6 / kernel.size**0.5)


@pytest.mark.parametrize("name", oracles.NETWORKS)
def test_initial_values_are_distributed_as_the_originals(name):
    state = {
        key.removeprefix("ae_init/"): value
        for key, value in oracles.load(name).items()
        if key.startswith("ae_init/")
    }
    theirs = torch_weights.from_state_dict(name, state)
    ours = initialize(networks.pair(name), key=1, pooled=True)
    for path, kernel in jax.tree_util.tree_leaves_with_path(theirs["params"]):
        own = functools.reduce(lambda tree, part: tree[part.key], path, ours["params"])
        slack = 1 + 12 / kernel.size  # the larger, the closer its largest draw
        largest = np.abs(own).max() / np.abs(kernel).max()
        assert 1 / slack <= largest <= slack
        np.testing.assert_allclose(np.std(own), np.std(kernel), rtol=6 / own.size**0.5)
    jax.tree.map(
        np.testing.assert_array_equal, ours["batch_stats"], theirs["batch_stats"]
    )


def test_jit_is_eager():
    pair = networks.pair("digits_LeNet")
    variables, x = initialize(pair), random_inputs(pair)
    apply = functools.partial(pair.autoencoder.apply, train=False)
    np.testing.assert_allclose(apply(variables, x), jax.jit(apply)(variables, x), 1e-5)


def test_bfloat16_computes_with_float32_variables_and_output():
    exact = networks.pair("mnist_LeNet")
    pair = networks.pair("mnist_LeNet", dtype=jnp.bfloat16)
    x, variables = random_inputs(exact, 4), initialize(exact)
    output, expected = (
        jax.jit(functools.partial(p.autoencoder.apply, train=False))(variables, x)
        for p in (pair, exact)
    )
    assert output.dtype == jnp.float32
    np.testing.assert_allclose(output, expected, atol=0.02)


def test_slope_is_that_of_the_leaky_relus():
    x = jnp.array([[-2.0]])
    encoder = networks.MLPEncoder((1,), 1, slope=0.1)
    ones = {"kernel": jnp.ones((1, 1))}
    statistics = {"mean": jnp.zeros(1), "var": jnp.full(1, 1 - 1e-4)}
    variables = {
        "params": {"hidden1": ones, "code": ones},
        "batch_stats": {"hidden_bn1": statistics},
    }
    assert encoder.apply(variables, x, train=False) == pytest.approx(-0.2)
    encoder = encoder.clone(slope=0.01)
    assert encoder.apply(variables, x, train=False) == pytest.approx(-0.02)
    pair = networks.pair("mnist_LeNet").clone(slope=0.1)
    assert pair.encoder.slope == pair.decoder.slope == 0.1


SHARED_BATCH = """
import jax, numpy as np
from deepsad_jax import networks, parallel
for shape in ((8, 8, 1), (9, 2)):
    model = networks.for_shape(shape).autoencoder
    x = np.random.default_rng(0).random((8, *shape), np.float32)
    variables = jax.jit(lambda key: model.init(key, x, train=False))(jax.random.key(0))

    def statistics(variables, x):
        return model.apply(variables, x, train=True, mutable=["batch_stats"])[1]

    def gradient(variables, x):
        def loss(params):
            full = variables | {"params": params}
            y, _ = model.apply(full, x, train=True, mutable=["batch_stats"])
            return ((x - y) ** 2).mean()
        return parallel.mean(jax.grad(loss)(variables["params"]))

    for function in (statistics, gradient):
        results = [
            plan.compile(function, split=1)(variables, plan.by_device(x))
            for plan in (parallel.one(), parallel.split_batch(2))
        ]
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
            *results,
        )
"""


def test_two_devices_that_share_a_batch_compute_what_one_does():
    flags = {"JAX_NUM_CPU_DEVICES": "2"}
    options = {"capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run(
        [sys.executable, "-c", SHARED_BATCH], env=os.environ | flags, **options
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("columns", "hidden", "rep_dim"),
    [(274, (128, 64), 32), (21, (32, 16), 8), (9, (32, 16), 8), (6, (32, 16), 4)],
)
def test_mlp_for_table_gives_the_papers_sizes(columns, hidden, rep_dim):
    encoder, decoder, shape = networks.mlp_for_table(columns)
    assert encoder == networks.MLPEncoder(hidden, rep_dim)
    assert decoder == networks.MLPDecoder(hidden[::-1], columns)
    assert shape == (columns,)


def test_the_papers_shapes_get_the_papers_networks():
    for name in ("digits_LeNet", "mnist_LeNet", "cifar10_LeNet"):
        pair = networks.pair(name)
        assert networks.for_shape(pair.input_shape) == pair
    assert networks.for_shape((30,)) == networks.mlp_for_table(30)


def test_wrong_inputs_are_named():
    image, table = (networks.pair(name) for name in ("mnist_LeNet", "thyroid_mlp"))
    apply = functools.partial(image.encoder.apply, shapes(image, image.encoder))
    with pytest.raises(ValueError, match="channels last"):
        apply(jnp.zeros((2, 1, 28, 28)), train=False)
    with pytest.raises(ValueError, match="dtype uint8; scale it"):
        apply(jnp.zeros((2, 28, 28, 1), jnp.uint8), train=False)
    variables = jax.tree.map(jnp.zeros_like, shapes(table, table.encoder))
    with pytest.raises(ValueError, match=r"shape \(2, 7\); this network .*batch, 6"):
        table.encoder.apply(variables, jnp.zeros((2, 7)), train=False)
    with pytest.raises(ValueError, match="network is 'lenet'; it must be one of"):
        networks.build_encoder("lenet")
    with pytest.raises(ValueError, match="columns is 0"):
        networks.mlp_for_table(0)
    for shape in ((), (0, 3), (2, 2, 2, 2, 2)):
        with pytest.raises(ValueError, match="examples have shape"):
            networks.for_shape(shape)
