"""A saved model on a new file: all of its rows, by the model's own preprocessing."""

import json

import jax
import numpy as np
import pytest

import deepsad_jax as sad
from configs import breast_cancer
from deepsad_jax import training
from experiments import build, run

RNG = np.random.default_rng(0)
STAGE = training.Stage(epochs=1, batch_size=32)


def _rows(n, shift=0.0):
    labels = (np.arange(n) % 8 == 0).astype(int)
    x = RNG.normal(size=(n, 4)) * [1, 10, 100, 1] + shift
    return x + 4.0 * labels[:, None] * [1, 10, 100, 1], labels


def _write(path, x, labels):
    table = np.column_stack([x, labels])
    header = {"delimiter": ",", "header": "a,b,c,d,label", "comments": ""}
    np.savetxt(path, table, **header)
    return str(path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a run with its model, and the model."""
    folder = tmp_path_factory.mktemp("run")
    x, labels = _rows(96)
    data = sad.training_set(x, -labels)
    model, _ = sad.fit(jax.random.key(0), data, train=STAGE, pretrain=STAGE)
    sad.save(model, folder / "model")
    content = {"data": {"name": _write(folder / "old.csv", x, labels)}}
    content["data"]["normal_class"] = 0
    (folder / "config.json").write_text(json.dumps(content))
    return folder, model


def _config(folder, name, **changes):
    config = breast_cancer.get_config()
    config.update_from_flattened_dict(
        {
            "data.name": name,
            "load_model": str(folder / "model"),
            "train.epochs": 0,
            **changes,
        }
    )
    return config


def test_all_rows_of_a_new_file_are_scored_as_the_model_scores_them(
    saved, tmp_path, capsys
):
    folder, model = saved
    x, labels = _rows(50, shift=3.0)  # which another preprocessing would undo
    config = _config(folder, _write(tmp_path / "new.csv", x, labels))
    figures = run.run(config, str(tmp_path / "run"))
    with np.load(tmp_path / "run" / "scores.npz") as scores:
        np.testing.assert_array_equal(scores["score"], sad.score(model, x))
        np.testing.assert_array_equal(scores["label"], labels)
        np.testing.assert_array_equal(scores["index"], np.arange(50))
    assert (figures["n_test"], figures["n_train"]) == (50, 0)
    assert figures["trained"] is False
    said = capsys.readouterr().out
    assert "only evaluated\n" in said and "tested on      50 examples (7 anom" in said
    assert "all rows are tested, with the model's own preprocessing" in said


def test_rows_of_the_training_are_left_out_where_they_are_known(saved):
    folder, _ = saved
    made = build.experiment(_config(folder, str(folder / "old.csv")))
    assert not made.evaluates
    assert (len(made.problem.x_train), len(made.problem.x_test)) == (57, 39)


@pytest.mark.parametrize(
    "changes", [{"train.epochs": 1, "train.batch_size": 16}, {"method": "autoencoder"}]
)
def test_what_is_trained_or_of_another_method_is_split(saved, tmp_path, changes):
    folder, _ = saved
    name = _write(tmp_path / "new.csv", *_rows(50))
    made = build.experiment(_config(folder, name, **changes))
    assert not made.evaluates and len(made.problem.x_test) == 20


def test_labels_of_other_columns_are_named_in_the_config(saved, tmp_path):
    folder, _ = saved
    path = tmp_path / "new.csv"
    path.write_text(f"a,b,c,d,broken\n{5 * '1,2,3,4,0' + chr(10)}")
    with pytest.raises(
        ValueError, match="config.data.label is '', but .*no column lab"
    ):
        build.experiment(_config(folder, str(path)))
    x, labels = _rows(20)
    _write(path, x, labels)
    path.write_text(path.read_text().replace("label", "broken"))
    config = _config(folder, str(path), **{"data.label": "broken"})
    made = build.experiment(config)
    assert made.label == "column 'broken': 0 normal (17 rows), 1 anomaly (3 rows)"
