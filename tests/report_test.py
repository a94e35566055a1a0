"""What a run says and draws, from outcomes made by hand."""

import numpy as np

from deepsad_jax.data import protocol, sources
from experiments import report

FIGURES = {
    "method": "deep_sad",
    "data": "cardio",
    "label": "y: 0 normal (9 rows), 1 anomaly (3 rows)",
    "seed": 3,
    "trained": True,
    "n_train": 12,
    "n_known_normal": 1,
    "n_known_outlier": 2,
    "n_test": 20,
    "n_test_outlier": 5,
    "auroc": 0.875,
    "average_precision": 0.5,
    "notes": [],
}


def summary(**more):
    return report.summary({**FIGURES, **more}, "runs/here").splitlines()


def test_the_summary_says_what_was_done_and_how_well():
    assert summary(notes=["not pretrained: the encoder has no decoder"]) == [
        "deep_sad on cardio, seed 3",
        "  label          y: 0 normal (9 rows), 1 anomaly (3 rows)",
        "  trained on     12 examples (1 known normal, 2 known anomalies)",
        "  tested on      20 examples (5 anomalies)",
        "  AUROC          87.50%   average precision  50.00%",
        "  note           not pretrained: the encoder has no decoder",
        "  written to     runs/here",
    ]


def test_the_summary_has_references_times_and_choices():
    lines = summary(
        **{"ae_auroc": 1.0, "ae_average_precision": 0.25},
        **{"linear_auroc": np.nan, "linear_average_precision": np.nan},
        **{"train_seconds": 2.04, "ae_train_seconds": 1.0, "trained": False},
        selection={"parameter": "gamma", "value": 0.25, "by": "train_labels"},
    )
    assert lines[2] == "  not trained    only evaluated"
    assert lines[5:9] == [
        "  autoencoder   100.00%   average precision  25.00%",
        "  linear kernel undefined (one class only)   "
        "average precision undefined (one class only)",
        "  gamma          0.25, chosen by train_labels",
        "  times          pretraining 1.0 s, training 2.0 s",
    ]


def outcome(x, labels, history=None, references=None, tested=None):
    rng = np.random.default_rng(0)
    problem = protocol.Problem(*[None] * 7)._replace(x_test=x, labels_test=labels)
    tested = np.ones(len(x), bool) if tested is None else tested
    scores = rng.random(len(x)) + labels
    found = report.Outcome(None, scores, references or {}, history or {}, tested, {})
    return problem, found


def drawn(*arguments, **options):
    figures = report.pictures(*outcome(*arguments, **options))
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


def test_labels_of_few_classes_are_listed_and_of_many_are_grouped():
    def described(labels, normal=0):
        source = sources.Source(np.eye(len(labels)), np.array(labels), label="y")
        return protocol.describe(source, protocol.Protocol(normal_class=normal))

    assert described([0, 1, 0]) == "y: 0 normal (2 rows), 1 anomaly (1 rows)"
    assert described([3, 0, 7, 7, 1], 7) == (
        "y: 7 is normal (2 rows), 3 other classes are anomalies (3 rows)"
    )
