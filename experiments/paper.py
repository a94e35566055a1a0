r"""Reproduces the tables of Deep SAD's paper (Ruff et al., ICLR 2020), cell by cell.

    python -m experiments.paper --table=odds
    python -m experiments.paper --table=ratio --data=mnist --budget=quick \
        --methods=deep_sad,ocsvm --config.data.dir=DATA
    python -m experiments.paper --table=ratio --data=mnist --config=my_study.py

Tables: ratio (of labeled anomalies, Table 3), pollution (Table 4), classes (number of
known anomalous classes, Table 5) and odds (Table 6); figures eta and rep_dim (5 and 6).
A config file of your own (a network, a loss) holds for all runs. Every run leaves its
folder; comparison.json, .csv, .md, .tex and pictures set ours beside the published
figures. Started again with the same --workdir, the command goes on with what is not
finished. Started several times in one folder with --processes=N, N processes share the
runs.
"""

import itertools
import pathlib
import shlex
import sys
import time
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from absl import flags

from configs import default
from deepsad_jax.data import sources
from deepsad_jax.report import folders
from experiments import comparison, estimate, figures, grid, published, session, workdir

flags.adopt_module_key_flags(grid)
TABLES = ("ratio", "pollution", "classes", "odds", "eta", "rep_dim")
TABLE = flags.DEFINE_enum("table", "odds", TABLES, "What to reproduce.")
DATA = flags.DEFINE_list("data", [], "Data sets; all of the table by default.")
BUDGET = flags.DEFINE_enum(
    "budget",
    "full",
    ["full", "quick"],
    "The paper's protocol, or for images one known class for each normal class (one "
    "seed for the classes), 5 epochs of pretraining and 15 of training.",
)
SETTINGS = flags.DEFINE_enum(
    "settings",
    "code",
    ["code", "paper"],
    "Hyper-parameters of the published code, or those of the paper's text.",
)

Config = ml_collections.ConfigDict
IMAGES = ("mnist", "fmnist", "cifar10")
# Methods, and what the paper reports the best of.
_NUS = (0.01, 0.05, 0.1, 0.2, 0.5)
_OCSVM = [{"ocsvm.nu": nu, "selection": "test_auc"} for nu in _NUS]
_SSAD = [{"selection": "test_auc"}]
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "ocsvm": _OCSVM,
    "ocsvm_hybrid": _OCSVM,
    "isoforest": [{}],
    "isoforest_hybrid": [{}],
    "kde": [{}],
    "kde_hybrid": [{}],
    "autoencoder": [{}],
    "deep_svdd": [
        {"train.loss": "one_class"},
        {"train.loss": "soft_boundary", "train.nu": 0.01},
        {"train.loss": "soft_boundary", "train.nu": 0.1},
    ],
    "ssad": _SSAD,
    "ssad_hybrid": _SSAD,
    "m2": [{"method": "m2"}, {"method": "m1_m2"}],
    "deep_sad": [{}],
    "supervised": [{}],
}
# What the tables decide for each run.
_DECIDED = {"data.name", "seed", "method", "hybrid", "data.normal_class"}
_DECIDED |= {"data.known_outlier_class", "data.n_known_outlier_classes"}
_DECIDED |= {"data.ratio_known_outlier", "data.ratio_pollution"}
_UNLABELED = ("ocsvm", "isoforest", "kde", "autoencoder", "deep_svdd")
_NEED_LABELS = ("m2", "supervised")
_NOT_ON_TABLES = ("isoforest", "kde")
_RATIOS, _ETAS = (0.0, 0.01, 0.05, 0.1, 0.2), (0.01, 0.1, 1.0, 10.0, 100.0)
_CLASSES, _WIDTHS = (0, 1, 2, 3, 5), (16, 32, 64, 128, 256, 512)


class Entry(NamedTuple):
    """One cell, and the jobs that fill it.

    Attributes:
        data, method, setting: as in `comparison.Cell`.
        variants: the jobs of each variant, of which the best mean counts.
    """

    data: str
    method: str
    setting: dict[str, float]
    variants: dict[str, list[grid.Job]]


def base(data: str, settings: str, budget: str) -> Config:
    """The config that all runs on a data set share.

    Args:
        data: mnist, fmnist, cifar10 or an ODDS table.
        settings: code or paper; the paper's text has batches of 200, the learning rate
            drop in both stages, weight decay 1e-6, slope 0.1, a center without known
            anomalies, and tables that are standardized alone.
        budget: full or quick.
    """
    config = default.get_config()
    config.data.name = data
    is_table = data not in IMAGES
    config.network = f"{data}_mlp" if is_table else f"{data}_LeNet"
    stages = (config.pretrain, config.train)
    if is_table and settings == "code":
        for stage in stages:
            stage.learning_rate = 1e-3
    if settings == "paper":
        config.slope, config.center = 0.1, "without_anomalies"
        for stage in stages:
            stage.batch_size, stage.weight_decay = 200, 1e-6
            stage.learning_rate, stage.milestones = 1e-4, (50,)
        if is_table:
            config.data.scaling = "standard"
    if budget == "quick" and not is_table:
        config.pretrain.epochs, config.pretrain.milestones = 5, (3,)
        config.train.epochs, config.train.milestones = 15, (5,)
    return config


