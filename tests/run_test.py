"""One experiment, end to end on embedded data."""

import importlib
import json
import math
import pathlib
import traceback

import numpy as np
import pytest
import sklearn.metrics

from configs import saved
from deepsad_jax import losses, model, parallel, writing
from experiments import build, run, workdir

ROOT = pathlib.Path(__file__).parents[1]
OLD = ROOT / "tests/data/models-0.1"


pytestmark = pytest.mark.usefixtures("without_pictures")


def config_of(name="digits", **overrides):
    config = importlib.import_module(f"configs.{name}").get_config()
    config.update_from_flattened_dict(overrides)
    return config


def quick(name="digits", **overrides):
    epochs = {"pretrain.epochs": 2, "train.epochs": 3}
    return config_of(name, **{**epochs, **overrides})


def read(path):
    return json.loads(path.read_text())


def scores_of(folder):
    with np.load(folder / "scores.npz") as scores:
        return scores["score"]


def test_a_run_leaves_everything_behind(finished):
    folder, output = finished
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "data.json",
        "metrics.jsonl",
        "results.json",
        "scores.npz",
        "model",
        "score_histogram.png",
        "curves.png",
        "losses.png",
        "groups.png",
        "checkpoints",
        "samples.png",
        "examples.npz",
        "report.html",
    }
    assert "AUROC" in output and str(folder) in output
    assert "the digit: 9 is normal (180 rows), 9 other classes are anomal" in output
    assert read(folder / "config.json")["seed"] == 3
    lines = [
        json.loads(x) for x in (folder / "metrics.jsonl").read_text().split("\n")[:-1]
    ]
    expected = [("pretrain", 1), ("pretrain", 2)] + [("train", i) for i in (1, 2, 3)]
    assert [(line["stage"], line["epoch"]) for line in lines] == expected
    assert all(np.isfinite(line["loss"]) for line in lines)


def test_results_are_those_of_the_scores(finished):
    folder, _ = finished
    results = read(folder / "results.json")
    with np.load(folder / "scores.npz") as scores:
        index, label, score = scores["index"], scores["label"], scores["score"]
    area = sklearn.metrics.roc_auc_score(label, score)
    assert math.isclose(results["auroc"], area, rel_tol=1e-12)
    average = sklearn.metrics.average_precision_score(label, score)
    assert math.isclose(results["average_precision"], average, rel_tol=1e-12)
    assert results["n_test"] == len(label) == len(np.unique(index)) == len(score)
    keys = {
        "auroc",
        "average_precision",
        "ae_auroc",
        "train_seconds",
        "ae_train_seconds",
        "seed",
        "n_train",
        "n_test",
        "versions",
        "device",
    }
    assert keys <= results.keys()
    assert results["network"] == "digits_LeNet"
    for name in ("ae", "untrained"):
        with np.load(folder / "scores.npz") as scores:
            reference = scores[f"reference_{name}"]
        area = sklearn.metrics.roc_auc_score(label, reference)
        assert results[f"{name}_auroc"] == area


def test_a_finished_experiment_is_not_overwritten(finished):
    folder, _ = finished
    before = (folder / "results.json").read_bytes()
    message = "holds a finished experiment, which is never overwritten"
    with pytest.raises(ValueError, match=message):
        run.run(quick(), str(folder))
    assert (folder / "results.json").read_bytes() == before


def test_a_saved_config_repeats_the_run_bit_for_bit(finished, tmp_path):
    folder, _ = finished
    config = saved.get_config(str(folder / "config.json"))
    run.run(config, str(tmp_path / "again"))
    np.testing.assert_array_equal(scores_of(folder), scores_of(tmp_path / "again"))
    assert read(tmp_path / "again/config.json") == read(folder / "config.json")


@pytest.mark.skipif(parallel.cores() < 2, reason="needs two processor cores")
def test_the_cores_of_a_cpu_share_batches(finished, command, tmp_path):
    folder, _ = finished
    fields = {"load_model": str(folder / "model"), "train.epochs": 2}
    run.run(quick(seed=3, **fields), str(tmp_path / "one"))
    config = f"--config=configs/saved.py:{tmp_path / 'one/config.json'}"
    command("run", config, f"--workdir={tmp_path / 'two'}", "--config.devices=2")
    assert read(tmp_path / "two/results.json")["device"].startswith("2 x")
    one, two = (scores_of(tmp_path / name) for name in ("one", "two"))
    np.testing.assert_allclose(two, one, rtol=1e-3)
    assert np.abs(one / scores_of(folder) - 1).max() > 0.01  # it was trained


