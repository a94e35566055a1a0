"""What a run draws, from outcomes made by hand."""

import numpy as np

from deepsad_jax.data import protocol
from experiments import pictures, report

ABOUT = {"method": "deep_sad", "data": "a/b.csv", "seed": 3, "label": "y: 0 normal"}


def outcome(x, labels, history=None, references=None, tested=None):
    rng = np.random.default_rng(0)
    problem = protocol.Problem(*[None] * 7)._replace(x_test=x, labels_test=labels)
    tested = np.ones(len(x), bool) if tested is None else tested
    scores = rng.random(len(x)) + labels
    found = report.Outcome(None, scores, references or {}, history or {}, tested, ABOUT)
    return problem, found


def drawn(*arguments, **options):
    figures = pictures.of_run(*outcome(*arguments, **options))
    for figure in figures.values():
        figure.draw_without_rendering()
    return set(figures)


def test_pictures_are_of_what_there_is():
    rng, labels = np.random.default_rng(0), np.tile([0, 0, 1], 10)
    losses = {"pretrain": {"loss": np.ones(3)}, "train": {"loss": np.ones(2)}}
    groups = {
        f"{quantity}_{group}": np.full(2, np.nan if group == "normal" else 0.5)
        for quantity in ("distance", "log_det", "isotropic")
        for group in ("normal", "unlabelled", "anomaly")
    }
    table = rng.random((30, 4))
    assert drawn(table, labels) == {"score_histogram", "curves"}
    assert drawn(table, 0 * labels) == {"score_histogram"}  # no curve of one class
    assert drawn(table, labels, {"train": {}}) == {"score_histogram", "curves"}
    references = {"ae": rng.random(30)}
    assert "losses" in drawn(table, labels, losses, references)
    losses["train"] |= groups
    assert "groups" in drawn(table, labels, losses)
    for shape, is_image in (
        ((30, 8, 8, 1), True),
        ((30, 8, 8, 3), True),
        ((30, 8, 8, 2), False),
        ((30, 20, 3), False),
        ((30, 4, 4, 4, 1), False),
    ):
        x = rng.random(shape)
        assert ("samples" in drawn(x, labels)) == is_image
    images = (255 * rng.random((30, 8, 8, 3))).astype(np.uint8)
    assert "samples" in drawn(images, labels, tested=np.arange(30) > 5)
