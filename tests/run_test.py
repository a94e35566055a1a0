"""The command line, end to end on embedded data."""

import importlib
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import sklearn.metrics

from deepsad_jax import parallel
from experiments import run, settings, workdir

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = {
    "digits": (),
    "breast_cancer": (),
    "mnist": (),
    "fmnist": (),
    "cifar10": (),
    "odds": ("thyroid",),
}
QUICK = ("--config.pretrain.epochs=2", "--config.train.epochs=3")


def config_of(name, **overrides):
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config(*CONFIGS[name])
    config.update_from_flattened_dict(overrides)
    return config


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.run", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    done = command(f"--workdir={folder}", "--config.seed=3", *QUICK)
    assert done.returncode == 0, done.stderr
    return folder, done


def read(path):
    return json.loads(path.read_text())


def test_every_config_builds_and_is_valid():
    files = {path.stem for path in (ROOT / "configs").glob("*.py")}
    assert files == {*CONFIGS, "default", "saved", "__init__"}
    for name in CONFIGS:
        settings.check(config_of(name))


def test_a_run_leaves_everything_behind(finished):
    folder, done = finished
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
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
    }
    assert "AUROC" in done.stdout and str(folder) in done.stdout
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
    assert results["auroc"] == sklearn.metrics.roc_auc_score(label, score)
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


def test_a_finished_experiment_is_not_overwritten(finished):
    folder, _ = finished
    before = (folder / "results.json").read_bytes()
    again = command(f"--workdir={folder}", *QUICK)
    assert again.returncode == 2
    assert "holds a finished experiment, which is never overwritten" in again.stderr
    assert (folder / "results.json").read_bytes() == before


def test_a_saved_config_repeats_the_run_bit_for_bit(finished, tmp_path):
    folder, _ = finished
    done = command(
        f"--config=configs/saved.py:{folder}/config.json", f"--workdir={tmp_path}/again"
    )
    assert done.returncode == 0, done.stderr
    with (
        np.load(folder / "scores.npz") as first,
        np.load(tmp_path / "again" / "scores.npz") as second,
    ):
        np.testing.assert_array_equal(first["score"], second["score"])


@pytest.mark.skipif(parallel.cores() < 2, reason="needs two processor cores")
def test_the_cores_of_a_cpu_share_batches(finished, tmp_path):
    folder, _ = finished
    arguments = (f"--workdir={tmp_path / 'two'}", "--config.devices=2")
    done = command(*arguments, "--config.seed=3", *QUICK)
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "two/results.json")["device"].startswith("2 x")
    one, two = (np.load(path / "scores.npz") for path in (folder, tmp_path / "two"))
    np.testing.assert_allclose(two["score"], one["score"], rtol=1e-3)


def test_a_saved_model_is_evaluated_without_training(finished, tmp_path):
    folder, _ = finished
    config = config_of("digits", seed=3, load_model=str(folder / "model"))
    config.train.epochs = 0
    results = run.run(config, str(tmp_path / "loaded"))
    assert results["auroc"] == read(folder / "results.json")["auroc"]
    assert "ae_train_seconds" not in results


@pytest.mark.parametrize("name", ["breast_cancer"])
def test_deep_sad_beats_its_autoencoder_on_a_table(name, tmp_path):
    # The labels are what the autoencoder cannot see.
    results = run.run(config_of(name), str(tmp_path / name))
    assert results["auroc"] > results["ae_auroc"]


