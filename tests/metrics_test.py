import math

import numpy as np

from deepsad_jax import metrics


def test_auroc_is_the_share_of_pairs_in_order_with_ties_as_halves():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    scores = rng.integers(0, 8, 60).astype(float)
    difference = scores[labels == 1][:, None] - scores[labels == 0][None]
    expected = np.mean((difference > 0) + 0.5 * (difference == 0))
    assert math.isclose(metrics.auroc(labels, scores), expected)


def test_average_precision_by_hand():
    # Ranked 1, 0, 1: precision 1 at recall 1/2 and 2/3 at recall 1.
    value = metrics.average_precision(np.array([1, 0, 1]), np.array([3.0, 2.0, 1.0]))
    assert math.isclose(value, 0.5 * 1 + 0.5 * 2 / 3)


def test_one_class_alone_has_no_figure():
    scores = np.arange(3.0)
    assert math.isnan(metrics.auroc(np.zeros(3), scores))
    assert math.isnan(metrics.average_precision(np.ones(3), scores))
