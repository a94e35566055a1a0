import jax
import numpy as np
import pytest
import sklearn.ensemble

from deepsad_jax.detectors import isolation_forest


def draw(n, d=4, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def twins(x, seed=0, n_trees=100, n_samples=256):
    """The forest of scikit-learn, and ours with its variables."""
    theirs = sklearn.ensemble.IsolationForest(
        n_estimators=n_trees, max_samples=min(n_samples, len(x)), random_state=seed
    ).fit(x)
    ours = isolation_forest.fit(x, seed=seed, n_trees=n_trees, n_samples=n_samples)
    return theirs, *ours


@pytest.mark.parametrize("n", [1, 2, 3, 40, 1000])
@pytest.mark.parametrize("options", [{}, {"n_trees": 7, "n_samples": 20}])
def test_scores_are_scikit_learns(n, options):
    x, x_test = draw(n), draw(300, seed=1)
    theirs, objective, variables = twins(x, 3, **options)
    for rows in (x, x_test):
        found = np.asarray(objective.score(variables, rows))
        np.testing.assert_allclose(found, -theirs.score_samples(rows), atol=1e-12)


def test_examples_on_a_threshold_go_where_scikit_learn_sends_them():
    # Among few values thresholds fall on float32 neighbors: rounding one up or down
    # would send an example to the other side.
    grid = np.nextafter(np.float32(1), np.float32(2)) - np.float32(1)
    x = 1 + grid * np.random.default_rng(0).integers(0, 4, (200, 3))
    x = x.astype(np.float32)
    theirs, objective, variables = twins(x)
    found = np.asarray(objective.score(variables, x))
    np.testing.assert_allclose(found, -theirs.score_samples(x), atol=1e-12)


def test_constant_examples_are_scored():
    theirs, objective, variables = twins(np.ones((20, 2), np.float32))
    rows = draw(5, 2)
    found = np.asarray(objective.score(variables, rows))
    np.testing.assert_allclose(found, -theirs.score_samples(rows), atol=1e-12)


def test_a_compiled_score_is_that_of_plain_arrays():
    x = draw(500)
    theirs, objective, variables = twins(x)
    compiled = jax.jit(objective.score)(variables, x)
    np.testing.assert_allclose(compiled, -theirs.score_samples(x), atol=1e-6)
    assert hash(objective) == hash(isolation_forest.Trees(objective.depth))
    assert all(type(part) is np.ndarray for part in variables["params"].values())


def test_the_seed_decides():
    x = draw(300)
    fit = isolation_forest.IsolationForest(n_trees=5).prepare
    scores = []
    for seed in (0, 0, 1):
        objective, variables = fit(x, None, seed)(0.0)
        scores.append(np.asarray(objective.score(variables, x)))
    np.testing.assert_array_equal(scores[0], scores[1])
    assert np.any(scores[0] != scores[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_trees": 0}, "n_trees is 0; it must be a whole number >= 1"),
        ({"n_trees": np.float32(-1)}, "n_trees is -1.0; it must be"),
        ({"n_samples": 1}, "n_samples is 1; it must be a whole number >= 2"),
        ({"n_samples": 2.5}, "n_samples is 2.5; it must be a whole number"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        isolation_forest.fit(draw(10), **options)
    with pytest.raises(ValueError, match=message):
        isolation_forest.IsolationForest(**options).check_labels(np.zeros(10))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.full((3, 2), np.nan), "x contains nan"),
        (np.full((3, 2), 1e60), "x has values too large for float32"),
        (np.zeros((0, 2)), r"x has shape \(0, 2\)"),
    ],
)
def test_wrong_examples_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        isolation_forest.fit(x)
