"""Runs an experiment for many seeds, classes, ratios and tables: the paper's grids.

    python -m experiments.sweep --config=configs/odds.py:cardio --seeds=10
    python -m experiments.sweep --config=configs/odds.py --seeds=10 \\
        --tables=arrhythmia,cardio,satellite,satimage-2,shuttle,thyroid
    python -m experiments.sweep --config=configs/mnist.py --normal_classes=0,1,2 \\
        --known_outlier_classes=all --ratios_known_outlier=0,0.01,0.05

Each run leaves in its folder what experiments.run would leave, pictures on request;
runs that are finished already are not done again. A table of means and standard
deviations over the seeds is printed and written to summary.json.
"""

import contextlib
import itertools
import pathlib

import ml_collections
import numpy as np
from absl import flags

from deepsad_jax.data import sources
from experiments import build, report, session, workdir

flags.adopt_module_key_flags(session)
SEEDS = flags.DEFINE_integer("seeds", 5, "Seeds 0, 1, ... this many.", 1)
TABLES = flags.DEFINE_list("tables", [], "ODDS tables, instead of the config's.")
NORMAL_CLASSES = flags.DEFINE_list("normal_classes", [], "Normal classes, or all.")
KNOWN_OUTLIER_CLASSES = flags.DEFINE_list(
    "known_outlier_classes", [], "Classes of the labelled anomalies, or all."
)
_RATIOS = {
    name: flags.DEFINE_list(f"ratios_{name}", [], f"Values of data.ratio_{name}.")
    for name in ("known_normal", "known_outlier", "pollution")
}
PICTURES = flags.DEFINE_bool("pictures", False, "Whether each run leaves pictures.")
AT_ONCE = flags.DEFINE_integer(
    "at_once", 100, "Most runs in one program, where they share one; for memory.", 1
)

Config = ml_collections.ConfigDict


def expand(config: Config, grid: dict[str, list], seeds: int) -> list[Config]:
    """All combinations of a grid of config fields and seeds, as configs of one run.

    Args:
        config: what they share.
        grid: field names, such as "data.normal_class", to their values.
        seeds: number of seeds, from 0.

    Returns:
        Configs; those whose known anomalies would be of the normal class are left out.
    """
    configs = []
    for values in itertools.product(*grid.values(), range(seeds)):
        single = config.copy_and_resolve_references()
        changes = dict(zip((*grid, "seed"), values, strict=True))
        single.update_from_flattened_dict(changes)
        if "data.name" in changes:
            single.network = single.network and f"{single.data.name}_mlp"
        pair = (single.data.normal_class, single.data.known_outlier_class)
        if pair[0] != pair[1] or single.data.n_known_outlier_classes != 1:
            configs.append(single)
    return configs


def setting(config: Config) -> str:
    """A name for all that a run does not share with the runs of other settings."""
    data = config.data
    parts = [pathlib.Path(data.name).stem, f"normal{data.normal_class}"]
    if data.n_known_outlier_classes == 1:
        parts.append(f"known{data.known_outlier_class}")
    else:
        parts.append(f"known{data.n_known_outlier_classes}classes")
    ratios = (data.ratio_known_normal, data.ratio_known_outlier, data.ratio_pollution)
    return "-".join([*parts, "ratios" + "_".join(f"{ratio:g}" for ratio in ratios)])


def sweep(
    configs: list[Config],
    folder: str,
    *,
    at_once: int = 100,
    draw: bool = False,
    resume: bool = True,
) -> list[dict]:
    """Runs all configs that are not finished in the folder.

    Args:
        configs: the experiments, from `expand`.
        folder: the working directory of the sweep.
        at_once: most runs in one program.
        draw: whether each run leaves pictures.
        resume: whether to go on with unfinished runs, or to refuse them.

    Returns:
        The results of all of them, in their order.
    """
    for config in configs:
        build.check(config)
    target = pathlib.Path(folder)
    folders = [target / setting(c) / f"seed{c.seed}" for c in configs]
    waiting = [
        (config, path)
        for config, path in zip(configs, folders, strict=True)
        if not _is_finished(config, path, resume)
    ]
    groups = [
        list(group) for _, group in itertools.groupby(waiting, lambda w: w[0].data.name)
    ]
    steps = sum(
        len(group) * sum(build.experiment(group[0][0]).options.stages().values())
        for group in groups
    )
    bars = session.ManyRuns(steps)
    with contextlib.closing(bars):
        for group in groups:
            for start in range(0, len(group), at_once):
                _run_group(group[start : start + at_once], target, bars, draw)
    return [workdir.read_json(path / workdir.RESULTS) for path in folders]


