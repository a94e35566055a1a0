"""Decisions against loops over definitions, SciPy, and counts of false alarms."""

import math

import numpy as np
import pytest
import scipy.stats

from deepsad_jax import decisions


def by_definition(scores, calibration):
    above = [sum(c >= s for c in calibration) for s in scores]
    return (1 + np.array(above)) / (len(calibration) + 1)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64])
def test_p_values_count_calibration_rows_that_are_at_least_as_strange(kind):
    rng = np.random.default_rng(0)
    calibration, scores = (rng.integers(0, 9, n).astype(kind) for n in (40, 25))
    found = decisions.p_values(scores, calibration)
    np.testing.assert_allclose(found, by_definition(scores, calibration), rtol=1e-15)
    assert decisions.p_values([], calibration).shape == (0,)


def test_ties_are_broken_evenly_by_a_generator():
    rng = np.random.default_rng(1)
    alarms = [
        decisions.p_values(rng.integers(0, 3, 1), rng.integers(0, 3, 19), rng=rng)
        for _ in range(4000)
    ]
    # Uniform: 10 % of them are at most 0.1, whatever the ties.
    low, high = scipy.stats.binom.interval(0.999, 4000, 0.1)
    assert low <= np.sum(np.array(alarms) <= 0.1) <= high


def test_cross_conformal_compares_within_each_fold():
    rng = np.random.default_rng(2)
    calibration = [rng.normal(size=n) * scale for n, scale in ((7, 1), (8, 100))]
    scores = [rng.normal(size=5), 100 * rng.normal(size=5)]
    above = sum(
        (c[:, None] >= s).sum(axis=0) for c, s in zip(calibration, scores, strict=True)
    )
    found = decisions.cross_conformal(scores, calibration)
    np.testing.assert_allclose(found, (1 + above) / 16)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1, 0.15, 0.29, 0.3, 1 / 3, 0.999])
@pytest.mark.parametrize("size", [1, 2, 9, 19, 99, 100, 299])
@pytest.mark.filterwarnings("ignore:.*too few")
def test_alarms_are_the_p_values_up_to_the_rate(rate, size):
    rng = np.random.default_rng(size)
    calibration = np.round(rng.normal(size=size), 1)
    scores = np.concatenate([calibration, calibration + 0.05, [50.0]])
    limit = decisions.threshold(calibration, false_alarm_rate=rate)
    p = decisions.p_values(scores, calibration)
    np.testing.assert_array_equal(scores > limit, p <= rate)
    budget = decisions.threshold(calibration, budget=rate * 1000, of=1000)
    assert budget == limit


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1, 0.3, 0.9])
def test_too_few_rows_for_a_rate_are_said_with_their_number(rate):
    least = decisions.least_rows(rate)
    assert least == math.ceil(1 / rate - 1e-9) - 1
    assert np.isfinite(
        decisions.threshold(np.arange(float(least)), false_alarm_rate=rate)
    )
    if least > 1:
        few = np.arange(float(least - 1))
        with pytest.warns(UserWarning, match=f"no alarms: at least {least} are needed"):
            assert decisions.threshold(few, false_alarm_rate=rate) == np.inf


def test_false_alarms_are_as_rare_as_asked_and_not_much_rarer():
    """The mean over calibration sets; each of them alone has its luck."""
    rng, rates = np.random.default_rng(3), (0.01, 0.05, 0.1)
    calibration = rng.exponential(size=(3000, 199))
    exact = []
    for rate in rates:
        limits = [decisions.threshold(c, false_alarm_rate=rate) for c in calibration]
        exact.append(np.exp(-np.array(limits)))  # the chance of a score above
    # Of the order statistic with k = rate (n + 1) above it: Beta(k, n + 1 - k).
    for rate, chances in zip(rates, exact, strict=True):
        k = round(rate * 200)
        spread = scipy.stats.beta(k, 200 - k).std() / np.sqrt(3000)
        assert abs(chances.mean() - rate) < 4 * spread


def test_anomalies_among_the_calibration_rows_make_alarms_rarer():
    rng = np.random.default_rng(4)
    clean = rng.normal(size=200)
    mixed = np.concatenate([clean[:190], rng.normal(8, 1, size=10)])
    new = rng.normal(size=1000)
    p, q = (decisions.p_values(new, c) for c in (clean[:190], mixed))
    assert np.all(q >= p) and np.mean(q <= 0.05) == 0


def test_a_contamination_is_the_share_of_the_scores_above():
    scores = np.random.default_rng(5).normal(size=200)
    for share in (0.001, 0.05, 0.5, 0.999):
        limit = decisions.threshold(scores, contamination=share)
        assert np.sum(scores > limit) == int(share * 200)


