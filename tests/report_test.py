"""What a run says, from figures made by hand."""

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


def test_labels_of_few_classes_are_listed_and_of_many_are_grouped():
    def described(labels, normal=0):
        source = sources.Source(np.eye(len(labels)), np.array(labels), label="y")
        return protocol.describe(source, protocol.Protocol(normal_class=normal))

    assert described([0, 1, 0]) == "y: 0 normal (2 rows), 1 anomaly (1 rows)"
    assert described([3, 0, 7, 7, 1], 7) == (
        "y: 7 is normal (2 rows), 3 other classes are anomalies (3 rows)"
    )
