"""The pictures of one run: scores, curves, losses, groups and samples."""

import pathlib
from typing import Any

import numpy as np

from deepsad_jax import metrics
from deepsad_jax.report import folders, thresholds
from experiments import figures as plots

_NORMAL, _ANOMALY = "#1f6fb4", "#c2331f"
_KINDS = ((0, "normal", _NORMAL, "-"), (1, "anomalous", _ANOMALY, "--"))
_GROUPS = {
    "normal": ("known normal", "C2"),
    "unlabelled": ("unlabeled", "C0"),
    "anomaly": ("known anomalous", "C3"),
}
_STAGES = {"pretrain": "pretraining", "train": "training"}


def of_run(problem: Any, found: Any) -> dict[str, Any]:
    """Matplotlib figures by name: scores, curves, losses, groups and samples.

    Args:
        problem: its data.
        found: a `report.Outcome`.
    """
    tested, about = found.tested, found.figures
    labels, scores = problem.labels_test[tested], found.scores[tested]
    drawn = {"score_histogram": _histogram(labels, scores)}
    if 0 < labels.sum() < len(labels):
        own = {about["method"]: scores}
        own |= {folders.REFERENCES[n]: s[tested] for n, s in found.references.items()}
        drawn["curves"] = _curves(labels, own)
    if any(found.history.values()):
        drawn["losses"] = _losses({s: h for s, h in found.history.items() if h})
    trained = found.history.get("train", {})
    if len(trained.get("distance_unlabelled", ())):
        drawn["groups"] = _groups(trained)
    x_test = problem.x_test if tested.all() else problem.x_test[tested]
    if x_test.ndim == 4 and x_test.shape[-1] in (1, 3):
        drawn["samples"] = _samples(x_test, labels, scores)
    for drawing in drawn.values():
        drawing.suptitle(_title(about), fontsize=10)
    return drawn


def _title(about) -> str:
    data = pathlib.PurePath(about["data"]).stem
    label = about["label"]
    label = label if len(label) < 90 else f"{label[:87]}..."
    return f"{about['method']} on {data}, seed {about['seed']}\n{label}"


def _histogram(labels, scores):
    drawing, axes = plots.panels(1, 1, 6.5, 4.4, 0.9)
    axis = axes[0, 0]
    edges, is_log = thresholds.bins(scores)
    inside = np.clip(scores, edges[0], edges[-1])
    for label, kind, color, line in _KINDS:
        own = inside[labels == label]
        if not len(own):
            continue
        heights = np.histogram(own, edges)[0] / len(own)
        name = f"{kind} ({len(own)})"
        axis.stairs(heights, edges, fill=True, alpha=0.2, color=color)
        axis.stairs(heights, edges, color=color, ls=line, lw=1.5, label=name)
    axis.set(xlabel="anomaly score", ylabel="share of the test examples of a kind")
    if is_log:
        axis.set_xscale("log")
    axis.yaxis.set_major_formatter(_percent())
    plots.legend_below(axis)
    return drawing


def _percent():
    from matplotlib import ticker

    return ticker.PercentFormatter(1.0, decimals=None)


def _curves(labels, scores):
    drawing, axes = plots.panels(1, 2, 9.5, 5.2, 0.85 + 0.19 * len(scores))
    (roc, recalled), base = axes[0], float(np.mean(labels))
    lines = ("-", "--", "-.", (0, (5, 1, 1, 1)))
    for i, (name, values) in enumerate(scores.items()):
        style = {"ls": lines[i % len(lines)], "color": f"C{i}", "lw": 2 - 0.5 * (i > 0)}
        false, hits = metrics.alarms(labels, values)
        recall = hits / hits[-1]
        area = metrics.auroc(labels, values)
        roc.plot(false / false[-1], recall, label=f"{name}, AUROC {area:.1%}", **style)
        precision = hits[1:] / (false + hits)[1:]
        average = metrics.average_precision(labels, values)
        recalled.plot(
            recall[1:],
            precision,
            label=f"{name}, average precision {average:.1%}",
            **style,
        )
    chance = {"ls": ":", "color": "grey"}
    roc.plot([0, 1], [0, 1], label="random order, AUROC 50.0%", **chance)
    recalled.axhline(base, label=f"random order, precision {base:.1%}", **chance)
    roc.set(
        title="ROC curve", xlabel="false positive rate", ylabel="true positive rate"
    )
    recalled.set(title="precision and recall", xlabel="recall", ylabel="precision")
    for axis in (roc, recalled):
        axis.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
        plots.legend_below(axis, 1)
    return drawing


