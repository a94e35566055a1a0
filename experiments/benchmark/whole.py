"""Whole experiments: one, twice as much of it, and a command of many."""

import itertools
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from deepsad_jax import methods, model, training
from experiments.benchmark import subjects


def pipeline(network: str, *, against_torch: bool, size: int = 1002) -> list[dict]:
    """A whole experiment (300 epochs, scores), after compilation."""
    stage = training.Stage(training.Adam(1e-3), epochs=150)
    data = subjects.synthetic(network, size)

    def ours():
        fitted, _ = subjects.method(network, stage).fit(jax.random.key(0), data)
        model.score(fitted, data.x)

    contest = {"ours": ours}
    if against_torch:

        def theirs():
            run = subjects.torch_run(network, data)
            run.fit(stage, stage)
            run.score(np.asarray(data.x))

        contest["torch"] = theirs
    ours()
    seconds = subjects.in_turn(contest, 3)
    row = {"network": network, "samples": size, "seconds": seconds["ours"]}
    if against_torch:
        row |= {
            "torch_seconds": seconds["torch"],
            "ratio": seconds["torch"] / seconds["ours"],
        }
    return [row]


def growth(network: str, repeats: int) -> list[dict]:
    """What twice the samples, epochs or runs cost, after compilation."""

    def seconds(samples=2048, epochs=20, runs=2):
        stage = training.Stage(training.Adam(1e-3), epochs=epochs)
        method = subjects.method(network, stage)
        chosen = [
            methods.Run(jax.random.key(i), subjects.synthetic(network, samples, i))
            for i in range(runs)
        ]
        plan = method.plan_for(chosen)

        def work():
            if plan is not None:
                method.fit_many(chosen, plan=plan)
                return
            for run in chosen:
                method.fit_many([run])

        work()
        return subjects.in_turn({"": work}, repeats)[""]

    base = seconds()
    return [
        {"network": network, "twice the": name, "ratio": seconds(**double) / base}
        for name, double in (
            ("samples", {"samples": 4096}),
            ("epochs", {"epochs": 40}),
            ("runs", {"runs": 4}),
        )
    ]


def startup(repeats: int, against: str) -> list[dict]:
    """A run on a table of a new shape as one command, nothing compiled before.

    Args:
        repeats: how often; each is timed by the wall, from start to exit.
        against: a checkout of another version, that is run in turn, or "".
    """
    rng = np.random.default_rng(0)
    y = (np.arange(700) % 10 == 0).astype(int)
    x = rng.normal(size=(700, 23)) + y[:, None]
    here = os.fspath(pathlib.Path(__file__).parents[2])
    against = against and os.path.abspath(against)
    seconds: dict[str, list[float]] = {here: []} | ({against: []} if against else {})
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/table.npz", X=x, y=y)
        for i, (place, taken) in itertools.product(range(repeats), seconds.items()):
            own = f"{folder}/{i}-{place == here}"
            # Run from where its own configs and experiments are.
            found = {"JAX_COMPILATION_CACHE_DIR": f"{own}-xla", "PYTHONPATH": place}
            command = [
                *(sys.executable, "-m", "experiments.run", f"--workdir={own}"),
                *("--config=configs/default.py", "--config.network="),
                f"--config.data.name={folder}/table.npz",
            ]
            start = time.perf_counter()
            subprocess.run(
                command,
                cwd=place,
                env=os.environ | found,
                check=True,
                capture_output=True,
            )
            taken.append(time.perf_counter() - start)
    medians = {place: float(np.median(taken)) for place, taken in seconds.items()}
    row = {"rows": 700, "columns": 23, "seconds": medians[here]}
    if against:
        row |= {"against": medians[against], "ratio": medians[against] / medians[here]}
    return [row]


def tables(data_dir: str, seeds: int, *, against_torch: bool) -> list[dict]:
    """Six tables by some seeds as one command, nothing compiled before.

    PyTorch trains seeds one after the other: one of each table is timed, times `seeds`.
    """
    from deepsad_jax.data import sources

    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{folder}/xla"}
        command = [
            *(sys.executable, "-m", "experiments.sweep", "--config=configs/odds.py"),
            f"--tables={','.join(sources.ODDS)}",
            f"--seeds={seeds}",
            f"--config.data.dir={os.path.abspath(data_dir)}",
            f"--workdir={folder}/sweep",
        ]
        start = time.perf_counter()
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
    row = {"tables": len(sources.ODDS), "seeds": seeds, "seconds": seconds}
    if against_torch:
        start = time.perf_counter()
        for table in sources.ODDS:
            _torch_table(table, data_dir)
        row["torch_seconds"] = seeds * (time.perf_counter() - start)
        row["ratio"] = row["torch_seconds"] / seconds
    return [row]


def _torch_table(table, data_dir) -> None:
    from configs import odds
    from experiments import build

    config = odds.get_config(table)
    config.data.dir = data_dir
    made = build.experiment(config)
    problem, options = made.problem, made.options
    x = problem.preprocessing(problem.x_train[problem.indices])
    run = subjects.torch_run(config.network, made.run.data._replace(x=x))
    run.fit(options.pretrain, options.train)
    run.score(problem.preprocessing(problem.x_test))
