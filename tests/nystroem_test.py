"""Few landmarks in place of a kernel matrix, and memory that does not suffice."""

import numpy as np
import pytest
from scipy import stats

from deepsad_jax import kernels, nystroem
from deepsad_jax.data import memory
from deepsad_jax.detectors import kernel_machines as machines
from deepsad_jax.detectors.kde import KDE
from deepsad_jax.detectors.kernel_machines import SSAD, OneClassSVM

RNG = np.random.default_rng(0)
N = 200
X = RNG.normal(size=(N, 3)).astype(np.float32)
TARGETS = np.zeros(N, int)
TARGETS[:8], TARGETS[8:20] = -1, 1
X[:8] += 2
NEW = 1.5 * RNG.normal(size=(100, 3)).astype(np.float32)


def scores(options):
    (objective, variables), _ = options.fit_rows(X, TARGETS)
    assert len(variables["params"]["x"]) <= (getattr(options, "components", 0) or N)
    return np.asarray(objective.score(variables, NEW))


@pytest.mark.parametrize(
    "bounds",
    [
        {},
        {"kappa": 0.0},
        {"C_unlabeled": 0.02, "C_normal": 0.05, "C_anomaly": 0.05, "kappa": 0.3},
    ],
    ids=["hard", "no margin", "soft"],
)
def test_ssad_with_all_rows_as_landmarks_is_that_of_the_dual(bounds):
    exact = scores(SSAD(selection="none", **bounds))
    found = scores(SSAD(selection="none", components=N, **bounds))
    assert stats.spearmanr(exact, found)[0] > 0.998
    # Their hinge is smooth over a thousandth, ours has a corner.
    np.testing.assert_allclose(found, exact, atol=0.05 * np.ptp(exact))


@pytest.mark.parametrize("name, gamma", [("rbf", 1.0), ("poly", 0.3), ("linear", 1.0)])
@pytest.mark.parametrize("seed", range(3))
def test_the_minimum_is_found_where_no_row_is_on_the_margin(name, gamma, seed):
    rng = np.random.default_rng(seed)
    x, targets = rng.random((120, 3)), np.zeros(120, int)
    x[:5] += 2  # clearly outside
    targets[:5] = -1
    kernel = kernels.Kernel(gamma, 0.0, name)
    upper, options = np.ones(120), {"kappa": 1.0, "kernel": kernel}
    exact = machines.fit_ssad(x, targets, **options)
    found = nystroem.fit_ssad(
        x, targets, upper=upper, components=120, seed=seed, **options
    )
    phi = kernel(np.asarray(kernels.base(name, x, found.x)))
    scores = found.threshold - phi @ found.weights
    scale = np.ptp(machines.score(exact, x))
    expected = machines.score(exact, x)
    np.testing.assert_allclose(scores, expected, atol=0.05 * scale)


def test_the_one_class_svm_with_all_rows_as_landmarks_orders_as_libsvm():
    from sklearn import svm

    options = OneClassSVM(nu=0.3, gamma=0.5, components=N)
    found, machine = scores(options), svm.OneClassSVM(nu=0.3, gamma=0.5).fit(X)
    assert stats.spearmanr(-machine.decision_function(NEW), found)[0] > 0.998
    # nu is the share outside of the boundary.
    outside = np.mean(machine.decision_function(NEW) < 0)
    assert abs(np.mean(found > 0) - outside) < 0.05


@pytest.mark.parametrize("method", [SSAD, OneClassSVM])
@pytest.mark.parametrize("kernel", ["rbf", "linear", "poly"])
def test_few_landmarks_find_far_rows(method, kernel):
    options = method(selection="none", components=30, kernel=kernel, coef0=1.0)
    (objective, variables), _ = options.fit_rows(X, TARGETS)
    again, _ = options.fit_rows(X, TARGETS)
    for name, value in variables["params"].items():
        np.testing.assert_array_equal(value, again[1]["params"][name])
    found = np.asarray(objective.score(variables, NEW))
    assert np.isfinite(found).all() and found.std() > 0
    if kernel == "rbf":
        distance = np.linalg.norm(NEW, axis=1)
        assert stats.spearmanr(found, distance)[0] > 0.4


def test_features_are_the_same_whether_they_are_kept(monkeypatch):
    kept = scores(OneClassSVM(components=20))
    monkeypatch.setattr(nystroem, "_KEPT", 0)
    np.testing.assert_allclose(scores(OneClassSVM(components=20)), kept, rtol=1e-9)


def test_components_have_no_time_to_tell_of(monkeypatch, recwarn):
    monkeypatch.setattr(kernels, "MOST_STORED", 100)
    told = []
    observe = lambda *arguments: told.append(arguments[1])  # noqa: E731
    OneClassSVM(components=20).fit_rows(X, TARGETS, observe=observe)
    assert not recwarn.list and told[-1] == 100 and len(told) > 10
    with pytest.raises(ValueError, match="components is -1; it must be a whole number"):
        SSAD(components=-1).check_labels(TARGETS)


def test_a_matrix_that_the_memory_does_not_take_is_not_kept(monkeypatch):
    expected = scores(OneClassSVM())
    monkeypatch.setattr(memory, "available", lambda: 8 * N**2)
    assert not kernels.keeps(N) and kernels.keeps(N // 2)
    with pytest.warns(RuntimeWarning, match="or some hundred components, are faster"):
        found = scores(OneClassSVM())
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("options", [SSAD(selection="none"), OneClassSVM(), KDE()])
def test_rows_that_the_memory_does_not_take_are_refused(options, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 10_000)
    message = f"^{N} rows of 3 numbers need .* GB of memory, of which 1e-05 GB are free"
    with pytest.raises(ValueError, match=message):
        options.prepare(X, TARGETS, 0)
    with pytest.raises(ValueError, match="^components is 50, which for 200 rows needs"):
        nystroem.check_memory(N, 50)
