"""The semi-supervised protocol of the paper (section 4.1): who is known, who is not.

One class is normal and all others are anomalous. A training set is made of all normal
training examples, some of them labeled, and as many anomalies, labeled or polluting
the unlabeled, as the ratios ask for. The test set is kept whole.
"""

import dataclasses
import math
import numbers
import warnings
from typing import NamedTuple

import numpy as np

from deepsad_jax import labels as expert_labels
from deepsad_jax import preprocessing
from deepsad_jax.data import sources

TEST_SHARE = 0.4


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What to draw.

    Attributes:
        normal_class: the class that is normal.
        known_outlier_class: the class of the labeled anomalies.
        n_known_outlier_classes: how many classes have labeled anomalies: 0, 1 (the one
            above) or more (drawn at random by the seed).
        ratio_known_normal: labeled normal examples, as a share of the training set.
        ratio_known_outlier: labeled anomalies, as a share of the training set.
        ratio_pollution: anomalies among the unlabeled, as a share of those.
    """

    normal_class: int = 0
    known_outlier_class: int = 1
    n_known_outlier_classes: int = 1
    ratio_known_normal: float = 0.0
    ratio_known_outlier: float = 0.0
    ratio_pollution: float = 0.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            is_ratio = field.name.startswith("ratio")
            kind = numbers.Real if is_ratio else numbers.Integral
            if not isinstance(value, kind):
                raise ValueError(
                    f"{field.name} is {value!r}; it must be "
                    f"{'in [0, 1)' if is_ratio else 'an integer'}"
                )
            if is_ratio and not 0 <= value < 1:
                raise ValueError(f"{field.name} is {value}; it must be in [0, 1)")
        if self.ratio_known_normal + self.ratio_known_outlier >= 1:
            raise ValueError(
                "ratio_known_normal and ratio_known_outlier add up to "
                f"{self.ratio_known_normal + self.ratio_known_outlier}; they must stay "
                "below 1, since both are shares of the training set"
            )
        if self.n_known_outlier_classes < 0:
            raise ValueError(
                f"n_known_outlier_classes is {self.n_known_outlier_classes}; it must "
                "be >= 0"
            )
        if self.ratio_known_outlier > 0 and self.n_known_outlier_classes == 0:
            raise ValueError(
                f"ratio_known_outlier is {self.ratio_known_outlier}, but "
                "n_known_outlier_classes is 0; allow a class or set the ratio to 0"
            )


class Counts(NamedTuple):
    """How many examples of each kind a training set has."""

    known_normal: int
    unlabeled_normal: int
    unlabeled_outlier: int
    known_outlier: int


class Problem(NamedTuple):
    """One semi-supervised problem.

    Attributes:
        x_train: the training part, raw, `[n, ...]`, of which `indices` are used.
        indices: rows of `x_train` that are trained on, `[n_train]` int64.
        semi_targets: +1, 0 or -1 for each of them, `[n_train]` int64.
        x_test: the test set, raw.
        labels_test: 0 normal, 1 anomaly, `[n_test]` int64.
        index_test: row of each test example in the source: in its test part, if it has
            one, else in the whole, `[n_test]` int64.
        preprocessing: what suits the whole training part.
    """

    x_train: np.ndarray
    indices: np.ndarray
    semi_targets: np.ndarray
    x_test: np.ndarray
    labels_test: np.ndarray
    index_test: np.ndarray
    preprocessing: preprocessing.Preprocessing


def counts(n_normal: int, protocol: Protocol) -> Counts:
    """How many examples the ratios ask for, given the normal ones.

    With n the size of the training set, u unlabeled outliers and so on: all normal
    examples are used, known normal = ratio n, known outliers = ratio n, and
    u = ratio (unlabeled). Fractions are dropped.
    """
    r_normal = protocol.ratio_known_normal
    r_outlier = protocol.ratio_known_outlier
    r_pollution = protocol.ratio_pollution
    # Unknowns: known normal, unlabeled normal, unlabeled outliers, known outliers.
    equations = np.array(
        [
            [1.0, 1.0, 0.0, 0.0],
            [1.0 - r_normal, -r_normal, -r_normal, -r_normal],
            [-r_outlier, -r_outlier, -r_outlier, 1.0 - r_outlier],
            [0.0, -r_pollution, 1.0 - r_pollution, 0.0],
        ]
    )
    try:
        solution = np.linalg.solve(equations, [n_normal, 0.0, 0.0, 0.0])
        solvable = np.abs(solution).max() < 2**53
    except np.linalg.LinAlgError:
        solvable = False
    if not solvable:
        raise ValueError(
            f"ratio_known_normal {r_normal}, ratio_known_outlier {r_outlier} and "
            f"ratio_pollution {r_pollution} leave no room for normal examples; lower "
            "them"
        )
    return Counts(*(int(number) for number in solution))


def draw(
    labels: np.ndarray, protocol: Protocol, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws a training set: its rows, and their semi-supervised targets.

    Args:
        labels: classes of the training part, `[n]` integers.
        protocol: what to draw.
        seed: decides which examples, and which classes if several are known.

    Returns:
        `indices` and `semi_targets`, both `[n_train]` int64, no row twice.

    Raises:
        ValueError: if a class does not exist, or more anomalies are asked for than
            there are.
    """
    rng = np.random.default_rng(seed)
    known_classes = _known_outlier_classes(labels, protocol, rng)
    normal = rng.permutation(np.flatnonzero(labels == protocol.normal_class))
    outliers = np.flatnonzero(labels != protocol.normal_class)
    candidates = rng.permutation(np.flatnonzero(np.isin(labels, known_classes)))
    number = counts(len(normal), protocol)
    if number.known_outlier > len(candidates):
        raise ValueError(
            f"ratio_known_outlier {protocol.ratio_known_outlier} asks for "
            f"{number.known_outlier} labeled anomalies, but the training set has "
            f"{len(candidates)} of the known outlier classes "
            f"{[int(c) for c in known_classes]}; lower the ratio"
        )
    known = candidates[: number.known_outlier]
    rest = rng.permutation(np.setdiff1d(outliers, known))
    if number.unlabeled_outlier > len(rest):
        raise ValueError(
            f"ratio_pollution {protocol.ratio_pollution} asks for "
            f"{number.unlabeled_outlier} unlabeled anomalies, but {len(rest)} are "
            f"left ({len(outliers)} in the training set, {len(known)} of them "
            "labeled); lower the ratio"
        )
    # Fractions dropped from both normal groups can leave one example over.
    unlabeled_normal = normal[number.known_normal :][: number.unlabeled_normal]
    groups = (
        (normal[: number.known_normal], 1),
        (unlabeled_normal, 0),
        (rest[: number.unlabeled_outlier], 0),
        (known, -1),
    )
    _warn_of_none(protocol, number)
    indices = np.concatenate([rows for rows, _ in groups])
    semi_targets = np.concatenate([np.full(len(rows), t) for rows, t in groups])
    return indices, semi_targets


