"""Which examples a page shows, and what becomes of them on disk."""

import base64
import io

import numpy as np
import PIL.Image
import pytest

from deepsad_jax.report import examples


def test_groups_are_the_lowest_the_highest_and_those_around_the_threshold():
    scores = np.random.default_rng(0).permutation(100).astype(float)
    found = {n: scores[p].tolist() for n, p in examples.picked(scores, 49.5).items()}
    assert found == {
        "Most anomalous": [*range(99, 91, -1)],
        "Most uncertain": [*range(53, 45, -1)],
        "Most normal": [*range(8)],
    }
    middle = examples.picked(scores, None)["Most uncertain"]
    assert 49 in scores[middle]
    few = examples.picked(np.array([2.0, 1.0]), 9.0)
    assert {len(places) for places in few.values()} == {2}


@pytest.mark.parametrize("channels", [1, 3])
def test_images_become_small_and_come_back(tmp_path, channels):
    images = np.random.default_rng(0).integers(0, 256, (9, 200, 100, channels))
    images = images.astype(np.uint8)
    kept = examples.kept(images, np.array([5, 2, 5]))
    assert kept.places.tolist() == [2, 5] and kept.x.shape == (2, 96, 48, channels)
    small = np.random.default_rng(0).random((3, 8, 8, channels))
    kept = examples.kept(small, np.arange(3))
    examples.save(tmp_path / "kept.npz", kept)
    again = examples.load(tmp_path / "kept.npz")
    np.testing.assert_array_equal(again.x, np.round(255 * small))
    head, _, text = examples.data_uri(again.x[1]).partition(",")
    assert head == "data:image/png;base64"
    shown = np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(text))))
    np.testing.assert_array_equal(shown.reshape(again.x[1].shape), again.x[1])


def test_rows_series_and_others_are_shown_as_what_they_are():
    kinds, scores = [("normal", "normal")] * 2, np.array([1.0, 2.0])
    groups = {"all": np.array([1])}

    def shown(x, **more):
        kept = examples.kept(x, np.array([1]))
        numbers = np.array([7, 8])
        return examples.shown(groups, kept, scores, kinds, numbers, **more)["all"][0]

    row = shown(np.array([[1.0] * 14, [np.nan, 1234.5678] + [0.0] * 12]))
    assert row.values[:2] == [("column 0", "missing"), ("column 1", "1235")]
    assert (row.number, row.score, row.more) == (8, 2.0, 2)
    reasons = {1: [("a", "1", "2 to 3", 0.5)]}
    assert shown(np.eye(2), reasons=reasons).reasons == reasons[1]
    assert shown(np.eye(2), reasons={}).reasons is None
    line = shown(np.arange(12.0).reshape(2, 3, 2)).line
    assert line == "1.0,38.0 60.0,20.0 119.0,2.0"
    assert shown(np.zeros((2, 3, 3, 3, 1)))[4:8] == ("", "", (), 0)
    unknown = examples.shown(groups, None, scores, kinds, np.arange(2))["all"][0]
    assert unknown.values == () and unknown.reasons is None


def test_a_damaged_file_is_named(tmp_path):
    assert examples.load(tmp_path / "none.npz") is None
    (tmp_path / "kept.npz").write_text("x")
    with pytest.raises(ValueError, match="kept.npz is damaged"):
        examples.load(tmp_path / "kept.npz")
