"""Companions against scikit-learn and SciPy, and trees against those they come from."""

import jax
import numpy as np
import pytest
import scipy.special
import scipy.stats
from sklearn import ensemble, linear_model

from deepsad_jax import forward, trees
from deepsad_jax.detectors import companions

normal = jax.jit(companions.normal)  # compiled whole


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    x = np.c_[rng.uniform(size=(700, 3)), rng.integers(0, 4, 700) / 3]
    targets = np.zeros(700, int)
    targets[:9] = -1
    x[:9, 0] += 0.8
    return x.astype(np.float32), targets


def _scores(fitted, x):
    return forward.evaluate(fitted[0], "score", fitted[1], x)


def test_normal_columns_are_normal_scores_of_ranks():
    rng = np.random.default_rng(1)
    distinct = [rng.permutation(700) for _ in range(2)]
    x = np.c_[(*distinct, rng.integers(0, 4, 700))].astype(np.float32)
    knots = np.sort(x, axis=0)  # a knot for each row: the ranks are exact
    ranks = (scipy.stats.rankdata(x, axis=0) - 1) / (len(x) - 1)
    least = scipy.special.ndtr(-3)
    expected = scipy.special.ndtri(np.clip(ranks, least, 1 - least))
    np.testing.assert_allclose(normal(knots, x), expected, atol=2e-4)


def test_rounding_beside_equal_values_changes_nothing(rows):
    x, _ = rows
    knots = np.sort(x, axis=0)[::3]
    moved = np.nextafter(x, np.float32(2))
    first, second = normal(knots, x), normal(knots, moved)
    np.testing.assert_allclose(second, first, atol=1e-4)


def test_columns_beyond_the_training_are_as_far_as_can_be(rows):
    x, _ = rows
    knots = np.sort(x, axis=0)
    far = np.array([[-9.0] * 4, [9.0] * 4])
    np.testing.assert_allclose(normal(knots, far), [[-3] * 4, [3] * 4], rtol=1e-5)


def test_the_linear_companion_is_a_logistic_regression_of_normal_columns(rows):
    x, targets = rows
    fitted = companions.fit_linear(x, targets, 0)
    columns = np.asarray(normal(fitted[1]["params"]["knots"], x))
    machine = linear_model.LogisticRegression(C=1e-3, class_weight="balanced")
    machine.fit(columns, targets == -1)
    expected = machine.decision_function(columns)
    np.testing.assert_allclose(_scores(fitted, x), expected, atol=1e-3)


def test_a_label_counts_alike_of_either_kind_and_unlabeled_rows_count_together():
    targets = np.repeat([-1, 1, 0], [4, 2, 94])
    found = companions.weights(targets)
    np.testing.assert_allclose(found[:6], 100 * 0.5 / 4)
    np.testing.assert_allclose(found[6:], 100 * (0.5 - 2 * 0.5 / 4) / 94)
    many = companions.weights(np.repeat([-1, 1, 0], [4, 40, 56]))
    sums = [many[:4].sum(), many[4:44].sum(), many[44:].sum()]
    np.testing.assert_allclose(sums, [50, 25, 25])
    whole = companions.weights(np.repeat([-1, 1], [4, 6]))
    np.testing.assert_allclose([whole[:4].sum(), whole[4:].sum()], [5, 5])


def test_known_normal_rows_lower_the_score_of_what_is_like_them(rows):
    x, targets = rows
    like = (targets == 0) & (x[:, 0] > 0.8)  # where known anomalies are
    told = np.where(like, 1, targets)
    for name in ("linear", "forest", "extra"):
        before, after = (companions.FITS[name](x, one, 0) for one in (targets, told))
        ranks = [
            scipy.stats.rankdata(_scores(fitted, x))[like].mean()
            for fitted in (before, after)
        ]
        assert ranks[1] < ranks[0]


@pytest.mark.parametrize(
    ("name", "kind", "leaf"),
    [
        ("forest", ensemble.RandomForestClassifier, 30),
        ("extra", ensemble.ExtraTreesClassifier, 10),
    ],
)
def test_forests_are_those_of_scikit_learn(rows, name, kind, leaf):
    x, targets = rows
    fitted = companions.FITS[name](x, targets, 3)
    grown = kind(
        100, min_samples_leaf=leaf, class_weight="balanced", random_state=3
    ).fit(x, targets == -1)
    expected = grown.predict_proba(x)[:, 1]
    np.testing.assert_allclose(_scores(fitted, x), expected, atol=1e-5)


def test_isolation_is_in_the_order_of_scikit_learn_and_sees_no_anomalies(rows):
    x, targets = rows
    found = _scores(companions.fit_isolation(x, targets, 5), x)
    grown = ensemble.IsolationForest(random_state=5).fit(x[targets != -1])
    depths = np.log2(-grown.score_samples(x))  # minus the mean length, in units
    assert scipy.stats.pearsonr(found, depths).statistic > 1 - 1e-6


def test_large_images_are_halved_until_they_are_narrow():
    x = np.random.default_rng(0).normal(size=(2, 130, 131, 3)).astype(np.float32)
    found = companions.flat(x)
    means = x[:, :128, :128].reshape(2, 32, 4, 32, 4, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(found.reshape(2, 32, 32, 3), means, atol=1e-6)
    small = x[:, :4, :4]
    np.testing.assert_array_equal(companions.flat(small), small.reshape(2, -1))
    long = np.arange(2 * 10_000.0).reshape(2, 10_000, 1)
    assert companions.flat(long).shape == (2, 2500)


def test_a_forest_can_be_traced(rows):
    x, targets = rows
    forest, variables = companions.fit_extra(x, targets, 0)
    assert isinstance(forest, trees.Forest)
    traced = jax.jit(lambda x: forest.score(variables, x))(x[:20])
    np.testing.assert_allclose(traced, _scores((forest, variables), x[:20]), rtol=1e-6)


def test_few_rows_have_smaller_leaves(rows):
    x, targets = rows
    forest, variables = companions.fit_forest(x[:40], targets[:40], 0)
    assert (
        variables["params"]["depth"] >= 2
        and np.ptp(_scores((forest, variables), x[:40])) > 0.3
    )
