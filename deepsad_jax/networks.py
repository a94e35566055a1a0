"""Encoders, decoders and autoencoders of Deep SAD, as Flax modules.

The networks are those of the paper's appendix (Ruff et al., ICLR 2020, appendix E):
LeNets for images, multilayer perceptrons for tables, without bias terms and with batch
normalization that has no affine parameters, since either could collapse a hypersphere.
`PAPER` has them by name; `for_shape` makes one for examples of any shape.

    model = build_autoencoder("cardio_mlp")
    variables = model.init(jax.random.key(0), jnp.zeros((1, 21)), train=False)
    reconstruction = model.apply(variables, x, train=False)

Modules are called with x `[batch, ...]` and `train`, whether batch norm uses the
statistics of the batch. They compute in their `dtype`; parameters, statistics and
outputs are float32. `slope` is that of the leaky ReLUs: 0.01 in the published code, 0.1
in the paper's text. Variables of an autoencoder are `{"params", "batch_stats"}`, each
with the subtrees `encoder` and `decoder`; `encoder_variables` takes the encoder's part.
Initial weights are PyTorch's, with which the published options were chosen.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepsad_jax import layers


class Pair(NamedTuple):
    """An encoder, the decoder that mirrors it, and the shape of an example."""

    encoder: nn.Module
    decoder: nn.Module
    input_shape: tuple[int, ...]

    @property
    def autoencoder(self) -> "Autoencoder":
        """The one followed by the other."""
        return Autoencoder(self.encoder, self.decoder)

    def clone(self, **fields: Any) -> "Pair":
        """With other values of fields that both have, such as `slope` or `dtype`."""
        encoder, decoder = self.encoder.clone(**fields), self.decoder.clone(**fields)
        return Pair(encoder, decoder, self.input_shape)


class Autoencoder(nn.Module):
    """Encoder followed by decoder: `[batch, ...]` to its reconstruction."""

    encoder: nn.Module
    decoder: nn.Module

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return self.decoder(self.encoder(x, train), train)


class MLPEncoder(nn.Module):
    """Rows `[batch, columns]` to `[batch, rep_dim]`.

    Dense layers, each followed by batch norm and leaky ReLU, and a linear code.

    Attributes:
        hidden: widths of the dense layers.
        rep_dim: size of the code.
    """

    hidden: tuple[int, ...]
    rep_dim: int
    slope: float = 0.01
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        layer = self.variables.get("params", {}).get(
            "hidden1" if self.hidden else "code"
        )
        _check_input(x, layer["kernel"].shape[:1] if layer else x.shape[-1:])
        x = _dense_blocks(self, x, self.hidden, train)
        return _dense(self, self.rep_dim, "code")(x).astype(jnp.float32)


class MLPDecoder(nn.Module):
    """Embeddings `[batch, rep_dim]` to rows `[batch, features]`, each in (0, 1).

    Attributes:
        hidden: widths of the dense layers, in the order of the decoder.
        features: number of columns.
    """

    hidden: tuple[int, ...]
    features: int
    slope: float = 0.01
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, embeddings: jax.Array, train: bool) -> jax.Array:
        x = _dense_blocks(self, embeddings.astype(self.dtype), self.hidden, train)
        return _unit_interval(_dense(self, self.features, "output")(x))


class LeNetEncoder(nn.Module):
    """Images `[batch, *input_shape]` to `[batch, rep_dim]`.

    5x5 convolutions, each followed by batch norm, leaky ReLU and 2x2 max pooling, and a
    linear code.

    Attributes:
        input_shape: height, width, channels.
        features: output channels of the convolutions.
        rep_dim: size of the code.
        hidden: width of a dense layer before the code, if any.
        dense_init: initializer of the dense layers.
    """

    input_shape: tuple[int, int, int]
    features: tuple[int, ...]
    rep_dim: int
    hidden: int | None = None
    slope: float = 0.01
    dtype: Any = jnp.float32
    dense_init: Callable = layers.PYTORCH

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        _check_input(x, self.input_shape)
        x = x.astype(self.dtype)
        for i, features in enumerate(self.features, 1):
            x = layers.conv_block(
                x, features, i, train=train, slope=self.slope, dtype=self.dtype
            )
        x = x.reshape(x.shape[0], -1)
        x = _dense_blocks(self, x, (self.hidden,) if self.hidden else (), train)
        return _dense(self, self.rep_dim, "code")(x).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Up:
    """One layer of a LeNet decoder: (upsample x2,) 5x5 convolution."""

    features: int
    upsample: bool = True
    padding: int = 2


class LeNetDecoder(nn.Module):
    """Embeddings `[batch, rep_dim]` to images, each value in (0, 1).

    Attributes:
        convolutions: after a leaky ReLU each; with batch norm in between.
        size: height and width of the first feature map.
        hidden: width of a dense layer before it, if any.
        kernel_init: initializer of the convolutions.
    """

    convolutions: tuple[Up, ...]
    size: int = 4
    hidden: int | None = None
    kernel_init: Callable = layers.Uniform(layers.fan_out_bound)
    slope: float = 0.01
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, embeddings: jax.Array, train: bool) -> jax.Array:
        x = embeddings.astype(self.dtype)
        if self.hidden:
            x = _dense(self, self.hidden, "hidden1")(x)
            x = layers.BatchNorm(train, name="hidden_bn1")(x)
        # An embedding is cut into feature maps channel by channel, as in the original.
        x = x.reshape(x.shape[0], -1, self.size, self.size).transpose(0, 2, 3, 1)
        for i, layer in enumerate(self.convolutions, 1):
            if i > 1:
                x = layers.BatchNorm(train, name=f"conv_bn{i - 1}")(x)
            x = layers.Convolution(
                **dataclasses.asdict(layer),
                kernel_init=self.kernel_init,
                dtype=self.dtype,
                name=f"conv{i}",
            )(nn.leaky_relu(x, self.slope))
        return _unit_interval(x)


class ConvEncoder(nn.Module):
    """Examples of any shape `[batch, *sizes, channels]` to `[batch, rep_dim]`.

    For series, images and volumes. Convolutions, each followed by batch norm, leaky
    ReLU and max pooling by 2 along the axes that are longer than 4, and a linear code.

    Attributes:
        input_shape: sizes of one to three axes, and channels.
        features: output channels of the convolutions.
        rep_dim: size of the code.
        kernel: size of the kernels along each axis.
    """

    input_shape: tuple[int, ...]
    features: tuple[int, ...]
    rep_dim: int
    kernel: int = 3
    slope: float = 0.01
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        _check_input(x, self.input_shape)
        x = x.astype(self.dtype)
        for i, features in enumerate(self.features, 1):
            x = _conv(self, features, i)(x)
            x = layers.BatchNorm(train, name=f"conv_bn{i}")(x)
            x = layers.halve(nn.leaky_relu(x, self.slope))
        x = x.reshape(x.shape[0], -1)
        return _dense(self, self.rep_dim, "code")(x).astype(jnp.float32)


class ConvDecoder(nn.Module):
    """Embeddings `[batch, rep_dim]` to `[batch, *input_shape]`, each in (0, 1).

    The mirror image of `ConvEncoder`: a dense layer to the smallest feature map, then
    convolutions of values that are repeated where the encoder pooled.

    Attributes: as for `ConvEncoder`, in the order of the encoder.
    """

    input_shape: tuple[int, ...]
    features: tuple[int, ...]
    kernel: int = 3
    slope: float = 0.01
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, embeddings: jax.Array, train: bool) -> jax.Array:
        maps = [self.input_shape[:-1]]
        for _ in self.features:
            maps.append(tuple(map(layers.halved, maps[-1])))
        width = math.prod(maps[-1]) * self.features[-1]
        x = _dense_blocks(self, embeddings.astype(self.dtype), (width,), train)
        x = x.reshape(x.shape[0], *maps[-1], self.features[-1])
        outputs = (self.input_shape[-1], *self.features[:-1])[::-1]
        for i, (sizes, features) in enumerate(zip(maps[-2::-1], outputs, strict=True)):
            if i > 0:
                x = layers.BatchNorm(train, name=f"conv_bn{i}")(x)
                x = nn.leaky_relu(x, self.slope)
            x = _conv(self, features, i + 1)(layers.double(x, sizes))
        return _unit_interval(x)


def mlp_for_table(columns: int, *, dtype: Any = jnp.float32) -> Pair:
    """The perceptrons for a table of that many columns.

    The paper uses 128-64-32 for its one wide table (274 columns), 32-16-8 for those of
    9 to 36 and 32-16-4 for the one of 6 columns; this is the rule that gives them.

    Raises:
        ValueError: if `columns` is not at least 1.
    """
    if columns < 1:
        raise ValueError(f"columns is {columns}; it must be at least 1")
    hidden = (128, 64) if columns > 100 else (32, 16)
    rep_dim = hidden[-1] // 2 if columns > 8 else 4
    decoder = MLPDecoder(hidden[::-1], columns)
    return Pair(MLPEncoder(hidden, rep_dim), decoder, (columns,)).clone(dtype=dtype)


_DIGITS, _MNIST, _CIFAR = (8, 8, 1), (28, 28, 1), (32, 32, 3)
PAPER: dict[str, Pair] = {
    "digits_LeNet": Pair(
        LeNetEncoder(_DIGITS, (16, 32), rep_dim=32),
        LeNetDecoder((Up(16), Up(1)), size=2),
        _DIGITS,
    ),
    "mnist_LeNet": Pair(
        LeNetEncoder(_MNIST, (8, 4), rep_dim=32),
        LeNetDecoder((Up(4), Up(8, padding=1), Up(1))),
        _MNIST,
    ),
    "fmnist_LeNet": Pair(
        LeNetEncoder(_MNIST, (16, 32), rep_dim=64, hidden=128),
        LeNetDecoder((Up(32), Up(16, padding=1), Up(1)), hidden=128),
        _MNIST,
    ),
    "cifar10_LeNet": Pair(
        LeNetEncoder(_CIFAR, (32, 64, 128), rep_dim=128),
        LeNetDecoder(
            (Up(128, upsample=False), Up(64), Up(32), Up(3)),
            kernel_init=layers.Uniform(layers.xavier_bound),
        ),
        _CIFAR,
    ),
    "arrhythmia_mlp": mlp_for_table(274),
    "cardio_mlp": mlp_for_table(21),
    "satellite_mlp": mlp_for_table(36),
    "satimage-2_mlp": mlp_for_table(36),
    "shuttle_mlp": mlp_for_table(9),
    "thyroid_mlp": mlp_for_table(6),
}


def pair(name: str, *, dtype: Any = jnp.float32) -> Pair:
    """The paper's networks of that name.

    Raises:
        ValueError: if there are none.
    """
    if name not in PAPER:
        raise ValueError(
            f"network is {name!r}; it must be one of {', '.join(PAPER)}, or a module"
        )
    return PAPER[name].clone(dtype=dtype)


def build_autoencoder(name: str, *, dtype: Any = jnp.float32) -> Autoencoder:
    """The paper's autoencoder of that name; Raises: as `pair`."""
    return pair(name, dtype=dtype).autoencoder


