"""Semi-supervised deep generative models: VAE (M1), M2 and M1+M2.

Kingma et al., "Semi-supervised Learning with Deep Generative Models", NIPS 2014. Unlike
in the published baselines of Deep SAD, the classifier of an image model normalizes a
batch as one: a batch of its own for the few labeled examples, often a single anomaly,
would be normalized until nothing tells them apart.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import numpy as np

from deepsad_jax import (
    checks,
    epochs,
    generative,
    methods,
    model,
    networks,
    objectives,
    training,
    values,
)
from deepsad_jax.detectors import deep

_KEY_USES = ("init_vae", "pretrain", "init", "train")


@dataclasses.dataclass(frozen=True)
class _Generative(deep.Deep):
    """What the three have in common.

    Attributes:
        encoder: a Linen module, a name in `networks.PAPER`, or None for the one that
            fits, whose sizes are taken.
        train, pretrain: stages of M2 and of the VAE.
        alpha: weight of the classification of labeled examples, >= 0.
        initial: a model of the same method to go on from; a VAE stays as it is.
        dtype: type of the computation, float32 or bfloat16.
    """

    encoder: Any = None
    train: training.Stage = training.Stage()
    pretrain: training.Stage | None = training.PRETRAIN
    alpha: float = 0.1
    initial: model.Model | None = None
    dtype: str = "float32"

    uses_vae: ClassVar[bool] = False
    uses_m2: ClassVar[bool] = False

    def trained(self) -> dict[str, training.Stage]:
        first = self.uses_vae and self.initial is None and self.pretrain is not None
        return {
            **({"pretrain": self.pretrain} if first else {}),
            **({"train": self.train} if self.uses_m2 else {}),
        }

    def objectives(self, shape: tuple[int, ...]) -> list[Any]:
        """What is trained, the VAE last."""
        encoder = self.pair(shape).encoder
        if not isinstance(encoder, nn.Module):
            raise ValueError(
                f"encoder is a {type(encoder).__name__}; {self.method} takes Linen "
                "modules alone"
            )
        found: list[Any] = []
        if self.uses_m2:
            made = generative.m1_m2_for if self.uses_vae else generative.m2_for
            found.append(objectives.M2(made(encoder, shape), self.alpha))
        if self.uses_vae:
            found.append(objectives.Elbo(generative.vae_for(encoder, shape)))
        return found

    def check(self, run: methods.Run, devices: int = 1) -> None:
        if not (checks.is_finite(self.alpha) and self.alpha >= 0):
            raise ValueError(f"alpha is {self.alpha}; it must be >= 0 and finite")
        if self.uses_vae and self.pretrain is None and self.initial is None:
            raise ValueError(
                f"pretrain is None; {self.method} stands on a VAE, which is trained in "
                "the stage pretrain"
            )
        super().check(run, devices)
        if isinstance(run.data, training.TrainingSet):
            self.objectives(self._features(run))

    def check_initial(self, pair: networks.Pair) -> None:
        super().check_initial(pair)
        made = self.objectives(pair.input_shape)[0].module
        if values.key(made) != values.key(self.initial.objective.module):
            raise ValueError("initial is a model of other sizes than the encoder's")

    def fit_many(self, runs, *, plan=None, observe=None, keeper=None):
        sets, found = self.prepared(runs, plan)
        keys = [run.key for run in runs]
        for data in sets:
            _check_range(data)
        trainer = epochs.Trainer(keys, sets, plan, _KEY_USES, observe, keeper)
        shape, made = trainer.shape, self.objectives(trainer.shape)
        initial, runs = self.initial, range(len(keys))

        def models(method, objective, variables, bases):
            return [
                model.make(method, objective, variables[i], found[i], shape, bases[i])
                for i in runs
            ]

        bases: list[Any] = [initial.base if initial is not None else None for _ in runs]
        finished = [initial.variables for _ in runs] if initial is not None else None
        if self.uses_vae and initial is None:
            if self.uses_m2:
                trainer.warm("train", made[0], self.train)
            variables = trainer.init(made[-1], "init_vae")
            variables = trainer.run("pretrain", made[-1], self.pretrain, variables)
            finished = trainer.take(variables)
            if self.uses_m2:
                bases = models("vae", made[-1], finished, bases)
        if self.uses_m2:
            if initial is None:
                starts = trainer.take(trainer.init(made[0], "init"))
                for start, base in zip(starts, bases, strict=True):
                    if base is not None:
                        start["m1"] = {"encoder": base.variables["params"]["encoder"]}
            else:
                starts = finished
            variables = trainer.run("train", made[0], self.train, trainer.put(starts))
            finished = trainer.take(variables)
        records = trainer.records([[]] * len(keys))
        fitted = models(self.method, made[0], finished, bases)
        return list(zip(fitted, records, strict=True))


@dataclasses.dataclass(frozen=True)
class VAE(_Generative):
    """A VAE; the score is the noiseless negative bound of inputs clipped to [0, 1]."""

    method: ClassVar[str] = "vae"
    uses_vae: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class M2(_Generative):
    """M2; the score is q(anomaly | x)."""

    method: ClassVar[str] = "m2"
    uses_labels: ClassVar[bool] = True
    uses_m2: ClassVar[bool] = True
    learns_from_anomalies: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class M1M2(M2):
    """M2 on the codes of a VAE, which is frozen after its own training."""

    method: ClassVar[str] = "m1_m2"
    uses_labels: ClassVar[bool] = True
    uses_vae: ClassVar[bool] = True


def _check_range(data: Any) -> None:
    """Raises ValueError unless x is uint8 or, up to rounding, in [0, 1]; for a stream
    when its rows come."""
    if not isinstance(data, training.TrainingSet):
        data.check = _check_rows
    else:
        _check_rows(data.x[np.asarray(data.indices)[: int(data.size)]])


def _check_rows(x: np.ndarray) -> None:
    if x.dtype == np.uint8:
        return
    low, high = float(x.min()), float(x.max())
    if low < -1e-3 or high > 1.001:
        raise ValueError(
            f"x has values from {low:.4g} to {high:.4g} after preprocessing; the "
            "generative models take features in [0, 1], so scale them first"
        )