def settings_of(table: str) -> list[dict[str, float]]:
    """The settings of a table: what `comparison.Cell` tells cells apart by."""
    if table == "odds":
        return [{}]
    values = {"ratio": _RATIOS, "pollution": _RATIOS, "classes": _CLASSES}
    values |= {"eta": _ETAS, "rep_dim": _WIDTHS}
    return [{table: value} for value in values[table]]


def fields(table: str, value: float, method: str) -> dict[str, Any] | None:
    """The config fields of a setting; None where the paper has no such cell."""
    known, pollution, classes, more = 0.05, 0.1, 1, {}
    if table == "odds":
        known, pollution = 0.01, 0.0
    elif table == "ratio":
        known, pollution = value, 0.0
    elif table == "pollution":
        pollution = value
    elif table == "classes":
        classes = int(value)
        known = known if classes else 0.0
    elif table == "eta":
        more = {"eta": value}
    else:
        more = {"rep_dim": int(value)}
    name = method.removesuffix("_hybrid")
    if name in _UNLABELED:
        # Without labels, the columns of these tables are one.
        if table in ("ratio", "classes") and value > 0:
            return None
        known = 0.0
    if known == 0 and name in _NEED_LABELS:
        return None
    return {
        "data.ratio_known_outlier": known,
        "data.ratio_pollution": pollution,
        "data.n_known_outlier_classes": classes,
        **more,
    }


def scenarios(table: str, budget: str, seeds: int) -> list[dict[str, int]]:
    """The experiments behind each cell: classes and seed.

    The paper's 90 pairs of a normal and a known class, one seed each; for odds and
    classes some seeds.
    """
    if table == "odds":
        return [{"seed": seed} for seed in range(seeds)]
    if table == "classes":
        seeds = 1 if budget == "quick" else seeds
        return [
            {"data.normal_class": normal, "seed": seed}
            for normal, seed in itertools.product(range(10), range(seeds))
        ]
    pairs = itertools.permutations(range(10), 2)
    if budget == "quick":
        pairs = ((normal, (normal + 1) % 10) for normal in range(10))
    return [
        {"data.normal_class": n, "data.known_outlier_class": k, "seed": k}
        for n, k in pairs
    ]


def entries(
    table: str,
    data: list[str],
    methods: list[str],
    target: pathlib.Path,
    *,
    settings: str = "code",
    budget: str = "full",
    seeds: int = 10,
    overrides: dict[str, Any] | None = None,
) -> list[Entry]:
    """All cells of a table with their jobs."""
    found = []
    for name in data:
        shared = base(name, settings, budget)
        shared.update_from_flattened_dict(overrides or {})
        if shared.encoder and "network" not in (overrides or {}):
            shared.network = ""  # the encoder of a user's own takes its place
        if shared.encoder and table == "rep_dim":
            raise ValueError(
                "config.encoder is of your own, but --table=rep_dim changes the width "
                "of the networks that come along"
            )
        for setting, method in itertools.product(settings_of(table), methods):
            value = next(iter(setting.values()), 0)
            changes = fields(table, value, method)
            if changes is None:
                continue
            if method == "m2" and settings == "paper" and name not in IMAGES:
                # Its likelihood is one of values in [0, 1].
                changes["data.scaling"] = base(name, "code", budget).data.scaling
            variants = {}
            for variant in VARIANTS[method]:
                label = "-".join(str(part) for part in variant.values())
                variants[label] = [
                    _job(shared, method, {**changes, **variant}, one, target, label)
                    for one in scenarios(table, budget, seeds)
                ]
            found.append(Entry(name, method, setting, variants))
    return found


def _job(shared, method, changes, scenario, target, label) -> grid.Job:
    changes = {"method": method, **changes, **scenario}
    if method.endswith("_hybrid"):
        changes["hybrid"] = True
    width = changes.pop("rep_dim", None)
    config = grid.changed(shared, changes)
    data = config.data
    if width is not None:
        config.encoder, config.network = f"{config.network}", ""
        config.encoder_options.rep_dim = width
    if data.n_known_outlier_classes == 1 and "data.known_outlier_class" not in scenario:
        if data.name in IMAGES:  # drawn by the seed, as more classes are
            others = [c for c in range(10) if c != data.normal_class]
            data.known_outlier_class = int(
                np.random.default_rng(config.seed).choice(others)
            )
    place = "-".join(part for part in (method, label) if part)
    extra = "".join(f"-{n}{changes[n]:g}" for n in ("eta",) if n in changes) + (
        f"-rep_dim{width}" if width is not None else ""
    )
    folder = target / place / (grid.setting(config) + extra) / f"seed{config.seed}"
    return grid.Job(config, folder)


