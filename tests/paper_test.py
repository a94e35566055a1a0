"""The paper's tables: which runs they are, and what is compared with what."""

import collections
import json
import pathlib

import numpy as np
import pytest
from absl.testing import flagsaver
from sklearn.preprocessing import StandardScaler

from deepsad_jax import preprocessing
from experiments import build, named, paper, published, session

FOLDER = pathlib.Path("none")
TABLES = ("ratio", "pollution", "classes", "odds")


def entries(table, data, **options):
    return paper.entries(table, data, list(paper._methods(table)), FOLDER, **options)


@pytest.mark.parametrize("table", TABLES)
def test_every_published_cell_has_its_runs_and_no_other(table):
    data = list(paper.IMAGES) if table != "odds" else list(paper.sources.ODDS)
    found = entries(table, data, budget="quick", seeds=2)
    places = [paper._published_place(table, entry) for entry in found]
    expected = {cell for cell in published.deep_sad() if cell[0] == table}
    assert len(set(places)) == len(places)
    assert set(places) == expected


def test_the_protocol_has_as_many_experiments_as_the_paper_says():
    for table, count in (("ratio", 90), ("pollution", 90), ("classes", 100)):
        known = {
            figure.runs
            for cell, figure in published.deep_sad().items()
            if cell[0] == table
        }
        assert known == {count}
        assert len(paper.scenarios(table, "full", 10)) == count
    assert len(paper.scenarios("odds", "full", 10)) == 10
    pairs = paper.scenarios("ratio", "full", 10)
    classes = collections.Counter(pair["data.normal_class"] for pair in pairs)
    assert set(classes.values()) == {9} and len(classes) == 10


def test_jobs_have_folders_of_their_own_and_are_what_they_say():
    found = entries("classes", ["mnist"], seeds=2)
    jobs = [j for entry in found for group in entry.variants.values() for j in group]
    assert len({job.folder for job in jobs}) == len(jobs)
    for job in jobs:
        data = job.config.data
        build.check(job.config)
        assert data.normal_class != data.known_outlier_class or (
            data.n_known_outlier_classes != 1
        )
        assert data.ratio_pollution == 0.1
    one = [j.config.data for j in jobs if j.config.data.n_known_outlier_classes == 1]
    drawn = {(data.normal_class, data.known_outlier_class) for data in one}
    assert len(drawn) > 10  # by the seed


def test_the_texts_settings_are_options():
    config = paper.base("cardio", "paper", "full")
    assert config.slope == 0.1 and config.center == "without_anomalies"
    assert config.train.batch_size == config.pretrain.batch_size == 200
    assert config.train.weight_decay == config.pretrain.weight_decay == 1e-6
    found = entries("odds", ["cardio"], settings="paper", seeds=1)
    scalings = {
        entry.method: {job.config.data.scaling for (job,) in entry.variants.values()}
        for entry in found
    }
    assert scalings.pop("m2") == {"min_max"}  # whose likelihood is one of [0, 1]
    assert set(map(frozenset, scalings.values())) == {frozenset({"standard"})}
    x = np.random.default_rng(0).normal(5, 3, (50, 4))
    scaled = preprocessing.standard(x)(x)
    np.testing.assert_allclose(scaled, StandardScaler().fit_transform(x), atol=1e-5)


def test_the_dimension_of_the_embeddings_is_that_of_the_setting():
    (entry, *_) = paper.entries("rep_dim", ["mnist"], ["deep_sad"], FOLDER)
    config = next(iter(entry.variants.values()))[0].config
    encoder = named.network(config, "encoder", (28, 28, 1))
    assert encoder.rep_dim == 16
    assert named.network(config, "decoder", (28, 28, 1)) is not None


def test_an_encoder_of_ones_own_takes_the_place_of_the_network():
    own = {"overrides": {"encoder": "my_study:Net"}}
    (entry,) = paper.entries("odds", ["cardio"], ["deep_sad"], FOLDER, seeds=1, **own)
    config = next(iter(entry.variants.values()))[0].config
    assert config.encoder == "my_study:Net" and config.network == ""
    with pytest.raises(ValueError, match="encoder is of your own, but --table=rep_dim"):
        paper.entries("rep_dim", ["mnist"], ["deep_sad"], FOLDER, **own)


def test_the_command_compares_what_its_runs_found(tmp_path, capsys):
    rng = np.random.default_rng(0)
    labels = (np.arange(400) < 40).astype(int)
    x = rng.normal(size=(400, 21)) + labels[:, None]
    np.savez(tmp_path / "cardio.npz", X=x, y=labels)
    session.flags.FLAGS.mark_as_parsed()
    values = {"methods": ["supervised", "ocsvm"], "seeds": 2, "data": ["cardio"]}
    options = {"data.dir": str(tmp_path), "train.epochs": 2, "pretrain.epochs": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper.grid, "overrides", lambda *_: options)
        with flagsaver.flagsaver(workdir=str(tmp_path / "out"), table="odds", **values):
            paper.main(None)
    assert "runs, about" in capsys.readouterr().err
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    cells = {cell["method"]: cell for cell in content["cells"]}
    assert set(cells) == {"supervised", "ocsvm"}

    def of(folder):
        pattern = f"{folder}/*/seed*/results.json"
        paths = sorted((tmp_path / "out").glob(pattern))
        return [100 * json.loads(path.read_text())["auroc"] for path in paths]

    found = of("supervised")
    assert len(found) == 2
    np.testing.assert_allclose(cells["supervised"]["mean"], np.mean(found))
    best = max(np.mean(of(f"ocsvm-{nu}-test_auc")) for nu in paper._NUS)
    np.testing.assert_allclose(cells["ocsvm"]["mean"], best)
    known = published.deep_sad()["odds", "cardio", "supervised", 0.01, 0.0, 1]
    assert cells["supervised"]["published_mean"] == known.mean
    assert cells["supervised"]["published_runs"] == 10
