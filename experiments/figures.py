"""Pictures that compare: means, curves over a ratio, and average ranks."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from deepsad_jax import writing

_MARKS = "osD^vP*X<>hd"


def save(path: str | os.PathLike, drawing: Any) -> None:
    """Writes a Matplotlib figure as PNG, atomically."""
    with writing.atomic(path) as file:
        drawing.savefig(file, format="png", dpi=120)


def panels(
    rows: int, columns: int, width: float, height: float, below: float | None = None
) -> tuple[Any, Any]:
    """An empty figure, and its axes `[rows, columns]`.

    The object interface needs no display and leaves no state behind.

    Args:
        rows, columns: of axes.
        width, height: in inches.
        below: inches below a row of axes whose labels are of usual size; None makes
            room for whatever is there, which takes longer than to draw it.
    """
    from matplotlib import backends, figure  # noqa: F401

    layout = "constrained" if below is None else "none"
    drawing = figure.Figure(figsize=(width, height), layout=layout)
    axes = drawing.subplots(rows, columns, squeeze=False)
    if below is not None:
        left, right, top = 0.95, 0.15, 0.9
        wide = (width - columns * left - right) / columns
        drawing.subplots_adjust(
            left=left / width,
            right=1 - right / width,
            bottom=below / height,
            top=1 - top / height,
            wspace=left / wide,
        )
    return drawing, axes


def legend_below(axis: Any, columns: int = 2) -> None:
    """A legend that covers no curve, below the label of an axis of fixed height."""
    height = axis.get_position().height * axis.figure.get_figheight()
    axis.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.45 / height),
        ncols=columns,
        fontsize="small",
        frameon=False,
    )


def over_epochs(axis: Any) -> None:
    """Whole epochs along the x-axis."""
    from matplotlib import ticker

    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))


def means(rows: Sequence[dict]) -> Any:
    """AUROC and its standard deviation for each method and setting of a sweep.

    Args:
        rows: of `sweep.summarize`.
    """
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    height = 1.5 + 0.22 * len(rows)
    drawing, axes = panels(1, 1, 9, min(height, 60))
    axis = axes[0, 0]
    for i, method in enumerate(methods):
        own = [row for row in rows if row["method"] == method]
        shift = 0.7 * ((i + 0.5) / len(methods) - 0.5)
        axis.errorbar(
            [100 * row["auroc_mean"] for row in own],
            [settings.index(row["setting"]) + shift for row in own],
            xerr=[100 * row["auroc_std"] for row in own],
            fmt=_MARKS[i % len(_MARKS)],
            capsize=2,
            label=method,
        )
    axis.set(
        title="AUROC over the runs",
        xlabel="mean and standard deviation in percent",
        yticks=range(len(settings)),
        yticklabels=settings,
    )
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.3)
    if len(methods) > 1:
        drawing.legend(loc="outside lower center", ncols=4, frameon=False)
    return drawing


def curves(rows: Sequence[dict], name: str, label: str) -> Any:
    """AUROC over a ratio or a number of classes, with a band of one deviation.

    Args:
        rows: of `comparison.compare`, of one table of the paper.
        name: the field of the setting that changes.
        label: what it is called on the axis.
    """
    data = list(dict.fromkeys(row["data"] for row in rows))
    drawing, axes = panels(1, len(data), 1 + 4.5 * len(data), 4.2)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for axis, one in zip(axes.flat, data, strict=True):
        for i, method in enumerate(methods):
            own = [r for r in rows if r["data"] == one and r["method"] == method]
            own = sorted(own, key=lambda row: row["setting"][name])
            x = np.array([row["setting"][name] for row in own])
            mean = np.array([row["mean"] for row in own])
            std = np.array([row["std"] or 0.0 for row in own])
            color = f"C{i % 10}"
            mark = _MARKS[i % len(_MARKS)]
            axis.plot(x, mean, mark + "-", color=color, label=method, ms=4)
            axis.fill_between(x, mean - std, mean + std, color=color, alpha=0.1)
            known = [(r["setting"][name], r["published_mean"]) for r in own]
            known = [(a, b) for a, b in known if b is not None]
            if known:
                axis.plot(*zip(*known, strict=True), ":", color=color, lw=1)
        axis.set(title=one, xlabel=label)
        axis.locator_params(axis="x", nbins=5)
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("AUROC in percent")
    handles, names = axes[0, 0].get_legend_handles_labels()
    if any(row["published_mean"] is not None for row in rows):
        handles += axes[0, 0].plot([], [], ":", color="grey", lw=1)
        names.append("published")
    drawing.legend(handles, names, loc="outside right upper", fontsize="small")
    return drawing


def average_ranks(ranks: dict[str, float], difference: float, title: str) -> Any:
    """A critical-difference diagram: who is no worse than whom, by average ranks.

    Args:
        ranks: average rank of each method, 1 is the best.
        difference: of two ranks, from which on it is significant.
        title: of the picture.
    """
    order = sorted(ranks, key=ranks.get)
    drawing, axes = panels(1, 1, 8, 1.2 + 0.32 * len(order))
    axis = axes[0, 0]
    for i, name in enumerate(order):
        axis.plot(ranks[name], i, "o", color="C0" if i else "C3")
        axis.annotate(
            f"{name}  {ranks[name]:.2f}",
            (ranks[name], i),
            xytext=(8, -3),
            textcoords="offset points",
        )
    # A bar beside them joins those that are not told apart.
    low, high = ranks[order[0]], ranks[order[-1]]
    step, bars, last = (high - low or 1.0) / 40, 0, -1
    for i, name in enumerate(order):
        end = max(j for j, b in enumerate(order) if ranks[b] - ranks[name] < difference)
        if end > max(i, last):
            bars, last = bars + 1, end
            place = low - bars * step - step
            axis.plot([place, place], [i - 0.25, end + 0.25], color="grey", lw=3)
    axis.set(
        title=title,
        xlabel=f"average rank, 1 is the best; bars join methods less than the critical "
        f"difference {difference:.2f} apart",
        xlim=(low - (bars + 3) * step, high + 18 * step),
    )
    axis.set_yticks([])
    axis.invert_yaxis()
    return drawing
