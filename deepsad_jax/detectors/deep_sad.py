"""Deep SAD, Deep SVDD, and the autoencoder that both start from.

    data = training.training_set(x, semi_targets)        # raw rows; +1, 0, -1
    fitted, record = fit(jax.random.key(0), data)
    scores = model.score(fitted, new_rows)

Pretrain an autoencoder, find the center, train the encoder. Ruff et al., "Deep
Semi-Supervised Anomaly Detection", ICLR 2020, and "Deep One-Class Classification", ICML
2018.
"""

import dataclasses
import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from deepsad_jax import (
    checks,
    divergence,
    epochs,
    losses,
    methods,
    model,
    modules,
    networks,
    objectives,
    parallel,
    training,
)
from deepsad_jax.detectors import committee, companions, deep

_KEY_USES = ("init_autoencoder", "pretrain", "init_encoder", "train")


@dataclasses.dataclass(frozen=True)
class Autoencoder(deep.Deep):
    """An autoencoder; its reconstruction error is the score.

    Attributes:
        encoder, decoder, pretrain, initial, dtype: as for `DeepSAD`.
    """

    encoder: Any = None
    decoder: Any = None
    pretrain: training.Stage | None = training.PRETRAIN
    initial: model.Model | None = None
    dtype: str = "float32"

    method: ClassVar[str] = "autoencoder"

    def trained(self) -> dict[str, training.Stage]:
        if self.initial is not None or self.pretrain is None:
            return {}
        return {"pretrain": self.pretrain}

    def objectives(self, shape: tuple[int, ...]) -> list[Any]:
        pair = self.pair(shape)
        return [objectives.Autoencoder(pair.encoder, pair.decoder)]

    def check(self, run: methods.Run, devices: int = 1) -> None:
        if self.pretrain is None and self.initial is None:
            raise ValueError(
                "pretrain is None; the method autoencoder trains in the stage pretrain "
                "alone"
            )
        if self.encoder is not None and not isinstance(self.encoder, str):
            if self.decoder is None:
                raise ValueError("decoder is None; an encoder of your own needs one")
        super().check(run, devices)

    def check_initial(self, pair: networks.Pair) -> None:
        start = _reconstruction_of(self.initial)
        if start is None:
            raise ValueError(
                f"initial, a model of {self.initial.info['method']}, has no autoencoder"
            )
        _check_encoder(start.objective.encoder, pair, self.encoder)

    def fit_many(self, runs, *, plan=None, observe=None, keeper=None):
        sets, found = self.prepared(runs, plan)
        keys = [run.key for run in runs]
        trainer = epochs.Trainer(keys, sets, plan, _KEY_USES, observe, keeper)
        if self.initial is not None:
            bases = [_reconstruction_of(self.initial)] * len(keys)
        else:
            (objective,) = self.objectives(trainer.shape)
            variables = trainer.init(objective, "init_autoencoder")
            variables = trainer.run("pretrain", objective, self.pretrain, variables)
            bases = [
                model.make("autoencoder", objective, one, scaling, trainer.shape)
                for one, scaling in zip(trainer.take(variables), found, strict=True)
            ]
        records = trainer.records([[]] * len(keys))
        return list(zip(bases, records, strict=True))


