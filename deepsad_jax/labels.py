"""Labels of experts: +1 known normal, 0 unlabeled, -1 known anomaly.

Other libraries write 1 for an anomaly; what could be meant so is refused or warned of.
"""

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np

from deepsad_jax import checks

MEANINGS = {1: "known normal", 0: "unlabeled", -1: "known anomaly"}


def check_semi_targets(
    name: str, values: Any, expected: int, *, warn: bool = True
) -> np.ndarray:
    """Labels of which the rest of the library can be sure.

    Args:
        name: what they are called, for messages.
        values: +1, 0 or -1 for each example, of any real type; `[n]`, `[n, 1]` or
            `[1, n]`.
        expected: n.
        warn: whether to warn of 1 without any -1, which elsewhere means anomalies.

    Returns:
        `[n]` int8.

    Raises:
        ValueError: if they are anything else, booleans included.
    """
    labels = integers(name, values, expected, MEANINGS)
    if warn:
        warn_of_ones(name, (labels == 1).any(), (labels == -1).any())
    return labels.astype(np.int8)


def warn_of_ones(name: str, has_ones: bool, has_anomalies: bool) -> None:
    """Warns of 1 without any -1, which elsewhere means anomalies."""
    if has_ones and not has_anomalies:
        warnings.warn(
            f"{name} has 1 and no -1: here, 1 means known normal and -1 known anomaly, "
            "while other libraries write 1 for an anomaly; if that is meant, give "
            f"-np.asarray({name}) instead",
            UserWarning,
            stacklevel=4,
        )


def semi_targets(labels: Any, *, normal: Any = (), anomaly: Any = ()) -> np.ndarray:
    """Turns labels of any kind into +1, 0 and -1.

        semi_targets(["ok", "", "broken"], normal="ok", anomaly="broken")  # [1, 0, -1]
        semi_targets(y, anomaly=1)      # where 1 is an anomaly and the rest is unknown

    Args:
        labels: numbers, texts or booleans, `[n]`.
        normal: the value, or the values, of the examples that are known to be normal.
        anomaly: those of the known anomalies. What is neither is unlabeled.

    Returns:
        `[n]` int8.

    Raises:
        ValueError: if a value means both, or does not occur.
    """
    labels = np.asarray(labels, None if isinstance(labels, np.ndarray) else object)
    if labels.ndim != 1:
        raise ValueError(f"labels has shape {labels.shape}; it must be [n]")
    result = np.zeros(len(labels), np.int8)
    for name, chosen, meaning in (("normal", normal, 1), ("anomaly", anomaly, -1)):
        is_one = isinstance(chosen, (str, bytes)) or not isinstance(chosen, Iterable)
        for value in [chosen] if is_one else chosen:
            rows = np.fromiter((label == value for label in labels), bool, len(labels))
            if not rows.any():
                raise ValueError(f"{name} is {value!r}, which no label is")
            if (result[rows] == -meaning).any():
                raise ValueError(f"{value!r} is both normal and anomaly; choose one")
            result[rows] = meaning
    return result


def integers(
    name: str, values: Any, expected: int, meanings: dict[int, str] | None = None
) -> np.ndarray:
    """Whole numbers, one for each example, as `[n]` int64.

    Args:
        name: what they are called, for messages.
        values: whole numbers of any real type, `[n]`, `[n, 1]` or `[1, n]`.
        expected: n.
        meanings: the numbers that are allowed, and what they mean; all by default.

    Raises:
        ValueError: if they are anything else. Booleans are refused where meanings are
            given that they could turn around.
    """
    labels = checks.unmasked(name, values)
    if labels.size != expected or max(labels.shape, default=1) != expected:
        shape = f" of shape {labels.shape}" if labels.ndim > 1 else ""
        raise ValueError(
            f"{name} has {labels.size} entries{shape} for {expected} examples"
        )
    labels = labels.reshape(-1)
    allowed = "integers, one for each example"
    if meanings:
        allowed = ", ".join(f"{value} {meaning}" for value, meaning in meanings.items())
    if labels.dtype.kind == "b" and meanings == MEANINGS:
        raise ValueError(
            f"{name} holds booleans, which may mean either; give {allowed}"
        )
    if labels.dtype.kind not in "iufb":
        raise ValueError(
            f"{name} must hold integers, one for each example, but has dtype "
            f"{labels.dtype}"
        )
    with np.errstate(invalid="ignore"):  # NaN, and what int64 does not hold
        whole = labels.astype(np.int64)
    strange = labels[whole != labels]
    if np.isnan(strange).any():
        raise ValueError(
            f"{name} must hold integers, one for each example, but has nan (of row "
            f"{int(np.argmax(np.isnan(labels)))}; {int(np.isnan(labels).sum())} in all)"
        )
    if len(strange):
        raise ValueError(
            f"{name} must hold integers, one for each example, but has {strange[0]}"
        )
    strange = np.setdiff1d(whole, list(meanings)) if meanings else []
    if len(strange):
        raise ValueError(f"{name} contains {strange[0]}; allowed are {allowed}")
    return whole
