import numpy as np
import pytest
import scipy.integrate
import scipy.spatial.distance
import scipy.special
import sklearn.model_selection
import sklearn.neighbors

from deepsad_jax import kde


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
        ({"bandwidth": 1.0, "kernel": "cosine"}, "kernel is 'cosine'; it must be one"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        kde.fit(draw(), **options)


@pytest.mark.parametrize("folds", [1, 204])
def test_wrong_numbers_of_folds_are_refused(folds):
    with pytest.raises(ValueError, match=f"folds is {folds}; it must be at least 2"):
        kde.cross_validate(draw(), [1.0], folds=folds)
