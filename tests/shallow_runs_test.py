"""The shallow baselines through the same experiment as Deep SAD."""

import importlib
import json
import pathlib

import numpy as np
import pytest
import sklearn.ensemble
import sklearn.metrics
import sklearn.neighbors
import sklearn.preprocessing
import sklearn.svm

from deepsad_jax import model, selection
from experiments import build, report, run, sweep

METHODS = ("ssad", "ocsvm", "kde", "isoforest")


@pytest.fixture(autouse=True)
def _without_pictures(request):
    if "leaves_a_finished_run" not in request.node.name:
        request.getfixturevalue("without_pictures")


def config_of(data="breast_cancer", **overrides):
    config = importlib.import_module(f"configs.{data}").get_config()
    config.update_from_flattened_dict(overrides)
    return config


def read(path):
    return json.loads(pathlib.Path(path).read_text())


def scores_of(folder):
    with np.load(folder / "scores.npz") as scores:
        return scores["label"], scores["score"]


def scaled(problem):
    """Training and test rows as scikit-learn scales them by the training part."""
    scaler = sklearn.preprocessing.MinMaxScaler().fit(problem.x_train)
    return (
        scaler.transform(x).astype(np.float32)
        for x in (problem.x_train[problem.indices], problem.x_test)
    )


# What scikit-learn makes of the same rows, given the number that was chosen.
ORACLES = {
    "ocsvm": lambda x, rows, value: (
        -sklearn.svm.OneClassSVM(gamma=value, nu=0.1, tol=1e-8)
        .fit(x)
        .decision_function(rows)
    ),
    "kde": lambda x, rows, value: (
        -sklearn.neighbors.KernelDensity(bandwidth=value, rtol=1e-12)
        .fit(x)
        .score_samples(rows)
    ),
    "isoforest": lambda x, rows, value: (
        -sklearn.ensemble.IsolationForest(max_samples=len(x), random_state=3)
        .fit(x)
        .score_samples(rows)
    ),
}
BY = {"ssad": "train_labels", "ocsvm": "none", "kde": "likelihood", "isoforest": "none"}


@pytest.mark.parametrize("method", METHODS)
def test_each_method_leaves_a_finished_run(method, tmp_path):
    folder, config = tmp_path / method, config_of(method=method, seed=3)
    results = run.run(config, str(folder))
    label, score = scores_of(folder)
    auroc = sklearn.metrics.roc_auc_score(label, score)
    assert read(folder / "results.json")["auroc"] == pytest.approx(auroc)
    # Without being asked to, none looks at labels of the test set.
    assert results["selection"]["by"] == BY[method]
    assert results["network"] is None
    assert (folder / "score_histogram.png").exists()
    problem = build.experiment(config).problem
    again = model.load(folder / "model")
    np.testing.assert_array_equal(model.score(again, problem.x_test), score)
    if method == "ssad":
        # Five standard deviations of an AUROC that knows nothing above one half.
        normal, anomalous = np.sum(label == 0), np.sum(label == 1)
        chance = np.sqrt((normal + anomalous + 1) / (12 * normal * anomalous))
        assert auroc > 0.5 + 5 * chance
        return
    x, x_test = scaled(problem)
    assert len(x) < 256  # so that each tree sees all of them
    expected = ORACLES[method](x, x_test, results["selection"]["value"])
    np.testing.assert_allclose(score, expected, rtol=1e-4, atol=1e-3)
    assert auroc == pytest.approx(
        sklearn.metrics.roc_auc_score(label, expected), abs=1e-3
    )


def test_a_sweep_gives_the_results_of_the_runs(tmp_path):
    configs = [config_of(method="ssad", seed=seed) for seed in range(2)]
    results = sweep.sweep(configs, str(tmp_path / "sweep"))
    for config, result in zip(configs, results, strict=True):
        alone = run.run(config, str(tmp_path / f"{config.seed}"))
        assert alone["auroc"] == result["auroc"]
        assert alone["selection"] == result["selection"]


def test_gamma_is_chosen_on_a_tenth_of_the_test_set_if_asked_by_name(tmp_path):
    config = config_of(method="ocsvm", seed=1, selection="test_auc")
    found = run.run(config, str(tmp_path / "run"))["selection"]
    problem = build.experiment(config).problem
    labels = problem.labels_test
    few = selection.selection_rows(labels, 1)
    assert (
        found["examples"] == len(few) == sum(int(0.1 * n) for n in np.bincount(labels))
    )
    assert found["by"] == "test_auc"
    x, x_test = scaled(problem)
    for gamma, criterion in zip(found["candidates"], found["criterion"], strict=True):
        scores = ORACLES["ocsvm"](x, x_test[few], gamma)
        auroc = sklearn.metrics.roc_auc_score(labels[few], scores)
        assert criterion == pytest.approx(auroc, abs=1e-3)
    assert found["value"] == found["candidates"][np.argmax(found["criterion"])]
    _, score = scores_of(tmp_path / "run")
    expected = ORACLES["ocsvm"](x, x_test, found["value"])
    np.testing.assert_allclose(score, expected, atol=1e-3)


