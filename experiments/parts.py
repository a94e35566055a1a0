"""What each part of a committee is worth, of runs that are finished.

    python -m experiments.adbench --workdir=runs/adbench --config.data.dir=FOLDER
    python -m experiments.parts runs/adbench/deep_sad_committee

Prints, for each ratio of labels (and of pollution), means over the data of AUROC and
average precision: of the whole, of each part alone, and of the whole without it, as
Markdown. `network0` is the first network, which is Deep SAD as in the paper. Takes the
runs of a sweep as well.
"""

import pathlib
import sys
from collections.abc import Iterator

import numpy as np

from configs import saved
from deepsad_jax import metrics, model
from deepsad_jax.detectors import committee
from experiments import build, workdir

_MEASURES = (metrics.auroc, metrics.average_precision)


def measured(
    folder: pathlib.Path,
) -> Iterator[tuple[tuple[float, float], str, dict[str, np.ndarray]]]:
    """Of each run below a folder the ratios of labels and of pollution, the data with
    its normal class, and figures of what can be said.

    Raises:
        FileNotFoundError: if there is no finished run of a committee.
    """
    none = True
    for path in sorted(folder.glob(f"**/{workdir.RESULTS}")):
        fitted = model.load(path.parent / "model")
        if not isinstance(fitted.objective, committee.Committee):
            continue
        none = False
        config = saved.get_config(str(path.with_name(workdir.CONFIG)))
        problem = build.experiment(config).problem
        said = committee.opinions(fitted, problem.x_test)
        whole = sum(said.values())
        first = committee.networks_of(fitted)[0]
        alone = np.asarray(model.score(first, problem.x_test))
        found = {"all": whole, "network0": alone, **said}
        found |= {f"without {name}": whole - one for name, one in said.items()}
        labels = problem.labels_test
        data = config.data
        yield (
            (data.ratio_known_outlier, data.ratio_pollution),
            f"{data.name} {data.normal_class}",
            {
                name: np.array([100 * of(labels, scores) for of in _MEASURES])
                for name, scores in found.items()
            },
        )
    if none:
        raise FileNotFoundError(f"{folder} holds no finished run of a committee")


def as_markdown(folder: pathlib.Path) -> str:
    """The table: a line for each part, two columns for each ratio."""
    by_data: dict[tuple[float, float], dict[str, list]] = {}
    for ratios, data, figures in measured(folder):
        by_data.setdefault(ratios, {}).setdefault(data, []).append(figures)
    settings = sorted(by_data)
    means = {}
    for ratios, tables in by_data.items():
        for name in next(iter(tables.values()))[0]:
            each = [np.mean([one[name] for one in runs], 0) for runs in tables.values()]
            means[ratios, name] = np.mean(each, axis=0)
    titles = (f"{_said(*ratios)}: AUROC | AP" for ratios in settings)
    lines = [
        f"| part | {' | '.join(titles)} |",
        "| --- |" + " ---: | ---: |" * len(settings),
    ]
    for name in dict.fromkeys(name for _, name in means):
        cells = [f"{v:.1f}" for r in settings for v in means[r, name]]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _said(known, pollution) -> str:
    polluted = f", {100 * pollution:g} % polluted" if pollution else ""
    return f"{100 * known:g} %{polluted}"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("which folder of finished runs?")
    try:
        print(as_markdown(pathlib.Path(sys.argv[1])))
    except FileNotFoundError as error:
        sys.exit(str(error))
