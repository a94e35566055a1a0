"""What a run leaves behind: figures in results.json, scores, pictures, a summary."""

import dataclasses
import importlib.metadata
import pathlib
import platform
from concurrent import futures
from typing import Any, NamedTuple

import jax
import numpy as np

import deepsad_jax
from deepsad_jax import (
    detectors,
    methods,
    metrics,
    model,
    networks,
    selection,
    training,
    writing,
)
from deepsad_jax.detectors import hybrid
from deepsad_jax.report import cautions, examples, folders
from experiments import build, named, pictures, session, streaming, workdir
from experiments import figures as plots

# References that the terminal tells of.
_SAID = {n: folders.REFERENCES[n] for n in ("ae", "vae", "linear")}
_ALL_ROWS = (
    "all rows are tested, with the model's own preprocessing: the figures are honest "
    "if it was trained on none of them"
)
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn")


class Outcome(NamedTuple):
    """What a method has found on one problem.

    Attributes:
        model: the trained model.
        scores: anomaly scores of the test set, `[n_test]`, higher = more anomalous.
        references: scores of by-products, such as "ae", the autoencoder.
        history: for each stage, metrics per epoch.
        tested: which test examples count in the figures, `[n_test]` bool.
        figures: the content of results.json.
    """

    model: model.Model
    scores: np.ndarray
    references: dict[str, np.ndarray]
    history: dict[str, dict[str, np.ndarray]]
    tested: np.ndarray
    figures: dict[str, Any]


def outcome(
    made: build.Experiment,
    fitted: model.Model,
    record: methods.Record,
    *,
    doubt: bool = True,
) -> Outcome:
    """Scores the test set, and says how well.

    Args:
        made, fitted, record: what was run.
        doubt: whether to look for what the page of a run warns of, too: how good the
            network is untrained, and columns that drift.
    """
    plan = made.plan
    labels = made.problem.labels_test
    x = streaming.rows_of(made.problem.x_test)
    models = {"": fitted, **_bases(made, fitted)}
    if doubt and (untrained := _untrained(made)) is not None:
        models["untrained"] = untrained
    # Two at a time, since most of it is compilation; devices that share rows talk to
    # each other, and need one order.
    with futures.ThreadPoolExecutor(2 if plan.devices == 1 else 1) as pool:
        found = pool.map(lambda one: model.score(one, x, plan=plan), models.values())
        references = dict(zip(models, found, strict=True))
    scores = references.pop("")
    tested = np.ones(len(labels), bool)
    config = made.config
    if config.selection == "test_auc" and not config.selection_in_test:
        tested[selection.selection_rows(labels, config.seed)] = False
    figures = _figures(made, record, scores, references, tested)
    if doubt and made.problem.x_test.ndim == 2:
        figures["drift"] = _drift(made.problem)
    return Outcome(fitted, scores, references, record.history, tested, figures)


def _bases(made, fitted) -> dict[str, model.Model]:
    """The models whose scores are set beside those of a model."""
    found = {}
    if fitted.base is not None:
        found["vae" if made.config.method == "m1_m2" else "ae"] = fitted.base
    if made.config.hybrid and (linear := hybrid.linear(fitted)) is not None:
        found["linear"] = linear
    return found


def _untrained(made) -> model.Model | None:
    """What the networks are worth without any training, if there is any."""
    options = made.options
    stages = {
        field.name: dataclasses.replace(stage, epochs=0)
        for field in dataclasses.fields(options)
        if isinstance(stage := getattr(options, field.name), training.Stage)
    }
    other = made.config.load_model or made.config.hybrid or made.config.data.stream
    if not stages or other:
        return None
    if hasattr(options, "companions"):  # companions are not networks
        stages |= {"members": 1, "companions": ()}
    options = dataclasses.replace(options, **stages)
    return options.fit_many([made.run], plan=made.plan)[0][0]


def _drift(problem) -> list[tuple[str, float]]:
    """Columns in which normal test rows are not like the training rows."""
    train = cautions.few(problem.indices[problem.semi_targets >= 0])
    test = cautions.few(np.flatnonzero(problem.labels_test == 0))
    found = cautions.drift(problem.x_train[train], problem.x_test[test])
    return [(examples.column_name(i), distance) for i, distance in found]


def _figures(made, record, scores, references, tested) -> dict[str, Any]:
    config, problem = made.config, made.problem
    labels, targets = problem.labels_test[tested], problem.semi_targets
    found = {
        "method": config.method,
        "data": config.data.name,
        "label": made.label,
        "network": _network(made),
        "seed": config.seed,
        "auroc": metrics.auroc(labels, scores[tested]),
        "average_precision": metrics.average_precision(labels, scores[tested]),
    }
    for name, values in references.items():
        found[f"{name}_auroc"] = metrics.auroc(labels, values[tested])
        found[f"{name}_average_precision"] = metrics.average_precision(
            labels, values[tested]
        )
    for stage, name in (("train", "train_seconds"), ("pretrain", "ae_train_seconds")):
        if stage in record.seconds:
            found[name] = record.seconds[stage]
    return {
        **found,
        "trained": any(made.options.stages().values()),
        "n_train": len(targets),
        "n_known_normal": np.sum(targets == 1),
        "n_known_outlier": np.sum(targets == -1),
        "n_test": len(labels),
        "n_test_outlier": np.sum(labels),
        **record.details,
        "notes": [*record.notes, *_notes(made)],
        "versions": {
            "deepsad_jax": deepsad_jax.__version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
            **named.versions(config),
        },
        "device": f"{jax.local_device_count()} x {jax.devices()[0].device_kind}",
    }


