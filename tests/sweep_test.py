"""Sweeps against single runs, what is skipped, and the table at the end."""

import importlib
import json
import re

import flax.linen as nn
import numpy as np
import optax
import pytest
from absl.testing import flagsaver

from experiments import build, run, session, sweep

pytestmark = pytest.mark.usefixtures("without_pictures")


class Tower(nn.Module):
    """An encoder of one's own, for tables."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(8, use_bias=False)(x))
        return nn.Dense(4, use_bias=False)(x)


def warm(steps):
    rise = optax.warmup_cosine_decay_schedule(0.0, 1e-2, steps, 3 * steps)
    return optax.adamw(rise)


OWN = {"encoder": f"{__name__}:Tower", "optimizer": f"{__name__}:warm"}
NETWORKS = "deepsad_jax.networks:"
# Of few layers, which compile sooner.
SMALL = {
    "breast_cancer": {
        "encoder": f"{NETWORKS}MLPEncoder",
        "encoder_options": {"hidden": (8,), "rep_dim": 3},
        "decoder": f"{NETWORKS}MLPDecoder",
        "decoder_options": {"hidden": (8,), "features": 30},
    },
    "digits": {
        "network": "",
        "encoder": f"{NETWORKS}ConvEncoder",
        "encoder_options": {"input_shape": (8, 8, 1), "features": (2,), "rep_dim": 3},
        "decoder": f"{NETWORKS}ConvDecoder",
        "decoder_options": {"input_shape": (8, 8, 1), "features": (2,)},
    },
}


def quick(name, **fields):
    config = importlib.import_module(f"configs.{name}").get_config()
    config.pretrain.epochs, config.train.epochs = 2, 3
    for field, value in fields.items():
        config[field] = value
    return config


def small(name, **fields):
    return quick(name, **{**SMALL[name], **fields})


def read(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("breast_cancer", "deep_sad"),
        ("digits", "deep_sad"),
        ("breast_cancer", "vae"),
        ("digits", "m2"),
        ("breast_cancer", "own"),
    ],
)
def test_runs_of_a_sweep_are_those_of_the_single_command(name, method, tmp_path):
    # Of a table, runs of unlike size share a program; of images, each is by itself.
    ratios = [0.0, 0.05] if name == "breast_cancer" and method != "vae" else [0.0]
    grid = {"data.ratio_pollution": ratios}
    base = quick(name, **OWN) if method == "own" else small(name, method=method)
    configs = sweep.expand(base, grid, seeds=2)[-3:]
    results = sweep.sweep(configs, str(tmp_path / "sweep"))
    assert len({result["n_train"] for result in results}) == len(ratios)
    for single, result in zip(configs, results, strict=True):
        folder = tmp_path / "single" / sweep.setting(single) / str(single.seed)
        expected = run.run(single, str(folder))
        # The same bits on a CPU; other backends compute the runs side by side.
        assert result["auroc"] == expected["auroc"]
        assert result["n_train"] == expected["n_train"]
        swept = tmp_path / "sweep" / sweep.setting(single) / f"seed{single.seed}"
        a, b = (np.load(path / "scores.npz") for path in (folder, swept))
        np.testing.assert_array_equal(a["score"], b["score"])
        assert (swept / "model").is_dir()
        assert read(swept / "config.json") == read(folder / "config.json")
        lines = (swept / "metrics.jsonl").read_text().splitlines()
        assert lines == (folder / "metrics.jsonl").read_text().splitlines()


def test_finished_runs_are_not_done_again_and_others_are_refused(tmp_path):
    config = small("breast_cancer")
    configs = sweep.expand(config, {}, seeds=2)
    sweep.sweep(configs[:1], str(tmp_path))
    path = tmp_path / sweep.setting(config) / "seed0" / "results.json"
    before = path.stat().st_mtime_ns
    assert len(sweep.sweep(configs, str(tmp_path))) == 2
    assert path.stat().st_mtime_ns == before
    config.eta = 2.0
    with pytest.raises(ValueError, match=r"another config \(eta was 1.0, is 2.0\)"):
        sweep.sweep(sweep.expand(config, {}, seeds=2), str(tmp_path))


@pytest.mark.parametrize("name", ["digits", "breast_cancer"])
def test_more_seeds_compile_nothing(name, tmp_path, caplog):
    configs = sweep.expand(small(name), {}, seeds=4)
    sweep.sweep(configs[:2], str(tmp_path))  # of a table, two runs share a program

    def compiled(more):
        caplog.clear()
        with caplog.at_level("DEBUG", "jax._src.interpreters.pxla"):
            sweep.sweep(more, str(tmp_path))
        return [m for m in caplog.messages if re.match("Compiling", m)]

    assert not compiled(configs[2:])
    other = small(name, eta=3.0, seed=4)
    assert compiled([other])  # what has to be compiled is noticed


def test_runs_share_a_program_unless_their_epochs_make_other_optimizers():
    grid, plans = {"data.ratio_pollution": [0.0, 0.2]}, []
    for fields in (OWN, {}):
        made = [
            build.experiment(config)
            for config in sweep.expand(quick("breast_cancer", **fields), grid, 1)
        ]
        few, many = (len(each.problem.indices) // 64 for each in made)
        assert few < many
        plans.append(made[0].options.plan_for([each.run for each in made]))
    assert plans[0] is None and plans[1] is not None


def test_pairs_of_one_class_are_left_out():
    grid = {"data.normal_class": [0, 1, 2], "data.known_outlier_class": [0, 1, 2]}
    configs = sweep.expand(quick("digits"), grid, seeds=2)
    assert len(configs) == 6 * 2
    assert len({(sweep.setting(c), c.seed) for c in configs}) == 12


def test_tables_bring_their_networks_unless_there_is_ones_own():
    grid = {"data.name": ["cardio", "thyroid"]}
    config = quick("breast_cancer", network="cardio_mlp")
    assert [c.network for c in sweep.expand(config, grid, 1)] == [
        "cardio_mlp",
        "thyroid_mlp",
    ]
    config.network, config.encoder = "", "my_study:Net"
    assert [c.network for c in sweep.expand(config, grid, 1)] == ["", ""]


def test_summary_is_mean_and_standard_deviation_over_seeds():
    config = quick("digits")
    configs = sweep.expand(config, {"data.normal_class": [0, 9]}, seeds=3)
    aurocs = [0.5, 0.6, 0.7, 0.8, 0.8, 0.8]
    results = [{"auroc": a, "average_precision": None} for a in aurocs]
    rows = sweep.summarize(configs, results)
    assert [row["runs"] for row in rows] == [3, 3, 6]
    assert {row["method"] for row in rows} == {"deep_sad"}
    assert rows[2]["setting"] == "digits-all-ratios0_0.1_0"
    np.testing.assert_allclose([row["auroc_mean"] for row in rows], [0.6, 0.8, 0.7])
    stds = [np.std([5, 6, 7]) / 10, 0, np.std(aurocs)]
    np.testing.assert_allclose([row["auroc_std"] for row in rows], stds, atol=1e-12)
    assert "average_precision_mean" not in rows[0]
    assert "60.00 +-  8.16" in sweep.table(rows)


def main(folder, config, **values):
    """What the command does with its flags, in this process."""
    session.flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(workdir=str(folder), **values):
        sweep.main(config)


def test_the_command_prints_and_writes_the_table(tmp_path, capsys):
    config = quick("breast_cancer", method="isoforest")
    main(tmp_path, config, seeds=2, ratios_known_outlier=["0.02", "0.05"])
    rows, output = read(tmp_path / "summary.json"), capsys.readouterr().out
    assert [row["runs"] for row in rows] == [2, 2]
    for row in rows:
        assert f"{100 * row['auroc_mean']:6.2f}" in output
    assert f"written to {tmp_path}" in output


@pytest.mark.parametrize(
    ("values", "fields", "message"),
    [
        (
            {"normal_classes": ["zero"]},
            {},
            "--normal_classes is zero; it must be a lis",
        ),
        ({"ratios_pollution": ["x"]}, {}, "--ratios_pollution is x; it must be a list"),
        (
            {"normal_classes": ["1"], "known_outlier_classes": ["1"]},
            {},
            "in every combination the known anomalies are of the normal class",
        ),
        ({}, {"load_model": "/"}, "config.load_model must be empty"),
        ({"tables": ["iris"]}, {}, "--tables has 'iris'; the tables are arrhythmia"),
        ({}, {"encoder": "nope:Net"}, "config.encoder is 'nope:Net'"),
    ],
)
def test_wrong_grids_get_one_sentence(values, fields, message, tmp_path):
    folder = tmp_path / "sweep"
    with pytest.raises(ValueError, match=message):
        main(folder, quick("breast_cancer", **fields), **values)
    assert not folder.exists()


def test_values_that_are_given_twice_are_run_once(tmp_path):
    values = {"methods": ["isoforest", "isoforest"], "ratios_pollution": ["0", "0"]}
    main(tmp_path, quick("breast_cancer"), seeds=2, **values)
    (row,) = read(tmp_path / "summary.json")
    assert row["runs"] == 2


def test_data_with_labels_of_their_own_have_no_ratios(tmp_path):
    rng, targets = np.random.default_rng(0), np.repeat([0, -1], [35, 5])
    arrays = {"x_train": rng.random((40, 3)), "semi_targets": targets}
    arrays |= {"x_test": rng.random((9, 3)), "y_test": np.arange(9) % 2}
    np.savez(tmp_path / "own.npz", **arrays)
    config = quick("breast_cancer")
    config.data.name = str(tmp_path / "own.npz")
    values = {"methods": ["isoforest"], "ratios_known_outlier": ["0", "0.1"]}
    message = "has semi_targets of its own, so that data.ratio_known_outlier changes"
    with pytest.raises(ValueError, match=message):
        main(tmp_path / "sweep", config, seeds=1, **values)


def test_methods_without_labels_say_what_they_train_on(tmp_path):
    config = quick("breast_cancer")
    main(tmp_path, config, seeds=1, methods=["isoforest"])
    (path,) = tmp_path.glob("**/seed0/results.json")
    found = read(path)
    known = found["n_known_outlier"]
    assert known > 0
    assert f"the {known} known anomalies are among its training" in found["notes"][0]


def test_methods_are_named_and_classes_without_runs_are_told(tmp_path, caplog):
    config = quick("breast_cancer")
    values = {"methods": ["isoforest", "kde"], "normal_classes": ["0", "1"]}
    with caplog.at_level("WARNING"):
        main(tmp_path, config, seeds=1, **values)
    assert "normal class 1 is left out: the known anomalies are of that" in caplog.text
    rows = read(tmp_path / "summary.json")
    assert [row["method"] for row in rows] == ["isoforest", "kde"]
    for row in rows:
        folder = tmp_path / row["method"] / row["setting"] / "seed0"
        assert read(folder / "results.json")["auroc"] == row["auroc_mean"]
    assert (tmp_path / "comparison.png").exists()


def test_the_number_of_seeds_is_checked_by_its_flag():
    with pytest.raises(session.flags.IllegalFlagValueError, match="seeds"):
        session.flags.FLAGS["seeds"].parse("0")
        session.flags.FLAGS.validate_all_flags()
