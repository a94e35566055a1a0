"""The shallow baselines through the same experiment as Deep SAD."""

import importlib
import json
import pathlib

import numpy as np
import pytest
import sklearn.ensemble
import sklearn.metrics

from deepsad_jax import kernels, ocsvm
from deepsad_jax.data import scenario, sources
from experiments import methods, run, settings, sweep
from experiments.methods import shallow

METHODS = ("ssad", "ocsvm", "kde", "isoforest")


def config_of(data="breast_cancer", **overrides):
    config = importlib.import_module(f"configs.{data}").get_config()
    config.update_from_flattened_dict(overrides)
    return config


def problem_of(config):
    source = sources.load(config.data.name, None)
    return scenario.make(source, settings.protocol(config), config.seed)


def outcome_of(config, problem=None):
    problem = problem or problem_of(config)
    (outcome,) = methods.of(config).run([problem], [config])
    return outcome


def read(path):
    return json.loads(pathlib.Path(path).read_text())


@pytest.mark.parametrize("method", METHODS)
def test_each_method_leaves_a_finished_run(method, tmp_path):
    folder = tmp_path / method
    results = run.run(config_of(method=method), str(folder))
    with np.load(folder / "scores.npz") as scores:
        auroc = sklearn.metrics.roc_auc_score(scores["label"], scores["score"])
    assert read(folder / "results.json")["auroc"] == pytest.approx(auroc)
    assert results["selection"]["by"] == {"kde": "likelihood", "isoforest": "none"}.get(
        method, "test_auc"
    )
    assert (folder / "score_histogram.png").exists()
    assert results["auroc"] > 0.8  # chance is 0.5; the classes lie apart


def test_a_sweep_gives_the_results_of_the_runs(tmp_path):
    configs = [config_of(method="ssad", seed=seed) for seed in range(2)]
    results = sweep.sweep(configs, str(tmp_path / "sweep"))
    for config, result in zip(configs, results, strict=True):
        alone = run.run(config, str(tmp_path / f"{config.seed}"))
        assert alone["auroc"] == result["auroc"]


def test_the_machine_is_the_librarys_with_the_chosen_gamma():
    config = config_of(method="ocsvm")
    problem = problem_of(config)
    outcome = outcome_of(config, problem)
    x = problem.x_train[problem.indices]
    kernel = kernels.Kernel(outcome.details["selection"]["value"])
    expected = ocsvm.score(ocsvm.fit(x, nu=0.1, kernel=kernel), problem.x_test)
    np.testing.assert_allclose(outcome.scores, expected, atol=1e-6)


def test_the_forest_is_scikit_learns():
    config = config_of(method="isoforest", seed=3)
    problem = problem_of(config)
    forest = sklearn.ensemble.IsolationForest(max_samples=228, random_state=3)
    x = problem.x_train[problem.indices].astype(np.float32)
    assert len(x) < 256  # so that each tree sees all of them
    forest.set_params(max_samples=len(x)).fit(x)
    expected = -forest.score_samples(problem.x_test)
    np.testing.assert_array_equal(outcome_of(config, problem).scores, expected)


def test_gamma_is_chosen_on_a_tenth_of_the_test_set():
    config = config_of(method="ocsvm", seed=1)
    problem = problem_of(config)
    found = outcome_of(config, problem).details["selection"]
    labels = problem.labels_test
    few = shallow._selection_set(labels, 1)
    assert (
        found["examples"] == len(few) == sum(int(0.1 * n) for n in np.bincount(labels))
    )
    x = problem.x_train[problem.indices]
    for gamma, criterion in zip(found["candidates"], found["criterion"], strict=True):
        model = ocsvm.fit(x, kernel=kernels.Kernel(gamma))
        scores = np.asarray(ocsvm.score(model, problem.x_test[few]))
        auroc = sklearn.metrics.roc_auc_score(labels[few], scores)
        assert criterion == pytest.approx(auroc, abs=1e-6)
    assert found["value"] == found["candidates"][np.argmax(found["criterion"])]


