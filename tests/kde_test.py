import jax
import numpy as np
import pytest
import scipy.integrate
import scipy.spatial.distance
import scipy.special
import scipy.stats
import sklearn.model_selection
import sklearn.neighbors

from deepsad_jax.detectors import kde


def draw(n=203, d=4, seed=0):
    return np.random.default_rng(seed).random((n, d))


@pytest.mark.parametrize("bandwidth", [0.01, 0.3, 5.0])
def test_gaussian_log_densities_are_scipys_logsumexp(bandwidth):
    x, x_test = draw(), draw(50, seed=1)
    model = kde.fit(x, bandwidth=bandwidth)
    squared = scipy.spatial.distance.cdist(x_test, x, "sqeuclidean")
    sums = scipy.special.logsumexp(-squared / (2 * bandwidth**2), axis=1)
    expected = sums - np.log(len(x)) - 4 * np.log(bandwidth * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(kde.log_density(model, x_test), expected, atol=1e-8)
    np.testing.assert_array_equal(
        kde.score(model, x_test), -kde.log_density(model, x_test)
    )


@pytest.mark.parametrize("dimension", [1, 2, 4])
@pytest.mark.parametrize("kernel", kde.KERNELS)
def test_all_kernels_are_scikit_learns(kernel, dimension):
    x, x_test = draw(d=dimension), draw(50, dimension, seed=1)
    machine = sklearn.neighbors.KernelDensity(bandwidth=0.7, kernel=kernel, rtol=1e-12)
    expected = machine.fit(x).score_samples(x_test)
    model = kde.fit(x, bandwidth=0.7, kernel=kernel)
    np.testing.assert_allclose(kde.log_density(model, x_test), expected, atol=1e-8)


@pytest.mark.parametrize("kernel", kde.KERNELS)
def test_densities_integrate_to_one(kernel):
    model = kde.fit(np.zeros((1, 1)), bandwidth=0.5, kernel=kernel)
    grid = np.linspace(-8, 8, 4001)
    density = np.exp(np.asarray(kde.log_density(model, grid[:, None])))
    assert scipy.integrate.trapezoid(density, grid) == pytest.approx(1, abs=5e-3)


@pytest.mark.parametrize("folds", [2, 5])
@pytest.mark.parametrize("kernel", ["gaussian", "exponential"])
def test_cross_validation_is_that_of_a_grid_search(kernel, folds):
    # Its trees are not exact where densities are tiny.
    x, bandwidths = draw(), 2.0 ** np.linspace(-4, 2, 7)
    search = sklearn.model_selection.GridSearchCV(
        sklearn.neighbors.KernelDensity(kernel=kernel, rtol=1e-12),
        {"bandwidth": bandwidths},
        cv=folds,
    ).fit(x)
    found = np.asarray(kde.cross_validate(x, bandwidths, kernel=kernel, folds=folds))
    expected = search.cv_results_["mean_test_score"]
    np.testing.assert_allclose(found, expected, rtol=1e-7)
    assert bandwidths[np.argmax(found)] == search.best_params_["bandwidth"]


def test_equal_examples_have_a_density():
    model = kde.fit(np.ones((5, 2)), bandwidth=1.0)
    found = np.asarray(kde.log_density(model, np.ones((1, 2))))
    assert found == pytest.approx(-np.log(2 * np.pi))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bandwidth": 0.0}, "bandwidth is 0.0; it must be finite and > 0"),
        ({"bandwidth": np.nan}, "bandwidth is nan"),
        ({"bandwidth": "scott"}, "bandwidth is 'scott'; it must be finite and > 0"),
        ({"bandwidth": [1.0, 2.0]}, r"bandwidth has shape \(2,\); it must be one"),
        ({"bandwidth": 1.0, "kernel": "cosine"}, "kernel is 'cosine'; it must be one"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        kde.fit(draw(), **options)


def test_a_given_bandwidth_is_that_of_the_density():
    _, found = kde.KDE(bandwidth=0.3).fit_rows(draw(), np.zeros(203))
    assert found["value"] == 0.3 and found["by"] == "none"
    with pytest.raises(ValueError, match="bandwidth is 0.3, but selection likelihood"):
        kde.KDE(bandwidth=0.3, selection="likelihood").check_labels(np.zeros(203))


def test_rows_far_from_zero_are_told_apart():
    x, new = draw() + 1.7e9, draw(20, seed=1) + 1.7e9  # as seconds since 1970
    theirs = sklearn.neighbors.KernelDensity(bandwidth=0.2).fit(x - 1.7e9)
    found = kde.log_density(kde.fit(x, bandwidth=0.2), new)
    np.testing.assert_allclose(found, theirs.score_samples(new - 1.7e9), atol=1e-4)


@pytest.mark.parametrize("folds", [1, 204, 2.5, "a"])
def test_wrong_numbers_of_folds_are_refused(folds):
    with pytest.raises(ValueError, match=f"folds is {folds!r}; it must be at least 2"):
        kde.cross_validate(draw(), [1.0], folds=folds)
    with pytest.raises(ValueError, match="bandwidths is 1.0; it must be a list"):
        kde.cross_validate(draw(), 1.0)


@pytest.mark.parametrize("kernel", kde.KERNELS)
def test_the_objective_scores_from_plain_arrays_with_finite_numbers(kernel):
    x, x_test = draw(), draw(50, seed=1).astype(np.float32)
    x_test[0] += 100  # beyond every kernel of bounded support
    options = kde.KDE(kernel=kernel)
    objective, variables = options.prepare(x, None, 0)(0.7)
    machine = sklearn.neighbors.KernelDensity(bandwidth=0.7, kernel=kernel, rtol=1e-12)
    expected = np.minimum(-machine.fit(x).score_samples(x_test), kde.MOST)
    found = np.asarray(objective.score(variables, x_test))
    np.testing.assert_allclose(found, expected, atol=1e-8, rtol=1e-12)
    compiled = np.asarray(jax.jit(objective.score)(variables, x_test))
    np.testing.assert_allclose(compiled[1:], found[1:], atol=1e-4)
    assert np.isfinite(compiled).all() and np.argmax(compiled) == 0


def test_the_rule_of_thumb_is_scotts():
    # SciPy's factor is that of data whitened by their covariance; ours is of the mean
    # variance, which is the same for one column.
    x = draw(d=1)
    factor = scipy.stats.gaussian_kde(x[:, 0]).scotts_factor()
    found = kde.KDE().default(x, seed=0)
    assert found == pytest.approx(factor * x.std(), rel=1e-9)
    assert kde.KDE(bandwidth=0.3).default(x, seed=0) == 0.3
    # float32 rounds the mean of equal rows.
    assert kde.KDE().default(np.full((1000, 3), 0.1, np.float32), seed=0) == 1.0


def test_candidates_share_distances_and_score_as_alone():
    x, rows = draw(), draw(20, seed=1)
    options = kde.KDE()
    fit = options.prepare(x, None, 0)
    squared = scipy.spatial.distance.cdist(rows, x, "sqeuclidean")
    for bandwidth, (_, scores) in zip(
        options.candidates, options.grid(fit, rows), strict=True
    ):
        sums = scipy.special.logsumexp(-squared / (2 * bandwidth**2), axis=1)
        whole = np.log(len(x)) + 4 * np.log(bandwidth * np.sqrt(2 * np.pi))
        np.testing.assert_allclose(scores, whole - sums, atol=1e-8)
