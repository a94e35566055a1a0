import json
import pathlib

import numpy as np
import pytest
import sklearn.model_selection

from deepsad_jax import preprocessing
from deepsad_jax.data import protocol, sources

COUNTS = json.loads(
    (pathlib.Path(__file__).parent / "data" / "semi_supervised_counts.json").read_text()
)


def protocol_of(case, **changes):
    return protocol.Protocol(
        ratio_known_normal=case["ratio_known_normal"],
        ratio_known_outlier=case["ratio_known_outlier"],
        ratio_pollution=case["ratio_pollution"],
        **changes,
    )


def labels_of(case):
    # Class 0 normal, class 1 known, class 2 all other anomalies; shuffled.
    known = case["n_known_outlier_candidates"]
    sizes = (case["n_normal"], known, case["n_outlier"] - known)
    labels = np.repeat([0, 1, 2], sizes)
    return np.random.default_rng(0).permutation(labels)


@pytest.mark.parametrize("case", COUNTS, ids=lambda c: f"{c['n_normal']}-{c['enough']}")
def test_counts_are_those_of_the_original(case):
    number = protocol.counts(case["n_normal"], protocol_of(case))
    assert number.known_normal == case["known_normal"]
    assert number.known_outlier == case["known_outlier"]
    assert number.unlabeled_normal + number.unlabeled_outlier == case["unlabeled"]
    if case["enough"]:
        assert number.unlabeled_outlier == case["unlabeled_outlier"]


@pytest.mark.parametrize("case", COUNTS, ids=lambda c: f"{c['n_normal']}-{c['enough']}")
def test_draws_hold_what_was_asked_for_or_are_refused(case):
    labels, asked = labels_of(case), protocol_of(case)
    if not case["enough"]:
        with pytest.raises(ValueError, match=r"asks for \d+ (un)?labeled anomalies"):
            protocol.draw(labels, asked, seed=3)
        return
    indices, semi_targets = protocol.draw(labels, asked, seed=3)
    assert len(np.unique(indices)) == len(indices) == len(semi_targets)
    drawn = labels[indices]
    assert np.sum(semi_targets == 1) == case["known_normal"]
    assert (drawn[semi_targets == 1] == 0).all()
    assert np.sum(semi_targets == -1) == case["known_outlier"]
    assert (drawn[semi_targets == -1] == 1).all()
    assert np.sum(semi_targets == 0) == case["unlabeled"]
    assert np.sum(drawn[semi_targets == 0] > 0) == case["unlabeled_outlier"]


def test_seeds_draw_differently_and_the_same_seed_alike():
    labels = np.repeat([0, 1, 2], [50, 40, 40])
    asked = protocol.Protocol(ratio_known_outlier=0.2, ratio_pollution=0.1)
    first, again, other = (protocol.draw(labels, asked, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert set(first[0]) != set(other[0])


def test_several_known_classes_are_drawn_by_the_seed():
    labels = np.repeat(np.arange(6), 100)
    asked = protocol.Protocol(ratio_known_outlier=0.5, n_known_outlier_classes=2)
    drawn = set()
    for seed in range(10):
        indices, semi_targets = protocol.draw(labels, asked, seed)
        known = frozenset(labels[indices[semi_targets == -1]])
        assert len(known) == 2 and 0 not in known
        drawn.add(known)
    assert len(drawn) > 3


def test_without_known_classes_nothing_is_labeled_anomalous():
    labels = np.repeat([0, 1], [50, 50])
    asked = protocol.Protocol(n_known_outlier_classes=0, ratio_pollution=0.1)
    indices, semi_targets = protocol.draw(labels, asked, 0)
    assert not semi_targets.any() and np.sum(labels[indices]) == 5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ratio_pollution": 1.0}, r"ratio_pollution is 1.0; it must be in \[0, 1\)"),
        ({"ratio_known_normal": -0.1}, "ratio_known_normal is -0.1"),
        ({"ratio_known_outlier": float("nan")}, "ratio_known_outlier is nan"),
        (
            {"ratio_known_normal": 0.5, "ratio_known_outlier": 0.5},
            "add up to 1.0; they must stay below 1",
        ),
        ({"n_known_outlier_classes": -1}, "n_known_outlier_classes is -1"),
        (
            {"n_known_outlier_classes": 0, "ratio_known_outlier": 0.1},
            "allow a class or set the ratio to 0",
        ),
    ],
)
def test_impossible_protocols_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        protocol.Protocol(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"normal_class": 7}, r"normal_class is 7; the classes are \[0, 1, 2\]"),
        ({"known_outlier_class": 0}, r"the anomalous classes are \[1, 2\]"),
        ({"n_known_outlier_classes": 3}, "there are 2 anomalous classes"),
    ],
)
def test_classes_that_do_not_exist_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        protocol.draw(np.repeat([0, 1, 2], 10), protocol.Protocol(**fields), 0)


