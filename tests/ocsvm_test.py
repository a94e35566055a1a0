import numpy as np
import pytest
import sklearn.svm

from deepsad_jax import kernels, ocsvm

Kernel = kernels.Kernel


def draw(n, d=5, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


@pytest.mark.parametrize("n", [2, 40, 300, 700])
@pytest.mark.parametrize("nu", [0.01, 0.1, 0.5])
@pytest.mark.parametrize(
    "kernel",
    [
        Kernel(0.02),
        Kernel(0.5),
        Kernel(4.0),
        Kernel(name="linear"),
        Kernel(0.3, 1.0, "poly", 3),
    ],
    ids=["rbf-0.02", "rbf-0.5", "rbf-4", "linear", "poly"],
)
def test_the_machine_is_libsvms(kernel, nu, n):
    # Away from the origin, so that the linear machine has something to separate.
    x, x_test = draw(n) + 3.0, draw(50, seed=1) + 3.0
    machine = sklearn.svm.OneClassSVM(
        kernel=kernel.name,
        gamma=float(kernel.gamma),
        coef0=float(kernel.coef0),
        degree=kernel.degree,
        nu=nu,
        tol=1e-6,
    ).fit(x)
    model = ocsvm.fit(x, nu=nu, kernel=kernel, tolerance=1e-8)
    scale = max(1.0, np.abs(machine.decision_function(x)).max())
    difference = -np.asarray(ocsvm.score(model, x_test))
    difference -= machine.decision_function(x_test)
    weights = np.asarray(model.weights)
    if np.any((weights > 0) & (weights < 1)):
        threshold = np.asarray(model.threshold)
        assert threshold == pytest.approx(machine.offset_[0], abs=1e-4 * scale)
    else:  # any threshold between the last inside and the first outside is optimal
        difference -= difference[0]
    assert np.abs(difference).max() < 1e-4 * scale
    if kernel.name == "rbf":  # of the others the solution is not unique
        expected = np.zeros(n)
        expected[machine.support_] = machine.dual_coef_[0]
        np.testing.assert_allclose(weights, expected, atol=1e-4)


def test_nu_bounds_the_share_outside():
    x = draw(500)
    model = ocsvm.fit(x, nu=0.2, kernel=Kernel(0.3))
    outside = np.mean(np.asarray(ocsvm.score(model, x)) > 1e-6)
    support = np.mean(np.asarray(model.weights) > 0)
    assert outside <= 0.2 <= support


def test_with_nu_one_all_examples_share_alike():
    # Where libsvm's offset is infinite.
    model = ocsvm.fit(draw(30), nu=1.0)
    np.testing.assert_array_equal(model.weights, np.ones(30))
    assert np.isfinite(model.threshold)


@pytest.mark.parametrize("nu", [0.0, 1.5, np.nan])
def test_wrong_nu_is_refused(nu):
    with pytest.raises(ValueError, match=r"nu is .*; it must be in \(0, 1\]"):
        ocsvm.fit(draw(10), nu=nu)
