"""Deep generative models as Flax modules: VAE (M1), M2 and stacked M1+M2.

    model = m2_for(encoder, shape)  # an encoder of `networks` for examples of a shape
    bounds, log_q = model.apply(variables, x, noise, True)

Kingma et al., "Semi-supervised Learning with Deep Generative Models", NIPS 2014, as the
baselines of Deep SAD use them: two classes, normal and anomalous, of which only the few
labeled examples are known; x is a vector of Bernoulli variables, so that inputs must
lie in [0, 1]. The logarithm of a code's variance is a softplus, so never negative, as
in the published baselines, whose numbers the tests compare with.

Sizes follow from the encoder that the other methods use: a table's perceptron lends its
hidden layers and its code; for another encoder, of code size r, the hidden layers are
4 r and 2 r wide, and it is itself the classifier of M2. Dense kernels are initialized
by Glorot's normal rule, biases are zero.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepsad_jax import layers, losses, networks


class GaussianEncoder(nn.Module):
    """ReLU layers, then mean and logarithm of the variance of a Gaussian code.

    Attributes:
        hidden: widths of the layers.
        latent: size of the code.
        each_class: whether to encode once for each class, which is appended to x.
        dtype: type of the computation; the output is float32 at least.
    """

    hidden: tuple[int, ...]
    latent: int
    each_class: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = _perceptron(self, x)
        mean, raw = (
            _wide(_dense(self, self.latent, name)(x)) for name in ("mean", "log_var")
        )
        return mean, jax.nn.softplus(raw)


class BernoulliDecoder(nn.Module):
    """ReLU layers, then the log-odds of a one for each feature.

    Attributes: as for `GaussianEncoder`, with the number of `features`.
    """

    hidden: tuple[int, ...]
    features: int
    each_class: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        x = _perceptron(self, z)
        return _wide(_dense(self, self.features, "output")(x))


class _DenseOfEachClass(nn.Module):
    """A dense layer of [x, one-hot class], for both classes at once.

    The product with x is computed once: `[batch, D]`, or `[2, batch, D]` for an x that
    differs, to `[2, batch, features]`.
    """

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1] + 2, self.features)
        kernel = self.param("kernel", layers.Glorot(), shape)
        bias = self.param("bias", nn.initializers.zeros, shape[1:])
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return x @ kernel[:-2] + kernel[-2:, None] + bias


def _dense(module: nn.Module, features: int, name: str | None = None) -> nn.Dense:
    options = {"dtype": module.dtype, "kernel_init": layers.Glorot()}
    return nn.Dense(features, **options, name=name)


def _perceptron(module, x):
    for i, features in enumerate(module.hidden, 1):
        if i == 1 and module.each_class:
            dense = _DenseOfEachClass(features, module.dtype, name="hidden1")
        else:
            dense = _dense(module, features, f"hidden{i}")
        x = nn.relu(dense(x))
    return x


def _wide(x: jax.Array) -> jax.Array:
    """As float32, unless it is float64."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _sample(mean: jax.Array, log_var: jax.Array, noise: jax.Array) -> jax.Array:
    return mean + jnp.exp(0.5 * log_var) * noise


def _flat(x: jax.Array, features: int) -> jax.Array:
    if math.prod(x.shape[1:]) != features:
        raise ValueError(
            f"x has shape {x.shape}; this model takes examples of {features} features"
        )
    return x.reshape(x.shape[0], features)


