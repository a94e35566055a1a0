"""A study that lies elsewhere: its own networks, loss, optimizer and config."""

import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import sklearn.datasets

from deepsad_jax import model
from experiments import run

ROOT = pathlib.Path(__file__).parents[1]
STUDY = '''
import pathlib

import flax.linen as nn
import jax.numpy as jnp
import optax

from configs import default


class Residual(nn.Module):
    """Images to codes."""

    features: tuple[int, ...] = (2,)
    rep_dim: int = 8

    @nn.compact
    def __call__(self, x, train):
        for features in self.features:
            x = nn.Conv(features, (3, 3), strides=(4, 4), use_bias=False)(x)
            y = nn.BatchNorm(not train, use_bias=False, use_scale=False)(x)
            y = nn.Conv(features, (3, 3), use_bias=False)(nn.relu(y))
            x = nn.relu(x + y)
        return nn.Dense(self.rep_dim, use_bias=False)(x.mean(axis=(1, 2)))


class Series(nn.Module):
    """Series to codes."""

    rep_dim: int = 4

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (5,), strides=(2,), use_bias=False)(x))
        return nn.Dense(self.rep_dim, use_bias=False)(x.mean(axis=1))


class Back(nn.Module):
    """Codes to series."""

    time: int
    channels: int

    @nn.compact
    def __call__(self, codes):
        x = nn.Dense(self.time * self.channels)(codes)
        return x.reshape(-1, self.time, self.channels)


def focal(embeddings, semi_targets, center, *, gamma=2.0):
    distance = jnp.sum((embeddings - center) ** 2, axis=-1)
    weight = 1 - jnp.exp(-distance)
    pull = weight**gamma * distance
    push = (1 - weight) ** gamma / (distance + 1e-3)
    return jnp.where(semi_targets < 0, push, pull)


def warm(steps, peak, epochs):
    rise = optax.warmup_cosine_decay_schedule(0.0, peak, steps, epochs * steps)
    return optax.adamw(rise)


def get_config(kind="images"):
    config = default.get_config()
    config.data.name = str(pathlib.Path(__file__).with_name(f"{kind}.npz"))
    if kind == "images":
        config.encoder, config.decoder = "my_study:Residual", None
        config.encoder_options.features = (4,)
    else:
        config.encoder, config.decoder = "my_study:Series", "my_study:Back"
        config.decoder_options.time, config.decoder_options.channels = 50, 2
    config.loss, config.loss_options.gamma = "my_study:focal", 1.5
    config.optimizer = "my_study:warm"
    config.optimizer_options.peak, config.optimizer_options.epochs = 3e-3, 4
    for stage in (config.pretrain, config.train):
        stage.epochs, stage.batch_size = 4, 16
    return config
'''
# In a process that knows nothing of the experiments.
SCORE = """
import json, sys
import numpy as np
import deepsad_jax as sad

for folder, rows, scores in json.load(sys.stdin):
    found = sad.load(folder)
    with np.load(rows) as arrays:
        x = arrays[arrays.files[0]]
    np.savez(scores, score=sad.score(found, x), base=sad.score(found.base or found, x))
assert "experiments" not in sys.modules
"""


@pytest.fixture(scope="session")
def study(made_once):
    """A folder with a module and its data: images of 64x64x3, and series."""

    def make(folder):
        (folder / "my_study.py").write_text(STUDY)
        rng = np.random.default_rng(0)
        for name, part, shape in (
            ("images", "x_", (64, 64, 3)),
            ("series", "series_", (50, 2)),
        ):
            x, labels = rng.random((68, *shape)), np.zeros(68, int)
            labels[:4] = labels[-6:] = 1
            x[labels == 1] *= 0.3
            x = (255 * x).astype(np.uint8) if name == "images" else 5 * x - 2
            parts = {f"{part}test": x[48:], f"{part}train": x[:48]}
            np.savez(
                folder / f"{name}.npz",
                **parts,
                semi_targets=-labels[:48],
                y_test=labels[48:],
            )

    return made_once("study", make)


@pytest.fixture(scope="session")
def swept(study, made_once, command):
    """The folder of sweeps of the study, from a command that was killed on its way."""

    def make(folder):
        often = ("--config.checkpoint.epochs=1", "--config.checkpoint.seconds=0")
        for kind in ("images", "series"):
            arguments = (
                *(f"--config={study / 'my_study.py'}:{kind}", "--seeds=2", *often),
                f"--workdir={folder / kind}",
            )
            if kind == "images":
                _kill(arguments, folder / kind)
            (folder / f"{kind}.txt").write_text(command("sweep", *arguments))

    return made_once("swept", make)


def _kill(arguments, folder):
    """Kills a sweep once it has saved a checkpoint."""
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.sweep", *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    while not any("tmp" not in p.name for p in folder.glob("*/*/checkpoints/*/*")):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "summary.json").exists()


def seeds(folder):
    return sorted(folder.glob("*/seed*"))


@pytest.mark.parametrize("kind", ["images", "series"])
def test_a_sweep_is_the_runs_of_a_study(kind, study, swept, monkeypatch, tmp_path):
    first, second = seeds(swept / kind)
    (row,) = json.loads((swept / kind / "summary.json").read_text())
    assert row["runs"] == 2
    assert f"{100 * row['auroc_mean']:6.2f}" in (swept / f"{kind}.txt").read_text()
    results = json.loads((first / "results.json").read_text())
    pretrained = kind == "series"
    assert ("ae_auroc" in results) == pretrained
    assert bool(results["notes"]) != pretrained
    assert results["network"].startswith("my_study:")
    # One run by itself is the same, bit for bit.
    monkeypatch.syspath_prepend(study)
    config = importlib.import_module("my_study").get_config(kind)
    run.run(config, str(tmp_path / "run"))
    with (
        np.load(first / "scores.npz") as swept_scores,
        np.load(tmp_path / "run/scores.npz") as scores,
        np.load(second / "scores.npz") as other,
    ):
        np.testing.assert_array_equal(swept_scores["score"], scores["score"])
        assert not np.array_equal(other["score"], scores["score"])
    # The report knows what was trained, and the loss is that of the study.
    fitted = model.load(first / "model")
    assert fitted.objective.loss_function.keywords == {"gamma": 1.5}
    assert fitted.objective.loss_function.func.__module__ == "my_study"


def test_saved_models_score_raw_rows_in_a_new_process(study, swept, table, tmp_path):
    with np.load(table / "scores.npz") as scores:
        index = scores["index"]
    rows = sklearn.datasets.load_breast_cancer().data[index]  # as they come
    np.savez(tmp_path / "rows.npz", rows)
    folders = {"table": (table, tmp_path / "rows.npz")}
    for kind in ("images", "series"):
        folders[kind] = seeds(swept / kind)[0], study / f"{kind}.npz"
    subprocess.run(
        [sys.executable, "-c", SCORE],
        input=json.dumps(
            [
                [str(folder / "model"), str(x), str(tmp_path / f"{name}-scores.npz")]
                for name, (folder, x) in folders.items()
            ]
        ),
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{study}", "JAX_PLATFORMS": "cpu"},
        text=True,
        check=True,
        cwd=tmp_path,
    )
    for name, (folder, _) in folders.items():
        with (
            np.load(tmp_path / f"{name}-scores.npz") as found,
            np.load(folder / "scores.npz") as expected,
        ):
            np.testing.assert_array_equal(found["score"], expected["score"], name)
            has_base = not np.array_equal(found["base"], found["score"])
            assert has_base == (name != "images")