def test_a_saved_model_is_evaluated_without_training(finished, tmp_path, capsys):
    folder, _ = finished
    path = str(folder / "model")
    config = quick(seed=3, load_model=path, **{"train.epochs": 0})
    results = run.run(config, str(tmp_path / "loaded"))
    assert "  not trained    only evaluated\n" in capsys.readouterr().out
    assert results["trained"] is False and "ae_train_seconds" not in results
    np.testing.assert_array_equal(scores_of(tmp_path / "loaded"), scores_of(folder))
    assert results["ae_auroc"] == read(folder / "results.json")["ae_auroc"]
    # The same model again, which has been saved twice.
    config.load_model = str(tmp_path / "loaded/model")
    run.run(config, str(tmp_path / "twice"))
    np.testing.assert_array_equal(scores_of(tmp_path / "twice"), scores_of(folder))


OLD_MODELS = {
    "deep_sad": {"method": "deep_sad"},
    "soft_boundary": {"method": "deep_svdd", "train.loss": "soft_boundary"},
    **{name: {"method": name} for name in ("vae", "m2", "m1_m2", "supervised")},
}


@pytest.mark.parametrize("name", OLD_MODELS)
def test_models_of_version_0_1_are_evaluated_on_raw_rows(name, tmp_path):
    with np.load(OLD / "scores.npz") as scores:
        x, expected = scores["x_table"], scores[name]
    # Version 0.1 kept no scaling: it was made anew from the training part, as now.
    train = np.concatenate([np.eye(6), np.zeros((2, 6)), x])
    parts = {"x_train": 3 + 10.0 * train, "x_test": 3 + 10.0 * x}
    labels = np.arange(len(x)) % 2
    path = tmp_path / "rows.npz"
    np.savez(path, **parts, semi_targets=np.zeros(len(train)), y_test=labels)
    config = config_of("breast_cancer", load_model=str(OLD / name), **OLD_MODELS[name])
    config.data.name, config.train.epochs = str(path), 0
    run.run(config, str(tmp_path / "run"))
    np.testing.assert_allclose(scores_of(tmp_path / "run"), expected, rtol=1e-4)


def test_an_image_model_of_version_0_1_is_continued(tmp_path):
    with np.load(OLD / "scores.npz") as scores:
        x, expected = scores["x_images"], scores["digits"]
    config = quick(load_model=str(OLD / "digits"), **{"train.epochs": 0})
    run.run(config, str(tmp_path / "evaluated"))
    again = model.load(tmp_path / "evaluated/model")
    np.testing.assert_allclose(model.score(again, x), expected, rtol=1e-4)
    config.train.epochs = 1
    run.run(config, str(tmp_path / "continued"))
    trained = model.load(tmp_path / "continued/model")
    np.testing.assert_array_equal(
        trained.variables["center"], again.variables["center"]
    )
    assert not np.allclose(model.score(trained, x), expected, rtol=1e-2)


def test_the_papers_text_is_reachable_by_options(tmp_path):
    options = {"slope": 0.1, "center": "without_anomalies"}
    for stage in ("pretrain", "train"):
        options |= {f"{stage}.batch_size": 200, f"{stage}.weight_decay": 1e-6}
        options[f"{stage}.milestones"] = (50,)
    config = quick("breast_cancer", **options)
    network = run.run(config, str(tmp_path / "run"))["network"]
    assert network.startswith("MLPEncoder(") and "slope = 0.1" in network
    found = model.load(tmp_path / "run/model")
    assert found.objective.encoder.module.slope == 0.1
    assert found.base.objective.decoder.module.slope == 0.1
    problem = build.experiment(config).problem
    normal = problem.x_train[problem.indices[problem.semi_targets != -1]]
    center = np.mean(model.embed(found.base, normal), axis=0, dtype=np.float64)
    close = np.abs(center) < 0.1  # the paper keeps its coordinates away from 0
    center[close] = np.where(center[close] < 0, -0.1, 0.1)
    np.testing.assert_allclose(found.variables["center"], center, atol=1e-6)
    # The layers are leaky to that slope: the code of a hand-made forward pass.
    params, statistics = (found.variables[n] for n in ("params", "batch_stats"))
    x = found.preprocessing(normal)
    for i in (1, 2):
        x = x @ params[f"hidden{i}"]["kernel"]
        own = statistics[f"hidden_bn{i}"]
        x = (x - own["mean"]) / np.sqrt(own["var"] + 1e-4)
        x = np.where(x > 0, x, 0.1 * x)
    x = x @ params["code"]["kernel"]
    np.testing.assert_allclose(model.embed(found, normal), x, rtol=1e-3, atol=1e-4)
    # The model brings its networks, whatever the slope of those of a new run.
    again = quick("breast_cancer", load_model=str(tmp_path / "run/model"))
    again.train.epochs = 0
    run.run(again, str(tmp_path / "loaded"))
    np.testing.assert_array_equal(
        scores_of(tmp_path / "loaded"), scores_of(tmp_path / "run")
    )
    again.network = "cardio_mlp"
    with pytest.raises(ValueError, match="config.network cardio_mlp takes examples of"):
        run.run(again, str(tmp_path / "other"))


