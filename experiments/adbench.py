r"""Deep SAD and its rivals by the protocol of ADBench (Han et al., NeurIPS 2022).

    python -m experiments.adbench --config.data.dir=FOLDER
    python -m experiments.adbench --config.data.dir=FOLDER --tables=cardio,glass \
        --ratios=0.05 --methods=deep_sad,boosting --no_duplicates
    python -m experiments.adbench --config=my_study.py --config.data.dir=FOLDER

The folder holds ADBench's tables, NUMBER_NAME.npz with X and y. Of the anomalies of the
training part a ratio is labeled, all others stay among the unlabeled; seeds 1, 2, 3.
Ours stand beside the published figures, with Wilcoxon's test over the tables and
average ranks. A config file of your own (a network, a loss) holds for all runs.
boosting is scikit-learn's histogram gradient boosting on the same splits. Started again
with the same --workdir, the command goes on; started several times with --processes=N,
N processes share the runs.
"""

import pathlib
import re
import shlex
import sys
import time
from typing import Any

import ml_collections
import numpy as np
from absl import flags

from configs import default
from deepsad_jax import evaluation
from deepsad_jax.report import folders
from experiments import (
    build,
    comparison,
    estimate,
    figures,
    grid,
    opponents,
    published,
    session,
    workdir,
)

flags.adopt_module_key_flags(grid)
RATIOS = flags.DEFINE_list(
    "ratios", ["0.01", "0.05", "0.1"], "Shares of the anomalies that are labeled."
)
NO_DUPLICATES = flags.DEFINE_bool(
    "no_duplicates",
    False,
    "Fills up the training part of small tables alone, so that it shares no rows with "
    "the test part, unlike ADBench.",
)

Config = ml_collections.ConfigDict
# Deep SAD as `estimators.DeepSAD` and `deepsad fit` have it, with its companions.
COMMITTEE = "deep_sad_committee"
USUAL = (COMMITTEE, "deep_sad", "isoforest", "ocsvm", "kde", "boosting")
METRICS = {"auroc": "AUCROC", "average_precision": "AUCPR"}
# What the protocol decides for each run.
_DECIDED = {"data.name", "data.protocol", "data.ratio_known_outlier", "seed", "method"}
_DECIDED |= {"data.duplicates"}  # by a flag
_TITLES = {"auroc": "AUROC", "average_precision": "Average precision"}
_THEIRS = {"deep_sad": "DeepSAD"}


def tables(folder: str, names: list[str]) -> dict[str, pathlib.Path]:
    """The files of some tables, or of all, by name.

    Raises:
        ValueError: if the folder has none of a name.
    """
    if not folder or not pathlib.Path(folder).is_dir():
        raise ValueError(
            f"config.data.dir is {folder!r}; it must be a folder of .npz files"
        )
    found = {}
    for path in sorted(pathlib.Path(folder).glob("*.npz")):
        name = re.sub(r"^\d+_", "", path.stem)
        if name in found:
            raise ValueError(
                f"{found[name].name} and {path.name} are both the table {name!r}; "
                "rename one of them"
            )
        found[name] = path
    if not found:
        raise ValueError(f"config.data.dir {folder} has no .npz file")
    for name in names:
        if name not in found:
            raise ValueError(
                f"--tables has {name!r}; {folder} has {', '.join(sorted(found))}"
            )
    return {name: found[name] for name in names} if names else found


def config_of(
    path: pathlib.Path, ratio: float, seed: int, method: str, overrides: dict[str, Any]
) -> Config:
    """The config of one run."""
    config = default.get_config()
    for stage in (config.pretrain, config.train):
        stage.learning_rate = 1e-3
    config.data.protocol, config.data.name = "adbench", str(path)
    config.data.ratio_known_outlier, config.seed = ratio, seed
    if method == COMMITTEE:
        from deepsad_jax import estimators

        method, default_of = "deep_sad", estimators.DeepSAD()
        config.members = default_of.members
        config.companions = default_of.companions
    config.update_from_flattened_dict(overrides)
    return grid.changed(config, {"method": method})