def scaled(problem):
    return [problem.preprocessing(x) for x in (problem.x_train, problem.x_test)]


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.normal(5, 100, 200), rng.random(200), np.full(200, 3.0)])
    return sources.Source(x, np.repeat([0, 1], [160, 40]))


def test_tables_are_split_once_and_stratified(table):
    problem = protocol.make(table, protocol.Protocol(), seed=4)
    assert len(problem.x_train) == 120 and len(problem.x_test) == 80
    assert problem.labels_test.sum() == 16
    # The parts are disjoint: every test row is in the source where it says.
    np.testing.assert_array_equal(problem.labels_test, table.labels[problem.index_test])
    rest = np.setdiff1d(np.arange(200), problem.index_test)
    low, high = table.x[rest].min(0), table.x[rest].max(0)
    span = np.where(high > low, high - low, 1.0)
    np.testing.assert_allclose(
        scaled(problem)[0], (table.x[rest] - low) / span, atol=1e-6
    )
    np.testing.assert_allclose(
        scaled(problem)[1], (table.x[problem.index_test] - low) / span, atol=1e-6
    )


def test_scaling_is_standardizing_then_min_max_scaling(table):
    sklearn_scaling = pytest.importorskip("sklearn.preprocessing")
    problem = protocol.make(table, protocol.Protocol(), seed=4)
    rest = np.setdiff1d(np.arange(200), problem.index_test)
    standard = sklearn_scaling.StandardScaler().fit(table.x[rest])
    min_max = sklearn_scaling.MinMaxScaler().fit(standard.transform(table.x[rest]))
    expected = min_max.transform(standard.transform(table.x[problem.index_test]))
    np.testing.assert_allclose(scaled(problem)[1], expected, atol=1e-6)


def test_integer_tables_do_not_overflow():
    x = np.tile(np.array([[-32768], [32767]], np.int16), (20, 2))
    source = sources.Source(x, np.tile([0, 1], 20))
    problem = protocol.make(source, protocol.Protocol(), seed=0)
    assert set(np.unique(scaled(problem)[0])) == {0.0, 1.0}


def test_images_keep_their_test_part_and_their_bytes():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (30, 8, 8, 1), dtype=np.uint8)
    y = np.tile([0, 1, 2], 10)
    source = sources.Source(x, y, x[:6], y[:6])
    problem = protocol.make(source, protocol.Protocol(normal_class=2), seed=0)
    assert problem.x_train is x and problem.x_test.dtype == np.uint8
    assert problem.preprocessing == preprocessing.Bytes()
    np.testing.assert_array_equal(problem.labels_test, [1, 1, 0, 1, 1, 0])
    np.testing.assert_array_equal(y[problem.indices], np.full(10, 2))


def test_labels_of_your_own_are_taken_as_they_are():
    x = np.random.default_rng(0).random((9, 2))
    semi_targets = np.array([1, 1, 0, 0, 0, 0, -1, 0, 0])
    source = sources.Source(x, None, x, np.tile([0, 1, 0], 3), semi_targets)
    problem = protocol.make(source, protocol.Protocol(), seed=0)
    np.testing.assert_array_equal(problem.semi_targets, semi_targets)
    np.testing.assert_array_equal(problem.indices, np.arange(9))


