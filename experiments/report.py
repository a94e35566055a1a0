"""What a run leaves behind: figures in results.json, scores, pictures, a summary."""

import importlib.metadata
import pathlib
import platform
from typing import Any

import jax
import ml_collections
import numpy as np

import deepsad_jax
from deepsad_jax import checkpoints, metrics
from deepsad_jax.data import scenario
from experiments import methods, workdir

_REFERENCES = {"ae": "autoencoder", "vae": "VAE", "linear": "linear kernel"}
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn")


def results(
    config: ml_collections.ConfigDict,
    problem: scenario.Scenario,
    outcome: methods.Outcome,
) -> dict[str, Any]:
    """The figures of a run, as results.json holds them."""
    problem, outcome = _tested(problem, outcome)
    labels, semi_targets = problem.labels_test, problem.semi_targets
    figures = {
        "method": config.method,
        "data": config.data.name,
        "network": str(outcome.network) if outcome.network else None,
        "seed": config.seed,
        "auroc": metrics.auroc(labels, outcome.scores),
        "average_precision": metrics.average_precision(labels, outcome.scores),
    }
    for name, scores in outcome.reference_scores.items():
        figures[f"{name}_auroc"] = metrics.auroc(labels, scores)
        figures[f"{name}_average_precision"] = metrics.average_precision(labels, scores)
    for stage, name in (("train", "train_seconds"), ("pretrain", "ae_train_seconds")):
        if stage in outcome.seconds:
            figures[name] = outcome.seconds[stage]
    return {
        **figures,
        "n_train": len(semi_targets),
        "n_known_normal": np.sum(semi_targets == 1),
        "n_known_outlier": np.sum(semi_targets == -1),
        "n_test": len(labels),
        "n_test_outlier": np.sum(labels),
        **outcome.details,
        "versions": {
            "deepsad_jax": deepsad_jax.__version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "device": f"{jax.local_device_count()} x {jax.devices()[0].device_kind}",
    }


def write(
    folder: pathlib.Path,
    problem: scenario.Scenario,
    outcome: methods.Outcome,
    figures: dict[str, Any],
    *,
    draw: bool = True,
) -> None:
    """Writes scores, model and pictures; results.json, which says finished, at last.

    Args:
        folder: the working directory.
        problem, outcome: what was run and found.
        figures: from `results`.
        draw: whether to draw the pictures.
    """
    workdir.write_arrays(
        folder / "scores.npz",
        index=problem.index_test,
        label=problem.labels_test,
        score=outcome.scores,
    )
    if outcome.model is not None and not (folder / "model").exists():
        checkpoints.save_model(folder / "model", outcome.model)
    drawings = pictures(*_tested(problem, outcome)) if draw else {}
    for name, figure in drawings.items():
        with workdir.atomic(folder / f"{name}.png") as file:
            figure.savefig(file, format="png", dpi=120)
    workdir.write_json(folder / workdir.RESULTS, figures)


def _tested(problem, outcome):
    """Both without the test examples that do not count."""
    if (tested := outcome.tested) is None:
        return problem, outcome
    names = ("x_test", "labels_test", "index_test")
    problem = problem._replace(**{n: getattr(problem, n)[tested] for n in names})
    reference = {n: s[tested] for n, s in outcome.reference_scores.items()}
    scores = outcome.scores[tested]
    return problem, outcome._replace(
        scores=scores, reference_scores=reference, tested=None
    )


def summary(figures: dict[str, Any], folder: pathlib.Path) -> str:
    """A few lines for the terminal."""

    def percent(value):
        return "undefined (one class only)" if np.isnan(value) else f"{value:7.2%}"

    known = f"{figures['n_known_normal']} known normal, "
    known += f"{figures['n_known_outlier']} known anomalies"
    lines = [
        f"{figures['method']} on {figures['data']}, seed {figures['seed']}",
        f"  trained on     {figures['n_train']} examples ({known})",
        f"  tested on      {figures['n_test']} examples "
        f"({figures['n_test_outlier']} anomalies)",
        f"  AUROC         {percent(figures['auroc'])}"
        f"   average precision {percent(figures['average_precision'])}",
    ]
    for name, label in _REFERENCES.items():
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
    lines.append(f"  written to     {folder}")
    return "\n".join(lines)


def pictures(problem: scenario.Scenario, outcome: methods.Outcome) -> dict[str, Any]:
    """Matplotlib figures by name: scores, curves, losses, groups and samples."""
    labels, scores = problem.labels_test, outcome.scores
    figures = {"score_histogram": _histogram(labels, scores)}
    if 0 < labels.sum() < len(labels):
        figures["curves"] = _curves(labels, {"": scores, **outcome.reference_scores})
    if outcome.history:
        figures["losses"] = _losses(outcome.history)
    trained = outcome.history.get("train", {})
    if len(trained.get("distance_unlabelled", ())):
        figures["groups"] = _groups(trained)
    if problem.x_test.ndim == 4:
        figures["samples"] = _samples(problem.x_test, labels, scores)
    return figures


def _figure(rows: int, columns: int, width: float, height: float):
    # The object interface needs no display and leaves no state behind.
    from matplotlib import backends, figure  # noqa: F401

    drawing = figure.Figure(figsize=(width, height), layout="constrained")
    return drawing, drawing.subplots(rows, columns, squeeze=False)


def _histogram(labels, scores):
    drawing, axes = _figure(1, 1, 6, 4)
    name = "anomaly score"
    if scores.min() > 0:  # distances spread over orders of magnitude
        name, scores = f"log10 of the {name}", np.log10(scores)
    edges = np.linspace(scores.min(), max(scores.max(), scores.min() + 1e-3), 51)
    for label, kind, color in ((0, "normal", "C0"), (1, "anomalous", "C3")):
        axes[0, 0].hist(
            scores[labels == label], edges, alpha=0.6, label=kind, color=color
        )
    axes[0, 0].set(xlabel=name, ylabel="test examples")
    axes[0, 0].legend()
    return drawing


def _curves(labels, scores):
    import sklearn.metrics

    drawing, axes = _figure(1, 2, 9, 4)
    for name, values in scores.items():
        name = _REFERENCES.get(name, "this method")
        false, true, _ = sklearn.metrics.roc_curve(labels, values)
        area = metrics.auroc(labels, values)
        axes[0, 0].plot(false, true, label=f"{name}, AUROC {area:.1%}")
        precision, recall, _ = sklearn.metrics.precision_recall_curve(labels, values)
        average = metrics.average_precision(labels, values)
        axes[0, 1].plot(recall, precision, label=f"{name}, AP {average:.1%}")
    axes[0, 0].plot([0, 1], [0, 1], ":", color="grey")
    axes[0, 0].set(xlabel="false positive rate", ylabel="true positive rate")
    axes[0, 1].axhline(np.mean(labels), ls=":", color="grey")
    axes[0, 1].set(xlabel="recall", ylabel="precision", ylim=(0, 1.02))
    for axis in axes.flat:
        axis.legend()
    return drawing


def _losses(history):
    drawing, axes = _figure(1, len(history), 4.5 * len(history), 3.5)
    for axis, (stage, values) in zip(axes.flat, history.items(), strict=True):
        epochs = np.arange(1, len(values["loss"]) + 1)
        axis.semilogy(epochs, values["loss"])
        axis.set(title=stage, xlabel="epoch", ylabel="loss")
    return drawing


def _groups(history):
    drawing, axes = _figure(1, 2, 9, 3.5)
    colors = {"normal": "C2", "unlabelled": "C0", "anomaly": "C3"}
    names = {"normal": "known normal", "anomaly": "known anomalous"}
    for axis, (quantity, label) in zip(
        axes.flat,
        (
            ("distance", "mean squared distance to the centre"),
            ("log_det", "log det of the covariance (dotted: bound)"),
        ),
        strict=True,
    ):
        for group, color in colors.items():
            values = history[f"{quantity}_{group}"]
            epochs = np.arange(1, len(values) + 1)
            if np.isfinite(values).any():
                axis.plot(epochs, values, color=color, label=names.get(group, group))
            if quantity == "log_det":
                axis.plot(epochs, history[f"isotropic_{group}"], ":", color=color)
        axis.set(xlabel="epoch", ylabel=label)
        if axis.lines:
            axis.legend()
    axes[0, 0].set_yscale("log")
    return drawing


def _samples(x, labels, scores, side: int = 8):
    order = np.argsort(scores, kind="stable")
    normal = order[labels[order] == 0]
    panels = {
        "lowest scores of all": order,
        "highest scores of all": order[::-1],
        "lowest scores, normal class": normal,
        "highest scores, normal class": normal[::-1],
    }
    drawing, axes = _figure(2, 2, 8, 8.5)
    drawing.get_layout_engine().set(wspace=0.05)
    for axis, (title, rows) in zip(axes.flat, panels.items(), strict=True):
        axis.imshow(_grid(x[rows[: side * side]], side), cmap="gray", vmin=0, vmax=1)
        axis.set_title(title)
        axis.set_axis_off()
    return drawing


def _grid(images, side):
    """Images side by side, with a line between them, `[H, W, C]` in [0, 1]."""
    if images.dtype == np.uint8:
        images = images / 255.0
    _, height, width, channels = images.shape
    sheet = np.ones((side * (height + 1) - 1, side * (width + 1) - 1, channels))
    for i, image in enumerate(images):
        top, left = i // side * (height + 1), i % side * (width + 1)
        sheet[top : top + height, left : left + width] = image
    return sheet[..., 0] if channels == 1 else sheet
