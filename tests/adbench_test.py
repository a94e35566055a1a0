"""ADBench's protocol against its own draws, and the command against its parts."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from absl.testing import flagsaver
from sklearn import metrics, model_selection, preprocessing

from configs import default
from deepsad_jax.data import adbench as protocol
from deepsad_jax.data import sources
from experiments import adbench, grid, parts, published, session

RNG = np.random.default_rng(0)


def made(rows, anomalies, columns=3):
    labels = np.zeros(rows, int)
    labels[RNG.choice(rows, anomalies, replace=False)] = 1
    x = RNG.normal(size=(rows, columns)) + 2 * labels[:, None]
    return sources.Source(x, labels)


def theirs(x, y, ratio, seed):
    """The draws as they stand there, of NumPy's global state."""
    np.random.seed(seed)
    if len(y) < 1000:
        rows = np.random.choice(np.arange(len(y)), 1000, replace=True)
        x, y = x[rows], y[rows]
    if len(y) > 10000:
        rows = np.random.choice(np.arange(len(y)), 10000, replace=False)
        x, y = x[rows], y[rows]
    split = model_selection.train_test_split(x, y, test_size=0.3, stratify=y)
    scaler = preprocessing.MinMaxScaler().fit(split[0])
    anomalies = np.where(split[2] == 1)[0]
    count = int(np.ceil(ratio * len(anomalies)))
    known = np.random.choice(anomalies, count, replace=False)
    is_known = np.zeros(len(split[0]), bool)
    is_known[known] = True
    return scaler.transform(split[0]), scaler.transform(split[1]), is_known, split[3]