def _notes(made) -> list[str]:
    found = [_ALL_ROWS] if made.evaluates else []
    known = int(np.sum(made.problem.semi_targets == -1))
    learns = detectors.METHODS[made.config.method].uses_labels
    if known and not learns and any(made.options.stages().values()):
        found.append(
            f"{made.config.method} sees no labels: the {known} known anomalies are "
            "among its training examples, as in the published code"
        )
    return found


def _network(made) -> str | None:
    """The name of the network, or what it is made of; None without one."""
    options = made.options
    if isinstance(options, hybrid.Hybrid):
        options = options.autoencoder
    if isinstance(options, selection.Shallow):
        return None
    pair = options.pair(made.problem.x_train.shape[1:])
    for name, known in networks.PAPER.items():
        if known.input_shape == pair.input_shape and known.encoder == pair.encoder:
            return name
    return made.config.encoder or " ".join(str(pair.encoder).split())


def finish(
    folder: pathlib.Path,
    made: build.Experiment,
    fitted: tuple[model.Model, methods.Record],
    *,
    draw: bool = True,
) -> dict[str, Any]:
    """Scores, and writes all that a sweep leaves of a run; returns its figures."""
    found = outcome(made, *fitted, doubt=draw)
    with writing.atomic(folder / "metrics.jsonl") as file:
        for stage, history in found.history.items():
            epochs = len(next(iter(history.values()), ()))
            lines = session.metric_lines(stage, history, 0, epochs)
            file.write(lines.encode())
    write(folder, made, found, draw=draw)
    return found.figures


def write(
    folder: pathlib.Path, made: build.Experiment, found: Outcome, *, draw: bool = True
) -> None:
    """Writes scores, model and pictures; then results.json, which says finished.

    Args:
        folder: the working directory.
        made, found: what was run and found.
        draw: whether to draw the pictures, and to write the page.
    """
    labels = made.problem.labels_test
    workdir.write_arrays(
        folder / "scores.npz",
        index=made.problem.index_test,
        label=labels,
        score=found.scores,
        tested=found.tested,
        **{f"reference_{name}": s for name, s in found.references.items()},
    )
    workdir.save_model(folder / "model", found.model)
    drawings = pictures.of_run(made.problem, found) if draw else {}
    for name, figure in drawings.items():
        plots.save(folder / f"{name}.png", figure)
    if draw:
        places = folders.groups(found.scores, labels, found.tested).values()
        kept = examples.kept(made.problem.x_test, np.concatenate([*places]))
        examples.save(folder / folders.EXAMPLES, kept)
    workdir.write_json(folder / workdir.RESULTS, found.figures)
    if draw:  # by what the folder holds, as `deepsad report` would
        folders.write(folder)


def summary(figures: dict[str, Any], folder: pathlib.Path) -> str:
    """A few lines for the terminal."""

    def percent(value):
        return "undefined (one class only)" if np.isnan(value) else f"{value:7.2%}"

    known = f"{figures['n_known_normal']} known normal, "
    known += f"{figures['n_known_outlier']} known anomalies"
    lines = [
        f"{figures['method']} on {figures['data']}, seed {figures['seed']}",
        f"  label          {figures['label']}",
        f"  trained on     {figures['n_train']} examples ({known})"
        if figures["trained"]
        else "  not trained    only evaluated",
        f"  tested on      {figures['n_test']} examples "
        f"({figures['n_test_outlier']} anomalies)",
        f"  AUROC         {percent(figures['auroc'])}"
        f"   average precision {percent(figures['average_precision'])}",
    ]
    for name, label in _SAID.items():
        if f"{name}_auroc" in figures:
            lines.append(
                f"  {label:13s} {percent(figures[f'{name}_auroc'])}"
                f"   average precision {percent(figures[f'{name}_average_precision'])}"
            )
    if (selection := figures.get("selection")) and selection["parameter"]:
        lines.append(
            f"  {selection['parameter']:13s}  {selection['value']:.4g}, "
            f"chosen by {selection['by']}"
        )
    times = [
        f"{label} {figures[name]:.1f} s"
        for name, label in (
            ("ae_train_seconds", "pretraining"),
            ("train_seconds", "training"),
        )
        if name in figures
    ]
    if times:
        lines.append(f"  times          {', '.join(times)}")
    lines += [f"  note           {note}" for note in figures["notes"]]
    lines.append(f"  written to     {folder}")
    return "\n".join(lines)
