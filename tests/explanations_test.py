"""Explanations of fitted detectors: they name what was put in, in the user's units."""

import dataclasses
import os
import pathlib

import jax
import numpy as np
import pytest
import scipy.io
import sklearn.neighbors

import deepsad_jax as sad
from deepsad_jax import attributions, estimators, explanations, fields
from tests import deletion

STAGE = sad.Stage(sad.training.Adam(1e-3), epochs=40, batch_size=64)
SHORT = {"train": STAGE, "pretrain": STAGE}
CARDIO = pathlib.Path(os.environ.get("DEEPSAD_TEST_DATA", ""), "cardio.mat")


def rows(n, anomalies, seed):
    """Ten columns of unlike scales, of which 2 and 7 carry the anomaly."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 10))
    x[:anomalies, 2] += 6
    x[:anomalies, 7] -= 6
    return x * 10.0 ** np.arange(-4, 6)


@pytest.fixture(scope="module")
def labels():
    y = np.zeros(600, int)
    y[:20], y[100:200] = -1, 1
    return y


@pytest.fixture(scope="module")
def deep(labels):
    paper = {"members": 1, "companions": ()}
    return estimators.DeepSAD(**SHORT, **paper).fit(rows(600, 20, 0), labels)


@pytest.fixture(scope="module")
def why(deep):
    return deep.explain(rows(100, 100, 1))


def named_first(found):
    first = np.argsort(-found.found.values, axis=1)[:, :2]
    return sum(set(pair) == {2, 7} for pair in first.tolist())


def test_the_columns_that_carry_the_anomaly_are_named_first(why):
    assert why.way == "integrated gradients"
    assert named_first(why) >= 95
    assert {reason.column for reason in why.reasons(0)[:2]} == {"column 2", "column 7"}


def test_attributions_add_up_to_the_score(deep, why):
    new = rows(100, 100, 1)
    scores = -deep.score_samples(new)
    added = why.found.values.sum(axis=1) + why.found.usual_score
    np.testing.assert_allclose(added, scores, rtol=1e-3)
    np.testing.assert_allclose(why.found.scores, scores, rtol=1e-5)
    # What is usual is the score of rows that are normal.
    usual = -deep.score_samples(rows(100, 0, 2))
    assert usual.min() < why.found.usual_score < np.quantile(usual, 0.9)


def test_random_weights_name_other_columns(deep, why):
    made = deep.calibrated_
    kinds = jax.tree.leaves_with_path(made.model.variables)
    keys = jax.random.split(jax.random.key(0), len(kinds))
    drawn = {
        path: np.asarray(jax.random.normal(key, leaf.shape) / np.sqrt(leaf.shape[0]))
        if leaf.ndim > 1
        else leaf
        for (path, leaf), key in zip(kinds, keys, strict=True)
    }
    variables = jax.tree.map_with_path(
        lambda path, _: drawn[path], made.model.variables
    )
    model = dataclasses.replace(made.model, variables=variables)
    other = explanations.explain(
        dataclasses.replace(made, model=model), rows(100, 100, 1)
    )
    pairs = zip(why.found.values, other.found.values, strict=True)
    alike = [np.corrcoef(*pair)[0, 1] for pair in pairs]
    assert np.mean(alike) < 0.8 and named_first(other) < 80


def test_a_committee_is_explained_by_permutations(labels):
    made = estimators.DeepSAD(**SHORT).fit(rows(600, 20, 0), labels)
    new = rows(100, 100, 1)[:20]
    found = made.explain(new)
    assert found.way == "permutations" and named_first(found) == 20
    np.testing.assert_allclose(
        found.found.values.sum(axis=1) + found.found.usual_score,
        -made.score_samples(new),
        atol=1e-4,
    )


def test_a_kernel_method_is_explained_by_permutations(labels):
    made = estimators.KernelDensity(selection="none").fit(rows(600, 0, 0), labels)
    found = made.explain(rows(100, 100, 1)[:10])
    assert found.way == "permutations" and named_first(found) == 10
    np.testing.assert_allclose(
        found.found.values.sum(axis=1) + found.found.usual_score,
        -made.score_samples(rows(100, 100, 1)[:10]),
    )


def test_neighbors_are_those_of_scikit_learn(deep, why):
    model, kept = deep.model_, why.examples
    normal, anomalies = (np.flatnonzero(kept.semi_targets == k) for k in (1, -1))
    new = sad.embed(model, rows(100, 100, 1))
    for chosen, near in ((normal, why.normal), (anomalies, why.anomalies)):
        known = sad.embed(model, kept.x[chosen])
        oracle = sklearn.neighbors.NearestNeighbors(n_neighbors=3).fit(known)
        distances, places = oracle.kneighbors(new)
        np.testing.assert_allclose(near.distances, distances, rtol=1e-3, atol=1e-4)
        assert (near.places == chosen[places]).mean() > 0.95  # but for ties


def test_rows_that_are_kept_are_few_and_normal_ones_are_normal(deep, labels):
    kept = deep.calibrated_.examples
    x = rows(600, 20, 0)
    np.testing.assert_array_equal(kept.x, x[kept.rows])
    assert len(kept.x) == 256 + 20
    np.testing.assert_array_equal(kept.semi_targets, labels[kept.rows])
    assert (kept.rows[kept.normal] >= 20).all()
    held = np.isin(sad.examples.fingerprints(deep.model_, x), kept.held)
    assert held.sum() == len(deep.calibration_scores_) and not held[:20].any()


def test_an_explanation_survives_saving(deep, why, tmp_path):
    deep.save(tmp_path / "model")
    loaded = estimators.load(tmp_path / "model")
    found = loaded.explain(rows(100, 100, 1)[:5])
    np.testing.assert_allclose(found.found.values, why.found.values[:5], rtol=1e-3)
    np.testing.assert_array_equal(found.anomalies.places, why.anomalies.places[:5])


def test_a_model_of_an_older_version_says_that_it_cannot():
    folder = pathlib.Path(__file__).parent / "data" / "models-0.2" / "deep_sad"
    old = estimators.load(folder)
    with pytest.raises(ValueError, match="kept no rows to compare with"):
        old.explain(np.zeros((1, old.n_features_in_)))


def test_errors_of_the_autoencoder_are_those_of_its_score(deep, why):
    base = sad.score(deep.model_.base, rows(100, 100, 1))
    np.testing.assert_allclose(why.errors.mean(axis=1), base, rtol=1e-4)
    normal = deep.explain(rows(20, 0, 3)).errors.mean(axis=0)
    assert set(np.argsort(why.errors.mean(axis=0) / normal)[-2:]) == {2, 7}


def test_columns_of_a_table_are_whole_and_in_its_units():
    rng = np.random.default_rng(0)
    table = {
        "pressure": rng.uniform(2, 3, 300),
        "site": rng.choice(["north", "south"], 300),
        "is_new": rng.random(300) < 0.5,
        "same": np.zeros(300),
    }
    table["pressure"][::7] = np.nan
    made = estimators.KernelDensity(selection="none").fit(table)
    new = {"pressure": [9.25, np.nan], "site": ["west", "north"]}
    new |= {"is_new": [True, False], "same": [0.0, 0.0]}
    with pytest.warns(UserWarning, match="1 unknown text"):
        found = made.explain(new)
    assert found.found.values.shape == (2, 4) and not found.found.values[:, 3].any()
    said = {r.column: r for r in found.reasons(0, 4)}
    assert "same" not in said
    assert said["pressure"].value == "9.25"
    low, high = map(float, said["pressure"].usual.split(" to "))
    assert 2 <= low < 2.2 and 2.8 < high <= 3
    assert found.shown(found.x[0])["site"] == "a text never seen before"
    assert found.shown(found.x[1])["pressure"] == "missing"
    assert sum(r.share for r in said.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    "column, values, said",
    [
        (fields.Numeric("a"), [1, 2, 3, np.nan], "1.1 to 2.9"),
        (fields.Numeric("a"), [1, np.nan, np.nan], "missing"),
        (fields.Numeric("a"), [5.0, 5.0], "5"),
        (fields.Boolean("a"), [0, 0, 1], "false or true"),
        (fields.Categorical("a", levels=("x", "y")), [1.0] * 95 + [0.0] * 5, "y"),
        (
            fields.Categorical("a", levels=tuple("vwxyz")),
            [0, 1, 1, 2, 2, 3, 3, 4, 4],
            "w, x, y or 2 more",
        ),
        (fields.Categorical("a", levels=("x, y", "z")), [0, 1], "'x, y' or z"),
    ],
)
def test_what_is_usual(column, values, said):
    assert column.usual(np.array(values, float)) == said


def test_maps_have_the_shape_of_the_images():
    rng = np.random.default_rng(0)
    x = rng.integers(100, 150, (60, 4, 4, 3), dtype=np.uint8)
    made = estimators.KernelDensity(selection="none").fit(x)
    new = x[:3].copy()
    new[:, 1, 2] = 255
    found = made.explain(new)
    assert found.maps.shape == (3, 4, 4) and found.errors is None
    places = found.maps.reshape(3, -1).argmax(axis=1)
    np.testing.assert_array_equal(places, 4 * 1 + 2)
    with pytest.raises(ValueError, match="not a table; look at maps"):
        found.reasons(0)


@pytest.mark.skipif(not CARDIO.is_file(), reason="DEEPSAD_TEST_DATA has no cardio.mat")
def test_deletion_on_cardio_beats_random_order_and_gradient_times_input():
    content = scipy.io.loadmat(CARDIO)
    areas = deletion.areas(content["X"], content["y"].ravel().astype(int), most=50)
    assert areas["integrated gradients"] < areas["random"] - 0.1
    assert areas["integrated gradients"] < areas["gradient times input"]
    assert areas["permutations"] < areas["random"] - 0.1
    assert attributions.TOLERANCE <= 1e-3
