import os
import pathlib
import re

import jax
import numpy as np
import pytest

from deepsad_jax import kernels
from deepsad_jax.detectors import kernel_machines as machines

ORACLES = sorted((pathlib.Path(__file__).parent / "data/oracles/ssad").glob("*.npz"))
OPTIONS = {
    "Cp": "C_normal",
    "Cu": "C_unlabeled",
    "Cn": "C_anomaly",
    "kappa": "kappa",
}
Kernel = kernels.Kernel


def draw(seed=0, n=120, d=4):
    rng = np.random.default_rng(seed)
    semi_targets = rng.choice([-1, 0, 1], n, p=[0.1, 0.8, 0.1])
    x = rng.normal(size=(n, d)) + 2.0 * (semi_targets == -1)[:, None]
    return x.astype(np.float32), semi_targets


@pytest.mark.parametrize("path", ORACLES, ids=lambda path: path.stem)
def test_duals_and_scores_are_those_of_a_tight_interior_point_solver(path):
    # The oracle solved the same dual to 1e-10. Its threshold is a maximum over all
    # examples whose alpha interior point has left above 1e-9, larger than what the
    # optimality conditions say; so scores are compared up to a shift.
    oracle = np.load(path)
    found = re.findall(r"_([A-Za-z]+)([\d.]+)", path.stem)
    options = {OPTIONS[name]: float(value) for name, value in found}
    gram = kernels.gram(Kernel(), oracle["X"])
    for i in range(4):
        model = machines.fit_ssad(
            oracle["X"],
            oracle["y"],
            kernel=Kernel(float(oracle[f"{i}/gamma"])),
            gram=gram,
            **options,
        )
        objective = np.asarray(model.objective)
        assert objective == pytest.approx(oracle[f"{i}/dual"], rel=1e-6)
        scores, expected = (
            machines.score(model, oracle["X_test"]),
            oracle[f"{i}/scores"],
        )
        difference = np.asarray(scores) - expected
        shift = np.median(difference)
        assert np.abs(difference - shift).max() < 1e-4 * np.ptp(expected)


def test_the_threshold_is_the_value_at_free_unlabeled_examples():
    x, semi_targets = draw()
    model = machines.fit_ssad(x, semi_targets, kernel=Kernel(0.2), C_unlabeled=0.05)
    weights, scores = np.asarray(model.weights), np.asarray(machines.score(model, x))
    unlabeled = semi_targets == 0
    free = unlabeled & (weights > 0) & (weights < 0.05)
    assert free.any()
    np.testing.assert_allclose(scores[free], 0.0, atol=1e-6)
    # Inside the boundary alpha is 0, outside it is C.
    assert np.all(scores[unlabeled & (weights == 0)] < 1e-6)
    assert np.all(scores[unlabeled & (weights == 0.05)] > -1e-6)


def test_many_problems_are_solved_side_by_side():
    problems = [draw(seed) for seed in range(3)]
    x, semi_targets = map(np.stack, zip(*problems, strict=True))
    together = jax.vmap(lambda x, y: machines.fit_ssad(x, y, kernel=Kernel(0.3)))(
        x, semi_targets
    )
    compiled = jax.jit(
        lambda x, y: machines.score(machines.fit_ssad(x, y, kernel=Kernel(0.3)), x)
    )
    for i, (one_x, one_y) in enumerate(problems):
        alone = machines.fit_ssad(one_x, one_y, kernel=Kernel(0.3))
        # To the solver's tolerance, whose last steps depend on the order of sums.
        np.testing.assert_allclose(together.weights[i], alone.weights, atol=2e-6)
        np.testing.assert_allclose(together.objective[i], alone.objective, rtol=1e-9)
        expected = np.asarray(machines.score(alone, one_x))
        np.testing.assert_allclose(compiled(one_x, one_y), expected, atol=1e-6)