def test_the_tenth_is_left_out_of_the_report_on_request(tmp_path):
    kept = run.run(config_of(method="ssad"), str(tmp_path / "kept"))
    config = config_of(method="ssad", selection_in_test=False)
    out = run.run(config, str(tmp_path / "out"))
    assert out["n_test"] == kept["n_test"] - kept["selection"]["examples"]
    assert out["selection"]["value"] == kept["selection"]["value"]
    with np.load(tmp_path / "out" / "scores.npz") as scores:
        assert len(scores["score"]) == kept["n_test"]


@pytest.mark.parametrize("selection", ["none", "train_labels"])
@pytest.mark.parametrize("method", ["ssad", "ocsvm", "kde"])
def test_honest_selection_sees_no_test_labels(method, selection):
    config = config_of(method=method, selection=selection)
    problem = problem_of(config)
    swapped = problem._replace(labels_test=1 - problem.labels_test)
    found, other = (outcome_of(config, p) for p in (problem, swapped))
    assert found.details["selection"]["value"] == other.details["selection"]["value"]
    np.testing.assert_array_equal(found.scores, other.scores)


def test_a_hybrid_works_on_the_codes_and_its_autoencoder_serves_again(tmp_path):
    options = {"method": "ocsvm", "hybrid": True, "pretrain.epochs": 3}
    first = tmp_path / "first"
    results = run.run(config_of("digits", **options), str(first))
    assert {"ae_auroc", "linear_auroc", "ae_train_seconds"} <= set(results)
    model = str(first / "model")
    again = config_of("digits", **options, load_model=model)
    repeated = run.run(again, str(tmp_path / "again"))
    assert repeated["auroc"] == results["auroc"]
    assert "ae_train_seconds" not in repeated
    # Deep SAD's own folder serves as well, by its autoencoder.
    deep = config_of("digits", **{"pretrain.epochs": 3, "train.epochs": 1})
    run.run(deep, str(tmp_path / "deep"))
    other = config_of("digits", **options, load_model=str(tmp_path / "deep" / "model"))
    assert run.run(other, str(tmp_path / "other"))["auroc"] == results["auroc"]
    # Not where it was trained on what is tested now.
    for wrong, message in (
        ({"seed": 1}, "was trained on another split"),
        ({"data.normal_class": 3}, "was trained with data.normal_class 9"),
        ({"network": "mnist_LeNet"}, "mnist_LeNet takes examples of shape"),
    ):
        config = config_of("digits", **options, load_model=model)
        config.update_from_flattened_dict(wrong)
        with pytest.raises(ValueError, match=message):
            run.run(config, str(tmp_path / "wrong"))
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"selection": "best"}, "config.selection is 'best'; for ssad it must be one"),
        ({"selection": "likelihood"}, "for ssad it must be one of test_auc, train_lab"),
        ({"method": "isoforest", "selection": "test_auc"}, "for isoforest it must be"),
        (
            {"selection": "train_labels", "data.ratio_known_outlier": 0.0},
            "train_labels needs at least 2 known anomalies, but there are 0",
        ),
        ({"kernel.name": "cubic"}, "kernel is 'cubic'; it must be one of rbf"),
        ({"kernel.gamma": -1.0}, "config.kernel.gamma is -1.0; it must be at least 0"),
        ({"ssad.kappa": 1e4}, "kappa is 10000.0; with these C and labels"),
        ({"ssad.C_unlabeled": 0.0}, "C_unlabeled is 0.0; it must be finite and > 0"),
        ({"method": "ocsvm", "ocsvm.nu": 2.0}, r"nu is 2.0; it must be in \(0, 1\]"),
        ({"method": "kde", "kde.kernel": "cosine"}, "kernel is 'cosine'; it must be"),
        ({"method": "isoforest", "isoforest.n_trees": 0}, "isoforest.n_trees is 0"),
        ({"load_model": "tests"}, "config.load_model is for networks and hybrids"),
        ({"hybrid": True, "pretrain.enabled": False}, "needs the codes of an autoenc"),
        ({"method": "deep_sad", "hybrid": True}, "hybrid is for the shallow baselines"),
    ],
)
def test_wrong_configs_are_refused_before_anything_is_written(
    overrides, message, tmp_path
):
    config = config_of(**{"method": "ssad", **overrides})
    with pytest.raises(ValueError, match=message):
        run.run(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
