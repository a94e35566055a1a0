"""Charts as inline SVG: colors come from the style of the page, texts are escaped."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

WIDTH, HEIGHT = 440, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 22, 10, 44
_MOST = 600  # points of a line; more are not seen


class Series(NamedTuple):
    """What is drawn in one color.

    Attributes:
        name: for the legend.
        x, y: `[n]`; what is not finite leaves a gap.
        look: a class of the style: normal, anomaly, unlabeled, own, other, quiet.
        filled: whether the area below is tinted.
    """

    name: str
    x: Any
    y: Any
    look: str
    filled: bool = False


class Axis(NamedTuple):
    """One of the two.

    Attributes:
        label: with the unit.
        range: the lowest and the highest value; of the series by default.
        is_log: whether equal steps are equal ratios.
        is_whole: whether only whole numbers mean something.
        is_share: whether 1 is 100 %.
    """

    label: str
    range: tuple[float, float] | None = None
    is_log: bool = False
    is_whole: bool = False
    is_share: bool = False


class Chart(NamedTuple):
    """A chart, and what stands around it.

    Attributes:
        title: its name.
        svg: as markup.
        legend: pairs of a look and a name.
        reading: a sentence that says how to read it.
    """

    title: str
    svg: Any
    legend: list[tuple[str, str]]
    reading: str


def chart(
    title: str,
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    reading: str,
    extra: Any = "",
) -> Chart:
    """Lines over one pair of axes.

    Args:
        title: its name.
        series: what to draw.
        x, y: the axes.
        reading: a sentence that says how to read it.
        extra: markup in front of the lines, such as `threshold_line`.
    """
    import markupsafe

    x_range, y_range = (
        _range(x, [s.x for s in series]),
        _range(y, [s.y for s in series]),
    )
    parts = [*_x_axis(x, x_range), *_y_axis(y, y_range)]
    for one in series:
        across = place_x(x, x_range, one.x)
        up = _place(y, y_range, one.y, HEIGHT - _BOTTOM, _TOP)
        path = _path(across, up)
        if one.filled and path:
            low = HEIGHT - _BOTTOM
            first, last = across[0], across[-1]
            area = f"{path}L{last:.1f} {low}L{first:.1f} {low}Z"
            parts.append(f'<path class="area {one.look}" d="{area}"/>')
        parts.append(f'<path class="line {one.look}" d="{path}"/>')
    head = markupsafe.Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}">'
    ).format(WIDTH, HEIGHT, f"{title}. {reading}")
    svg = head + markupsafe.Markup("").join([*map(markupsafe.Markup, parts), extra])
    legend = [(one.look, one.name) for one in series if one.name]
    return Chart(title, svg + markupsafe.Markup("</svg>"), legend, reading)


def place_x(axis: Axis, ends: tuple[float, float], values: Any) -> np.ndarray:
    """Where values of the axis stand in the drawing, from the left."""
    return _place(axis, ends, values, _LEFT, WIDTH - _RIGHT)


def marker(kind: str) -> Any:
    """What a script moves: a "line" through the chart, or a "dot" on a curve."""
    import markupsafe

    if kind == "line":
        shape = f'<line class="mark" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>'
    else:
        shape = '<circle class="mark" r="5"/>'
    return markupsafe.Markup(shape)


def frame() -> dict[str, int]:
    """Where the axes stand, for scripts."""
    return {
        "left": _LEFT,
        "right": WIDTH - _RIGHT,
        "top": _TOP,
        "bottom": HEIGHT - _BOTTOM,
    }


def steps(edges: np.ndarray, heights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The outline of a histogram: x and y, from the ground to the ground."""
    x = np.repeat(edges, 2)
    return x, np.concatenate([[0], np.repeat(heights, 2), [0]])


def _range(axis: Axis, values) -> tuple[float, float]:
    if axis.range is not None:
        return axis.range
    known = np.concatenate([np.asarray(v, float).ravel() for v in values])
    known = known[np.isfinite(known) & ((known > 0) | (not axis.is_log))]
    if not len(known):
        return (0.1, 1.0) if axis.is_log else (0.0, 1.0)
    low, high = float(known.min()), float(known.max())
    if low == high:
        return (low / 2, high * 2) if axis.is_log else (low - 0.5, high + 0.5)
    if axis.is_log or axis.is_whole:
        return low, high
    return low - 0.04 * (high - low), high + 0.04 * (high - low)


def _place(axis, ends, values, start, end):
    values, (low, high) = np.asarray(values, float), ends
    if axis.is_log:
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.log(np.where(values > 0, values, np.nan))
        low, high = math.log(low), math.log(high)
    return start + (values - low) / (high - low) * (end - start)


def _path(x, y) -> str:
    if len(x) > _MOST:
        kept = np.unique(np.linspace(0, len(x) - 1, _MOST).astype(int))
        x, y = x[kept], y[kept]
    parts, pen = [], "M"
    for across, up in zip(x, y, strict=True):
        if np.isfinite(across) and np.isfinite(up):
            parts.append(f"{pen}{across:.1f} {up:.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(parts)


def ticks(axis: Axis, low: float, high: float, most: int = 6) -> list[float]:
    """Round values of an axis, in its range."""
    if axis.is_log and high / low > 8:
        first, last = math.ceil(math.log10(low) - 1e-9), math.log10(high) + 1e-9
        powers = list(range(first, math.floor(last) + 1))
        powers = powers[:: max(1, -(-len(powers) // most))]
        if len(powers) > 1:
            return [10.0**power for power in powers]
        marks = [m * 10.0 ** (first - 1 + k) for k in (0, 1) for m in (1, 2, 5)]
        return [m for m in marks if low <= m <= high]
    rough = (high - low) / (most - 1)
    size = 10.0 ** math.floor(math.log10(rough))
    size *= next(m for m in (1, 2, 5, 10) if m * size >= rough * 0.999)
    size = max(1.0, size) if axis.is_whole else size
    first = math.ceil(low / size - 1e-9)
    return [i * size for i in range(first, math.floor(high / size + 1e-9) + 1)]


def _written(axis, value) -> str:
    return f"{100 * value:.4g} %" if axis.is_share else f"{value:.4g}"


def _x_axis(axis, ends):
    import markupsafe

    low, middle = HEIGHT - _BOTTOM, (_LEFT + WIDTH - _RIGHT) / 2
    yield f'<path class="axis" d="M{_LEFT} {low}H{WIDTH - _RIGHT}"/>'
    values = ticks(axis, *ends)
    for value, x in zip(values, place_x(axis, ends, values), strict=True):
        yield f'<path class="axis" d="M{x:.1f} {low}v4"/>'
        yield f'<text x="{x:.1f}" y="{low + 17}">{_written(axis, value)}</text>'
    label = markupsafe.escape(axis.label)
    yield f'<text x="{middle:.0f}" y="{HEIGHT - 6}">{label}</text>'


def _y_axis(axis, ends):
    import markupsafe

    low, middle = HEIGHT - _BOTTOM, (HEIGHT - _BOTTOM + _TOP) / 2
    values = ticks(axis, *ends)
    for value, y in zip(values, _place(axis, ends, values, low, _TOP), strict=True):
        yield f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>'
        text = _written(axis, value)
        yield f'<text class="end" x="{_LEFT - 6}" y="{y + 4:.1f}">{text}</text>'
    label = markupsafe.escape(axis.label)
    yield (f'<text transform="translate(12 {middle:.0f}) rotate(-90)">{label}</text>')
