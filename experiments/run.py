"""Trains and evaluates one anomaly detector.

    python -m experiments.run                                    # embedded digits
    python -m experiments.run --config=configs/odds.py:cardio --workdir=runs/cardio
    python -m experiments.run --config=configs/mnist.py --config.data.normal_class=3 \
        --config.data.dir=DATA --config.train.epochs=50

Results go to the working directory: config.json, metrics.jsonl (losses of each epoch),
results.json (AUROC, average precision, times, versions), scores.npz (index, label,
score of each test example), model (the trained network) and pictures.
"""

import contextlib
import pathlib

import jax
import ml_collections
from absl import flags

from deepsad_jax.data import scenario, sources
from experiments import (
    cli,
    methods,
    progress,
    report,
    resuming,
    settings,
    workdir,
)

flags.adopt_module_key_flags(cli)


def run(config: ml_collections.ConfigDict, folder: str, *, resume: bool = True) -> dict:
    """Runs the experiment that a config describes and writes it to a folder.

    Of several processes, only the first writes; those do not save checkpoints.

    Args:
        config: the experiment.
        folder: the working directory, or "" for a new one.
        resume: whether to go on with an unfinished run there, or to refuse it.

    Returns:
        The content of results.json.
    """
    method = methods.of(config)
    settings.check(config)
    source = sources.load(config.data.name, config.data.dir or None)
    problem = scenario.make(source, settings.protocol(config), config.seed)
    method.check(problem, config)
    if jax.process_index() > 0:
        (outcome,) = method.run([problem], [config])
        return report.results(config, problem, outcome)
    hybrid = "-hybrid" if config.hybrid else ""
    label = f"{pathlib.Path(config.data.name).stem}-{config.method}{hybrid}"
    target = workdir.prepare(folder, label, config.to_dict(), resume=resume)
    metrics = target / "metrics.jsonl"
    with (
        contextlib.closing(progress.OneRun(metrics, method.stages(config))) as bars,
        resuming.keepers([config], [target], target) as keepers,
    ):
        (outcome,) = method.run([problem], [config], bars, keepers)
    figures = report.results(config, problem, outcome)
    report.write(target, problem, outcome, figures)
    print(report.summary(figures, target))
    return figures


def main(config: ml_collections.ConfigDict) -> None:
    run(config, cli.WORKDIR.value, resume=cli.RESUME.value == "auto")


if __name__ == "__main__":
    cli.start(main)