def test_the_threshold_of_least_cost_is_found_among_all():
    rng = np.random.default_rng(6)
    scores = np.concatenate([rng.normal(size=60), rng.normal(2, 1, size=20)])
    y = np.repeat([1, -1], [60, 20])
    found = decisions.cost_threshold(
        scores, y, cost_of_miss=10.0, cost_of_false_alarm=1.0, contamination=0.05
    )

    def cost(limit):
        misses = np.mean(scores[60:] <= limit)
        alarms = np.mean(scores[:60] > limit)
        return 10 * 0.05 * misses + 0.95 * alarms

    grid = np.linspace(-5, 6, 20001)
    np.testing.assert_allclose(found.cost, min(map(cost, grid)), rtol=1e-12)
    np.testing.assert_allclose(cost(found.value), found.cost, rtol=1e-12)
    assert found.low <= found.value <= found.high
    costs = {"cost_of_miss": 10, "cost_of_false_alarm": 1}
    unlabeled = np.append(scores, 99), np.append(y, 0)
    for given in ((scores, y), unlabeled):
        value = decisions.threshold(given[0], semi_targets=given[1], **costs)
        assert value == decisions.cost_threshold(scores, y, **costs).value


def test_more_labels_make_the_threshold_of_least_cost_surer():
    rng = np.random.default_rng(7)
    widths = []
    for n in (20, 500):
        scores = np.concatenate([rng.normal(size=n), rng.normal(2, 1, size=n)])
        found = decisions.cost_threshold(
            scores, np.repeat([1, -1], n), cost_of_miss=1, cost_of_false_alarm=1
        )
        assert found.low <= 1 <= found.high  # where the densities cross
        widths.append(found.high - found.low)
    assert widths[1] < widths[0]


def test_discoveries_are_those_of_benjamini_and_hochberg():
    rng = np.random.default_rng(8)
    p = np.concatenate([rng.uniform(size=80), rng.uniform(0, 0.01, size=20)])
    ordered = np.sort(p)
    passed = np.flatnonzero(ordered <= 0.1 * np.arange(1, 101) / 100)
    np.testing.assert_array_equal(
        decisions.discoveries(p, 0.1), p <= ordered[passed[-1]]
    )
    assert not decisions.discoveries(np.ones(5)).any()
    # Rounding is not to decide where the adjusted one is just the rate.
    p = np.repeat([17, 500], [17, 33]) / 500
    assert decisions.discoveries(p, 0.1).sum() == 17
    assert decisions.discoveries([]).shape == (0,)


def test_few_discoveries_are_false():
    rng, shares, powers = np.random.default_rng(9), [], []
    for _ in range(400):
        calibration = rng.normal(size=500)
        scores = np.concatenate([rng.normal(size=90), rng.normal(4, 1, size=10)])
        found = decisions.discoveries(decisions.p_values(scores, calibration), 0.1)
        shares.append(found[:90].sum() / max(1, found.sum()))
        powers.append(found[90:].mean())
    error = np.std(shares) / 20
    assert np.mean(shares) <= 0.09 + 3 * error  # 90 of 100 are normal
    assert np.mean(shares) >= 0.09 - 4 * error - 0.01
    assert np.mean(powers) > 0.5


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda d: d.p_values([1.0, np.nan], [1.0]), r"scores has nan \(of row 1\)"),
        (lambda d: d.p_values([1.0], []), "calibration_scores is empty"),
        (lambda d: d.p_values([[1.0]], [1.0]), r"scores has shape \(1, 1\)"),
        (lambda d: d.p_values(["a"], [1.0]), "scores has shape .* dtype <U1"),
        (lambda d: d.p_values([1.0], [np.inf]), "calibration_scores has inf"),
        (lambda d: d.cross_conformal([[1.0]], []), "of 1 folds and .* of 0"),
        (lambda d: d.threshold([1.0]), "nothing is given; a threshold needs one of"),
        (
            lambda d: d.threshold([1.0], false_alarm_rate=0.1, contamination=0.1),
            "false_alarm_rate and contamination is given",
        ),
        (lambda d: d.threshold([1.0], false_alarm_rate=0), "rate is 0; .* in"),
        (lambda d: d.threshold([1.0], false_alarm_rate="1"), "rate is '1'; .* in"),
        (lambda d: d.threshold([1.0], contamination=1.0), "contamination is 1.0"),
        (lambda d: d.threshold([1.0], budget=5), "budget is 5 and of is None"),
        (lambda d: d.threshold([1.0], budget=5, of=5), "budget is 5 and of is 5"),
        (
            lambda d: d.threshold(
                [1.0, 2.0], cost_of_miss=1, cost_of_false_alarm=1, semi_targets=[0, -1]
            ),
            "0 known normal and 1 known anomalies",
        ),
        (
            lambda d: d.cost_threshold(
                [1.0, 2.0], [1, -1], cost_of_miss=0, cost_of_false_alarm=1
            ),
            "cost_of_miss is 0; it must be > 0",
        ),
        (lambda d: d.discoveries([1.2]), r"p_values are from 1.2 to 1.2"),
        (lambda d: d.discoveries([0.2], rate=2), "rate is 2"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(call, said):
    with pytest.raises(ValueError, match=said):
        call(decisions)