def build_encoder(name: str, *, dtype: Any = jnp.float32) -> nn.Module:
    """The paper's encoder of that name; Raises: as `pair`."""
    return pair(name, dtype=dtype).encoder


def for_shape(shape: tuple[int, ...], dtype: Any = jnp.float32) -> Pair:
    """Networks for examples of any shape: the paper's for the paper's shapes.

    Args:
        shape: `(columns,)` of a table, `(time, channels)` of series, `(height, width,
            channels)` of images or `(depth, height, width, channels)` of volumes.
        dtype: type of the computation.

    Raises:
        ValueError: if the rank is another, or an axis is empty.
    """
    shape = tuple(int(size) for size in shape)
    if not 1 <= len(shape) <= 4 or min(shape, default=0) < 1:
        raise ValueError(
            f"examples have shape {shape}; it must be (columns,) or 1 to 3 sizes and "
            "channels, each at least 1"
        )
    if len(shape) == 1:
        return mlp_for_table(shape[0], dtype=dtype)
    papers = {_DIGITS: "digits_LeNet", _MNIST: "mnist_LeNet", _CIFAR: "cifar10_LeNet"}
    if shape in papers:
        return pair(papers[shape], dtype=dtype)
    longest, halvings = max(shape[:-1]), 1
    while (longest := layers.halved(longest)) > 4:
        halvings += 1
    features = tuple(min(16 * 2**i, 64) for i in range(halvings))
    numbers = math.prod(shape)
    rep_dim = 32 if numbers <= 1024 else 64 if numbers <= 4096 else 128
    kernel = 5 if len(shape) == 2 else 3
    encoder = ConvEncoder(shape, features, rep_dim, kernel)
    decoder = ConvDecoder(shape, features, kernel)
    return Pair(encoder, decoder, shape).clone(dtype=dtype)


