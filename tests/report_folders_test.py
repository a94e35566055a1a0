"""What the page of a folder says when the folder is damaged, old or odd."""

import json
import re

import numpy as np
import pytest

from deepsad_jax.report import fits, folders, page

RESULTS = {
    **{"method": "kde", "data": "cardio", "label": "y", "seed": 1, "network": None},
    **{"auroc": None, "average_precision": None, "trained": False, "notes": ["a note"]},
    **{"n_train": 9, "n_known_normal": 0, "n_known_outlier": 0},
    **{"n_test": 30, "n_test_outlier": 0},
}


@pytest.fixture
def run(tmp_path):
    """A run without history and examples, tested on one class alone."""
    scores = np.linspace(-1, 1, 30)
    arrays = {"index": np.arange(30), "label": np.zeros(30, int), "score": scores}
    np.savez(tmp_path / "scores.npz", **arrays)
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    return tmp_path


def content(text):
    return json.loads(re.search(r'"page-data">(.*?)</script>', text)[1])


def test_what_a_folder_does_not_hold_is_not_shown(run):
    text = folders.page_of(run)
    assert "ROC curve" not in text and "<h2>Training</h2>" not in text
    assert "30 normal and 0 anomalous examples" in text and "A note." in text
    found = content(text)
    assert found["anomalous"] == 0 and set(found["hits"]) == {0}
    # 5 % of 30 is one false alarm.
    assert found["falseAlarms"][found["start"]] == 1


def test_an_area_of_other_rows_stands_beside_scores_of_one_kind():
    scores, labels = np.arange(30.0), np.zeros(30, int)
    fit = fits.Fit("a", "kde", [], [], scores, labels, area=(0.9, 0.8, 0.95))
    text = fits.written(fit)
    assert "95 % interval 80.0 % to 95.0 %" in text and "precision</dt>" not in text


def test_examples_that_do_not_count_are_left_out(run):
    arrays = dict(np.load(run / "scores.npz")) | {"tested": np.arange(30) < 20}
    np.savez(run / "scores.npz", **arrays)
    assert content(folders.page_of(run))["normal"] == 20


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("results.json", "{", "results.json is damaged"),
        ("results.json", "{}", "is damaged: it has no 'method'"),
        ("scores.npz", "x", "scores.npz cannot be read"),
        ("metrics.jsonl", '{"epoch": 1}\n', "metrics.jsonl is damaged"),
        ("examples.npz", "x", "examples.npz is damaged"),
        ("summary.json", "]", "summary.json is damaged"),
        ("comparison.json", "", "comparison.json is damaged"),
    ],
)
def test_what_is_damaged_is_named(run, name, text, message):
    (run / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        folders.write(run)
    assert not (run / folders.NAME).exists()


def test_a_sweep_without_any_figure_has_a_page(tmp_path):
    rows = [{"method": "kde", "setting": "a", "runs": 1}]
    (tmp_path / "summary.json").write_text(json.dumps(rows))
    place = tmp_path / "a" / "seed0"
    place.mkdir(parents=True)
    (place / "config.json").write_text("{}")  # not finished
    text = folders.page_of(tmp_path)
    assert "1 runs are not finished" in text and "<td>kde</td>" in text


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no finished run, sweep or comparison"):
        folders.page_of(tmp_path)


def test_text_on_the_page_can_be_read_by_weak_eyes():
    """Contrasts of at least 4.5 to 1 (WCAG 2.2, success criterion 1.4.3)."""
    style = (page.TEMPLATES / "page.css").read_text()

    def luminance(color):
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        parts = [
            p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
        ]
        return np.dot(parts, (0.2126, 0.7152, 0.0722))

    schemes = [
        dict(re.findall(r"--([\w-]+): (#\w{6})", part)) for part in style.split("{")
    ]
    schemes = [colors for colors in schemes if "ground" in colors]
    assert len(schemes) == 2
    for colors in schemes:
        for text in ("text", "quiet", "accent", "normal", "anomaly", "unlabeled"):
            for ground in ("ground", "raised", "doubt"):
                pair = sorted(luminance(colors[name]) for name in (text, ground))
                if text in ("text", "quiet", "accent") or ground == "ground":
                    assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, (text, ground)