FRAMES = []


def seen_loss(embeddings, semi_targets, center):
    files = [pathlib.Path(f.filename) for f in traceback.extract_stack()[:-1]]
    ours = [ROOT / "deepsad_jax", ROOT / "experiments"]
    FRAMES.append(sum(any(o in f.parents for o in ours) for f in files))
    return losses.deep_sad_loss(embeddings, semi_targets, center)


@pytest.mark.parametrize("name", ["breast_cancer", "digits"])
def test_from_main_to_the_loss_are_at_most_ten_frames(name, tmp_path):
    FRAMES.clear()
    config = quick(name, loss=f"{__name__}:seen_loss")
    run.run(config, str(tmp_path / "run"))
    # And main before, and the formula itself.
    assert FRAMES and 1 + max(FRAMES) + 1 <= 10


def test_deep_sad_beats_its_autoencoder_on_a_table(table):
    # The labels are what the autoencoder cannot see.
    results = read(table / "results.json")
    assert results["auroc"] > results["ae_auroc"]


DEEP = (
    ("digits", "deep_sad", "deviation"),
    ("digits", "deep_svdd", "soft_boundary"),
    *(("digits", name, "") for name in ("autoencoder", "m2", "supervised")),
    *(("breast_cancer", name, "") for name in ("vae", "m1_m2")),
)


@pytest.mark.parametrize(("data", "method", "loss"), DEEP)
def test_every_deep_method_knows_more_than_chance(data, method, loss, tmp_path):
    config = config_of(data, **{"method": method, "train.loss": loss})
    config.pretrain.epochs = config.train.epochs = 40
    results = run.run(config, str(tmp_path / "run"))
    with np.load(tmp_path / "run" / "scores.npz") as scores:
        label, score = scores["label"], scores["score"]
    assert np.isfinite(score).all()
    assert len(np.unique(score)) > 0.9 * len(score)
    # The AUROC of scores that know nothing has this standard deviation; a detector
    # whose assumptions hold is five of them above one half.
    normal, anomalous = np.sum(label == 0), np.sum(label == 1)
    chance = np.sqrt((normal + anomalous + 1) / (12 * normal * anomalous))
    assert results["auroc"] > 0.5 + 5 * chance
    stages = {
        json.loads(line)["stage"] for line in open(tmp_path / "run/metrics.jsonl")
    }
    times = {"pretrain": "ae_train_seconds", "train": "train_seconds"}
    assert stages == {stage for stage, name in times.items() if name in results}
    again = model.load(tmp_path / "run/model")
    x_test = build.experiment(config).problem.x_test
    np.testing.assert_array_equal(model.score(again, x_test), score)


def test_the_autoencoder_is_the_one_that_deep_sad_starts_from(finished, tmp_path):
    folder, _ = finished
    results = run.run(quick(method="autoencoder", seed=3), str(tmp_path / "run"))
    assert results["auroc"] == read(folder / "results.json")["ae_auroc"]
    assert "train_seconds" not in results
    # And its model is one to start from.
    config = quick(seed=3, load_model=str(tmp_path / "run" / "model"))
    run.run(config, str(tmp_path / "continued"))
    np.testing.assert_array_equal(scores_of(tmp_path / "continued"), scores_of(folder))


def test_groups_are_in_the_metrics_with_null_for_what_is_not_there(finished):
    folder, _ = finished
    lines = [json.loads(line) for line in open(folder / "metrics.jsonl")]
    for line in lines[2:]:
        assert line["distance_anomaly"] > 0 and line["distance_unlabelled"] > 0
        assert line["distance_normal"] is None  # none is known
        assert line["log_det_anomaly"] is None  # twelve, in 32 dimensions
        assert line["log_det_unlabelled"] <= line["isotropic_unlabelled"]
    assert "distance_unlabelled" not in lines[0]


