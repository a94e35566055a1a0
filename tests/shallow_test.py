"""Shallow detectors and hybrids from raw rows to saved models."""

import dataclasses

import jax
import numpy as np
import pytest
import sklearn.datasets
import sklearn.ensemble
import sklearn.metrics
import sklearn.neighbors
import sklearn.preprocessing
import sklearn.svm

from deepsad_jax import methods, model, parallel, selection, training
from deepsad_jax.detectors import (
    deep_sad,
    hybrid,
    isolation_forest,
    kde,
    kernel_machines,
)

SSAD, OneClassSVM, KDE = kernel_machines.SSAD, kernel_machines.OneClassSVM, kde.KDE
Forest = isolation_forest.IsolationForest
KEY = jax.random.key(0)
MANY = parallel.Plan(devices=1, many=True)


def problem(known=8):
    """Raw rows of breast cancer: to train on, those of benign cases; and to test on."""
    x, y = sklearn.datasets.load_breast_cancer(return_X_y=True)
    labels = 1 - y  # malignant is an anomaly
    train = np.concatenate(
        [np.flatnonzero(labels == 0)[:200], np.flatnonzero(labels == 1)[:known]]
    )
    test = np.setdiff1d(np.arange(len(x)), train)
    data = training.training_set(x, -labels[train], indices=train)
    return data, x[test], labels[test]


def min_max(data, x):
    """Rows as scikit-learn's MinMaxScaler makes them, float32."""
    scaler = sklearn.preprocessing.MinMaxScaler().fit(data.x[data.indices])
    return scaler.transform(x).astype(np.float32)


# What scikit-learn makes of the same rows: scores, up to a tolerance.
ORACLES = {
    "ocsvm": (
        OneClassSVM(gamma=0.5, nu=0.0975),
        lambda x, rows: (
            -sklearn.svm.OneClassSVM(gamma=0.5, nu=0.0975, tol=1e-8)
            .fit(x)
            .decision_function(rows)
        ),
        1e-3,
    ),
    "kde": (
        KDE(bandwidth=0.4, selection="none"),
        lambda x, rows: (
            -sklearn.neighbors.KernelDensity(bandwidth=0.4, rtol=1e-12)
            .fit(x)
            .score_samples(rows)
        ),
        1e-4,
    ),
    "isoforest": (
        Forest(),
        lambda x, rows: (
            -sklearn.ensemble.IsolationForest(max_samples=len(x), random_state=3)
            .fit(x)
            .score_samples(rows)
        ),
        1e-6,
    ),
}


@pytest.mark.parametrize("name", ORACLES)
def test_from_raw_rows_to_scikit_learns_scores(name):
    options, oracle, tolerance = ORACLES[name]
    data, x_test, labels = problem()
    assert data.size < 256  # so that each tree sees all of them
    fitted, record = options.fit(KEY, data, seed=3)
    found = model.score(fitted, x_test)
    expected = oracle(min_max(data, data.x[data.indices]), min_max(data, x_test))
    np.testing.assert_allclose(found, expected, atol=tolerance, rtol=1e-6)
    auroc = sklearn.metrics.roc_auc_score
    assert auroc(labels, found) == pytest.approx(auroc(labels, expected), abs=1e-3)
    assert record.details["selection"]["by"] == "none" and record.notes == ()
    assert record.seconds.keys() == {"train"} and record.history == {}
    assert fitted.info["method"] == name