def _is_finished(config: Config, path: pathlib.Path, resume: bool) -> bool:
    finished = (path / workdir.RESULTS).exists()
    if finished:
        workdir.check_same(path, config.to_dict())
    else:
        workdir.check_unfinished(path, config.to_dict(), resume)
    if (path / workdir.DATA).exists():
        workdir.check_data(path, config.data.name, build.data_digest(config))
    return finished


def _run_group(group, target, bars: session.ManyRuns, draw: bool) -> None:
    """Runs what shares data and hyper-parameters, and writes each run's folder.

    The runs share one compiled program wherever that is the fastest; elsewhere each is
    written as soon as it is finished.
    """
    configs, paths = [config for config, _ in group], [path for _, path in group]
    made = [build.experiment(config) for config in configs]
    method, runs = made[0].options, [each.run for each in made]
    plan = method.plan_for(runs) if made[0].plan.devices == 1 else None
    for config, path in zip(configs, paths, strict=True):
        workdir.prepare(str(path), "", config.to_dict())
        workdir.note_data(path, config.data.name, build.data_digest(config))
    bars.starts(len(group))
    with session.keepers(configs, paths, target) as keepers:
        if plan is not None:
            fitted = method.fit_many(runs, plan=plan, observe=bars)
            for path, each, one in zip(paths, made, fitted, strict=True):
                report.finish(path, each, one, draw=draw)
            return
        for i, (path, each) in enumerate(zip(paths, made, strict=True)):
            keeper = keepers[i] if keepers else None
            (one,) = each.options.fit_many(
                [runs[i]], plan=each.plan, observe=bars, keeper=keeper
            )
            report.finish(path, each, one, draw=draw)
            if keeper is not None:
                keeper.discard()


def summarize(configs: list[Config], results: list[dict]) -> list[dict]:
    """Mean and standard deviation (over the runs, not their mean's) per setting."""
    rows = {}
    for config, result in zip(configs, results, strict=True):
        rows.setdefault(setting(config), []).append(result)
    return [
        {
            "setting": name,
            "runs": len(group),
            **{
                f"{key}_{label}": float(function([r[key] for r in group]))
                for key in ("auroc", "average_precision", "ae_auroc")
                if all(r.get(key) is not None for r in group)
                for label, function in (("mean", np.mean), ("std", np.std))
            },
        }
        for name, group in rows.items()
    ]


def table(rows: list[dict]) -> str:
    """The summary as lines for the terminal, in per cent."""
    width = max(len(row["setting"]) for row in rows)
    lines = [
        f"{'setting':{width}}  runs  AUROC            average precision  autoencoder"
    ]
    for row in rows:
        cells = []
        for key in ("auroc", "average_precision", "ae_auroc"):
            mean, std = (row.get(f"{key}_{label}") for label in ("mean", "std"))
            cells.append(
                "-" if mean is None else f"{100 * mean:6.2f} +- {100 * std:5.2f}"
            )
        lines.append(
            f"{row['setting']:{width}}  {row['runs']:4d}  "
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


def main(config: Config) -> None:
    grid = {}
    if TABLES.value:
        grid["data.name"] = TABLES.value
    for field, flag in (
        ("data.normal_class", NORMAL_CLASSES),
        ("data.known_outlier_class", KNOWN_OUTLIER_CLASSES),
    ):
        if flag.value:
            is_all = flag.value == ["all"]
            grid[field] = list(range(10)) if is_all else _numbers(flag, int)
    for name, flag in _RATIOS.items():
        if flag.value:
            grid[f"data.ratio_{name}"] = _numbers(flag, float)
    if config.load_model:
        raise ValueError("a sweep trains its models: config.load_model must be empty")
    for name in TABLES.value:
        if name not in sources.ODDS:
            raise ValueError(
                f"--tables has {name!r}; the tables are {', '.join(sources.ODDS)}"
            )
    configs = expand(config, grid, SEEDS.value)
    if not configs:
        raise ValueError(
            "in every combination the known anomalies are of the normal class"
        )
    build.experiment(configs[0])  # what is wrong is found before a folder is made
    content = {**config.to_dict(), "grid": grid, "seeds": SEEDS.value}
    may_differ = (*workdir.MAY_DIFFER, "seeds")
    label = f"sweep-{config.method}"
    with workdir.locked(
        session.WORKDIR.value, label, content, may_differ=may_differ
    ) as target:
        results = sweep(
            configs,
            str(target),
            at_once=AT_ONCE.value,
            draw=PICTURES.value,
            resume=session.RESUME.value == "auto",
        )
        rows = summarize(configs, results)
        workdir.write_json(target / "summary.json", rows)
    print(table(rows))
    print(f"written to {target}")


if __name__ == "__main__":
    session.start(main, every_core=True)  # so that runs can share them