def test_values_that_are_not_numbers_are_located(table):
    table.x[17, 1] = np.nan
    with pytest.raises(ValueError, match=r"contains nan \(row \d+, column 1; 1 such"):
        protocol.make(table, protocol.Protocol(), seed=0)


@pytest.mark.parametrize("kind", ["normal", "outlier"])
def test_a_ratio_that_rounds_to_nothing_is_said(kind):
    labels = np.repeat([0, 1], [60, 20])
    few = protocol.Protocol(**{f"ratio_known_{kind}": 0.01})
    with pytest.warns(
        UserWarning, match=f"ratio_known_{kind} is 0.01.*no known {kind}"
    ):
        protocol.draw(labels, few, 0)


def test_tables_stay_raw_and_are_scaled_as_by_version_0_1(table):
    problem = protocol.make(table, protocol.Protocol(), seed=4)
    rest = np.setdiff1d(np.arange(200), problem.index_test)
    np.testing.assert_array_equal(problem.x_train, table.x[rest])
    x, x_test = problem.x_train, problem.x_test
    low, span = x.min(axis=0), x.max(axis=0) - x.min(axis=0)
    span[span == 0] = 1.0
    for raw, part in ((x, scaled(problem)[0]), (x_test, scaled(problem)[1])):
        np.testing.assert_array_equal(part, ((raw - low) / span).astype(np.float32))


def test_wide_integers_keep_their_differences():
    # Rows that differ in the last digits alone; their halves are as good as any split.
    x = (2**60 + np.arange(40))[:, None] * np.array([1, -1])
    problem = protocol.make(
        sources.Source(x, np.tile([0, 1], 20)), protocol.Protocol(), seed=0
    )
    train, _ = scaled(problem)
    assert len(np.unique(train[:, 0])) == len(np.unique(train[:, 1])) == 24
    np.testing.assert_allclose(train.sum(axis=1), 1, atol=1e-6)


def test_what_labels_mean_is_told():
    source = sources.Source(
        np.eye(5), np.array([0, 0, 1, 2, 2]), label="column 'label'"
    )
    assert protocol.describe(source, protocol.Protocol(normal_class=2)) == (
        "column 'label': 0 anomaly (2 rows), 1 anomaly (1 rows), 2 normal (2 rows)"
    )
    expert = sources.Source(np.eye(3), None, semi_targets=[1, 0, -1])
    assert protocol.describe(expert, protocol.Protocol()) == (
        "labels: -1 known anomaly (1 rows), 0 unlabeled (1 rows), "
        "1 known normal (1 rows)"
    )


def test_masked_values_are_not_taken_for_data(table):
    masked = np.ma.masked_array(table.x, table.x < 5)
    with pytest.raises(ValueError, match=r"x has \d+ masked values; fill or remove"):
        protocol.make(table._replace(x=masked), protocol.Protocol(), seed=0)


def test_series_and_volumes_keep_their_rank():
    rng = np.random.default_rng(0)
    for shape in ((30, 12, 2), (30, 4, 4, 4, 2)):
        x = rng.normal(size=shape) * [1, 1000]
        source = sources.Source(x, np.tile([0, 1], 15), series=len(shape) == 3)
        problem = protocol.make(source, protocol.Protocol(), seed=0)
        assert problem.x_train.shape == (18, *shape[1:])
        train = scaled(problem)[0].reshape(-1, 2)
        np.testing.assert_array_equal(
            [train.min(axis=0), train.max(axis=0)], [[0] * 2, [1] * 2]
        )


def test_tables_are_split_as_scikit_learn_splits_them():
    rng = np.random.default_rng(0)
    for seed in range(60):
        sizes = rng.integers(2, 40, rng.integers(1, 12))
        labels = rng.permutation(np.repeat(rng.permutation(len(sizes)), sizes))
        try:
            expected = sklearn.model_selection.train_test_split(
                np.arange(len(labels)),
                test_size=0.4,
                stratify=labels,
                random_state=seed,
            )
        except ValueError:
            with pytest.raises(ValueError, match="cannot be split"):
                protocol._split(labels, seed)
            continue
        for found, wanted in zip(protocol._split(labels, seed), expected, strict=True):
            np.testing.assert_array_equal(found, np.sort(wanted))