def summarize(rows: list[dict]) -> list[dict[str, Any]]:
    """For each metric and percent: means over the tables, tests, average ranks.

    Args:
        rows: of `comparison.compare`, with `metric` and `percent` as setting.
    """
    found = []
    for metric, name in METRICS.items():
        known = published.adbench(name)
        for percent in dict.fromkeys(row["setting"]["percent"] for row in rows):
            setting = {"metric": metric, "percent": percent}
            own = [row for row in rows if row["setting"] == setting]
            data = list(dict.fromkeys(row["data"] for row in own))
            columns: dict[str, list[float]] = {}
            for row in own:
                columns.setdefault(row["method"], []).append(row["mean"])
            both = [d for d in data if (percent, d) in known]
            for rival in known[percent, both[0]] if both else ():
                values = [known[percent, d].get(rival) for d in both]
                if None not in values and len(both) == len(data):
                    columns[f"{rival} (published)"] = values
            unpublished = [d for d in data if d not in both]
            more = {"tables": len(data), "unpublished": unpublished}
            found.append({**setting, **more, **_tested(columns)})
    return found


def _tested(columns) -> dict[str, Any]:
    means = {name: float(np.mean(values)) for name, values in columns.items()}
    ours = columns.get("deep_sad")
    tests, ranks, difference = {}, {}, None
    tables = len(next(iter(columns.values())))
    if ours and tables > 1:
        tests = {
            name: comparison.signed_ranks(ours, values)
            for name, values in columns.items()
            if name != "deep_sad"
        }
    if tables > 1 and len(columns) > 1:
        ranks, difference = evaluation.average_ranks(columns)
    return {
        "means": means,
        "p_value_against_deep_sad": tests,
        "average_ranks": ranks,
        "critical_difference": difference,
    }


def as_markdown(summary: list[dict]) -> str:
    """Means and ranks over the tables, a line for each method."""
    lines = []
    for one in summary:
        lines += [
            f"\n{one['metric']}, {one['percent']} % labeled, {one['tables']} tables\n",
            *_unpublished(one),
            "| method | mean | average rank | p against deep_sad |",
            "| --- | ---: | ---: | ---: |",
        ]
        for name, mean in sorted(one["means"].items(), key=lambda item: -item[1]):
            rank = one["average_ranks"].get(name)
            p = one["p_value_against_deep_sad"].get(name)
            cells = (f"{mean:.1f}", rank and f"{rank:.1f}", p and f"{p:.2g}")
            lines.append(f"| {name} | {' | '.join(cell or '' for cell in cells)} |")
    return "\n".join(lines)


def _unpublished(one: dict) -> list[str]:
    left = one.get("unpublished")
    if not left or len(left) == one["tables"]:
        return []
    return [f"Published figures lack {', '.join(left)}, so they are not here.\n"]


def _rivals(jobs: list[grid.Job]) -> None:
    """Runs the opponents that are not ours, each job once, and waits for those that
    another process runs."""
    while jobs := [job for job in jobs if not job.is_finished]:
        claimed = 0
        for job in jobs:
            content = {**job.config.to_dict(), "method": job.folder.parts[-3]}
            with workdir.claimed(job.folder, content) as is_ours:
                if is_ours and not job.is_finished:
                    claimed += 1
                    _run_rival(job, content["method"])
        if not claimed:
            time.sleep(grid.PAUSE)


def _run_rival(job, name) -> None:
    from deepsad_jax import metrics

    problem, began = build.experiment(job.config).problem, time.perf_counter()
    scores = opponents.scores(name, problem, job.config.seed)
    labels = problem.labels_test
    arrays = {"index": problem.index_test, "label": labels, "score": scores}
    workdir.write_arrays(job.folder / "scores.npz", **arrays)
    content = {
        "method": name,
        "data": job.config.data.name,
        "seed": job.config.seed,
        "auroc": metrics.auroc(labels, scores),
        "average_precision": metrics.average_precision(labels, scores),
        "train_seconds": time.perf_counter() - began,
    }
    workdir.write_json(job.folder / workdir.RESULTS, content)


