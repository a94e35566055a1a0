r"""Trains and evaluates one anomaly detector.

    python -m experiments.run                                    # embedded digits
    python -m experiments.run --config=configs/odds.py:cardio --workdir=runs/cardio
    python -m experiments.run --config=configs/mnist.py --config.data.normal_class=3 \
        --config.data.dir=DATA --config.train.epochs=50

Results go to the working directory: config.json, data.json (a digest of the data),
metrics.jsonl (losses of each epoch), results.json (AUROC, average precision, times,
versions), scores.npz (index, label, score of each test example), model (the trained
network) and pictures.
"""

import contextlib
import functools
import pathlib
from typing import TYPE_CHECKING

from absl import flags

from experiments import session, workdir

if TYPE_CHECKING:
    import ml_collections

flags.adopt_module_key_flags(session)


def run(
    config: "ml_collections.ConfigDict", folder: str, *, resume: bool = True
) -> dict:
    """Runs the experiment that a config describes and writes it to a folder.

    Of several processes, only the first writes, and the folder is its own.

    Args:
        config: the experiment.
        folder: the working directory, or "" for a new one.
        resume: whether to go on with an unfinished run there, or to refuse it.

    Returns:
        The content of results.json.
    """
    import jax

    from deepsad_jax import checkpoints
    from experiments import build, report

    made = build.experiment(config)
    fit = functools.partial(made.options.fit_many, [made.run], plan=made.plan)
    if jax.process_index() > 0:
        (fitted,) = fit(keeper=checkpoints.Shared(None))
        return report.outcome(made, *fitted).figures
    session.warm_imports()
    hybrid = "-hybrid" if config.hybrid else ""
    label = f"{pathlib.Path(config.data.name).stem}-{config.method}{hybrid}"
    with workdir.locked(folder, label, config.to_dict(), resume=resume) as target:
        workdir.note_data(target, config.data.name, build.data_digest(config))
        bars = session.OneRun(target / "metrics.jsonl", made.options.stages())
        with (
            contextlib.closing(bars),
            session.keepers([config], [target], target) as keepers,
        ):
            (fitted,) = fit(observe=bars, keeper=keepers[0])
        found = report.outcome(made, *fitted)
        report.write(target, made, found)
    print(report.summary(found.figures, target))
    return found.figures


def main(config: "ml_collections.ConfigDict") -> None:
    run(config, session.WORKDIR.value, resume=session.RESUME.value == "auto")


if __name__ == "__main__":
    session.start(main)
