"""How long a grid will take, found out by short runs of each of its methods."""

import dataclasses
import time
import warnings
from collections.abc import Callable, Sequence

import numpy as np

from experiments import build, grid

_FEW = 1000  # rows of a trial of a method without epochs


def seconds(
    jobs: Sequence[grid.Job], at_once: int = 100
) -> Callable[[grid.Job], float]:
    """Seconds that each unfinished job is thought to take, compilation not included.

    Each method is tried once for all tables, and for each set of images: networks for
    an epoch of each stage once their programs, which the runs then use, are compiled;
    others on some of the rows. The time of networks is taken to grow with the number of
    their steps, that of others with the square of the number of rows.
    """
    families: dict[str, list[grid.Job]] = {}
    for job in jobs:
        if not job.is_finished:
            families.setdefault(grid.family(job.config), []).append(job)
    rates, found = {}, {}
    for name, group in families.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = build.experiment(group[0].config)
            is_table = made.problem.x_train.ndim == 2
            kind = grid.method_of(made.config), is_table or made.config.data.name
            if kind not in rates:
                rates[kind] = _tried(group[:at_once]) / _work(made)
        found[name] = max(rates[kind] * _work(made), 1e-3)
    return lambda job: found.get(grid.family(job.config), 0.0)


def _network(options):
    """The options of what is trained by steps, or None."""
    options = getattr(options, "autoencoder", options)  # of a hybrid
    return options if hasattr(options, "trained") else None


def _work(made) -> float:
    """What the time of a run is taken to grow with."""
    size, options = len(made.run.data.indices), _network(made.options)
    if options is None:
        return float(size) ** 2
    stages = options.trained().values()
    return max(1.0, sum(s.epochs * (size // s.batch_size) for s in stages))


def _tried(jobs: list[grid.Job]) -> float:
    """Seconds of one of some jobs of a family."""
    first = build.experiment(jobs[0].config)
    options = _network(first.options)
    if options is None:
        return _of_rows(first)
    runs, plan = [first.run], None
    if len(jobs) > 1 and first.plan.devices == 1:
        more = [build.experiment(job.config).run for job in jobs[1:]]
        plan = first.options.plan_for(runs + more)
    runs = runs + more if plan is not None else runs
    return _of_network(options, runs, plan or first.plan)


def _of_network(options, runs, plan) -> float:
    stages = options.trained()
    epochs = sum(stage.epochs for stage in stages.values())
    short = {n: dataclasses.replace(stage, epochs=1) for n, stage in stages.items()}
    trial = dataclasses.replace(options, **short)
    trial.fit_many(runs, plan=plan)  # compiles
    began = time.perf_counter()
    trial.fit_many(runs, plan=plan)
    taken = time.perf_counter() - began
    return taken / len(runs) * epochs / max(1, len(short))


def _of_rows(made) -> float:
    run = made.run
    size = len(run.data.indices)
    rows = np.random.default_rng(0).permutation(size)[:_FEW]
    rows = np.unique(np.r_[rows, np.flatnonzero(run.data.semi_targets == -1)])
    data = run.data._replace(
        indices=run.data.indices[rows],
        semi_targets=run.data.semi_targets[rows],
        size=np.int32(len(rows)),
    )
    trial = run._replace(data=data)
    made.options.fit_many([trial])  # compiles
    began = time.perf_counter()
    made.options.fit_many([trial])
    return (time.perf_counter() - began) * (size / len(rows)) ** 2


def sentence(
    jobs: Sequence[grid.Job], of: Callable[[grid.Job], float], workers: int = 1
) -> str:
    """What is to be done, and how long it may take."""
    waiting = [job for job in jobs if not job.is_finished]
    total: dict[str, float] = {}
    for job in waiting:
        method = grid.method_of(job.config)
        total[method] = total.get(method, 0.0) + of(job) / workers
    parts = ", ".join(f"{name} {_span(value)}" for name, value in total.items())
    whole = _span(sum(total.values()))
    if not waiting:
        return f"all {len(jobs)} runs are finished already"
    done = len(jobs) - len(waiting)
    more = f" ({done} more are finished already)" if done else ""
    return f"{len(waiting)} runs{more}, about {whole} on this machine: {parts}"


def _span(value: float) -> str:
    if value < 90:
        return f"{max(1, round(value))} s"
    if value < 5400:
        return f"{round(value / 60)} min"
    return f"{value / 3600:.1f} h"
