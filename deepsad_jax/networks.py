"""Encoders, decoders and autoencoders of Deep SAD, as Flax modules.

The networks are those of the paper's appendix (Ruff et al., ICLR 2020, appendix E):
LeNets for images, multilayer perceptrons for tables, without bias terms and with batch
normalisation that has no affine parameters, since either could collapse a hypersphere.
One table, `ARCHITECTURES`, describes them all.

    model = build_autoencoder("cardio_mlp")
    variables = model.init(jax.random.key(0), jnp.zeros((1, 21)), train=False)
    reconstruction = model.apply(variables, x, train=False)

Variables are `{"params", "batch_stats"}`, each with the subtrees `encoder` and
`decoder`; `encoder_variables` takes the encoder's part, which is exactly what the
module of `build_encoder` of the same name uses. Weights are initialised as PyTorch does
by default, because the published hyper-parameters were chosen with it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deepsad_jax import layers

Variables = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Upsampling:
    """One layer of a LeNet decoder: (upsample x2,) 5x5 convolution."""

    features: int
    upsample: bool = True
    padding: int = 2


@dataclasses.dataclass(frozen=True)
class LeNetArchitecture:
    """5x5 convolutions, each followed by batch norm, leaky ReLU and 2x2 max pooling."""

    input_shape: tuple[int, int, int]  # height, width, channels
    features: tuple[int, ...]
    rep_dim: int
    decoder: tuple[Upsampling, ...]
    decoder_size: int = 4  # height and width of the decoder's first feature map
    hidden: int | None = None  # width of a dense layer before (and after) the code
    xavier_decoder: bool = False


@dataclasses.dataclass(frozen=True)
class MLPArchitecture:
    """Dense layers, each followed by batch norm and leaky ReLU, and a linear code."""

    input_shape: tuple[int]
    hidden: tuple[int, ...]
    rep_dim: int


Architecture = LeNetArchitecture | MLPArchitecture


def mlp_for_table(input_dim: int) -> MLPArchitecture:
    """The perceptron for a table of `input_dim` columns.

    The paper uses 128-64-32 for its one wide table (274 columns), 32-16-8 for those of
    9 to 36 and 32-16-4 for the one of 6 columns; this is the rule that gives them.

    Raises:
        ValueError: if `input_dim` is not at least 1.
    """
    if input_dim < 1:
        raise ValueError(f"input_dim is {input_dim}; it must be at least 1")
    hidden = (128, 64) if input_dim > 100 else (32, 16)
    rep_dim = hidden[-1] // 2 if input_dim > 8 else 4
    return MLPArchitecture((input_dim,), hidden, rep_dim)


ARCHITECTURES: dict[str, Architecture] = {
    "digits_LeNet": LeNetArchitecture(
        (8, 8, 1), (16, 32), 32, (Upsampling(16), Upsampling(1)), decoder_size=2
    ),
    "mnist_LeNet": LeNetArchitecture(
        (28, 28, 1),
        (8, 4),
        32,
        (Upsampling(4), Upsampling(8, padding=1), Upsampling(1)),
    ),
    "fmnist_LeNet": LeNetArchitecture(
        (28, 28, 1),
        (16, 32),
        64,
        (Upsampling(32), Upsampling(16, padding=1), Upsampling(1)),
        hidden=128,
    ),
    "cifar10_LeNet": LeNetArchitecture(
        (32, 32, 3),
        (32, 64, 128),
        128,
        (
            Upsampling(128, upsample=False),
            Upsampling(64),
            Upsampling(32),
            Upsampling(3),
        ),
        xavier_decoder=True,
    ),
    "arrhythmia_mlp": mlp_for_table(274),
    "cardio_mlp": mlp_for_table(21),
    "satellite_mlp": mlp_for_table(36),
    "satimage-2_mlp": mlp_for_table(36),
    "shuttle_mlp": mlp_for_table(9),
    "thyroid_mlp": mlp_for_table(6),
}


class Encoder(nn.Module):
    """Maps `[batch, *input_shape]` to embeddings `[batch, rep_dim]`.

    Attributes:
        architecture: an entry of `ARCHITECTURES` or one of your own.
        axis_name: the `pmap` axis over which batch statistics are averaged, if any.
        dtype: type of the computation; parameters and statistics stay float32, and so
            does the output.
    """

    architecture: Architecture
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        _check_input(x, self.architecture.input_shape)
        norm, dense = _norm_and_dense(self, train)
        x = x.astype(self.dtype)
        if isinstance(self.architecture, MLPArchitecture):
            hidden = self.architecture.hidden
        else:
            for i, features in enumerate(self.architecture.features, 1):
                x = layers.Convolution(
                    features, pooled=True, dtype=self.dtype, name=f"conv{i}"
                )(x)
                x = nn.leaky_relu(norm(name=f"conv_bn{i}")(x, pool=True))
            x = x.reshape(x.shape[0], -1)
            hidden = (self.architecture.hidden,) if self.architecture.hidden else ()
        for i, features in enumerate(hidden, 1):
            x = dense(features, name=f"hidden{i}")(x)
            x = nn.leaky_relu(norm(name=f"hidden_bn{i}")(x))
        return dense(self.architecture.rep_dim, name="code")(x).astype(jnp.float32)


class Decoder(nn.Module):
    """Maps embeddings `[batch, rep_dim]` to `[batch, *input_shape]`, each in (0, 1).

    Attributes: as for `Encoder`.
    """

    architecture: Architecture
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, embeddings: jax.Array, train: bool) -> jax.Array:
        x = embeddings.astype(self.dtype)
        decode = (
            self._dense_layers
            if isinstance(self.architecture, MLPArchitecture)
            else self._convolutions
        )
        return jax.nn.sigmoid(decode(x, train).astype(jnp.float32))

    def _dense_layers(self, x: jax.Array, train: bool) -> jax.Array:
        norm, dense = _norm_and_dense(self, train)
        for i, features in enumerate(self.architecture.hidden[::-1], 1):
            x = dense(features, name=f"hidden{i}")(x)
            x = nn.leaky_relu(norm(name=f"hidden_bn{i}")(x))
        return dense(self.architecture.input_shape[0], name="output")(x)

    def _convolutions(self, x: jax.Array, train: bool) -> jax.Array:
        spec = self.architecture
        norm, dense = _norm_and_dense(self, train)
        if spec.hidden:
            x = norm(name="hidden_bn1")(dense(spec.hidden, name="hidden1")(x))
        # An embedding is cut into feature maps channel by channel, as in the original.
        x = x.reshape(x.shape[0], -1, spec.decoder_size, spec.decoder_size)
        x = x.transpose(0, 2, 3, 1)
        for i, layer in enumerate(spec.decoder, 1):
            if i > 1:
                x = norm(name=f"conv_bn{i - 1}")(x)
            x = layers.Convolution(
                layer.features,
                padding=layer.padding,
                upsample=layer.upsample,
                bound=_decoder_bound(spec),
                dtype=self.dtype,
                name=f"conv{i}",
            )(nn.leaky_relu(x))
        return x


class Autoencoder(nn.Module):
    """Encoder followed by decoder: `[batch, *input_shape]` to its reconstruction.

    Attributes: as for `Encoder`.
    """

    architecture: Architecture
    axis_name: str | None = None
    dtype: Any = jnp.float32

    def setup(self) -> None:
        options = (self.architecture, self.axis_name, self.dtype)
        self.encoder = Encoder(*options)
        self.decoder = Decoder(*options)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return self.decoder(self.encoder(x, train), train)


def architecture(name: str) -> Architecture:
    """The registered architecture of that name.

    Raises:
        ValueError: if there is none.
    """
    if name not in ARCHITECTURES:
        raise ValueError(
            f"network is {name!r}; it must be one of {', '.join(ARCHITECTURES)}, or an "
            "architecture object such as networks.mlp_for_table(30)"
        )
    return ARCHITECTURES[name]


def resolve(network: str | Architecture) -> Architecture:
    """The architecture itself, or the registered one of that name.

    Raises:
        ValueError: if no network has that name.
    """
    return architecture(network) if isinstance(network, str) else network


def is_convolutional(network: str | Architecture) -> bool:
    """Whether a network is made of convolutions: those take images, others tables.

    Raises:
        ValueError: if no network has that name.
    """
    return isinstance(resolve(network), LeNetArchitecture)


def largest_activation(network: str | Architecture) -> int:
    """How many numbers the largest hidden layer of an encoder has, per example.

    Raises:
        ValueError: if no network has that name.
    """
    spec = resolve(network)
    if isinstance(spec, MLPArchitecture):
        return max(*spec.hidden, spec.rep_dim)
    height, width, _ = spec.input_shape
    return height * width * spec.features[0]


def build_autoencoder(
    name: str | Architecture, *, axis_name: str | None = None, dtype: Any = jnp.float32
) -> Autoencoder:
    """The autoencoder of that name (or architecture), called with `x` and `train`.

    Args:
        name: a key of `ARCHITECTURES`, or an architecture.
        axis_name: see `Encoder`.
        dtype: see `Encoder`.

    Raises:
        ValueError: if no network has that name.
    """
    return Autoencoder(resolve(name), axis_name, dtype)


def build_encoder(
    name: str | Architecture, *, axis_name: str | None = None, dtype: Any = jnp.float32
) -> Encoder:
    """The encoder of that name (or architecture), called with `x` and `train`.

    Args and Raises: as for `build_autoencoder`.
    """
    return Encoder(resolve(name), axis_name, dtype)


def initialize(model: Autoencoder | Encoder, key: jax.Array) -> dict[str, Any]:
    """Initial variables, distributed as those of `model.init`, from one random draw.

    Flax draws each kernel from a key of its own, which takes XLA seconds to compile.
    """

    def bound(path, shape):
        if path[0] == "decoder" and path[1].startswith("conv"):
            return _decoder_bound(model.architecture)(shape)
        return layers.fan_in_bound(shape)

    x = jnp.zeros((1, *model.architecture.input_shape))
    return draw_variables(
        functools.partial(model.init, x=x, train=False),
        key,
        lambda path, shape, draw: bound(path, shape) * draw,
    )


def draw_variables(
    init: Callable, key: jax.Array, distribute: Callable
) -> dict[str, Any]:
    """Initial variables of a module from one random draw.

    Args:
        init: key -> variables, called for their shapes alone.
        key: random key.
        distribute: (path, shape, draw) -> initial values of a parameter, where `path`
            are the names that lead to it and `draw` is uniform in (-1, 1), of `shape`.

    Returns:
        Variables; batch statistics are those of no batch, mean 0 and variance 1.
    """
    variables = jax.eval_shape(init, key)
    paths, tree = jax.tree_util.tree_flatten_with_path(variables["params"])
    sizes = [math.prod(leaf.shape) for _, leaf in paths]
    draws = jnp.split(
        jax.random.uniform(key, (sum(sizes),), minval=-1.0), np.cumsum(sizes[:-1])
    )
    params = [
        distribute([p.key for p in path], leaf.shape, draw.reshape(leaf.shape))
        for (path, leaf), draw in zip(paths, draws, strict=True)
    ]

    def initial_statistic(path, leaf):
        value = 1.0 if path[-1].key == "var" else 0.0
        return jnp.full(leaf.shape, value, leaf.dtype)

    return {
        "params": jax.tree.unflatten(tree, params),
        "batch_stats": jax.tree_util.tree_map_with_path(
            initial_statistic, variables.get("batch_stats", {})
        ),
    }


def encoder_variables(variables: Variables) -> dict[str, Any]:
    """The encoder's part of an autoencoder's variables, batch statistics included."""
    return {collection: tree["encoder"] for collection, tree in variables.items()}


def default_network(input_shape: tuple[int, ...]) -> str | Architecture:
    """The network that fits examples of a shape: `(D,)` or `(H, W, C)`.

    Raises:
        ValueError: if no network takes images of this shape.
    """
    if len(input_shape) == 1:
        return mlp_for_table(input_shape[0])
    by_shape = {spec.input_shape: name for name, spec in ARCHITECTURES.items()}
    by_shape[(28, 28, 1)] = "mnist_LeNet"
    if input_shape not in by_shape:
        images = ", ".join(str(shape) for shape in by_shape if len(shape) == 3)
        raise ValueError(
            f"there is no network for examples of shape {input_shape}; resize the "
            f"images to one of {images}, or flatten them to rows of a table"
        )
    return by_shape[input_shape]


def parameter_count(params: Any) -> int:
    """Number of trainable numbers in a parameter tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _decoder_bound(spec: LeNetArchitecture) -> Callable:
    return layers.xavier_bound if spec.xavier_decoder else layers.fan_out_bound


def _norm_and_dense(module: Encoder | Decoder, train: bool):
    norm = functools.partial(layers.BatchNorm, train=train, axis_name=module.axis_name)
    dense = functools.partial(
        nn.Dense,
        use_bias=False,
        dtype=module.dtype,
        kernel_init=layers.uniform(layers.fan_in_bound),
    )
    return norm, dense


def _check_input(x: jax.Array, input_shape: tuple[int, ...]) -> None:
    if x.shape[1:] != input_shape:
        raise ValueError(
            f"x has shape {x.shape}; this network takes [batch, "
            f"{', '.join(map(str, input_shape))}]"
            + (" (channels last)" if len(input_shape) == 3 else "")
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x has dtype {x.dtype}; scale it to floating point in [0, 1] first"
        )