def cells(table: str, found: list[Entry], results: dict) -> list[comparison.Cell]:
    """What to compare, of finished jobs: of each entry the variant with the best mean.

    Args:
        table: its name.
        found: the entries.
        results: of each job's folder.
    """
    known = published.deep_sad()
    made = []
    for entry in found:
        aurocs = {
            name: [100 * results[job.folder]["auroc"] for job in jobs]
            for name, jobs in entry.variants.items()
        }
        best = max(aurocs, key=lambda name: np.mean(aurocs[name]))
        place = _published_place(table, entry)
        note = f"best of {', '.join(aurocs)}: {best}" if len(aurocs) > 1 else ""
        if place in known and published.is_suspect(place):
            note = "the published figure is suspect; compare with pollution 0"
        made.append(
            comparison.Cell(
                *(entry.data, entry.method, entry.setting, aurocs[best]),
                *(known.get(place), note),
            )
        )
    return made


def _published_place(table: str, entry: Entry) -> published.Cell:
    value = next(iter(entry.setting.values()), 0)
    changes = fields(table, value, entry.method)
    known = changes["data.ratio_known_outlier"]
    pollution = changes["data.ratio_pollution"]
    classes = changes["data.n_known_outlier_classes"] if known else 0
    return table, entry.data, entry.method, known, pollution, classes


def _chosen(flag, allowed: tuple[str, ...]) -> list[str]:
    chosen = flag.value or list(allowed)
    for name in chosen:
        if name not in allowed:
            raise ValueError(
                f"--{flag.name} has {name!r}; for --table={TABLE.value} it may hold "
                f"{', '.join(allowed)}"
            )
    return chosen


def _methods(table: str) -> tuple[str, ...]:
    if table == "eta":
        return ("deep_sad",)
    if table == "rep_dim":
        return ("deep_sad", "ssad_hybrid")
    left = _NOT_ON_TABLES if table == "odds" else ()
    return tuple(n for n in VARIANTS if n.removesuffix("_hybrid") not in left)


def main(config: Config) -> None:
    table, began, seeds = TABLE.value, time.time(), grid.SEEDS.value or 10
    data = _chosen(DATA, tuple(sources.ODDS) if table == "odds" else IMAGES)
    methods = _chosen(grid.METHODS, _methods(table))
    begun = base(data[0], SETTINGS.value, BUDGET.value)
    overrides = grid.overrides(config, _DECIDED, begun)
    options = {"settings": SETTINGS.value, "budget": BUDGET.value, "seeds": seeds}
    content = {"table": table, "overrides": overrides, **options}
    content |= {"data": data, "methods": methods}
    workers = session.PROCESSES.value
    with workdir.locked(
        session.WORKDIR.value,
        f"paper-{table}",
        content,
        may_differ=(*workdir.MAY_DIFFER, "seeds", "data", "methods"),
        shared=workers > 1,
    ) as target:
        found = entries(table, data, methods, target, overrides=overrides, **options)
        jobs = list(
            {
                job.folder: job
                for entry in found
                for group in entry.variants.values()
                for job in group
            }.values()
        )
        seconds = estimate.seconds(jobs, grid.AT_ONCE.value)
        print(estimate.sentence(jobs, seconds, workers), file=sys.stderr)
        results = grid.run(
            jobs,
            target,
            at_once=grid.AT_ONCE.value,
            resume=session.RESUME.value == "auto",
            workers=workers,
            seconds=seconds,
        )
        by_folder = {job.folder: one for job, one in zip(jobs, results, strict=True)}
        rows = comparison.compare(cells(table, found, by_folder))
        about = {
            "command": shlex.join(["python", "-m", "experiments.paper", *sys.argv[1:]]),
            "seconds_of_runs": sum(_seconds(one) for one in results),
            "seconds": time.time() - began,
            "device": results[0]["device"],
            **content,
        }
        comparison.write(target, rows, about)
        if table != "odds":
            drawing = figures.curves(rows, table, _LABELS[table])
            figures.save(target / f"{table}.png", drawing)
        folders.write(target)
    print(_said(rows, target))


def _said(rows: list[dict], target: pathlib.Path) -> str:
    """The comparison, for the terminal."""
    compared = [row["within"] for row in rows if row["within"] is not None]
    return (
        f"{comparison.as_markdown(rows)}\n{sum(compared)} of {len(compared)} compared "
        "cells are within the spread of the published (others have a star)\n"
        f"written to {target}"
    )


_LABELS = {
    "ratio": "ratio of labeled anomalies",
    "pollution": "ratio of pollution",
    "classes": "known anomalous classes",
    "eta": "eta",
    "rep_dim": "dimension of the embeddings",
}


def _seconds(result: dict) -> float:
    return sum(result.get(n) or 0.0 for n in ("train_seconds", "ae_train_seconds"))


if __name__ == "__main__":
    session.start(main, every_core=True, grid=True)
