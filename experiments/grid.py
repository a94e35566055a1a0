"""Grids: many experiments, each in a folder of its own, each done once.

Runs that share data and options share a compiled program where that is the fastest.
Several processes may work on one grid in one folder: each takes what nobody has taken,
and what a killed one leaves is taken again. Autoencoders that several methods start
from are trained once.
"""

import contextlib
import dataclasses
import itertools
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import ml_collections
from absl import flags, logging
from ml_collections import config_flags

from configs import default
from experiments import build, named, report, session, workdir

flags.adopt_module_key_flags(session)
SEEDS = flags.DEFINE_integer(
    "seeds", None, "How many seeds; 5 of a sweep, else as published.", 1
)
METHODS = flags.DEFINE_list(
    "methods", [], "Methods; NAME_hybrid works on codes. Else the usual ones."
)
TABLES = flags.DEFINE_list("tables", [], "Tables, where there are several.")
AT_ONCE = flags.DEFINE_integer(
    "at_once", 100, "Most runs in one program, where they share one; for memory.", 1
)

Config = ml_collections.ConfigDict
# What decides an autoencoder, beside the data and the seed.
_OF_AUTOENCODERS = (
    "data",
    "seed",
    "network",
    "encoder",
    "decoder",
    "encoder_options",
    "decoder_options",
    "optimizer",
    "optimizer_options",
    "slope",
    "pretrain",
    "dtype",
)
PAUSE = 1.0  # seconds until taken runs are looked at again


class Job(NamedTuple):
    """One experiment of a grid.

    Attributes:
        config: what is run.
        folder: where, the working directory of the run.
    """

    config: Config
    folder: pathlib.Path

    @property
    def is_finished(self) -> bool:
        """Whether its results are there."""
        return (self.folder / workdir.RESULTS).exists()

    def results(self) -> dict[str, Any]:
        """The content of its results.json."""
        return workdir.read_json(self.folder / workdir.RESULTS)


def expand(config: Config, grid: dict[str, list], seeds: int) -> list[Config]:
    """All combinations of a grid of config fields and seeds, as configs of one run.

    Args:
        config: what they share.
        grid: field names, such as "data.normal_class", to their values; "method" may
            end in _hybrid.
        seeds: number of seeds, from 0.

    Returns:
        Configs; those whose known anomalies would be of the normal class are left out.
    """
    configs = []
    for values in itertools.product(*grid.values(), range(seeds)):
        changes = dict(zip((*grid, "seed"), values, strict=True))
        single = changed(config, changes)
        if "data.name" in changes:
            single.network = single.network and f"{single.data.name}_mlp"
        pair = (single.data.normal_class, single.data.known_outlier_class)
        if pair[0] != pair[1] or single.data.n_known_outlier_classes != 1:
            configs.append(single)
    return configs


def overrides(config: Config, decided: set[str], begun: Config) -> dict[str, Any]:
    """What a user wants in all runs of a protocol: by a config file, and by flags.

    Args:
        config: that of the command.
        decided: fields that the protocol sets for each run.
        begun: the config that the runs of the protocol begin with.

    Returns:
        Values by name, such as "train.epochs"; what a file has that the protocol
        decides is left out, with a warning. So is what a file has as it usually is, and
        the protocol in another way.

    Raises:
        ValueError: for a flag of what the protocol decides.
    """
    flag = flags.FLAGS["config"]
    found = config_flags.get_override_values(flag)
    if wrong := sorted(decided & {*found}):
        raise ValueError(
            f"--config.{wrong[0]} is what this command sets for each run; leave it out"
        )
    if flag.present:
        usual = dict(workdir.flat(default.get_config().to_dict()))
        own = dict(workdir.flat(config.to_dict()))
        ours = dict(workdir.flat(begun.to_dict()))
        kept = [n for n, v in own.items() if v == usual.get(n) != ours.get(n)]
        kept = [n for n in kept if n not in {*decided, *found, "network"}]
        if kept:
            logging.warning(
                "as this command has it, not the config file: %s; a flag sets it",
                ", ".join(f"{name} is {ours[name]}" for name in kept),
            )
        own = {n: v for n, v in own.items() if n not in usual or usual[n] != v}
        if left := sorted(decided & {*own}):
            logging.warning(
                "%s of the config file left out: this command sets that for each run",
                ", ".join(left),
            )
        found = {n: v for n, v in own.items() if n not in decided} | found
    return found


