"""Several networks and companions that judge together: the mean of what each says.

A member's score counts in deviations from what is usual among the training rows, within
limits, so that none of them drowns the others.
"""

import dataclasses
import functools
import time
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deepsad_jax import (
    checks,
    forward,
    methods,
    model,
    modules,
    training,
    trees,
    values,
)
from deepsad_jax.detectors import companions

# Scores count within so many deviations below and above the usual.
_LEAST, _MOST = -3.0, 5.0
_BLOCK = 1024  # examples


@dataclasses.dataclass(frozen=True, eq=False)
class Committee(values.ByContent):
    """The mean of the networks' mean and of each companion.

    The variables hold those of each member by its name, and `location` (the median) and
    `scale` (the deviation) of their scores of training rows that are not known
    anomalies, `[members]`.

    Attributes:
        network: the objective of all networks.
        networks: how many there are, >= 1.
        others: pairs of the name of a companion and what scores with its variables.
    """

    network: Any
    networks: int = 1
    others: tuple[tuple[str, Any], ...] = ()

    def members(self) -> dict[str, Any]:
        """The objective of each member, by the name of its variables."""
        names = (f"network{i}" for i in range(self.networks))
        return {**dict.fromkeys(names, self.network), **dict(self.others)}

    def score(self, variables: dict[str, Any], x: jax.Array) -> jax.Array:
        """`[batch]`, in deviations from what is usual."""
        return trees.in_order(self.opinions(variables, x))

    def opinions(self, variables: dict[str, Any], x: jax.Array) -> jax.Array:
        """What the networks say, in the mean, and each companion, `[batch, 1 + k]`."""
        scores = self.member_scores(variables, x)
        networks = trees.in_order(scores[:, : self.networks])[:, None]
        return jnp.concatenate([networks, scores[:, self.networks :]], axis=1)

    def member_scores(self, variables: dict[str, Any], x: jax.Array) -> jax.Array:
        """What each member says, `[batch, members]`; their spread is a doubt."""
        usual = self.raw_scores(variables, x) - variables["location"]
        return jnp.clip(usual / variables["scale"], _LEAST, _MOST)

    def raw_scores(self, variables: dict[str, Any], x: jax.Array) -> jax.Array:
        """The score of each member as its method has it, `[batch, members]`."""
        rows = companions.flat(x)
        networks = (variables[f"network{i}"] for i in range(self.networks))
        found = [
            *(self.network.score(own, x) for own in networks),
            *(other.score(variables[name], rows) for name, other in self.others),
        ]
        return jnp.stack(found, axis=1)

    def embed(self, variables: dict[str, Any], x: jax.Array) -> jax.Array:
        """The embeddings of the first network, `[batch, rep_dim]`."""
        return self.network.embed(variables["network0"], x)


def networks_of(fitted: model.Model) -> list[model.Model]:
    """The networks of a committee, each a model of its own; else the model itself."""
    committee = getattr(fitted, "objective", None)
    if not isinstance(committee, Committee):
        return [fitted]
    return [
        dataclasses.replace(
            fitted,
            variables=fitted.variables[f"network{i}"],
            objective=committee.network,
        )
        for i in range(committee.networks)
    ]


def opinions(fitted: model.Model, x: Any) -> dict[str, np.ndarray]:
    """What the networks in the mean, and each companion, say of raw rows, `[n]` each.

    Args:
        fitted: a model whose objective is a committee.
        x: as of `model.score`, which is their mean.
    """
    said = model.apply(fitted, "opinions", x).T
    names = ("networks", *(name for name, _ in fitted.objective.others))
    return dict(zip(names, said, strict=True))


def check(method: Any, run: methods.Run) -> None:
    """Raises ValueError for members or companions that cannot be."""
    if not checks.is_count(method.members, 1, 1000):
        raise ValueError(
            f"members is {method.members!r}; it must be an integer from 1 to 1000"
        )
    if method.members > 1 and not isinstance(run.data, training.TrainingSet):
        raise ValueError(
            f"members is {method.members}; several networks are put on one scale by "
            "all examples, as of training.training_set: have one for batches"
        )
    if method.members > 1 and modules.has_weights(method.encoder):
        warnings.warn(
            "encoder is an NNX module with its weights, with which all members begin; "
            "its class, or a function of rngs, gives each its own",
            stacklevel=2,
        )
    names = method.companions
    if not isinstance(names, tuple) or len({*names}) < len(names):
        raise ValueError(f"companions is {names!r}; it must be a tuple, each once")
    for name in names:
        if name not in method.known_companions:
            raise ValueError(
                f"companions has {name!r}; those of {method.method} are "
                f"{', '.join(method.known_companions)}"
            )
    if names and not isinstance(run.data, training.TrainingSet):
        raise ValueError(
            "companions need all examples at once, as of training.training_set; "
            "leave them out for batches"
        )