DEEP = (
    *(("digits", "deep_sad", loss) for loss in ("hypersphere", "deviation")),
    *(("digits", "deep_svdd", loss) for loss in ("one_class", "soft_boundary")),
    *(("digits", name, "") for name in ("autoencoder", "vae", "m2", "m1_m2")),
    *(("breast_cancer", name, "") for name in ("vae", "m2", "m1_m2")),
    *((name, "supervised", "") for name in ("digits", "breast_cancer")),
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


def test_the_autoencoder_is_the_one_that_deep_sad_starts_from(finished, tmp_path):
    folder, _ = finished
    config = config_of("digits", method="autoencoder", seed=3)
    config.pretrain.epochs = 2
    results = run.run(config, str(tmp_path / "run"))
    assert results["auroc"] == read(folder / "results.json")["ae_auroc"]
    assert "train_seconds" not in results
    # And its model is one to start from.
    config = config_of("digits", seed=3, load_model=str(tmp_path / "run" / "model"))
    config.train.epochs = 3
    results = run.run(config, str(tmp_path / "continued"))
    assert results["auroc"] == read(folder / "results.json")["auroc"]


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
    config = config_of("digits", method="m2", load_model=str(folder / "model"))
    with pytest.raises(
        ValueError, match="is a model of deep_sad .*, from which m2 cannot"
    ):
        run.run(config, str(tmp_path / "run"))
    config = config_of("digits", method="supervised")
    config.train.epochs = 1
    run.run(config, str(tmp_path / "supervised"))
    config = config_of("digits", load_model=str(tmp_path / "supervised" / "model"))
    with pytest.raises(ValueError, match="model of supervised, from which deep_sad"):
        run.run(config, str(tmp_path / "run"))


def test_one_class_in_the_test_set_leaves_the_figures_undefined(tmp_path):
    path = tmp_path / "normal.npz"
    x = np.random.default_rng(0).random((80, 4))
    np.savez(path, x_train=x, semi_targets=np.zeros(80), x_test=x, y_test=np.zeros(80))
    config = config_of("digits", network="")
    config.data.name = str(path)
    config.pretrain.epochs = config.train.epochs = 1
    run.run(config, str(tmp_path / "run"))
    assert read(tmp_path / "run" / "results.json")["auroc"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.train.learnin_rate=1"], 'did you mean "learning_rate"'),
        (["--config.trian.epochs=1"], 'did you mean "train"'),
        (["--config.train.learning_rate=fast"], "could not convert string to float"),
        (["--config.train.epochs=1.5"], "invalid literal for int"),
        (["--config.train.milestones=x"], "config.train: milestones is"),
        (["--config=configs/nope.py"], "configs/nope.py"),
        (["--config=configs/__init__.py"], "config file must define get_config()"),
        (["--config=configs/odds.py:iris"], "has no table 'iris'; it has arrhythmia"),
        (["--config=configs/saved.py:nope.json"], "no file 'nope.json'"),
        (["--confg=configs/mnist.py"], "Did you mean: config"),
        (["configs/mnist.py"], "unexpected argument 'configs/mnist.py'"),
        (["--config.load_model=nope"], "config.load_model: there is no nope"),
        (["--config.seed=1", "--config=configs/digits.py"], "before a value for"),
    ],
)
def test_wrong_commands_get_one_sentence(arguments, message):
    done = command(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"method": "svm"}, "config.method is 'svm'; it must be one of deep_sad"),
        ({"network": "vgg"}, "network is 'vgg'; it must be one of"),
        ({"network": "mnist_LeNet"}, "config.network mnist_LeNet takes examples of"),
        ({"eta": 0.0}, "config.eta is 0.0; it must be > 0"),
        ({"seed": -1}, "config.seed is -1"),
        ({"train.batch_size": 500}, r"\d+ examples, less than one batch of 500"),
        ({"pretrain.epochs": -1}, "config.pretrain: epochs is -1"),
        ({"data.normal_class": 10}, "normal_class is 10; the classes are"),
        ({"data.ratio_known_outlier": 0.9}, "labelled anomalies"),
        ({"data.name": "emnist"}, "no data set 'emnist'"),
        ({"train.loss": "one_class"}, "config.train.loss is 'one_class'; for deep_sad"),
        ({"method": "deep_svdd", "train.nu": 1.0}, "config.train.nu is 1.0"),
        ({"method": "m2", "m2.alpha": -1.0}, "config.m2.alpha is -1.0"),
        ({"method": "m2", "hybrid": True}, "config.hybrid .* m2 is deep by itself"),
        ({"method": "m1_m2", "pretrain.enabled": False}, "stacks M2 on a pretrained"),
        ({"method": "vae", "pretrain.enabled": False}, "in the stage pretrain alone"),
        (
            {"method": "supervised", "data.ratio_known_outlier": 0.0},
            "learns from known anomalies, but there are none",
        ),
    ],
)
def test_wrong_configs_are_refused_before_anything_is_written(
    overrides, message, tmp_path
):
    with pytest.raises(ValueError, match=message):
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
    with pytest.raises(KeyboardInterrupt), workdir.atomic(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert read(path) == {"auroc": 0.5}
    assert list(tmp_path.iterdir()) == [path]


def test_help_explains_the_config():
    done = command("--help")
    assert "--config:" in done.stdout and "--workdir:" in done.stdout
    assert "configs/odds.py:cardio" in done.stdout
