"""Alarms of thresholds against plain NumPy and scikit-learn."""

import numpy as np
import pytest
import sklearn.metrics

from deepsad_jax.report import thresholds


def made(n, seed=0, digits=12):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.3).astype(int)
    return np.round(rng.normal(size=n) + labels, digits), labels


@pytest.mark.parametrize(("n", "digits"), [(300, 12), (300, 1), (5000, 12)])
def test_alarms_are_those_that_numpy_counts(n, digits):
    scores, labels = made(n, digits=digits)
    found = thresholds.counted(scores, labels, also=0.123)
    assert 0.123 in found.thresholds and len(found.thresholds) <= 1003
    for t, false, hits in zip(*found[:3], strict=True):
        assert false == np.sum(scores[labels == 0] > t)
        assert hits == np.sum(scores[labels == 1] > t)
    assert (found.false_alarms[0], found.hits[0]) == found[3:]  # all are alarms
    assert found.false_alarms[-1] == found.hits[-1] == 0
    usual = found.thresholds[found.usual()]
    false = [np.mean(scores[labels == 0] > t) for t in np.unique(scores)]
    assert usual == np.unique(scores)[np.argmax(np.array(false) <= 0.05)]


def test_the_curves_have_the_areas_of_scikit_learn():
    scores, labels = made(400, digits=1)
    found = thresholds.counted(scores, labels)
    area = np.trapezoid(*thresholds.roc(found)[::-1])
    np.testing.assert_allclose(area, sklearn.metrics.roc_auc_score(labels, scores))
    recall, precision = thresholds.precision_recall(found)
    average = np.sum(np.diff(recall, prepend=0) * precision)
    expected = sklearn.metrics.average_precision_score(labels, scores)
    np.testing.assert_allclose(average, expected)


def test_bins_tell_most_scores_apart_wherever_a_few_are():
    rng = np.random.default_rng(0)
    for scores, is_log in (
        (rng.normal(size=500), False),
        (np.append(rng.normal(size=500), [1e9, -1e9]), False),
        (np.exp(3 * rng.normal(size=500)), True),
        (np.append(np.exp(rng.normal(size=500)), 1e-300), True),
    ):
        edges, found = thresholds.bins(scores)
        assert found == is_log and (np.diff(edges) > 0).all()
        heights = np.histogram(np.clip(scores, edges[0], edges[-1]), edges)[0]
        assert heights.sum() == len(scores) and heights.max() < 0.4 * len(scores)
    assert (np.diff(thresholds.bins(np.full(5, 2.0))[0]) > 0).all()
