"""Objectives: what is trained, as values. Each has `init`, `loss` and `score`.

    init(key, x) -> variables
    loss(variables, batch, key) -> (losses [batch], (variables, metrics))
    score(variables, x) -> anomaly scores [batch], higher = more anomalous

All are pure functions of arrays: `x` is float32 `[batch, ...]`, variables are one
dictionary of collections, of which `params` is trained. Metrics are a dictionary of
what `metrics` has, `Mean` and the like. Frozen dataclasses of equal content are equal,
and share their compiled programs. An objective of your own is any class of this kind.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from deepsad_jax import layers, losses, metrics, modules, parallel, values

Variables = dict[str, Any]
# What a hypersphere keeps beside the collections of its network.
_OWN = ("center", "radius")


def _deviation_loss(embeddings, semi_targets, center, *, eta=1.0, margin=5.0):
    distance = losses.squared_distance(embeddings, center)
    return losses.deviation_loss(distance, semi_targets, eta=eta, margin=margin)


def _one_class_loss(embeddings, semi_targets, center):
    del semi_targets
    return losses.one_class_loss(embeddings, center)


# Short names of losses `(embeddings, semi_targets, center) -> [batch]`.
NAMED = {
    "deep_sad": losses.deep_sad_loss,
    "hypersphere": losses.hypersphere_loss,
    "deviation": _deviation_loss,
    "one_class": _one_class_loss,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Autoencoder(values.ByContent):
    """Reconstruction: mean squared error over every element; the error is the score.

    Attributes:
        encoder, decoder: networks, as `modules.network` takes them.
    """

    encoder: Any
    decoder: Any

    def __post_init__(self):
        for name in ("encoder", "decoder"):
            found = modules.network(getattr(self, name), name)
            object.__setattr__(self, name, found)

    def init(self, key: jax.Array, x: jax.Array) -> Variables:
        first, second = jax.random.split(key)
        encoder = self.encoder.init(first, x)
        codes = jax.eval_shape(self.encoder.apply, encoder, x)
        return modules.join(
            {"encoder": encoder, "decoder": self.decoder.init(second, codes)}
        )

    def loss(self, variables, batch, key):
        first, second = jax.random.split(key)
        codes, encoder = self.encoder.apply_train(
            modules.part(variables, "encoder"), batch.x, first
        )
        reconstruction, decoder = self.decoder.apply_train(
            modules.part(variables, "decoder"), codes, second
        )
        updated = modules.join({"encoder": encoder, "decoder": decoder})
        return losses.reconstruction_error(batch.x, reconstruction), (updated, {})

    def score(self, variables: Variables, x: jax.Array) -> jax.Array:
        return losses.reconstruction_error(x, self.reconstruct(variables, x))

    def reconstruct(self, variables: Variables, x: jax.Array) -> jax.Array:
        decoder = modules.part(variables, "decoder")
        return self.decoder.apply(decoder, self.embed(variables, x))

    def embed(self, variables: Variables, x: jax.Array) -> jax.Array:
        return self.encoder.apply(modules.part(variables, "encoder"), x)


@dataclasses.dataclass(frozen=True, eq=False)
class DeepSAD(values.ByContent):
    """A loss on embeddings and a fixed center; the squared distance is the score.

    Ruff et al., "Deep Semi-Supervised Anomaly Detection", ICLR 2020. The variables hold
    those of the encoder and the `center`, which is NaN until `with_center` has set it.
    Records `spread`, the root mean square deviation of a batch's embeddings
    from their mean, which is 0 when the hypersphere has collapsed.

    Attributes:
        encoder: network, as `modules.network` takes it, to `[batch, rep_dim]`.
        loss_function: `(embeddings, semi_targets, center) -> [batch]`, or a name in
            `NAMED`; options are bound by `functools.partial`.
        record_groups: whether to record `metrics.Moments` of the embeddings of an
            epoch, as training has seen them.
    """

    encoder: Any
    loss_function: Callable | str = losses.deep_sad_loss
    record_groups: bool = False

    def __init__(self, encoder, loss=losses.deep_sad_loss, record_groups=False):
        if isinstance(loss, str):
            loss = named_loss(loss)
        object.__setattr__(self, "encoder", modules.network(encoder))
        object.__setattr__(self, "loss_function", loss)
        object.__setattr__(self, "record_groups", record_groups)

    def init(self, key: jax.Array, x: jax.Array) -> Variables:
        variables = self.encoder.init(key, x)
        if taken := [name for name in _OWN if name in variables]:
            raise ValueError(f"the encoder has a collection {taken[0]}; rename it")
        embeddings = jax.eval_shape(self.encoder.apply, variables, x)
        shape = getattr(embeddings, "shape", None)
        if shape is None or len(shape) != 2 or shape[0] != len(x):
            raise ValueError(
                f"the encoder returns {shape and f'shape {shape}' or type(embeddings)} "
                f"for x of shape {x.shape}; it must return [batch, rep_dim]"
            )
        return {**variables, "center": jnp.full(embeddings.shape[1], jnp.nan)}

    def with_center(self, variables: Variables, x: jax.Array) -> Variables:
        """The same variables with the mean embedding of examples for their center,
        moved away from zero (`losses.clamp_center`), as it is before training.

        Args:
            variables: of this objective.
            x: prepared examples, `[n, ...]`; without known anomalies, as in the paper's
                text, or all, as in its code.
        """
        mean = jnp.mean(self.embed(variables, x), axis=0)
        return {**variables, "center": losses.clamp_center(mean)}

    def loss(self, variables, batch, key):
        own, network = _apart(variables)
        center = own["center"]
        embeddings, updated = self.encoder.apply_train(network, batch.x, key)
        per_example = self._data_term(embeddings, batch.semi_targets, center)
        seen = lax.stop_gradient(embeddings)
        deviation = seen - parallel.mean(jnp.mean(seen, axis=0))
        spread = jnp.sqrt(parallel.mean(jnp.mean(jnp.square(deviation))))
        recorded = {"spread": metrics.Mean(spread, jnp.ones(()))}
        if self.record_groups:
            recorded["groups"] = metrics.Moments.of(seen, batch.semi_targets, center)
        return per_example, ({**updated, **own}, recorded)

    @property
    def _data_term(self) -> Callable:
        return self.loss_function

    def score(self, variables: Variables, x: jax.Array) -> jax.Array:
        return losses.squared_distance(self.embed(variables, x), variables["center"])

    def embed(self, variables: Variables, x: jax.Array) -> jax.Array:
        return self.encoder.apply(_apart(variables)[1], x)


class SoftBoundary(DeepSAD):
    """Soft-boundary Deep SVDD: a share of nu is outside; the score is positive there.

    The radius is the best one for each batch, and differentiated as such: the loss is
    the mean of the share nu of the batch that is farthest. (Ruff et al., "Deep
    One-Class Classification", ICML 2018, keep it for some epochs between its updates.)
    The variables hold the final `radius`, of the whole training set.

    Attributes:
        encoder, record_groups: as for `DeepSAD`.
        nu: the share outside, in (0, 1).
    """

    def __init__(self, encoder, nu=0.1, record_groups=False):
        bound = functools.partial(losses.soft_boundary_loss, nu=nu)
        super().__init__(encoder, bound, record_groups)

    @property
    def nu(self) -> float:
        return self.loss_function.keywords["nu"]

    def init(self, key: jax.Array, x: jax.Array) -> Variables:
        return {**super().init(key, x), "radius": jnp.zeros(())}

    def _data_term(self, embeddings, semi_targets, center):
        del semi_targets
        distances = losses.squared_distance(embeddings, center)
        # With its gradient, rounding does not matter to the example on the border.
        radius = boundary(parallel.gather(distances), self.nu)
        return losses.soft_boundary_loss(embeddings, center, radius, nu=self.nu)

    def score(self, variables: Variables, x: jax.Array) -> jax.Array:
        return super().score(variables, x) - jnp.square(variables["radius"])


def boundary(distances: jax.Array, nu: float) -> jax.Array:
    """The radius that minimizes the soft-boundary loss: a share of nu is outside.

    The derivative of R^2 + mean(max(0, d - R^2)) / nu in R^2 is one less the share
    outside over nu, so that R^2 is the (1 - nu)-quantile of the distances.

    Args:
        distances: squared distances to the center, `[n]`.
        nu: in (0, 1).
    """
    rank = max(math.ceil((1.0 - nu) * distances.shape[0]) - 1, 0)
    # A derivative of the root at 0 would be infinite.
    return jnp.sqrt(jnp.maximum(jnp.sort(distances)[rank], 1e-12))


@dataclasses.dataclass(frozen=True, eq=False)
class Elbo(values.ByContent):
    """A VAE: the negative lower bound of the likelihood; the score is noiseless.

    Attributes:
        module: a `generative.VAE`.
    """

    module: nn.Module

    is_random: ClassVar[bool] = True

    def init(self, key: jax.Array, x: jax.Array) -> Variables:
        noise = jnp.zeros((1, self.module.latent))
        return _init(lambda key: self.module.init(key, x, noise), key)

    def loss(self, variables, batch, key):
        noise = _noise(key, (len(batch.x), self.module.latent))
        return -self.module.apply(variables, batch.x, noise), (variables, {})

    def score(self, variables: Variables, x: jax.Array) -> jax.Array:
        # Beyond [0, 1], where test data of a table may be, it is not a likelihood.
        x = jnp.clip(x, 0.0, 1.0)
        return self.module.apply(variables, x, method=self.module.noiseless_loss)


@dataclasses.dataclass(frozen=True, eq=False)
class M2(values.ByContent):
    """The loss of M2 or M1+M2; the score is q(anomaly | x).

    The mean over the labeled examples of a batch plus that over the unlabeled ones. The
    variables of M1+M2 hold the frozen parameters `m1` of its VAE.

    Attributes:
        module: a `generative.M2` or `generative.M1M2`.
        alpha: weight of the classification of labeled examples, >= 0.
    """

    module: nn.Module
    alpha: float = 0.1

    is_random: ClassVar[bool] = True

    def init(self, key: jax.Array, x: jax.Array) -> Variables:
        noise = jnp.zeros((self.module.draws, 2, 1, self.module.latent))
        variables = _init(lambda key: self.module.init(key, x, noise, True), key)
        params = dict(variables.pop("params"))
        frozen = {"m1": params.pop("m1")} if "m1" in params else {}
        return {"params": params, "batch_stats": {}, **variables, **frozen}

    def loss(self, variables, batch, key):
        shape = (self.module.draws, 2, len(batch.x), self.module.latent)
        (bounds, log_q), updated = self.module.apply(
            self._whole(variables),
            batch.x,
            _noise(key, shape),
            True,
            mutable=["batch_stats"],
        )
        targets = batch.semi_targets
        per_example = losses.m2_loss(bounds, log_q, targets, alpha=self.alpha)
        counts = parallel.total(losses.label_counts(targets))
        weighted = losses.balanced(per_example, targets, counts=counts)
        return weighted, ({**variables, **updated}, {})

    def score(self, variables: Variables, x: jax.Array) -> jax.Array:
        log_q = self.module.apply(
            self._whole(variables), x, False, method=self.module.classify
        )
        return jnp.exp(log_q[:, 1])

    def _whole(self, variables):
        frozen = {"m1": variables["m1"]} if "m1" in variables else {}
        return {
            "params": {**variables["params"], **frozen},
            "batch_stats": variables["batch_stats"],
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier(values.ByContent):
    """Known anomalies against all others by cross-entropy; the score is the log-odds.

    An encoder and one more linear unit: the supervised baseline of Ruff et al., "Deep
    Semi-Supervised Anomaly Detection", ICLR 2020, section 4.

    Attributes:
        encoder: network, as `modules.network` takes it.
    """

    encoder: Any

    def __post_init__(self):
        object.__setattr__(self, "encoder", modules.network(self.encoder))

    def init(self, key: jax.Array, x: jax.Array) -> Variables:
        first, second = jax.random.split(key)
        variables = self.encoder.init(first, x)
        width = jax.eval_shape(self.encoder.apply, variables, x).shape[-1]
        kernel = layers.Uniform(layers.fan_in_bound)(second, (width, 1))
        joined = modules.join({"encoder": variables})
        joined["params"]["logit"] = {"kernel": kernel, "bias": jnp.zeros(1)}
        return joined

    def loss(self, variables, batch, key):
        codes, encoder = self.encoder.apply_train(
            modules.part(variables, "encoder"), batch.x, key
        )
        logits = self._logits(variables, codes)
        updated = modules.join({"encoder": encoder})
        updated["params"] = variables["params"]
        return losses.classification_loss(logits, batch.semi_targets), (updated, {})

    def score(self, variables: Variables, x: jax.Array) -> jax.Array:
        codes = self.encoder.apply(modules.part(variables, "encoder"), x)
        return self._logits(variables, codes)

    def _logits(self, variables, codes):
        logit = variables["params"]["logit"]
        return (codes @ logit["kernel"] + logit["bias"])[:, 0]


def named_loss(name: str) -> Callable:
    """The loss of a short name.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in NAMED:
        raise ValueError(
            f"loss is {name!r}; it must be one of {', '.join(NAMED)}, or a function "
            "(embeddings, semi_targets, center) -> [batch]"
        )
    return NAMED[name]


def _apart(variables: Variables) -> tuple[Variables, Variables]:
    """What a hypersphere keeps, and the variables of its network."""
    own = {name: variables[name] for name in _OWN if name in variables}
    return own, {name: v for name, v in variables.items() if name not in _OWN}


def _init(init, key):
    return dict(layers.init_from_one_draw(init, key))


def _noise(key, shape):
    """Standard normal noise; of one device's share, the same as without devices.

    The last axis but one is that of the batch.
    """
    *front, share, latent = shape
    whole = (*front, share * parallel.shares(), latent)
    return parallel.own_share(jax.random.normal(key, whole), axis=len(front))