def test_models_of_other_methods_are_refused(finished, tmp_path):
    folder, _ = finished
    config = quick(seed=3, load_model=str(folder / "model"), slope=0.1)
    with pytest.raises(ValueError, match="config.load_model is a model of another enc"):
        run.run(config, str(tmp_path / "run"))
    config = config_of(method="m2", load_model=str(folder / "model"))
    message = "config.load_model is a model of deep_sad, from which m2 cannot"
    with pytest.raises(ValueError, match=message):
        run.run(config, str(tmp_path / "run"))
    config = config_of("breast_cancer", load_model=str(OLD / "supervised"))
    with pytest.raises(ValueError, match=r"takes examples of shape \(6,\), but the da"):
        run.run(config, str(tmp_path / "run"))
    config = config_of(method="supervised", **{"train.epochs": 1})
    run.run(config, str(tmp_path / "supervised"))
    config = config_of(load_model=str(tmp_path / "supervised" / "model"))
    with pytest.raises(ValueError, match="model of supervised, from which deep_sad"):
        run.run(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_one_class_in_the_test_set_leaves_the_figures_undefined(tmp_path, capsys):
    path = tmp_path / "normal.npz"
    x = np.random.default_rng(0).random((80, 4))
    np.savez(path, x_train=x, semi_targets=np.zeros(80), x_test=x, y_test=np.zeros(80))
    config = quick(method="kde", network="", **{"data.name": str(path)})
    run.run(config, str(tmp_path / "run"))
    assert read(tmp_path / "run" / "results.json")["auroc"] is None
    assert "AUROC         undefined (one class only)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"method": "svm"}, "config.method is 'svm'; it must be one of deep_sad"),
        ({"network": "vgg"}, "config.network is 'vgg'; it must be one of digits_Le"),
        ({"network": "mnist_LeNet"}, "config.network mnist_LeNet takes examples of"),
        (
            {"network": "mnist_LeNet", "slope": 0.1},
            "config.network mnist_LeNet takes examples of",
        ),
        ({"eta": 0.0}, "config.eta is 0.0; it must be > 0"),
        ({"seed": -1}, "config.seed is -1"),
        ({"devices": 3}, "config.devices is 3; it must be from 1 to 1"),
        ({"train.batch_size": 500}, r"\d+ examples, less than one batch of 500"),
        ({"pretrain.epochs": -1}, "config.pretrain: epochs is -1"),
        ({"data.normal_class": 10}, "normal_class is 10; the classes are"),
        ({"data.ratio_known_outlier": 0.9}, "labeled anomalies"),
        ({"data.name": "emnist"}, "no data set 'emnist'"),
        ({"train.loss": "one_class"}, "config.train.loss is 'one_class'; for deep_sad"),
        ({"method": "deep_svdd", "train.nu": 1.0}, "config.train.nu is 1.0"),
        ({"method": "m2", "m2.alpha": -1.0}, "config.m2.alpha is -1.0"),
        ({"method": "m2", "hybrid": True}, "config.hybrid .* m2 is deep by itself"),
        ({"method": "m1_m2", "pretrain.enabled": False}, "m1_m2 stands on a VAE"),
        ({"method": "vae", "pretrain.enabled": False}, "in the stage pretrain"),
        (
            {"method": "autoencoder", "pretrain.enabled": False},
            "trains in the stage pretrain alone",
        ),
        (
            {"method": "supervised", "data.ratio_known_outlier": 0.0},
            "learns from known anomalies, but there are none",
        ),
        ({"center": "median"}, "config.center is 'median'; it must be all or without"),
        ({"slope": -0.1}, "config.slope is -0.1; it must be >= 0 and finite"),
        ({"load_model": "nope"}, "config.load_model: there is no nope"),
    ],
)
def test_wrong_configs_are_refused_before_anything_is_written(
    overrides, message, tmp_path
):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run.run(config_of("digits", **overrides), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_is_a_file_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(ValueError, match="is a file; name a folder"):
        run.run(config_of("digits"), str(path))
    assert path.read_text() == "mine"


def test_interrupted_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    workdir.write_json(path, {"auroc": 0.5})
    with pytest.raises(TypeError):
        workdir.write_json(path, {"auroc": object()})
    with pytest.raises(KeyboardInterrupt), writing.atomic(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert read(path) == {"auroc": 0.5}
    assert list(tmp_path.iterdir()) == [path]


def test_help_explains_the_config(command):
    output = command("run", "--help")
    assert "--config:" in output and "--workdir:" in output
    assert "configs/odds.py:cardio" in output