def changed(config: Config, changes: dict[str, Any]) -> Config:
    """A copy with other values of some fields, named as "data.normal_class"."""
    single, changes = config.copy_and_resolve_references(), dict(changes)
    if "method" in changes:
        method = changes["method"]
        single.method = method.removesuffix("_hybrid")
        single.hybrid = single.hybrid or method != single.method
        del changes["method"]
    single.update_from_flattened_dict(changes)
    return single


def method_of(config: Config) -> str:
    """The method's name, with _hybrid behind if it works on codes."""
    return config.method + ("_hybrid" if config.hybrid else "")


def setting(config: Config) -> str:
    """A name for all of the data that a run does not share with others."""
    data = config.data
    parts = [pathlib.Path(data.name).stem, f"normal{data.normal_class}"]
    if data.n_known_outlier_classes == 1:
        parts.append(f"known{data.known_outlier_class}")
    else:
        parts.append(f"known{data.n_known_outlier_classes}classes")
    return "-".join([*parts, ratios(config)])


def ratios(config: Config) -> str:
    """The part of `setting` that tells the ratios."""
    data = config.data
    values = (data.ratio_known_normal, data.ratio_known_outlier, data.ratio_pollution)
    return "ratios" + "_".join(f"{ratio:g}" for ratio in values)


def run(
    jobs: list[Job],
    target: pathlib.Path,
    *,
    at_once: int = 100,
    draw: bool = False,
    resume: bool = True,
    workers: int = 1,
    seconds: Callable[[Job], float] | None = None,
) -> list[dict[str, Any]]:
    """Does all jobs that are not finished.

    Args:
        jobs: the experiments.
        target: the working directory of the grid.
        at_once: most runs in one program.
        draw: whether each run leaves pictures.
        resume: whether to go on with unfinished runs, or to refuse them.
        workers: how many processes share the grid.
        seconds: how long a job is thought to take, for the estimate of the time left;
            its steps by default.

    Returns:
        The results of all of them, in their order.

    Raises:
        ValueError: if a folder holds another run, before anything is run.
    """
    for job in jobs:
        build.check(job.config)
    waiting = [job for job in jobs if not _finished(job, resume)]
    weights = _Weights(waiting, seconds)
    bases = {_base_key(j.config): j for j in jobs if method_of(j.config) == _BASE}
    total = sum(map(weights, waiting))
    with contextlib.closing(session.ManyRuns(total, len(waiting))) as bars:
        while waiting:
            mine = set()
            for part in _parts(waiting, at_once, workers):
                with contextlib.ExitStack() as stack:
                    own = [job for job in part if stack.enter_context(_claimed(job))]
                    if own:
                        _run_together(own, target, bars, weights, draw, bases)
                    mine |= {job.folder for job in own}
            rest = [job for job in waiting if job.folder not in mine]
            ended = [job.is_finished for job in rest]
            others = list(itertools.compress(rest, ended))
            waiting = [j for j, is_over in zip(rest, ended, strict=True) if not is_over]
            bars.skip(len(others), sum(map(weights, others)))
            if waiting and not mine:
                time.sleep(PAUSE)  # until those who have the rest finish or die
    results = [job.results() for job in jobs]
    _warn_of_versions(jobs, results)
    return results


def _warn_of_versions(jobs: list[Job], results: list[dict]) -> None:
    """Warns if a file that all name has changed between the first run and the last."""
    for name in dict.fromkeys(n for job in jobs for n in named.versions(job.config)):
        found = {result.get("versions", {}).get(name) for result in results} - {None}
        if len(found) > 1:
            logging.warning(
                "%s has changed between these runs, which are of %d versions of it; "
                "begin anew in another --workdir",
                *(name, len(found)),
            )


_BASE = "autoencoder"


