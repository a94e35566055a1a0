r"""Runs an experiment for many methods, seeds, classes, ratios and tables.

    python -m experiments.sweep --config=configs/odds.py:cardio --seeds=10
    python -m experiments.sweep --config=configs/odds.py --seeds=10 \
        --tables=arrhythmia,cardio,satellite,satimage-2,shuttle,thyroid
    python -m experiments.sweep --config=configs/mnist.py --normal_classes=all \
        --known_outlier_classes=all --methods=deep_sad,ssad_hybrid

Each run leaves in its folder what experiments.run would leave, pictures on request;
runs that are finished already are not done again. A table of means and standard
deviations over the seeds, and over the classes where there are several, is printed and
written to summary.json; report.html and a picture compare. Started several times in one
folder with --processes=N, N processes share the runs.
"""

import pathlib

import ml_collections
import numpy as np
from absl import flags, logging

from deepsad_jax.data import sources
from deepsad_jax.report import folders
from experiments import build, figures, grid, session, workdir

flags.adopt_module_key_flags(grid)
NORMAL_CLASSES = flags.DEFINE_list("normal_classes", [], "Normal classes, or all.")
KNOWN_OUTLIER_CLASSES = flags.DEFINE_list(
    "known_outlier_classes", [], "Classes of the labeled anomalies, or all."
)
_RATIOS = {
    name: flags.DEFINE_list(f"ratios_{name}", [], f"Values of data.ratio_{name}.")
    for name in ("known_normal", "known_outlier", "pollution")
}
PICTURES = flags.DEFINE_bool("pictures", False, "Whether each run leaves pictures.")

Config = ml_collections.ConfigDict
_METRICS = ("auroc", "average_precision", "ae_auroc")
# One name for what a sweep consists of.
expand, setting = grid.expand, grid.setting


def sweep(configs: list[Config], folder: str, **options) -> list[dict]:
    """Runs all configs that are not finished in the folder.

    Args:
        configs: the experiments, from `expand`.
        folder: the working directory of the sweep.
        **options: those of `grid.run`.

    Returns:
        The results of all of them, in their order.
    """
    target = pathlib.Path(folder)
    several = len({grid.method_of(config) for config in configs}) > 1
    jobs = []
    for config in configs:
        place = target / grid.method_of(config) if several else target
        jobs.append(grid.Job(config, place / setting(config) / f"seed{config.seed}"))
    return grid.run(jobs, target, **options)


def summarize(configs: list[Config], results: list[dict]) -> list[dict]:
    """Mean and standard deviation (over the runs, not their mean's) per setting.

    Where there are several classes, a row over all of them follows.
    """
    rows, overall = {}, {}
    for config, result in zip(configs, results, strict=True):
        method, name = grid.method_of(config), setting(config)
        rows.setdefault((method, name), []).append(result)
        name = f"{pathlib.Path(config.data.name).stem}-all-{grid.ratios(config)}"
        overall.setdefault((method, name), {}).setdefault(setting(config), []).append(
            result
        )
    for key, parts in overall.items():
        if len(parts) > 1:
            rows[key] = [result for part in parts.values() for result in part]
    return [_row(*key, group) for key, group in rows.items()]


def _row(method: str, name: str, group: list[dict]) -> dict:
    means = {
        f"{key}_{label}": float(function([r[key] for r in group]))
        for key in _METRICS
        if all(r.get(key) is not None for r in group)
        for label, function in (("mean", np.mean), ("std", np.std))
    }
    return {"method": method, "setting": name, "runs": len(group), **means}


def table(rows: list[dict]) -> str:
    """The summary as lines for the terminal, in percent."""
    names = [f"{row['method']} {row['setting']}" for row in rows]
    width = max(map(len, names))
    lines = [
        f"{'method, setting':{width}}  runs  AUROC            average precision  "
        "autoencoder"
    ]
    for name, row in zip(names, rows, strict=True):
        cells = []
        for key in _METRICS:
            mean, std = (row.get(f"{key}_{label}") for label in ("mean", "std"))
            cells.append(
                "-" if mean is None else f"{100 * mean:6.2f} +- {100 * std:5.2f}"
            )
        lines.append(
            f"{name:{width}}  {row['runs']:4d}  "
            f"{cells[0]:15s}  {cells[1]:17s}  {cells[2]}"
        )
    return "\n".join(lines)


def _numbers(flag: flags.FlagHolder, kind: type) -> list:
    try:
        return [kind(value) for value in flag.value]
    except ValueError as error:
        raise ValueError(
            f"--{flag.name} is {','.join(flag.value)}; it must be a list of numbers, "
            "such as 0,1"
        ) from error


def _grid() -> dict[str, list]:
    """What the flags ask for."""
    found = {}
    if grid.METHODS.value:
        found["method"] = grid.METHODS.value
    if grid.TABLES.value:
        found["data.name"] = grid.TABLES.value
    for field, flag in (
        ("data.normal_class", NORMAL_CLASSES),
        ("data.known_outlier_class", KNOWN_OUTLIER_CLASSES),
    ):
        if flag.value:
            is_all = flag.value == ["all"]
            found[field] = list(range(10)) if is_all else _numbers(flag, int)
    for name, flag in _RATIOS.items():
        if flag.value:
            found[f"data.ratio_{name}"] = _numbers(flag, float)
    found = {name: list(dict.fromkeys(values)) for name, values in found.items()}
    for name in grid.TABLES.value:
        if name not in sources.ODDS:
            raise ValueError(
                f"--tables has {name!r}; the tables are {', '.join(sources.ODDS)}"
            )
    return found


def left_out(config: Config, values: dict[str, list], configs: list[Config]) -> str:
    """A sentence on normal classes of which a grid has no run; empty if it has all."""
    asked = values.get("data.normal_class", [config.data.normal_class])
    missing = sorted({*asked} - {single.data.normal_class for single in configs})
    if not missing:
        return ""
    return (
        f"normal class {', '.join(map(str, missing))} is left out: the known anomalies "
        "are of that class, too; name others by --known_outlier_classes, or take all"
    )


def main(config: Config) -> None:
    values = _grid()
    if config.load_model:
        raise ValueError("a sweep trains its models: config.load_model must be empty")
    seeds = grid.SEEDS.value or 5
    configs = expand(config, values, seeds)
    if not configs:
        raise ValueError(
            "in every combination the known anomalies are of the normal class"
        )
    if missing := left_out(config, values, configs):
        logging.warning("%s", missing)
    # What is wrong is found before a folder is made.
    for first in {grid.method_of(single): single for single in configs}.values():
        build.experiment(first)
        build.check_applies(first, values)
    content = {**config.to_dict(), "grid": values, "seeds": seeds}
    may_differ = (*workdir.MAY_DIFFER, "seeds")
    label = f"sweep-{'_'.join(grid.METHODS.value) or config.method}"
    workers = session.PROCESSES.value
    with workdir.locked(
        session.WORKDIR.value,
        label,
        content,
        may_differ=may_differ,
        shared=workers > 1,
    ) as target:
        results = sweep(
            configs,
            str(target),
            at_once=grid.AT_ONCE.value,
            draw=PICTURES.value,
            resume=session.RESUME.value == "auto",
            workers=workers,
        )
        rows = summarize(configs, results)
        workdir.write_json(target / "summary.json", rows)
        if len(rows) > 1:
            figures.save(target / "comparison.png", figures.means(rows))
        folders.write(target)
    print(table(rows))
    print(f"written to {target}")


if __name__ == "__main__":
    session.start(main, every_core=True, grid=True)  # so that runs can share them