def _jobs(files, methods, ratios, seeds, target, overrides) -> dict[tuple, grid.Job]:
    found = {}
    for name, path in files.items():
        for method in methods:
            ours = "isoforest" if method in opponents.NAMES else method
            for ratio in ratios:
                for seed in range(1, seeds + 1):
                    config = config_of(path, ratio, seed, ours, overrides)
                    place = target / method / f"{name}-{ratio:g}" / f"seed{seed}"
                    found[name, method, ratio, seed] = grid.Job(config, place)
    return found


def _cells(jobs: dict[tuple, grid.Job]) -> list[comparison.Cell]:
    runs: dict[tuple, list[dict]] = {}
    for (name, method, ratio, _), job in jobs.items():
        runs.setdefault((name, method, ratio), []).append(job.results())
    cells = []
    for metric, column in METRICS.items():
        known = published.adbench(column)
        for (name, method, ratio), results in runs.items():
            percent = round(100 * ratio, 6)
            percent = int(percent) if percent == int(percent) else percent
            value = known.get((percent, name), {}).get(_THEIRS.get(method, ""))
            figure = None if value is None else published.Figure(value, None, 3)
            values = [100 * result[metric] for result in results]
            setting = {"metric": metric, "percent": percent}
            cells.append(comparison.Cell(name, method, setting, values, figure))
    return cells


def _draw(target: pathlib.Path, summary: list[dict]) -> None:
    for one in summary:
        if one["average_ranks"]:
            title = f"{_TITLES[one['metric']]}, {one['percent']} % labeled"
            drawing = figures.average_ranks(
                one["average_ranks"], one["critical_difference"], title
            )
            name = f"ranks-{one['metric']}-{one['percent']}.png"
            figures.save(target / name, drawing)


def main(config: Config) -> None:
    folder, began = config.data.dir, time.time()
    files, seeds = tables(folder, grid.TABLES.value), grid.SEEDS.value or 3
    methods = grid.METHODS.value or list(USUAL)
    try:
        ratios = [float(ratio) for ratio in RATIOS.value]
    except ValueError as error:
        raise ValueError(
            f"--ratios is {','.join(RATIOS.value)}; it must be a list of numbers"
        ) from error
    usual = COMMITTEE if COMMITTEE in methods else "deep_sad"
    begun = config_of(next(iter(files.values())), ratios[0], 1, usual, {})
    overrides = grid.overrides(config, _DECIDED, begun)
    overrides["data.duplicates"] = not NO_DUPLICATES.value
    workers = session.PROCESSES.value
    content = {"overrides": overrides}
    more = {"tables": [*files], "methods": methods, "ratios": ratios}
    with workdir.locked(
        session.WORKDIR.value,
        "adbench",
        {**content, **more, "seeds": seeds},
        may_differ=(*workdir.MAY_DIFFER, *more, "seeds"),
        shared=workers > 1,
    ) as target:
        named = _jobs(*(files, methods, ratios, seeds, target, overrides))
        ours = [job for key, job in named.items() if key[1] not in opponents.NAMES]
        seconds = estimate.seconds(ours, grid.AT_ONCE.value)
        print(estimate.sentence(ours, seconds, workers), file=sys.stderr)
        grid.run(
            *(ours, target),
            at_once=grid.AT_ONCE.value,
            resume=session.RESUME.value == "auto",
            workers=workers,
            seconds=seconds,
        )
        theirs = [job for job in named.values() if job not in ours]
        _rivals(theirs)
        rows = comparison.compare(_cells(named))
        summary = summarize(rows)
        about = {
            "command": shlex.join(
                ["python", "-m", "experiments.adbench", *sys.argv[1:]]
            ),
            "seconds": time.time() - began,
            **content,
            "summary": summary,
        }
        comparison.write(target, rows, about)
        _draw(target, summary)
        folders.write(target)
    print(as_markdown(summary))
    print(f"\nwritten to {target}")


if __name__ == "__main__":
    session.start(main, every_core=True, grid=True)
