import numpy as np
import pytest

from deepsad_jax import labels


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "float16", "float64"])
def test_labels_of_any_real_type_are_taken(dtype):
    values = np.array([1, 0, 0, 1]).astype(dtype)
    with pytest.warns(UserWarning, match="y has 1 and no -1.*-np.asarray"):
        checked = labels.check_semi_targets("y", values, 4)
    assert checked.dtype == np.int8 and checked.tolist() == [1, 0, 0, 1]


def test_known_anomalies_or_none_at_all_are_no_reason_to_warn(recwarn):
    labels.check_semi_targets("y", [[1], [0], [-1]], 3)
    labels.check_semi_targets("y", [0, 0, -1], 3)
    labels.check_semi_targets("y", [1, 0, 0], 3, warn=False)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([True, False], "y holds booleans, which may mean either; give 1 known normal"),
        ([1, 2], "y contains 2; allowed are 1 known normal, 0 unlabeled, -1 known"),
        ([0.5, 0], "y must hold integers, one for each example, but has 0.5"),
        ([np.nan, 0], "but has nan .of row 0; 1 in all"),
        ([1, 0, 0], "y has 3 entries for 2 examples"),
        (np.eye(2), r"y has 4 entries of shape \(2, 2\) for 2"),
        (["a", "b"], "has dtype <U1"),
        ([1j, 0], "has dtype complex128"),
        (np.ma.masked_equal([1, 0], 0), "y has 1 masked values"),
        ([[1], [0, 0]], "y is not an array of numbers"),
    ],
)
def test_other_labels_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        labels.check_semi_targets("y", values, 2)


@pytest.mark.parametrize(
    ("values", "chosen", "expected"),
    [
        (["ok", "", "broken"], {"normal": "ok", "anomaly": "broken"}, [1, 0, -1]),
        (["a", "b", "c", "a"], {"anomaly": ["b", "c"]}, [0, -1, -1, 0]),
        (np.array([1, 0, 1]), {"anomaly": 1}, [-1, 0, -1]),
        ([True, False], {"anomaly": True, "normal": False}, [-1, 1]),
        ([3, None, np.nan, "x"], {"normal": (3, "x")}, [1, 0, 0, 1]),
        ([0.5, np.inf, 1.0], {"anomaly": 1, "normal": np.inf}, [0, 1, -1]),
    ],
)
def test_labels_of_any_kind_are_turned_into_ours(values, chosen, expected):
    assert labels.semi_targets(values, **chosen).tolist() == expected


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"normal": "good"}, "normal is 'good', which no label is"),
        ({"normal": "ok", "anomaly": ["bad", "ok"]}, "'ok' is both normal and anomaly"),
    ],
)
def test_choices_that_make_no_sense_are_refused(chosen, message):
    with pytest.raises(ValueError, match=message):
        labels.semi_targets(["ok", "bad"], **chosen)


@pytest.mark.parametrize(
    ("values", "chosen", "expected", "others"),
    [
        (["ok", None, "bad", " ", "?"], {}, [1, 0, -1, 0, 0], {"?": 1}),
        (["1", "0", "2", "2"], {"normal": 0, "anomaly": 1}, [-1, 1, 0, 0], {"2": 2}),
        ([1.0, np.nan, 0.0], {"normal": "0", "anomaly": ["1"]}, [-1, 0, 1], {}),
        ([2.5, 3.0], {"normal": (), "anomaly": (3, "2.50")}, [-1, -1], {}),
        ([True, None], {"normal": (), "anomaly": "TRUE"}, [-1, 0], {}),
        # Files hold a column of yes and no as one of booleans, or as texts.
        ([True, False], {"normal": "no", "anomaly": "Yes"}, [-1, 1], {}),
        (["yes", "NO", ""], {"normal": "false", "anomaly": "yes"}, [-1, 1, 0], {}),
    ],
)
def test_labels_are_taken_from_a_column(values, chosen, expected, others):
    table = {"x": range(len(values)), "status": values, "y": ["a"] * len(values)}
    chosen = chosen or {"normal": "ok", "anomaly": "bad"}
    split = labels.split_labels(table, "status", **chosen)
    assert split.semi_targets.tolist() == expected
    assert split.semi_targets.dtype == np.int8
    assert split.rest.names == ("x", "y") and split.others == others


@pytest.mark.parametrize(
    ("label", "chosen", "message"),
    [
        ("state", {}, "label is 'state', but the columns are 'x', 'status'"),
        ("status", {"normal": "good"}, "normal is 'good', which does not occur in col"),
        ("status", {"anomaly": "bad"}, r"its values are ok \(2 times\), broken \(1 ti"),
        ("status", {"normal": "ok", "anomaly": ["ok"]}, "'ok' is both normal and anom"),
        ("status", {"normal": ""}, "normal is '', but empty cells are always unlabel"),
    ],
)
def test_columns_and_values_that_are_not_there_are_named(label, chosen, message):
    table = {"x": [1, 2, 3], "status": ["ok", "broken", "ok"]}
    with pytest.raises(ValueError, match=message):
        labels.split_labels(table, label, **chosen)


def test_values_need_not_occur_in_every_file():
    table = {"status": ["ok"], "x": [1]}
    split = labels.split_labels(
        table, "status", normal="ok", anomaly="bad", must_occur=False
    )
    assert split.semi_targets.tolist() == [1]


def test_numbers_and_texts_are_equal_that_are_written_alike():
    for values in ([1, 0, 2], ["1", "0", "2.0"], np.array([1.0, 0.0, 2.0])):
        found = labels.semi_targets(values, normal="0", anomaly=[1, "2"])
        assert found.tolist() == [-1, 1, -1]