def _warn_of_none(protocol: Protocol, number: Counts) -> None:
    for kind in ("normal", "outlier"):
        ratio = getattr(protocol, f"ratio_known_{kind}")
        if ratio > 0 and not getattr(number, f"known_{kind}"):
            warnings.warn(
                f"ratio_known_{kind} is {ratio}, which of {sum(number)} training "
                f"examples is less than one: no known {kind} is drawn; raise the "
                "ratio, or set it to 0",
                UserWarning,
                stacklevel=3,
            )


def _known_outlier_classes(labels, protocol, rng) -> np.ndarray:
    classes = np.unique(labels)
    if protocol.normal_class not in classes:
        raise ValueError(
            f"normal_class is {protocol.normal_class}; the classes are "
            f"{[int(c) for c in classes]}"
        )
    others = classes[classes != protocol.normal_class]
    if (
        not len(others)
        and protocol.n_known_outlier_classes
        and (protocol.ratio_known_outlier or protocol.ratio_pollution)
    ):
        raise ValueError("all examples are of the normal class; there are no anomalies")
    if protocol.n_known_outlier_classes == 1 and len(others):
        if protocol.known_outlier_class not in others:
            raise ValueError(
                f"known_outlier_class is {protocol.known_outlier_class}; the anomalous "
                f"classes are {[int(c) for c in others]}"
            )
        return np.array([protocol.known_outlier_class])
    if protocol.n_known_outlier_classes > len(others):
        raise ValueError(
            f"n_known_outlier_classes is {protocol.n_known_outlier_classes}; there are "
            f"{len(others)} anomalous classes"
        )
    return rng.choice(others, protocol.n_known_outlier_classes, replace=False)


