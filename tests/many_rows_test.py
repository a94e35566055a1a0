"""Kernel methods on very many rows: what they say beforehand, and their progress."""

import numpy as np
import pytest

from deepsad_jax import kernels, selection
from deepsad_jax.detectors import isolation_forest
from deepsad_jax.detectors.kde import KDE
from deepsad_jax.detectors.kernel_machines import SSAD, OneClassSVM

N = 300
METHODS = [SSAD(selection="none"), OneClassSVM(), KDE(), OneClassSVM(kernel="poly")]


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return rng.random((N, 3), np.float32), np.where(np.arange(N) < 9, -1, 0)


@pytest.fixture
def many(monkeypatch):
    """So few rows count as very many."""
    monkeypatch.setattr(kernels, "MOST_STORED", 100)
    monkeypatch.setattr(selection, "_TIMED", 64)


@pytest.mark.parametrize("options", METHODS)
def test_many_rows_give_the_same_model_and_many_steps(options, rows, many, monkeypatch):
    told = []
    observe = lambda *arguments: told.append(arguments)  # noqa: E731
    message = (
        f"^{options.method} compares each of {N} rows with all others, which will take "
        "about .* s: their kernel matrix of 0.00072 GB is not kept"
    )
    with pytest.warns(RuntimeWarning, match=message):
        (objective, variables), found = options.fit_rows(*rows, observe=observe)
    steps = [done for _, done, _ in told]
    assert steps == sorted(set(steps)) and steps[-1] == 100 and len(steps) >= 3
    monkeypatch.undo()
    few, expected = options.fit_rows(*rows)
    assert found["value"] == expected["value"]
    scores, others = (
        np.asarray(one.score(arrays, rows[0][:50]))
        for one, arrays in ((objective, variables), few)
    )
    np.testing.assert_allclose(scores, others, atol=1e-4 * np.ptp(others))


def test_each_fit_of_a_grid_is_a_step(rows, many):
    told = []
    x, semi_targets = rows
    options = KDE(selection="train_labels")
    with pytest.warns(RuntimeWarning, match=f"compares each of {N} rows"):
        options.fit_rows(
            x, semi_targets, observe=lambda *arguments: told.append(arguments[1])
        )
    assert len(told) >= 40 and told == sorted(set(told)) and told[-1] == 100


@pytest.mark.parametrize(
    ("options", "by", "factor"),
    [
        (OneClassSVM(), "none", 1.0),
        (OneClassSVM(), "test_auc", 10.0),
        (SSAD(), "train_labels", 1 + 50 * 0.8**2),  # of four fifths of the rows
        (KDE(), "likelihood", 1.0),
        (KDE(), "train_labels", 0.8),
        (KDE(), "none", 0.0),
        (KDE(), "test_auc", 0.0),
        (isolation_forest.IsolationForest(), "none", 0.0),
    ],
)
def test_the_time_of_all_pairs_is_told_from_those_of_a_few(
    options, by, factor, rows, many, monkeypatch
):
    clock = iter(range(0, 100, 2))
    monkeypatch.setattr(selection.time, "perf_counter", lambda: next(clock))
    expected = 2.0 * (N / 64) ** 2 * factor
    assert options.seconds(*rows, 0, by) == pytest.approx(expected)


def test_a_few_rows_that_cannot_be_fitted_leave_the_time_open(rows, many):
    options = SSAD(C_unlabeled=0.004, kappa=0.0, selection="none")
    with pytest.warns(
        RuntimeWarning,
        match="which will take a time that a few of them do not tell: their",
    ):
        options.fit_rows(*rows)


def test_few_rows_say_nothing(rows, recwarn):
    OneClassSVM().fit_rows(*rows)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.01, "1 s"),
        (59.2, "59 s"),
        (90, "1.5 min"),
        (3600, "1 h"),
        (45_000, "12 h"),
        (200_000, "2.3 days"),
    ],
)
def test_durations_have_two_digits(seconds, words):
    assert selection.duration(seconds) == words