@dataclasses.dataclass(frozen=True)
class DeepSAD(deep.Deep):
    """Deep SAD, or another loss on the embeddings.

    Attributes:
        encoder: any Linen or NNX module or pair of functions, as `modules.network`
            takes it, from `[batch, ...]` to `[batch, rep_dim]`; or a name in
            `networks.PAPER`. None is the one that fits the shape of the examples.
        decoder: likewise, from the embeddings to the examples. None is the one that
            belongs to an encoder of ours; one of your own is then not pretrained.
        loss: `(embeddings, semi_targets, center) -> [batch]`, a name in
            `objectives.NAMED`, or "soft_boundary".
        eta: weight of the labeled examples in a loss that has it, > 0.
        nu: of the soft boundary, the share of examples outside of it, in (0, 1).
        train: the stage of the method itself.
        pretrain: that of the autoencoder; None starts from random weights.
        center: which embeddings' mean is the center: "all" training examples, as in the
            published code, or "without_anomalies", as in the paper's text.
        record_groups: whether the history tells of `metrics.Moments`.
        initial: a model to start from instead of pretraining: of an autoencoder, or
            another of these, whose center is kept and, without epochs, its radius.
        dtype: type of the computation, float32 or bfloat16.
        members: networks, trained from different initial weights, whose mean is the
            score; see `committee`. One, as in the paper, by default.
        companions: cheap detectors that judge beside the networks, of which
            `companions.NAMES` are there; none, as in the paper, by default.
    """

    known_companions: ClassVar[tuple[str, ...]] = companions.NAMES

    encoder: Any = None
    decoder: Any = None
    loss: Callable | str = "deep_sad"
    eta: float = 1.0
    nu: float = 0.1
    train: training.Stage = training.Stage()
    pretrain: training.Stage | None = training.PRETRAIN
    center: str = "all"
    record_groups: bool = False
    initial: model.Model | None = None
    dtype: str = "float32"
    members: int = 1
    companions: tuple[str, ...] = ()

    method: ClassVar[str] = "deep_sad"
    uses_labels: ClassVar[bool] = True

    def trained(self) -> dict[str, training.Stage]:
        pretrains = self.pretrain is not None and self.initial is None
        is_named = self.encoder is None or isinstance(self.encoder, str)
        if self.decoder is None and not is_named:
            pretrains = False
        return {
            **({"pretrain": self.pretrain} if pretrains else {}),
            "train": self.train,
        }

    def other_passes(self) -> int:
        """For the center and the radius."""
        has_center = self.initial is not None and "center" in self.initial.variables
        return (not has_center) + (self.loss == "soft_boundary")

    def objectives(self, shape: tuple[int, ...]) -> list[Any]:
        pair = self.pair(shape)
        if self.loss == "soft_boundary":
            own = objectives.SoftBoundary(pair.encoder, self.nu, self.record_groups)
        else:
            own = objectives.DeepSAD(pair.encoder, self._loss(), self.record_groups)
        if "pretrain" not in self.trained():
            return [own]
        return [own, objectives.Autoencoder(pair.encoder, pair.decoder)]

    def _loss(self) -> Callable:
        loss = self.loss
        if isinstance(loss, str):
            loss = objectives.named_loss(loss)
        if not callable(loss):
            raise ValueError(
                f"loss is {loss!r}; it must be a function (embeddings, semi_targets, "
                f"center) -> [batch], or one of {', '.join(objectives.NAMED)}, "
                "soft_boundary"
            )
        if self.eta == 1.0:
            return loss
        if "eta" not in inspect.signature(loss).parameters:
            raise ValueError(f"eta is {self.eta}, but the loss has no option eta")
        return functools.partial(loss, eta=self.eta)

    def check(self, run: methods.Run, devices: int = 1) -> None:
        if not (checks.is_finite(self.eta) and self.eta > 0):
            raise ValueError(f"eta is {self.eta!r}; it must be > 0 and finite")
        if not (checks.is_finite(self.nu) and 0 < self.nu < 1):
            raise ValueError(f"nu is {self.nu!r}; it must be in (0, 1)")
        if self.center not in ("all", "without_anomalies"):
            raise ValueError(
                f"center is {self.center!r}; it must be all or without_anomalies"
            )
        if self.loss != "soft_boundary":
            self._loss()
            if self.nu != DeepSAD.nu:
                raise ValueError(f"nu is {self.nu}, which is of soft_boundary alone")
        elif self.eta != DeepSAD.eta:
            raise ValueError(f"eta is {self.eta}, but soft_boundary sees no labels")
        committee.check(self, run)
        super().check(run, devices)

    def check_initial(self, pair: networks.Pair) -> None:
        start = committee.networks_of(self.initial)[0].objective
        if not isinstance(start, (objectives.DeepSAD, objectives.Autoencoder)):
            raise ValueError(
                f"initial is a model of {self.initial.info['method']}, from which "
                f"{self.method} cannot start"
            )
        _check_encoder(start.encoder, pair, self.encoder)

    def fit_many(self, runs, *, plan=None, observe=None, keeper=None):
        if self.members != 1 or self.companions:
            options = {"plan": plan, "observe": observe, "keeper": keeper}
            return committee.fit_many(self, runs, **options)
        if self.initial is not None:
            (start, *_) = committee.networks_of(self.initial)
            self = dataclasses.replace(self, initial=start)
        sets, found = self.prepared(runs, plan)
        keys = [run.key for run in runs]
        trainer = epochs.Trainer(keys, sets, plan, _KEY_USES, observe, keeper)
        shape, notes = trainer.shape, []
        objective, *reconstruction = self.objectives(shape)
        bases = [_reconstruction_of(self.initial)] * len(keys)
        if self.initial is not None:
            starts = [_encoder_of(self.initial)] * len(keys)
        elif reconstruction:
            trainer.warm("pretrain", reconstruction[0], self.pretrain)
            trainer.warm("train", objective, self.train)
            variables = trainer.init(reconstruction[0], "init_autoencoder")
            variables = trainer.run(
                "pretrain", reconstruction[0], self.pretrain, variables
            )
            bases = [
                model.make("autoencoder", reconstruction[0], one, scaling, shape)
                for one, scaling in zip(trainer.take(variables), found, strict=True)
            ]
            starts = [_encoder_of(base) for base in bases]
        else:
            starts = trainer.take(trainer.init(objective, "init_encoder"))
            if self.pretrain is not None:
                notes.append("not pretrained: the encoder has no decoder")
        if self.initial is None and deep.is_own(objective.encoder):
            notes += _warn_of_suspects(objective.encoder, starts[0], trainer)
        starts = [{k: v for k, v in s.items() if k != "radius"} for s in starts]
        if not all("center" in s and np.all(np.isfinite(s["center"])) for s in starts):
            centers = self._centers(objective, starts, trainer)
            starts = [{**s, "center": c} for s, c in zip(starts, centers, strict=True)]
        if self.loss == "soft_boundary":
            starts = [{**s, "radius": np.zeros((), np.float32)} for s in starts]
        variables = trainer.run(
            "train",
            objective,
            self.train,
            trainer.put(starts),
            functools.partial(divergence.check_spread, [s["center"] for s in starts]),
        )
        finished = trainer.take(variables)
        if self.loss == "soft_boundary":
            finished = self._with_radius(objective, finished, trainer)
        models = [
            model.make(self.method, objective, one, scaling, shape, base)
            for one, scaling, base in zip(finished, found, bases, strict=True)
        ]
        records = trainer.records([notes] * len(keys))
        return list(zip(models, records, strict=True))

    def _centers(self, objective, starts, trainer) -> list[np.ndarray]:
        centers = []
        for parts in trainer.parts(objective, "embed", starts):
            total, count = 0.0, 0
            for embeddings, targets in parts:
                counts = np.ones(len(embeddings), bool)
                if self.center == "without_anomalies":
                    counts = targets != -1
                total = total + embeddings[counts].sum(axis=0, dtype=np.float64)
                count += int(counts.sum())
            if not count:
                reason = "no batch has two rows"
                if self.center != "all":
                    reason = "all examples are known anomalies"
                raise ValueError(f"{reason}; there is no center")
            mean = np.asarray(total / count, np.float32)
            centers.append(np.asarray(jax.jit(losses.clamp_center)(mean)))
        return centers

    def _with_radius(self, objective, finished, trainer) -> list[dict[str, Any]]:
        kept = self.initial.variables.get("radius") if self.initial else None
        if kept is not None and not self.train.epochs:
            return [{**one, "radius": kept} for one in finished]
        found = []
        squares = trainer.parts(objective, "score", finished)  # the radius is still 0
        for one, parts in zip(finished, squares, strict=True):
            distances = np.concatenate([part for part, _ in parts])
            radius = objectives.boundary(jnp.asarray(distances), self.nu)
            found.append({**one, "radius": np.asarray(radius)})
        return found


