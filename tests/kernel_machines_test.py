import jax
import numpy as np
import pytest
import scipy.spatial.distance
import sklearn.svm

from deepsad_jax import kernels
from deepsad_jax.detectors import kernel_machines as machines

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
    model = machines.fit_ocsvm(x, nu=nu, kernel=kernel, tolerance=1e-8)
    scale = max(1.0, np.abs(machine.decision_function(x)).max())
    difference = -np.asarray(machines.score(model, x_test))
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


def test_rows_far_from_zero_are_told_apart():
    """Such as seconds since 1970."""
    x, new = draw(200, 2) + 1.7e9, draw(50, 2, seed=1) + 1.7e9
    theirs = sklearn.svm.OneClassSVM(gamma=0.5, nu=0.1, tol=1e-6).fit(x - 1.7e9)
    found = machines.score(machines.fit_ocsvm(x, nu=0.1, kernel=Kernel(0.5)), new)
    expected = -theirs.decision_function(new - 1.7e9)
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.ptp(expected))


def test_a_given_gamma_is_that_of_the_machine():
    targets = np.repeat([-1, 0], [3, 57])
    for method in (machines.SSAD, machines.OneClassSVM):
        _, found = method(gamma=0.25).fit_rows(draw(60), targets)
        assert found["value"] == 0.25 and found["by"] == "none"


def test_nu_bounds_the_share_outside():
    x = draw(500)
    model = machines.fit_ocsvm(x, nu=0.2, kernel=Kernel(0.3))
    outside = np.mean(np.asarray(machines.score(model, x)) > 1e-6)
    support = np.mean(np.asarray(model.weights) > 0)
    assert outside <= 0.2 <= support


def test_with_nu_one_all_examples_share_alike():
    # Where libsvm's offset is infinite.
    model = machines.fit_ocsvm(draw(30), nu=1.0)
    np.testing.assert_array_equal(model.weights, np.ones(30))
    assert np.isfinite(model.threshold)


@pytest.mark.parametrize("nu", [0.0, 1.5, np.nan])
def test_wrong_nu_is_refused(nu):
    with pytest.raises(ValueError, match=r"nu is .*; it must be in \(0, 1\]"):
        machines.fit_ocsvm(draw(10), nu=nu)


def test_values_that_overflow_are_refused_and_not_scored_as_nan():
    x = draw(10)
    with pytest.raises(ValueError, match=r"x has a value of size 1e\+200"):
        machines.fit_ocsvm(np.full((4, 2), 1e200))
    with pytest.raises(ValueError, match=r"x has a value of size 1e\+200"):
        machines.score(machines.fit_ocsvm(x), x * 0 + 1e200)
    steep = Kernel(1.0, 0.0, "poly", 20)
    with pytest.raises(ValueError, match="x has values too large for the kernel poly"):
        machines.fit_ocsvm(x * 1e20, kernel=steep)
    with pytest.raises(ValueError, match="x has values too large for the kernel poly"):
        machines.score(machines.fit_ocsvm(x, kernel=steep), x * 1e100)


@pytest.mark.parametrize(
    "kernel", [Kernel(0.4), Kernel(name="linear"), Kernel(0.3, 1.0, "poly", 3)]
)
def test_a_packed_machine_scores_as_libsvms_from_plain_arrays(kernel):
    x, x_test = draw(200) + 3, draw(40, seed=1).astype(np.float32) + 3
    libsvm = sklearn.svm.OneClassSVM(
        kernel=kernel.name,
        gamma=float(kernel.gamma),
        coef0=float(kernel.coef0),
        degree=kernel.degree,
        nu=0.2025,  # 40.5 examples: one is free and fixes the threshold
        tol=1e-6,
    ).fit(x)
    machine = machines.fit_ocsvm(x, nu=0.2025, kernel=kernel, tolerance=1e-8)
    objective, variables = machines.packed(machines.compact(machine))
    params = variables["params"].values()
    assert all(type(part) is np.ndarray and part.dtype == np.float64 for part in params)
    if kernel.name == "linear":
        assert variables["params"]["x"].shape == (1, 5)  # its normal vector
    expected = -libsvm.decision_function(x_test)
    scale = max(1.0, np.abs(expected).max())
    found = np.asarray(objective.score(variables, x_test))
    np.testing.assert_allclose(found, expected, atol=1e-4 * scale)
    compiled = jax.jit(objective.score)(variables, x_test)
    np.testing.assert_allclose(compiled, found, rtol=1e-5, atol=1e-5 * scale)
    assert hash(objective) == hash(machines.KernelMachine(kernel.name, kernel.degree))


def test_the_rule_of_thumb_is_one_over_the_median_squared_distance():
    x = draw(60).astype(np.float32)
    squared = scipy.spatial.distance.pdist(x.astype(np.float64), "sqeuclidean")
    for options in (machines.SSAD(), machines.OneClassSVM()):
        found = options.default(x, seed=0)
        assert found == pytest.approx(1 / np.median(squared), rel=1e-9)
    assert machines.SSAD().default(np.ones((4, 2)), seed=0) == 1.0
    # Rows that are equal are no further apart than what is rounded.
    x = 100 * draw(200, 64)
    x[:150] = x[0]
    squared = scipy.spatial.distance.pdist(x, "sqeuclidean")
    found = machines.OneClassSVM().default(x, seed=0)
    assert found == pytest.approx(1 / np.median(squared[squared > 0]), rel=1e-9)
    assert machines.SSAD(gamma=0.25).default(x, seed=0) == 0.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (machines.SSAD(kernel="cubic"), "kernel is 'cubic'; it must be one of rbf"),
        (machines.SSAD(gamma=np.float32(-1)), "gamma is -1.0; it must be a finite"),
        (machines.SSAD(kappa=1e4), "kappa is 10000.0; with these C and labels"),
        (machines.SSAD(C_unlabeled=0.0), "C_unlabeled is 0.0; it must be finite"),
        (machines.SSAD(kernel="poly", degree=10**9), "degree is 1000000000; it must"),
        (machines.OneClassSVM(kernel="poly", coef0=np.nan), "coef0 is nan; it must be"),
        (machines.OneClassSVM(nu=2.0), r"nu is 2.0; it must be in \(0, 1\]"),
        (machines.OneClassSVM(nu="a"), "nu is 'a'; it must be in"),
        (machines.SSAD(kappa="a"), "kappa is 'a'; it must be finite"),
        (machines.SSAD(C_normal=None), "C_normal is None; it must be finite"),
        (
            machines.SSAD(gamma=0.5, selection="train_labels"),
            "gamma is 0.5, but selection train_labels would choose it",
        ),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        options.check_labels(np.array([0] * 10 + [-1] * 3))