@pytest.mark.skipif(
    os.environ.get("DEEPSAD_TEST_EFFORT") != "full",
    reason="sums of quick programs are too coarse; full_effort_test has it",
)
def test_gammas_are_solved_side_by_side_from_one_base():
    x, semi_targets = draw()
    gram = kernels.gram(Kernel(), x)
    gammas = np.array([0.125, 1.0, 4.0])
    models = jax.vmap(
        lambda gamma: machines.fit_ssad(
            x, semi_targets, kernel=Kernel(gamma), gram=gram
        )
    )(gammas)
    for i, gamma in enumerate(gammas):
        alone = machines.fit_ssad(x, semi_targets, kernel=Kernel(gamma))
        np.testing.assert_allclose(models.weights[i], alone.weights, atol=1e-6)


def test_a_compact_model_scores_the_same():
    x, semi_targets = draw()
    model = machines.fit_ssad(x, semi_targets, kernel=Kernel(0.3))
    small = machines.compact(model)
    assert len(small.x) < len(model.x)
    np.testing.assert_allclose(
        machines.score(small, x), machines.score(model, x), atol=1e-12
    )


def test_two_examples_have_the_solution_of_the_pencil():
    # Equal shares by symmetry: the dual is (1 + k) / 4.
    x = np.array([[0.0], [1.0]])
    model = machines.fit_ssad(x, np.zeros(2), kernel=Kernel(0.5))
    np.testing.assert_allclose(model.weights, [0.5, 0.5])
    assert np.asarray(model.objective) == pytest.approx((1 + np.exp(-0.5)) / 4)


@pytest.mark.parametrize(
    "semi_targets",
    [np.zeros(6), np.ones(6), [1, 1, 1, -1, -1, -1], [0, 0, 0, 0, 0, -1]],
)
@pytest.mark.parametrize("constant", [True, False])
def test_degenerate_problems_have_finite_scores(semi_targets, constant):
    x = np.repeat(np.random.default_rng(0).normal(size=(3, 2)), 2, axis=0)
    x = np.ones_like(x) if constant else x
    model = machines.fit_ssad(x, np.array(semi_targets), kernel=Kernel(1.0))
    assert np.all(np.isfinite(machines.score(model, x)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kappa": 7.0}, r"kappa is 7.0; with these C and labels it must be at most"),
        ({"kappa": -1.0}, "kappa is -1.0; it must be finite and >= 0"),
        (
            {"C_unlabeled": 0.001, "C_normal": 0.01},
            r"with 100 unlabeled and 2 labeled normal examples the dual variables "
            r"sum to at most 0.12, but must reach 1",
        ),
        ({"C_anomaly": 0.0}, "C_anomaly is 0.0; it must be finite and > 0"),
        ({"tolerance": 0.0}, r"tolerance is 0.0; it must be in \(0, 1\)"),
        ({"max_iterations": -1}, "max_iterations is -1"),
    ],
)
def test_infeasible_problems_are_told_in_one_sentence(options, message):
    x = np.random.default_rng(0).normal(size=(104, 3))
    semi_targets = np.repeat([0, 1, -1], [100, 2, 2])
    with pytest.raises(ValueError, match=message):
        machines.fit_ssad(x, semi_targets, **options)


def test_wrong_labels_and_matrices_are_refused():
    x, semi_targets = draw(n=20)
    with pytest.raises(ValueError, match=r"semi_targets has shape \(19,\)"):
        machines.fit_ssad(x, semi_targets[1:])
    with pytest.raises(ValueError, match="semi_targets contains 2; allowed are"):
        machines.fit_ssad(x, np.full(20, 2))
    with pytest.raises(ValueError, match="must hold integers, .* has dtype complex128"):
        machines.fit_ssad(x, semi_targets + 0j)
    with pytest.raises(ValueError, match="must hold integers, .* has nan"):
        machines.fit_ssad(x, np.full(20, np.nan))
    with pytest.raises(ValueError, match="gram is of 19 examples"):
        machines.fit_ssad(x, semi_targets, gram=kernels.gram(Kernel(), x[1:]))
    with pytest.raises(ValueError, match="x has 2 features, but the model was trained"):
        machines.score(machines.fit_ssad(x, semi_targets), x[:, :2])


def test_a_solver_that_has_not_converged_warns():
    x, semi_targets = draw()
    with pytest.warns(RuntimeWarning, match="stopped after 2 iterations with a violat"):
        machines.fit_ssad(x, semi_targets, max_iterations=2)