class _Weights:
    """What share of the whole each job is."""

    def __init__(self, jobs, seconds):
        self._seconds, self._steps = seconds, {}
        self._family = {id(job): family(job.config) for job in jobs}

    def __call__(self, job: Job) -> float:
        if self._seconds is not None:
            return self._seconds(job)
        family = self._family[id(job)]
        if family not in self._steps:
            stages = build.experiment(job.config).options.stages()
            self._steps[family] = max(1, sum(stages.values()))
        return self._steps[family]


def _finished(job: Job, resume: bool) -> bool:
    folder, config, is_finished = job.folder, job.config, job.is_finished
    if is_finished:
        workdir.check_same(folder, config.to_dict())
    else:
        workdir.check_unfinished(folder, config.to_dict(), resume)
    if (folder / workdir.DATA).exists():
        workdir.check_data(folder, config.data.name, build.data_digest(config))
    return is_finished


def family(config: Config) -> str:
    """Equal for runs that share data and options."""
    content = config.to_dict()
    content.update(data=content["data"]["name"], seed=None)
    return json.dumps(workdir.jsonable(content), sort_keys=True)


def _base_key(config: Config) -> str:
    content = {name: config[name] for name in _OF_AUTOENCODERS}
    return json.dumps(workdir.jsonable(Config(content).to_dict()), sort_keys=True)


def _parts(jobs: list[Job], at_once: int, workers: int) -> Iterator[list[Job]]:
    """Jobs that may run together, a share of each family at a time."""
    families: dict[str, list[Job]] = {}
    for job in jobs:
        families.setdefault(family(job.config), []).append(job)
    for group in families.values():
        size = min(at_once, -(-len(group) // workers))
        for first in range(0, len(group), size):
            yield group[first : first + size]


@contextlib.contextmanager
def _claimed(job: Job) -> Iterator[bool]:
    """Whether this process may run a job, which then is its own."""
    with workdir.claimed(job.folder, job.config.to_dict()) as is_ours:
        yield is_ours and not job.is_finished


def _run_together(jobs, target, bars, weights, draw, bases) -> None:
    """Runs what shares data and options, and writes each run's folder.

    The runs share one compiled program wherever that is the fastest; elsewhere each is
    written as soon as it is finished.
    """
    made = [build.experiment(job.config) for job in jobs]
    method, runs = made[0].options, [each.run for each in made]
    plan = method.plan_for(runs) if made[0].plan.devices == 1 else None
    configs, folders = [job.config for job in jobs], [job.folder for job in jobs]
    for config, folder in zip(configs, folders, strict=True):
        workdir.note_data(folder, config.data.name, build.data_digest(config))
    if plan is not None and plan.together:
        plan = workdir.as_begun(folders, plan)
    with session.keepers(configs, folders, target) as keepers:
        if plan is not None:
            bars.starts(len(jobs), method.stages(), sum(map(weights, jobs)))
            fitted = method.fit_many(runs, plan=plan, observe=bars)
            for job, each, one in zip(jobs, made, fitted, strict=True):
                report.finish(job.folder, each, one, draw=draw)
            return
        for i, (job, each) in enumerate(zip(jobs, made, strict=True)):
            each = _with_base(each, bases)
            keeper = keepers[i]
            bars.starts(1, each.options.stages(), weights(job))
            (one,) = each.options.fit_many(
                [runs[i]], plan=each.plan, observe=bars, keeper=keeper
            )
            report.finish(job.folder, each, one, draw=draw)
            keeper.discard()


def _with_base(made: build.Experiment, bases: dict[str, Job]) -> build.Experiment:
    """The same run, bit for bit, from the autoencoder of another job if it is there."""
    from deepsad_jax import model

    config, base = made.config, bases.get(_base_key(made.config))
    starts = config.hybrid or config.method in ("deep_sad", "deep_svdd")
    if base is None or not starts or config.load_model or not base.is_finished:
        return made
    if not config.pretrain.enabled or getattr(made.options, "members", 1) != 1:
        return made  # members have autoencoders of their own
    initial = model.load(base.folder / "model")
    return made._replace(options=dataclasses.replace(made.options, initial=initial))