def encoder_variables(variables: dict[str, Any]) -> dict[str, Any]:
    """The encoder's part of an autoencoder's variables, batch statistics included."""
    return {collection: tree["encoder"] for collection, tree in variables.items()}


def parameter_count(params: Any) -> int:
    """Number of trainable numbers in a parameter tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _dense(module: nn.Module, features: int, name: str) -> nn.Module:
    init = getattr(module, "dense_init", layers.PYTORCH)
    return layers.Dense(features, init, module.dtype, name=name)


def _dense_blocks(module, x, hidden, train):
    for i, features in enumerate(hidden, 1):
        x = _dense(module, features, f"hidden{i}")(x)
        norm = layers.BatchNorm(train, name=f"hidden_bn{i}")
        x = norm(x, slope=module.slope)
    return x


def _conv(module: nn.Module, features: int, index: int) -> nn.Conv:
    size = (module.kernel,) * (len(module.input_shape) - 1)
    options = {"use_bias": False, "dtype": module.dtype, "kernel_init": layers.PYTORCH}
    return nn.Conv(features, size, name=f"conv{index}", **options)


def _unit_interval(logits: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(logits.astype(jnp.float32))


def _check_input(x: jax.Array, input_shape: tuple[int, ...]) -> None:
    if x.shape[1:] != input_shape:
        raise ValueError(
            f"x has shape {x.shape}; this network takes [batch, "
            f"{', '.join(map(str, input_shape))}]"
            + (" (channels last)" if len(input_shape) > 1 else "")
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x has dtype {x.dtype}; scale it to floating point in [0, 1] first"
        )