def _losses(history):
    drawing, axes = plots.panels(1, len(history), 4.5 * len(history) + 0.5, 3.9, 0.55)
    for axis, (stage, values) in zip(axes.flat, history.items(), strict=True):
        loss = np.asarray(values["loss"], float)
        axis.plot(np.arange(1, len(loss) + 1), loss)
        _tell_orders_apart(axis, loss)
        axis.set_title(f"loss of {_STAGES.get(stage, stage)}")
        plots.over_epochs(axis)
    return drawing


def _tell_orders_apart(axis, *series) -> None:
    """A logarithmic axis for positive values over more than one order of magnitude."""
    values = np.concatenate([[], *series])
    values = values[np.isfinite(values)]
    if len(values) and 0 < 10 * values.min() < values.max():
        axis.set_yscale("log")


def _groups(history):
    """Section 3 of the paper, with what its quantities mean."""
    drawing, axes = plots.panels(1, 2, 10.6, 4.8, 0.9)
    far, spread = axes[0]
    bound = "log_det"
    for group in _GROUPS:
        known, wide = (history[f"{n}_{group}"] for n in (bound, "isotropic"))
        if np.isfinite(wide).any() and not np.isfinite(known).any():
            bound = "isotropic"  # a group is too small for its covariance
    for group, (name, color) in _GROUPS.items():
        for axis, quantity in ((far, "distance"), (spread, bound)):
            # Half of a log-determinant is an entropy, up to a constant.
            values = np.asarray(history[f"{quantity}_{group}"], float)
            values = values if axis is far else values / 2
            if np.isfinite(values).any():
                epochs = np.arange(1, len(values) + 1)
                axis.plot(epochs, values, color=color, label=name)
    _tell_orders_apart(far, *(line.get_ydata() for line in far.lines))
    far.set(
        title="how far from the center\n(known anomalies should be far, others near)",
        ylabel="mean squared distance",
    )
    spread.set(
        title="how widely spread: bounds of the entropy\n"
        "(normal examples should be packed, anomalies scattered)",
        ylabel="nats, up to a constant",
    )
    for axis in (far, spread):
        axis.title.set_fontsize(10)
        plots.over_epochs(axis)
        if axis.lines:
            plots.legend_below(axis)
    return drawing


def _samples(x, labels, scores, side: int = 6):
    order = np.argsort(scores, kind="stable")
    normal = order[labels[order] == 0]
    panels = {
        "lowest scores of all": order,
        "highest scores of all": order[::-1],
        "lowest scores, normal class": normal,
        "highest scores, normal class": normal[::-1],
    }
    drawing, axes = plots.panels(2, 2, 9, 10.5)
    for axis, (title, rows) in zip(axes.flat, panels.items(), strict=True):
        _sheet(axis, x, labels, scores, rows[: side * side], side)
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    drawing.supxlabel(
        "below each image its score; a dashed red frame marks an anomaly", fontsize=9
    )
    return drawing


def _sheet(axis, x, labels, scores, rows, side) -> None:
    """Images side by side, each in a unit square with its score below."""
    from matplotlib import patches

    images = x[rows] / 255.0 if x.dtype == np.uint8 else x[rows]
    images = images[..., 0] if images.shape[-1] == 1 else images
    for i, (row, image) in enumerate(zip(rows, images, strict=True)):
        top, left = 1.25 * (i // side), 1.1 * (i % side)
        extent = (left, left + 1, top + 1, top)
        axis.imshow(image, cmap="gray", vmin=0, vmax=1, extent=extent)
        style = {"edgecolor": "lightgrey", "lw": 0.6}
        if labels[row]:
            style = {"edgecolor": _ANOMALY, "lw": 1.6, "ls": "--"}
        axis.add_patch(patches.Rectangle((left, top), 1, 1, fill=False, **style))
        text = f"{scores[row]:.3g}"
        axis.text(left + 0.5, top + 1.13, text, ha="center", va="center", fontsize=6)
    lines = -(-max(len(rows), 1) // side)
    axis.set(xlim=(-0.05, 1.1 * side - 0.05), ylim=(1.25 * lines, -0.05))
