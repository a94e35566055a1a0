"""Measures of labeled rows against scikit-learn and SciPy, and intervals by counts."""

import numpy as np
import pytest
import scipy.special
import scipy.stats
from sklearn.metrics import average_precision_score, roc_auc_score

from deepsad_jax import evaluation


def part(rng, anomalies, normals, shift=1.5):
    is_anomaly = np.arange(anomalies + normals) < anomalies
    scores = rng.normal(size=len(is_anomaly)) + shift * is_anomaly
    return scores, is_anomaly, scores > 1


def test_measures_are_those_of_all_parts_and_pairs_within_one():
    rng = np.random.default_rng(0)
    parts = [part(rng, 8, 30), part(rng, 5, 41), part(rng, 0, 10)]
    parts[1] = (parts[1][0] * 100 + 1000, *parts[1][1:])  # of another scale
    found = evaluation.measured(parts, false_alarm_rate=0.1)
    areas = [roc_auc_score(p[1], p[0]) for p in parts[:2]]
    np.testing.assert_allclose(found.auroc, np.average(areas, weights=[240, 205]))
    assert (found.anomalies, found.normals) == (13, 81)
    is_anomaly, is_alarm = (np.concatenate([p[i] for p in parts]) for i in (1, 2))
    assert found.detected == (is_anomaly & is_alarm).sum()
    assert found.false_alarms == (~is_anomaly & is_alarm).sum()
    said = " ".join(found.sentences())
    assert f"{found.detected} of 13 (" in said and "a rough guess" in said


def test_one_kind_alone_has_no_auroc():
    found = evaluation.measured([part(np.random.default_rng(1), 0, 30)])
    assert np.isnan(found.auroc) and found.normals == 30
    assert len(found.sentences()) == 2


@pytest.mark.parametrize("anomalies, normals", [(5, 50), (30, 30), (10, 400)])
@pytest.mark.parametrize("shift", [0.5, 1.5, 3.0])
def test_intervals_hold_the_true_area_as_often_as_they_say(anomalies, normals, shift):
    rng, count = np.random.default_rng(2), 800
    truth = scipy.stats.norm.cdf(shift / np.sqrt(2))
    a = rng.normal(shift, 1, (count, anomalies, 1))
    n = rng.normal(0, 1, (count, 1, normals))
    held = 0
    for area in (a > n).mean(axis=(1, 2)):
        low, high = evaluation.auroc_interval(area, anomalies, normals)
        assert 0 <= low <= area <= high <= 1
        held += low <= truth <= high
    assert 0.92 <= held / count <= 0.995


def test_a_perfect_area_of_few_rows_is_not_sure():
    low, high = evaluation.auroc_interval(1.0, 4, 40)
    assert high == 1 and 0.4 < low < 0.9
    assert evaluation.auroc_interval(1.0, 400, 4000)[0] > 0.98
    few, many = (evaluation.auroc_interval(0.9, n, n) for n in (10, 1000))
    assert few[0] < many[0] < 0.9 < many[1] < few[1]


@pytest.mark.parametrize("part, whole", [(0, 5), (3, 10), (10, 10), (7, 1000)])
def test_shares_have_the_interval_of_wilson(part, whole):
    expected = scipy.stats.binomtest(part, whole).proportion_ci(method="wilson")
    found = evaluation.share_interval(part, whole)
    np.testing.assert_allclose(found, (expected.low, expected.high), atol=1e-6)


@pytest.mark.parametrize("count", [2, 5, 30])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_interval_of_average_precision_has_the_mean_of_draws_in_it(count, shift):
    rng, labels = np.random.default_rng(1), np.repeat([0, 1], [200, count])
    draws = [rng.normal(size=len(labels)) + shift * labels for _ in range(200)]
    mean = np.mean([average_precision_score(labels, scores) for scores in draws])
    ends = [evaluation.average_precision_interval(labels, s) for s in draws]
    assert np.mean([low <= mean <= high for low, high in ends]) > 0.92
    assert all(0 <= low < high <= 1 for low, high in ends)


def test_the_interval_of_average_precision_is_that_of_log_odds():
    rng, labels = np.random.default_rng(0), np.repeat([0, 1], [50, 30])
    scores = np.round(rng.normal(size=80) + labels, 1)  # with ties
    found = average_precision_score(labels, scores)
    spread = scipy.stats.norm.ppf(0.975) / np.sqrt(30 * found * (1 - found))
    odds = scipy.special.logit(found) + spread * np.array([-1, 1])
    expected = scipy.special.expit(odds)
    ends = evaluation.average_precision_interval(labels, scores)
    np.testing.assert_allclose(ends, expected, rtol=1e-6)
    low, high = evaluation.average_precision_interval(labels, labels.astype(float))
    assert 0.6 < low < 0.95 and high == 1.0  # thirty in perfect order


def test_ranks_are_those_of_scipy_and_their_difference_that_of_the_tables():
    rng = np.random.default_rng(0)
    values = {name: rng.normal(i, 1, 20) for i, name in enumerate("abcde")}
    ranks, difference = evaluation.average_ranks(values)
    table = np.array(list(values.values())).T
    expected = scipy.stats.rankdata(-table, axis=1).mean(axis=0)
    np.testing.assert_allclose(list(ranks.values()), expected)
    # Demsar, JMLR 2006, table 5: 2.728 for five methods at 5 %.
    np.testing.assert_allclose(difference, 2.728 * np.sqrt(5 * 6 / (6 * 20)), rtol=1e-3)