@pytest.mark.parametrize("rows", [300, 2000, 12_000])
def test_the_same_seed_gives_the_same_split_as_there(rows):
    source = made(rows, rows // 10)
    problem = protocol.make(source, 0.05, 3)
    x, x_test, is_known, labels = theirs(source.x, source.labels, 0.05, 3)
    scaled = problem.preprocessing(problem.x_train[problem.indices])
    np.testing.assert_allclose(scaled, x, atol=1e-6)
    np.testing.assert_allclose(problem.preprocessing(problem.x_test), x_test, atol=1e-6)
    np.testing.assert_array_equal(problem.semi_targets == -1, is_known)
    np.testing.assert_array_equal(problem.labels_test, labels)
    np.testing.assert_array_equal(source.x[problem.index_test], problem.x_test)


@pytest.mark.parametrize("duplicates", [True, False])
def test_small_tables_share_rows_only_if_they_are_filled_up_first(duplicates):
    problem = protocol.make(made(200, 20), 0.5, 0, duplicates=duplicates)
    shared = set(problem.indices) & set(problem.index_test)
    assert bool(shared) == duplicates
    assert len(problem.indices) == 700
    assert len(problem.index_test) == (300 if duplicates else 60)


@pytest.mark.parametrize(
    ("source", "ratio", "message"),
    [
        (made(50, 5), 1.5, "ratio_known_outlier is 1.5; it must be in"),
        (
            sources.Source(np.ones((9, 2)), np.arange(9)),
            0.1,
            r"the labels are \[0, 1, ",
        ),
        (made(50, 1), 0.1, "the data cannot be split"),
    ],
)
def test_what_does_not_fit_is_said(source, ratio, message):
    with pytest.raises(ValueError, match=message):
        protocol.make(source, ratio, 0, duplicates=False)


def test_published_means_are_those_of_the_publication():
    """Over all 57 tables, as its text has them."""
    for percent, mean in ((1, 73.3), (5, 79.5), (10, 82.8)):
        known = published.adbench("AUCROC")
        values = [row["DeepSAD"] for key, row in known.items() if key[0] == percent]
        assert len(values) == 57
        np.testing.assert_allclose(np.mean(values), mean, atol=0.06)


def test_the_command_compares_what_its_runs_found(tmp_path, capsys, monkeypatch):
    for name in ("4_breastw", "14_glass"):
        source = made(400, 40)
        np.savez(tmp_path / f"{name}.npz", X=source.x, y=source.labels)
    session.flags.FLAGS.mark_as_parsed()
    config = default.get_config()
    config.data.dir = str(tmp_path)
    values = {"methods": ["isoforest", "boosting"], "seeds": 2, "ratios": ["0.1"]}
    monkeypatch.setattr(adbench.grid, "overrides", lambda *_: {})
    for _ in range(2):  # the second time, nothing is left to do
        with flagsaver.flagsaver(workdir=str(tmp_path / "out"), **values):
            adbench.main(config)
    assert "all 4 runs are finished already" in capsys.readouterr().err
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert len(content["cells"]) == 2 * 2 * 2
    for cell in content["cells"]:
        found = []
        for seed in (1, 2):
            folder = tmp_path / "out" / cell["method"] / f"{cell['data']}-0.1"
            scores = np.load(folder / f"seed{seed}" / "scores.npz")
            of = {
                "auroc": metrics.roc_auc_score,
                "average_precision": metrics.average_precision_score,
            }[cell["setting"]["metric"]]
            found.append(100 * of(scores["label"], scores["score"]))
        np.testing.assert_allclose(cell["mean"], np.mean(found), rtol=1e-9)
    means = content["summary"][0]["means"]
    known = published.adbench("AUCROC")
    expected = np.mean([known[10, name]["CatB"] for name in ("breastw", "glass")])
    np.testing.assert_allclose(means["CatB (published)"], expected)


def test_flags_alone_are_of_the_protocols_config(tmp_path):
    source = made(300, 40)
    np.savez(tmp_path / "14_glass.npz", X=source.x, y=source.labels)
    command = "-m experiments.adbench --methods=isoforest --seeds=1 --ratios=0.1"
    given = ("--config.train.epochs=2", f"--config.data.dir={tmp_path}")
    subprocess.run(
        [sys.executable, *command.split(), *given, f"--workdir={tmp_path / 'out'}"],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        cwd=pathlib.Path(__file__).parents[1],
        check=True,
    )
    (found,) = (tmp_path / "out" / "isoforest").rglob("config.json")
    config = json.loads(found.read_text())
    usual = default.get_config()
    assert config["train"]["epochs"] == 2 != usual.train.epochs
    # Not those of the digits, which are the default of other commands.
    assert config["network"] == usual.network
    assert config["pretrain"]["epochs"] == usual.pretrain.epochs


def test_parts_of_a_committee_are_those_of_its_scores(tmp_path, monkeypatch):
    source = made(200, 40)
    np.savez(tmp_path / "14_glass.npz", X=source.x, y=source.labels)
    session.flags.FLAGS.mark_as_parsed()
    config = default.get_config()
    config.data.dir = str(tmp_path)
    few = {"pretrain.epochs": 1, "train.epochs": 1}
    monkeypatch.setattr(adbench.grid, "overrides", lambda *_: dict(few))
    values = {"methods": [adbench.COMMITTEE], "seeds": 1, "ratios": ["0.1"]}
    with flagsaver.flagsaver(workdir=str(tmp_path / "out"), **values):
        adbench.main(config)
    ((ratios, _, found),) = parts.measured(tmp_path / "out" / adbench.COMMITTEE)
    assert ratios == (0.1, 0.0)
    (path,) = (tmp_path / "out").glob("**/scores.npz")
    scores = np.load(path)
    expected = [
        100 * of(scores["label"], scores["score"])
        for of in (metrics.roc_auc_score, metrics.average_precision_score)
    ]
    np.testing.assert_allclose(found["all"], expected, rtol=1e-6)
    # One network is what the method is without the rest.
    values["methods"] = ["deep_sad"]
    with flagsaver.flagsaver(workdir=str(tmp_path / "plain"), **values):
        adbench.main(config)
    (path,) = (tmp_path / "plain").glob("**/scores.npz")
    alone = np.load(path)
    expected = 100 * metrics.roc_auc_score(alone["label"], alone["score"])
    np.testing.assert_allclose(found["network0"][0], expected, rtol=1e-6)
    names = {"networks", "linear", "forest", "extra", "isolation"}
    assert {*found} == names | {f"without {n}" for n in names} | {"all", "network0"}
    with pytest.raises(FileNotFoundError, match="no finished run of a committee"):
        parts.as_markdown(tmp_path / "plain")


def test_tables_are_found_by_name(tmp_path):
    np.savez(tmp_path / "6_cardio.npz", X=[[1.0]], y=[0])
    assert list(adbench.tables(str(tmp_path), [])) == ["cardio"]
    with pytest.raises(ValueError, match="--tables has 'x'; .* has cardio"):
        adbench.tables(str(tmp_path), ["x"])
    with pytest.raises(ValueError, match="config.data.dir is ''; it must be a folder"):
        adbench.tables("", [])
    np.savez(tmp_path / "7_cardio.npz", X=[[1.0]], y=[0])
    with pytest.raises(ValueError, match="6_cardio.npz and 7_cardio.npz are both"):
        adbench.tables(str(tmp_path), [])


def test_tables_without_published_figures_are_named():
    summary = [
        {"metric": "auroc", "percent": 5, "tables": 2, "unpublished": ["mine"]}
        | {"means": {"kde": 0.5}, "average_ranks": {}, "p_value_against_deep_sad": {}}
    ]
    assert "Published figures lack mine, so they are not" in adbench.as_markdown(
        summary
    )
    summary[0]["unpublished"] = []
    assert "lack" not in adbench.as_markdown(summary)


def test_rivals_of_another_process_are_waited_for(tmp_path, monkeypatch):
    config = default.get_config()
    jobs = [grid.Job(config, tmp_path / "boosting" / "t" / f"seed{i}") for i in (1, 2)]
    held, done = [], []

    @contextlib.contextmanager
    def claimed(folder, content):
        yield not (folder.name == "seed2" and not held)  # of another at first

    def run(job, name):
        job.folder.mkdir(parents=True)
        (job.folder / "results.json").write_text("{}")
        done.append((job.folder.name, name))

    monkeypatch.setattr(adbench.workdir, "claimed", claimed)
    monkeypatch.setattr(adbench, "_run_rival", run)
    monkeypatch.setattr(adbench.time, "sleep", held.append)
    adbench._rivals(jobs)
    assert done == [("seed1", "boosting"), ("seed2", "boosting")] and held == [1.0]