class VAE(nn.Module):
    """Variational autoencoder (M1): `[batch, ...]` in [0, 1] to its lower bounds.

    Attributes:
        hidden, latent: as for `GaussianEncoder`; the decoder mirrors it.
        features: number of features of an example.
        dtype: type of the computation.
    """

    hidden: tuple[int, ...]
    latent: int
    features: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        options = {"dtype": self.dtype}
        self.encoder = GaussianEncoder(self.hidden, self.latent, **options)
        self.decoder = BernoulliDecoder(self.hidden[::-1], self.features, **options)

    def __call__(self, x: jax.Array, noise: jax.Array) -> jax.Array:
        """Lower bounds of log p(x), `[batch]`, from noise `[batch, latent]`."""
        x = _flat(x, self.features)
        mean, log_var = self.encoder(x)
        z = _sample(mean, log_var, noise)
        logits = self.decoder(z)
        return losses.evidence_lower_bound(x, logits, z, mean, log_var)

    def encode(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and logarithm of the variance of the codes, `[batch, latent]` each."""
        return self.encoder(_flat(x, self.features))

    def noiseless_loss(self, x: jax.Array) -> jax.Array:
        """The score: the negative log-likelihood of x decoded from its mean code, plus
        the divergence of its code from the prior, `[batch]`.

        It is the training loss with the mean for the sample, and no longer a bound.
        """
        x = _flat(x, self.features)
        mean, log_var = self.encoder(x)
        likelihood = losses.bernoulli_log_likelihood(x, self.decoder(mean))
        return losses.gaussian_kl(mean, log_var) - likelihood


class M2(nn.Module):
    """Generative model of x, a code z and a class: q(y | x), q(z | x, y), p(x | y, z).

    Attributes:
        hidden, latent, features: as for `VAE`, of what is decoded.
        classifier: the encoder, called with x and `train`, on whose code the class
            depends; None for one dense layer, as wide as the first hidden one.
        dtype: type of the computation.
    """

    hidden: tuple[int, ...]
    latent: int
    features: int
    classifier: nn.Module | None = None
    dtype: Any = jnp.float32

    draws = 1

    def setup(self) -> None:
        options = {"each_class": True, "dtype": self.dtype}
        self.encoder = GaussianEncoder(self.hidden, self.latent, **options)
        self.decoder = BernoulliDecoder(self.hidden[::-1], self.features, **options)
        if self.classifier is None:
            self.dense = _dense(self, self.hidden[0])
        else:  # its variables are those of "lenet", whichever encoder it is
            self.lenet = self.classifier.clone(parent=None, name=None)
        self.logits = _dense(self, 2)

    def __call__(
        self, x: jax.Array, noise: jax.Array, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """What `losses.m2_loss` takes.

        Args:
            x: inputs in [0, 1], `[batch, ...]`.
            noise: standard normal, `[draws, 2, batch, latent]`: for each class.
            train: whether the classifier uses the statistics of the batch.

        Returns:
            Lower bounds of log p(x, y) and log q(y | x), `[batch, 2]` both.
        """
        flat = _flat(x, self.features)
        return self.bounds(flat, flat, noise[0]), self.classify(x, train)

    def bounds(self, inputs: jax.Array, x: jax.Array, noise: jax.Array) -> jax.Array:
        """Lower bounds of log p(x, y), `[batch, 2]`, with `inputs` for the encoder."""
        mean, log_var = self.encoder(inputs)
        z = _sample(mean, log_var, noise)
        logits = self.decoder(z)
        x = jnp.broadcast_to(x, logits.shape)
        prior = -math.log(2.0)  # of either class
        return prior + losses.evidence_lower_bound(x, logits, z, mean, log_var).T

    def classify(self, x: jax.Array, train: bool) -> jax.Array:
        """Logarithm of q(y | x), `[batch, 2]`."""
        if self.classifier is None:
            x = nn.relu(self.dense(x))
        else:
            x = self.lenet(x, train)
        return jax.nn.log_softmax(_wide(self.logits(x)))


class M1M2(nn.Module):
    """M2 on the codes of a VAE: it encodes samples of a code and decodes to x.

    The classifier sees the mean code. Attributes: as for `M2`.
    """

    hidden: tuple[int, ...]
    latent: int
    features: int
    dtype: Any = jnp.float32

    draws = 2

    def setup(self) -> None:
        options = (self.hidden, self.latent, self.features)
        self.m1 = VAE(*options, dtype=self.dtype)
        self.m2 = M2(*options, dtype=self.dtype)

    def __call__(
        self, x: jax.Array, noise: jax.Array, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """As `M2`; the first draw of the noise is that of the VAE's codes."""
        del train
        mean, log_var = self.m1.encode(x)
        codes = _sample(mean, log_var, noise[0])
        bounds = self.m2.bounds(codes, _flat(x, self.features), noise[1])
        return bounds, self.m2.classify(mean, True)

    def classify(self, x: jax.Array, train: bool) -> jax.Array:
        """Logarithm of q(y | x), `[batch, 2]`."""
        return self.m2.classify(self.m1.encode(x)[0], train)


def vae_for(encoder: nn.Module, shape: tuple[int, ...]) -> VAE:
    """The VAE whose sizes follow from an encoder.

    Args:
        encoder: called with x and `train`; its `dtype`, if it has one, is the model's.
        shape: that of an example.

    Raises:
        ValueError: if it is a perceptron without hidden layers.
    """
    return VAE(*_sizes(encoder, shape), dtype=_dtype(encoder))


def m2_for(encoder: nn.Module, shape: tuple[int, ...]) -> M2:
    """The M2 whose sizes follow from an encoder; Args and Raises: as `vae_for`."""
    classifier = None
    if isinstance(encoder, networks.LeNetEncoder):
        classifier = encoder.clone(dense_init=layers.Glorot())  # as the original
    elif not isinstance(encoder, networks.MLPEncoder):
        classifier = encoder
    return M2(*_sizes(encoder, shape), classifier, dtype=_dtype(encoder))


def m1_m2_for(encoder: nn.Module, shape: tuple[int, ...]) -> M1M2:
    """The M1+M2 whose sizes follow from an encoder; Args and Raises: as `vae_for`."""
    return M1M2(*_sizes(encoder, shape), dtype=_dtype(encoder))


def _dtype(encoder: nn.Module) -> Any:
    return getattr(encoder, "dtype", None) or jnp.float32


def _sizes(
    encoder: nn.Module, shape: tuple[int, ...]
) -> tuple[tuple[int, ...], int, int]:
    features = math.prod(shape)
    if isinstance(encoder, networks.MLPEncoder):
        if not encoder.hidden:
            raise ValueError("encoder has no hidden layer; generative models need one")
        return encoder.hidden, encoder.rep_dim, features
    x, key = jnp.zeros((1, *shape)), jax.random.key(0)
    output, _ = jax.eval_shape(lambda: encoder.init_with_output(key, x, train=False))
    rep_dim = output.shape[-1]
    return (4 * rep_dim, 2 * rep_dim), rep_dim, features