def fit_many(
    method: Any,
    runs: Sequence[methods.Run],
    *,
    observe: methods.Observe | None = None,
    plan: Any = None,
    keeper: Any = None,
) -> list[tuple[model.Model, methods.Record]]:
    """Fits the networks of runs, all in one program where that is fastest.

    Args:
        method: options of a method with `members` and `companions`, of which the
            networks are fitted without.
        runs, plan, observe, keeper: as of `methods.Method.fit_many`.
    """
    count = method.members
    single = dataclasses.replace(method, members=1, companions=())
    starts = [method.initial]
    if method.initial is not None:
        starts = networks_of(method.initial)
        single = dataclasses.replace(single, initial=starts[0])
    for run in runs:
        method.check(run, plan.share if plan is not None else 1)
    wanted = [
        run._replace(key=jax.random.fold_in(run.key, i)) if i else run
        for run in runs
        for i in range(count)
    ]
    if plan is None or plan.many:
        plan = None
        if keeper is None and len(wanted) > 1 and len(starts) == 1:
            plan = single.plan_for(wanted)
    if plan is not None and plan.many:
        if len(runs) == 1:
            observe = observe and functools.partial(_tell_means, observe)
        fitted = single.fit_many(wanted, plan=plan, observe=observe)
    else:
        fitted = []
        for i, run in enumerate(wanted):
            own = dataclasses.replace(single, initial=starts[i % count % len(starts)])
            # The history that is told is that of the record: the first network's.
            told = observe if i % count == 0 else None
            place = keeper and _Place(keeper, i)
            fitted += own.fit_many([run], plan=plan, observe=told, keeper=place)
    return [
        _joined(method, single, run, fitted[first : first + count])
        for run, first in zip(runs, range(0, len(wanted), count), strict=True)
    ]


def _joined(method, single, run, fitted):
    """One model of the networks of a run, with its companions."""
    models, records = [one for one, _ in fitted], [record for _, record in fitted]
    notes, began = list(records[0].notes), time.perf_counter()
    variables = {f"network{i}": one.variables for i, one in enumerate(models)}
    location, scale = np.zeros(len(models)), np.ones(len(models))
    objective = Committee(models[0].objective, len(models))
    if isinstance(run.data, training.TrainingSet):
        (data,), _ = single.prepared([run], None)
        rows = data.indices[: int(data.size)]
        targets = np.asarray(data.semi_targets)[: int(data.size)]
        names = method.companions
        if names and not (targets == -1).any():
            names = tuple(n for n in names if n not in companions.SUPERVISED)
            notes.append("no known anomalies: no companions that learn from them")
        x, others = _flat(data.x, rows) if names else None, []
        for name in names:
            judge, variables[name] = companions.FITS[name](x, targets, run.seed)
            others.append((name, judge))
        objective = dataclasses.replace(objective, others=tuple(others))
        scores = forward.evaluate(
            objective, "raw_scores", variables, data.x, rows=rows[targets != -1]
        ).astype(np.float64)
        location, scale = np.median(scores, axis=0), scores.std(axis=0)
        scale[scale == 0] = 1.0
    variables |= {"location": np.float32(location), "scale": np.float32(scale)}
    first = models[0]
    made = model.make(
        method.method,
        *(objective, variables, first.preprocessing, first.info["shape"], first.base),
    )
    seconds = {
        name: sum(record.seconds[name] for record in records)
        for name in records[0].seconds
    }
    details = {
        **records[0].details,
        "members": [*objective.members()],
        "companions_seconds": time.perf_counter() - began,
    }
    return made, records[0]._replace(seconds=seconds, notes=notes, details=details)


def _flat(x, rows) -> np.ndarray:
    """What companions see of some examples, a block at a time."""
    blocks = np.array_split(rows, -(-len(rows) // _BLOCK))
    made = (companions.flat(np.asarray(training.as_float(x[b]))) for b in blocks)
    return np.concatenate([*made]).astype(np.float32)


def _tell_means(observe, stage, done, history):
    """Tells an observer of one run the means over its networks, stacked in front."""
    means = {name: h.reshape(-1, h.shape[-1]).mean(0) for name, h in history.items()}
    observe(stage, done, means)


class _Place:
    """The part of a keeper that holds the stages of one network."""

    def __init__(self, keeper, place):
        self._keeper, self._place = keeper, place

    def restore(self, stage, *arguments):
        return self._keeper.restore(f"{stage}-{self._place}", *arguments)

    def offer(self, stage, *arguments, last):
        self._keeper.offer(f"{stage}-{self._place}", *arguments, last=last)
