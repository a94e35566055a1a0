"""The dual solver against SciPy's general ones and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from deepsad_jax import dual, kernels


def solve(x, semi_targets, upper, kappa, total=1.0, gamma=0.5, **options):
    gram = kernels.gram(kernels.Kernel(gamma), x)
    with jax.enable_x64(True):
        found = dual.solve(
            gram,
            jnp.asarray(upper),
            total=total,
            semi_targets=None if semi_targets is None else jnp.asarray(semi_targets),
            kappa=kappa,
            **{"tolerance": 1e-9, **options},
        )
    return jax.tree.map(np.asarray, found)


def caps_of(semi_targets, upper):
    return [upper[semi_targets == kind].sum() for kind in (0, 1, -1)]


def draw(seed):
    """A feasible problem of random labels, bounds and kappa, slack or tight."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(4, 14))
    x = rng.normal(size=(n, 3))
    semi_targets = rng.choice([-1, 0, 1], n, p=rng.dirichlet(np.ones(3)))
    semi_targets[0] = rng.choice([0, 1])
    upper = rng.uniform(0.2, 1.0, n)
    if seed % 3 == 0:
        upper[:] = 1.0
    in_sum = upper[semi_targets >= 0].sum()
    upper *= max(1.0, 1.1 / in_sum)
    most = dual.most_labeled_mass(*caps_of(semi_targets, upper), total=1.0)
    kappa = most * rng.choice([0.0, 0.3, 0.9, 1.0])
    return x, semi_targets, upper, kappa


@pytest.mark.parametrize("seed", range(40))
def test_the_optimum_is_that_of_a_general_solver(seed):
    x, semi_targets, upper, kappa = draw(seed)
    found = solve(x, semi_targets, upper, kappa)
    matrix = np.exp(-0.5 * np.square(x[:, None] - x).sum(-1))
    low = np.where(semi_targets < 0, -upper, 0)
    high = np.where(semi_targets < 0, 0, upper)
    labeled = semi_targets.astype(float)

    # Feasible,
    w = found.weights
    assert np.all(w >= low) and np.all(w <= high)
    assert w.sum() == pytest.approx(1.0, abs=1e-12)
    assert labeled @ w >= kappa - 1e-12
    # what it says it is,
    np.testing.assert_allclose(found.values, matrix @ w, atol=1e-12)
    assert found.objective == pytest.approx(0.5 * w @ matrix @ w, rel=1e-12)
    # and no worse than what SciPy finds, starting there or elsewhere.
    for start in (
        w,
        np.clip(np.random.default_rng(seed).normal(size=len(x)), low, high),
    ):
        other = scipy.optimize.minimize(
            lambda v: 0.5 * v @ matrix @ v,
            start,
            jac=lambda v: matrix @ v,
            bounds=list(zip(low, high, strict=True)),
            constraints=[
                {"type": "eq", "fun": lambda v: v.sum() - 1},
                {"type": "ineq", "fun": lambda v: labeled @ v - kappa},
            ],
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 1000},
        )
        if other.success:
            assert found.objective <= other.fun + 1e-9


@pytest.mark.parametrize("seed", range(20))
def test_the_largest_labeled_mass_is_that_of_a_linear_program(seed):
    rng = np.random.default_rng(seed)
    caps = rng.choice([0.0, 0.3, 1.0, 2.5], 3) * rng.uniform(0.5, 1.5, 3)
    found = dual.most_labeled_mass(*caps, total=1.0)
    program = scipy.optimize.linprog(
        [0, -1, -1],
        A_eq=[[1, 1, -1]],
        b_eq=[1],
        bounds=[(0, cap) for cap in caps],
    )
    if program.success:
        assert found == pytest.approx(-program.fun, abs=1e-9)
    else:
        assert found < 0


def test_rows_made_anew_give_the_same_solution():
    x = np.random.default_rng(0).normal(size=(200, 4))
    upper = np.ones(200)
    found = {}
    with jax.enable_x64(True):
        for stored in (True, False):
            gram = kernels.gram(kernels.Kernel(0.3), x, stored=stored)
            found[stored] = dual.solve(gram, upper, total=20.0, tolerance=1e-9)
    np.testing.assert_allclose(found[True].weights, found[False].weights, atol=1e-6)
    assert np.asarray(found[True].objective) == pytest.approx(
        np.asarray(found[False].objective), rel=1e-12
    )


def test_float32_kernel_values_reach_the_tolerance(monkeypatch):
    x = np.random.default_rng(0).normal(size=(300, 4))
    exact = solve(x, None, np.ones(300), 0.0, total=30.0)
    monkeypatch.setattr(kernels, "MOST_DOUBLE", 0)
    single = solve(x, None, np.ones(300), 0.0, total=30.0, tolerance=1e-6)
    assert single.violation <= 1e-6
    assert single.objective == pytest.approx(exact.objective, rel=1e-6)


def test_without_iterations_the_violation_is_told():
    x = np.random.default_rng(0).normal(size=(50, 3))
    found = solve(x, None, np.ones(50), 0.0, total=5.0, max_iterations=1)
    assert found.iterations == 1 and found.violation > 1e-3


@pytest.mark.parametrize("labels", [None, [0, 0], [1, -1], [0, -1], [1, 1]])
def test_equal_examples_share_the_mass_without_dividing_by_zero(labels):
    # All values are equal: any feasible point is an optimum.
    x = np.ones((2, 3))
    semi_targets = None if labels is None else np.array(labels)
    found = solve(x, semi_targets, np.ones(2), 0.0)
    assert found.weights.sum() == pytest.approx(1.0)
    assert found.objective == pytest.approx(0.5)
    assert np.isfinite(found.threshold)