def test_the_tenth_is_left_out_of_the_report_on_request(tmp_path):
    options = {"method": "ssad", "selection": "test_auc"}
    kept = run.run(config_of(**options), str(tmp_path / "kept"))
    config = config_of(**options, selection_in_test=False)
    out = run.run(config, str(tmp_path / "out"))
    assert out["n_test"] == kept["n_test"] - kept["selection"]["examples"]
    assert out["selection"]["value"] == kept["selection"]["value"]
    label, score = scores_of(tmp_path / "out")
    assert len(score) == kept["n_test"]
    rest = np.setdiff1d(np.arange(len(label)), selection.selection_rows(label, 0))
    expected = sklearn.metrics.roc_auc_score(label[rest], score[rest])
    assert out["auroc"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("by", ["", "none", "train_labels"])
@pytest.mark.parametrize("method", ["ssad", "ocsvm", "kde"])
def test_honest_selection_sees_no_test_labels(method, by):
    made = build.experiment(config_of(method=method, selection=by))
    labels = made.problem.labels_test
    swapped = made._replace(problem=made.problem._replace(labels_test=1 - labels))
    outcomes = []
    for each in (made, swapped):
        (fitted,) = each.options.fit_many([each.run])
        outcomes.append(report.outcome(each, *fitted))
    one, other = outcomes
    assert one.figures["selection"] == other.figures["selection"]
    np.testing.assert_array_equal(one.scores, other.scores)
    assert one.figures["auroc"] == pytest.approx(1 - other.figures["auroc"])


def test_a_hybrid_works_on_the_codes_and_its_autoencoder_serves_again(
    finished, tmp_path
):
    options = {"method": "ocsvm", "hybrid": True, "pretrain.epochs": 2, "seed": 3}
    first = tmp_path / "first"
    results = run.run(config_of("digits", **options), str(first))
    assert {"ae_auroc", "linear_auroc", "ae_train_seconds"} <= set(results)
    folder = str(first / "model")
    again = config_of("digits", **options, load_model=folder)
    repeated = run.run(again, str(tmp_path / "again"))
    assert "ae_train_seconds" not in repeated
    # Deep SAD's own folder serves as well, by its autoencoder.
    deep = str(finished[0] / "model")
    other = config_of("digits", **options, load_model=deep)
    run.run(other, str(tmp_path / "other"))
    _, expected = scores_of(first)
    for name in ("again", "other"):
        np.testing.assert_array_equal(scores_of(tmp_path / name)[1], expected)
    # scikit-learn's machine on the same codes.
    problem = build.experiment(again).problem
    base = model.load(folder).base
    codes, rows = (
        model.embed(base, x) for x in (problem.x_train[problem.indices], problem.x_test)
    )
    oracle = ORACLES["ocsvm"](codes, rows, results["selection"]["value"])
    np.testing.assert_allclose(expected, oracle, atol=1e-3)
    linear = sklearn.svm.OneClassSVM(kernel="linear", nu=0.1, tol=1e-8).fit(codes)
    auroc = sklearn.metrics.roc_auc_score(
        problem.labels_test, -linear.decision_function(rows)
    )
    assert results["linear_auroc"] == pytest.approx(auroc, abs=2e-3)
    # Not where it was trained on what is tested now.
    for wrong, message in (
        ({"seed": 1}, "was trained on another split"),
        ({"data.normal_class": 3}, "was trained with data.normal_class 9"),
        ({"network": "mnist_LeNet"}, "mnist_LeNet takes examples of shape"),
    ):
        config = config_of("digits", **options, load_model=folder)
        config.update_from_flattened_dict(wrong)
        with pytest.raises(ValueError, match=message):
            run.run(config, str(tmp_path / "wrong"))
    assert not (tmp_path / "wrong").exists()


def test_what_stands_beside_a_model_must_be_whole(finished, tmp_path):
    folder, _ = finished
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "model").symlink_to(folder / "model")
    config = config_of("digits", load_model=str(copy / "model"), seed=4)
    build.experiment(config)  # nothing says where it comes from
    (copy / "config.json").write_text((folder / "config.json").read_text())
    build.experiment(config)
    (copy / "scores.npz").write_bytes((folder / "scores.npz").read_bytes())
    for normal in (config.data.normal_class, 3):  # the rows are the same
        config.data.normal_class = normal
        with pytest.raises(ValueError, match="trained on another split, so that its"):
            build.experiment(config)
    for name in ("scores.npz", "config.json"):
        (copy / name).write_bytes(b"damaged")
        message = f"{name}, next to config.load_model, is damaged; restore it or move"
        with pytest.raises(ValueError, match=message):
            build.experiment(config)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"selection": "best"}, "config.selection is 'best'; for ssad it must be one"),
        ({"selection": "likelihood"}, "for ssad it must be one of .*train_labels"),
        ({"method": "isoforest", "selection": "test_auc"}, "for isoforest it must be"),
        (
            {"selection": "train_labels", "data.ratio_known_outlier": 0.0},
            "train_labels needs at least 2 known anomalies, but there are 0",
        ),
        (
            {"kernel.name": "cubic"},
            "config.kernel.name is 'cubic'; it must be one of r",
        ),
        ({"kernel.gamma": -1.0}, "config.kernel.gamma is -1.0; it must be a finite"),
        ({"ssad.kappa": 1e4}, "config.ssad.kappa is 10000.0; with these C and labels"),
        ({"ssad.C_unlabeled": 0.0}, "C_unlabeled is 0.0; it must be finite and > 0"),
        (
            {"method": "ocsvm", "ocsvm.nu": 2.0},
            r"config.ocsvm.nu is 2.0; it must be in \(0, 1\]",
        ),
        (
            {"method": "kde", "kde.kernel": "cosine"},
            "config.kde.kernel is 'cosine'; it must be",
        ),
        ({"method": "isoforest", "isoforest.n_trees": 0}, "isoforest.n_trees is 0"),
        (
            {"load_model": "tests"},
            "config.load_model is for networks and hybrids, but s",
        ),
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