@dataclasses.dataclass(frozen=True)
class DeepSVDD(DeepSAD):
    """Deep SVDD, which sees no labels: the loss is one_class or soft_boundary."""

    loss: Callable | str = "one_class"

    method: ClassVar[str] = "deep_svdd"
    uses_labels: ClassVar[bool] = False
    known_companions: ClassVar[tuple[str, ...]] = ("isolation",)


def fit(
    key: jax.Array,
    data: Any,
    *,
    encoder: Any = None,
    decoder: Any = None,
    loss: Callable | str = "deep_sad",
    train: training.Stage = training.Stage(),  # noqa: B008 (immutable)
    pretrain: training.Stage | None = training.PRETRAIN,
    plan: parallel.Plan | None = None,
    preprocessing: Any = None,
    observe: methods.Observe | None = None,
    keeper: Any = None,
    **options: Any,
) -> tuple[model.Model, methods.Record]:
    """Trains Deep SAD.

    Args:
        key: random key; the same key gives the same model, bit for bit on one device.
        data: from `training.training_set(x, semi_targets)`, with raw rows; or any
            iterable of batches `(x, semi_targets)`, of which one pass is one epoch.
        encoder, decoder, loss, train, pretrain: see `DeepSAD`.
        plan: devices; `parallel.split_batch(8)` shares each batch.
        preprocessing: what becomes of raw rows; by default `preprocessing.auto` of the
            training rows. It travels with the model.
        observe: called as `observe(stage, epochs done, history)` while training.
        keeper: a `checkpoints.Keeper` that saves the state, from which the same fit
            goes on after an interruption.
        options: the other attributes of `DeepSAD`.

    Returns:
        The model, and a record of the training.

    Raises:
        ValueError: if the data or an option does not fit; before anything is compiled.
        training.TrainingError: if the loss diverges or the hypersphere collapses.
    """
    options |= {"encoder": encoder, "decoder": decoder, "loss": loss}
    method = DeepSAD(train=train, pretrain=pretrain, **options)
    run = methods.Run(key, data, preprocessing)
    (fitted,) = method.fit_many([run], plan=plan, observe=observe, keeper=keeper)
    return fitted


def _reconstruction_of(start: model.Model | None) -> model.Model | None:
    """The autoencoder in a model or behind it."""
    if start is None or isinstance(start.objective, objectives.Autoencoder):
        return start
    return start.base


def _encoder_of(start: model.Model) -> dict[str, Any]:
    """The variables of Deep SAD that a model gives: the encoder's, and its center."""
    if isinstance(start.objective, objectives.Autoencoder):
        return modules.part(start.variables, "encoder")
    return start.variables


def _check_encoder(found: Any, pair: networks.Pair, wanted: Any) -> None:
    if wanted is not None and modules.network(pair.encoder) != found:
        raise ValueError(
            "initial is a model of another encoder than the one that is given"
        )


def _warn_of_suspects(encoder, variables, trainer) -> list[str]:
    own = {k: v for k, v in variables.items() if k not in ("center", "radius")}
    named = modules.suspects(encoder, own, trainer.example)
    if not named:
        return []
    note = (
        f"the encoder's {', '.join(named)} could produce the center by itself, which "
        "may collapse the hypersphere: leave out the bias of the last layer and affine "
        "parameters of norms"
    )
    warnings.warn(note, stacklevel=4)
    return [note]