@pytest.mark.parametrize("options", [SSAD(), SSAD(kernel="linear"), KDE(), Forest()])
def test_a_model_comes_back_from_disk_and_is_a_pure_function(options, tmp_path):
    data, x_test, _ = problem()
    fitted, _ = options.fit(KEY, data)
    found = model.score(fitted, x_test)
    model.save(fitted, tmp_path / "model")
    again = model.load(tmp_path / "model")
    np.testing.assert_array_equal(model.score(again, x_test), found)
    x = x_test.astype(np.float32)
    traced = jax.jit(lambda x: model.score(again, x))(x)
    np.testing.assert_allclose(traced, model.score(again, x), rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore:x looks scaled")
def test_scores_that_differ_little_keep_their_order():
    # At a large gamma all rows far from the training rows score close to the threshold,
    # where float32 ties.
    rng = np.random.default_rng(0)
    data = training.training_set(rng.random((100, 2)))
    fitted, _ = OneClassSVM(gamma=60.0).fit(KEY, data)
    rows = np.stack([np.linspace(1.45, 1.6, 50), np.full(50, 0.5)], axis=1)
    found = model.score(fitted, rows)
    assert np.all(np.diff(found) > 0)
    assert len(np.unique(found.astype(np.float32))) < 50


def test_the_papers_choice_goes_from_raw_rows_to_a_model():
    data, x_test, labels = problem()
    few = selection.selection_rows(labels, 0)
    options = OneClassSVM(selection="test_auc")
    fitted, record = options.fit(KEY, data, selection_set=(x_test[few], labels[few]))
    found = record.details["selection"]
    assert found["by"] == "test_auc" and found["examples"] == len(few)
    auroc = sklearn.metrics.roc_auc_score(labels[few], model.score(fitted, x_test[few]))
    assert auroc == pytest.approx(max(found["criterion"]), abs=1e-3)
    with pytest.raises(ValueError, match="selection_set contains nan"):
        wrong = np.full_like(x_test[few], np.nan)
        options.fit(KEY, data, selection_set=(wrong, labels[few]))


def autoencoder(epochs=2):
    stage = dataclasses.replace(training.PRETRAIN, epochs=epochs, batch_size=64)
    return deep_sad.Autoencoder(pretrain=stage)


def test_a_hybrid_is_scikit_learns_machine_on_the_codes(tmp_path):
    data, x_test, _ = problem()
    options = hybrid.Hybrid(autoencoder(), OneClassSVM(gamma=0.5, nu=0.0975))
    options.check(methods.Run(KEY, data))
    told = []
    fitted, record = options.fit(
        KEY, data, observe=lambda stage, done, _: told.append((stage, done))
    )
    assert list(options.stages().items()) == [("pretrain", 2), ("train", 100)]
    assert {stage: done for stage, done in told} == options.stages()
    assert record.details["hybrid"] is True and "pretrain" in record.history
    assert record.seconds.keys() == {"pretrain", "train"}
    codes, codes_test = (
        model.embed(fitted.base, x) for x in (data.x[data.indices], x_test)
    )
    found = model.score(fitted, x_test)
    machine = sklearn.svm.OneClassSVM(gamma=0.5, nu=0.0975, tol=1e-8).fit(codes)
    expected = -machine.decision_function(codes_test)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    np.testing.assert_array_equal(model.embed(fitted, x_test), codes_test)

    # The linear kernel beside it.
    linear = sklearn.svm.OneClassSVM(kernel="linear", nu=0.0975, tol=1e-8).fit(codes)
    reference = model.score(hybrid.linear(fitted), x_test)
    expected = -linear.decision_function(codes_test)
    shift = np.median(reference - expected)  # the threshold may not be unique
    np.testing.assert_allclose(
        reference - shift, expected, atol=1e-3 * np.ptp(expected)
    )

    model.save(fitted, tmp_path / "model")
    again = model.load(tmp_path / "model")
    np.testing.assert_array_equal(model.score(again, x_test), found)
    np.testing.assert_array_equal(model.score(hybrid.linear(again), x_test), reference)

    # Its autoencoder serves again.
    second = dataclasses.replace(options, initial=again.base)
    assert list(second.stages()) == ["train"]
    repeated, record = second.fit(KEY, data)
    np.testing.assert_array_equal(model.score(repeated, x_test), found)
    assert record.seconds.keys() == {"train"}


def test_hybrids_of_densities_have_no_linear_reference():
    data, x_test, _ = problem()
    fitted, record = hybrid.Hybrid(autoencoder(1), KDE()).fit(KEY, data)
    assert hybrid.linear(fitted) is None
    assert record.details["selection"]["by"] == "likelihood"
    assert np.isfinite(model.score(fitted, x_test)).all()


def test_a_hybrid_needs_codes():
    data, _, _ = problem()
    forest, _ = Forest(n_trees=3).fit(KEY, data)
    wrong = hybrid.Hybrid(autoencoder(), KDE(), initial=forest)
    with pytest.raises(ValueError, match="initial is a model of Trees, which has no"):
        wrong.check(methods.Run(KEY, data))
    with pytest.raises(ValueError, match="kappa is 10000.0; with these C and labels"):
        hybrid.Hybrid(autoencoder(), SSAD(kappa=1e4)).check(methods.Run(KEY, data))


def test_hybrids_of_many_runs_are_those_of_single_runs():
    data, x_test, labels = problem()
    few = selection.selection_rows(labels, 0)
    few = x_test[few], labels[few]
    options = hybrid.Hybrid(autoencoder(1), OneClassSVM(selection="test_auc"))
    keys = [jax.random.key(seed) for seed in range(2)]
    runs = [methods.Run(key, data, None, i, few) for i, key in enumerate(keys)]
    together = options.fit_many(runs, plan=MANY)
    for seed, (fitted, record) in enumerate(together):
        alone, other = options.fit(keys[seed], data, seed=seed, selection_set=few)
        found, expected = (model.score(m, x_test) for m in (fitted, alone))
        np.testing.assert_allclose(found, expected, atol=1e-3 * np.ptp(expected))
        assert record.details["selection"]["by"] == "test_auc"
        assert record.details.keys() == other.details.keys()