def make(source: sources.Source, protocol: Protocol, seed: int) -> Problem:
    """Splits and draws.

    Sources without a test part are split once, 60 to 40, stratified by class. A source
    with its own `semi_targets` is taken as it is. Values stay raw; the preprocessing
    that goes with them is fitted on the whole training part.

    Args:
        source: the data.
        protocol: what to draw.
        seed: decides split and draw.

    Raises:
        ValueError: as `draw` does, if the arrays do not fit together, a class is too
            small to be split, or values are not finite or far off.
    """
    if not isinstance(seed, numbers.Integral) or not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed!r}; it must be an integer in [0, 2^32)")
    source = sources.checked(source)
    x, labels, x_test, labels_test = source[:4]
    if x_test is None:
        train, test = _split(labels, seed)
        x, x_test = x[train], x[test]
        labels, labels_test = labels[train], labels[test]
    else:
        test = np.arange(len(x_test))
    if source.semi_targets is not None:
        indices, semi_targets = np.arange(len(x)), source.semi_targets
        labels_test = (labels_test != 0).astype(np.int64)
    else:
        indices, semi_targets = draw(labels, protocol, seed)
        labels_test = (labels_test != protocol.normal_class).astype(np.int64)
    if not len(indices):
        raise ValueError(
            "the ratios leave no training example; lower ratio_known_normal or "
            f"ratio_pollution, or add examples of the normal class "
            f"{protocol.normal_class}"
        )
    kind = "table" if x.ndim == 2 else "examples"
    scaling = preprocessing.auto(x, f"the training part of the {kind}")
    scaling.check(x_test, f"the test part of the {kind}")
    return Problem(x, indices, semi_targets, x_test, labels_test, test, scaling)


def whole(source: sources.Source, protocol: Protocol) -> Problem:
    """All examples as a test set, for a model that is only evaluated; of sources with a
    test part, that part.

    Args:
        source: the data.
        protocol: its `normal_class` counts.

    Returns:
        A problem that trains on none of them.

    Raises:
        ValueError: if the arrays do not fit together.
    """
    source = sources.checked(source)
    x, labels = source.x, source.labels
    normal_class = protocol.normal_class
    if source.x_test is not None:
        x, labels = source.x_test, source.labels_test
    if source.semi_targets is not None:
        normal_class = 0
    nothing = np.zeros(0, np.int64)
    return Problem(
        x,
        nothing,
        nothing,
        x,
        (labels != normal_class).astype(np.int64),
        np.arange(len(x)),
        preprocessing.Unchanged(),
    )


def describe(source: sources.Source, protocol: Protocol) -> str:
    """Which labels a source has, and what their values mean under a protocol.

    Such as "column 'label': 0 normal (1655 rows), 1 anomaly (176 rows)", or "the digit:
    9 is normal (180 rows), 9 other classes are anomalies (1617 rows)".
    """
    name = source.label or "labels"
    if source.semi_targets is not None:
        values, sizes = np.unique(np.asarray(source.semi_targets), return_counts=True)
        meanings = [
            expert_labels.MEANINGS.get(int(value), "unknown") for value in values
        ]
    else:
        values, sizes = np.unique(np.asarray(source.labels), return_counts=True)
        normal = values == protocol.normal_class
        meanings = np.where(normal, "normal", "anomaly").tolist()
        if len(values) > 3:
            return (
                f"{name}: {protocol.normal_class} is normal ({sizes[normal].sum()} "
                f"rows), {np.sum(~normal)} other classes are anomalies "
                f"({sizes[~normal].sum()} rows)"
            )
    shown = [
        f"{int(value)} {meaning} ({size} rows)"
        for value, meaning, size in zip(values, meanings, sizes, strict=True)
    ]
    return f"{name}: {', '.join(shown)}"


def _split(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the training and the test part, stratified by class.

    Those of scikit-learn's `train_test_split`, whose import takes longer than training.
    """
    classes, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    rng, count = np.random.RandomState(seed), math.ceil(TEST_SHARE * len(labels))
    rest = len(labels) - count
    if sizes.min() < 2 or min(count, rest) < len(classes):
        rarest = int(np.argmin(sizes))
        raise ValueError(
            "the data cannot be split into training and test part, with all classes "
            f"in both: there are {len(labels)} examples of {len(classes)} classes, "
            f"{sizes[rarest]} of them of class {classes[rarest]}; add examples, or "
            "give a test part"
        )
    in_train = _apportioned(sizes, rest, rng)
    in_test = _apportioned(sizes - in_train, count, rng)
    train, test = [], []
    for i, (first, second) in enumerate(zip(in_train, in_test, strict=True)):
        rows = np.flatnonzero(inverse == i)[rng.permutation(sizes[i])]
        train.append(rows[:first])
        test.append(rows[first : first + second])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))


def _apportioned(sizes: np.ndarray, count: int, rng) -> np.ndarray:
    """Seats for classes by their sizes: the largest remainders are rounded up, and a
    draw decides among equal ones."""
    quotas = sizes / sizes.sum() * count
    seats = np.floor(quotas)
    left, remainders = int(count - seats.sum()), quotas - seats
    for value in np.unique(remainders)[::-1]:
        if left > 0:
            equal = np.flatnonzero(remainders == value)
            chosen = rng.choice(equal, size=min(len(equal), left), replace=False)
            seats[chosen] += 1
            left -= len(chosen)
    return seats.astype(int)
