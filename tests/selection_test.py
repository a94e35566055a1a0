"""How one number of a shallow detector is chosen."""

import json

import numpy as np
import pytest
import sklearn.metrics
import sklearn.model_selection
import sklearn.neighbors
import sklearn.svm

from deepsad_jax import selection
from deepsad_jax.detectors import isolation_forest, kde, kernel_machines

SSAD, OneClassSVM, KDE = kernel_machines.SSAD, kernel_machines.OneClassSVM, kde.KDE


def draw(n=80, known=8, seed=0):
    """Rows with some known anomalies, and labeled rows to select on."""
    rng = np.random.default_rng(seed)
    semi_targets = np.zeros(n, int)
    semi_targets[rng.permutation(n)[:known]] = -1
    x = rng.normal(size=(n, 3)) + 1.5 * (semi_targets == -1)[:, None]
    labels = np.arange(30) % 2
    few = rng.normal(size=(30, 3)) + 1.5 * labels[:, None]
    return x.astype(np.float32), semi_targets, (few.astype(np.float32), labels)


def svm_scores(gamma, x, rows):
    machine = sklearn.svm.OneClassSVM(gamma=gamma, nu=0.1, tol=1e-8).fit(x)
    return -machine.decision_function(rows)


def density_scores(bandwidth, x, rows):
    density = sklearn.neighbors.KernelDensity(bandwidth=bandwidth, rtol=1e-12)
    return -density.fit(x).score_samples(rows)


# Oracles: what scikit-learn scores under a candidate.
ORACLES = [(OneClassSVM, svm_scores), (KDE, density_scores)]
IDS = ["ocsvm", "kde"]


@pytest.mark.parametrize(("options", "oracle"), ORACLES, ids=IDS)
def test_the_papers_choice_is_by_the_auroc_of_the_rows_handed_over(options, oracle):
    x, semi_targets, few = draw()
    (objective, variables), found = options(selection="test_auc").fit_rows(
        x, semi_targets, selection_set=few
    )
    expected = [
        sklearn.metrics.roc_auc_score(few[1], oracle(value, x, few[0]))
        for value in found["candidates"]
    ]
    # Ranks of scores that nearly tie may differ: one pair of 225.
    np.testing.assert_allclose(found["criterion"], expected, atol=1.01 / 225)
    best = int(np.argmax(found["criterion"]))
    assert found["value"] == found["candidates"][best]
    assert found["by"] == "test_auc" and found["examples"] == 30
    scores = objective.score(variables, x)
    np.testing.assert_allclose(scores, oracle(found["value"], x, x), atol=1e-4)


@pytest.mark.parametrize(("options", "oracle"), ORACLES, ids=IDS)
def test_labels_choose_by_the_auroc_of_held_out_known_anomalies(options, oracle):
    x, semi_targets, _ = draw()
    _, found = options(selection="train_labels").fit_rows(x, semi_targets, seed=4)
    labels = (semi_targets == -1).astype(int)
    splits = sklearn.model_selection.StratifiedKFold(5, shuffle=True, random_state=4)
    expected = [
        np.mean(
            [
                sklearn.metrics.roc_auc_score(
                    labels[held_out], oracle(value, x[train], x[held_out])
                )
                for train, held_out in splits.split(labels, labels)
            ]
        )
        for value in found["candidates"]
    ]
    np.testing.assert_allclose(found["criterion"], expected, atol=0.02)
    np.testing.assert_allclose(np.median(found["criterion"]), np.median(expected))
    assert found["value"] == found["candidates"][int(np.argmax(found["criterion"]))]


def test_densities_choose_by_likelihood_as_a_grid_search():
    x, semi_targets, _ = draw()
    _, found = KDE().fit_rows(x, semi_targets)
    search = sklearn.model_selection.GridSearchCV(
        sklearn.neighbors.KernelDensity(rtol=1e-12), {"bandwidth": kde.BANDWIDTHS}
    ).fit(x)
    assert found["by"] == "likelihood" and found["parameter"] == "bandwidth"
    assert found["value"] == search.best_params_["bandwidth"]
    expected = search.cv_results_["mean_test_score"]
    np.testing.assert_allclose(found["criterion"], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "known", "by"),
    [
        (SSAD(), 2, "train_labels"),
        (SSAD(), 1, "none"),
        (SSAD(kernel="linear"), 8, "none"),
        (OneClassSVM(), 8, "none"),
        (KDE(), 8, "likelihood"),
        (isolation_forest.IsolationForest(n_trees=3), 8, "none"),
    ],
)
def test_what_chooses_by_default_sees_no_test_labels(options, known, by):
    x, semi_targets, few = draw(known=known)
    _, found = options.fit_rows(x, semi_targets)
    assert found["by"] == by
    assert json.loads(json.dumps(found)) == found
    if by == "none":
        assert found["value"] == options.default(x, 0)
        assert found.keys() == {"by", "parameter", "value"}
    with pytest.raises(ValueError, match="selection_set is given, but selection is ''"):
        options.fit_rows(x, semi_targets, selection_set=few)


@pytest.mark.parametrize("options", [OneClassSVM, KDE])
def test_known_anomalies_are_unlabeled_to_those_without_labels(options):
    x, semi_targets, _ = draw()
    scores = []
    for labels in (semi_targets, np.zeros_like(semi_targets)):
        (objective, variables), _ = options().fit_rows(x, labels)
        scores.append(np.asarray(objective.score(variables, x)))
    np.testing.assert_array_equal(*scores)


@pytest.mark.parametrize("known", [2, 8])
@pytest.mark.parametrize(
    "options",
    [
        SSAD(),
        OneClassSVM(selection="test_auc"),
        KDE(),
        KDE(selection="train_labels"),
        isolation_forest.IsolationForest(n_trees=3),
    ],
)
def test_steps_are_told_up_to_as_many_as_the_stages_say(options, known):
    x, semi_targets, few = draw(known=known)
    few = few if getattr(options, "selection", "") == "test_auc" else None
    told = []
    options.fit_rows(
        x,
        semi_targets,
        observe=lambda *arguments: told.append(arguments),
        selection_set=few,
    )
    steps = [done for _, done, _ in told]
    assert options.stages() == {"train": steps[-1]}
    assert steps == sorted(set(steps)) and steps[0] >= 1
    assert {(stage, tuple(history)) for stage, _, history in told} == {("train", ())}


def test_the_tenth_has_both_kinds_and_is_the_seeds():
    labels = np.random.default_rng(0).integers(0, 2, 200)
    few = selection.selection_rows(labels, 1)
    kinds = np.bincount(labels[few])
    np.testing.assert_array_equal(kinds, [int(0.1 * n) for n in np.bincount(labels)])
    assert np.all(np.diff(few) > 0)
    np.testing.assert_array_equal(few, selection.selection_rows(labels, 1))
    assert list(few) != list(selection.selection_rows(labels, 2))
    assert len(selection.selection_rows(np.array([0, 1, 1]), 0)) == 2


def test_each_fold_has_known_anomalies_and_all_rows_are_held_out_once():
    semi_targets = np.repeat([0, -1], [17, 3])
    splits = list(selection.folds(semi_targets, 0))
    assert len(splits) == 3
    assert sorted(np.concatenate([held for _, held in splits])) == list(range(20))
    for train, held_out in splits:
        assert np.sum(semi_targets[held_out] == -1) == 1
        assert not set(train) & set(held_out)


@pytest.mark.parametrize(
    ("options", "semi_targets", "message"),
    [
        (
            SSAD(selection="best"),
            [0, 0],
            "selection is 'best'; for ssad it must be one",
        ),
        (
            SSAD(selection="likelihood"),
            [0, 0],
            "for ssad it must be one of none, train",
        ),
        (SSAD(kernel="linear", selection="best"), [0, 0], "selection is 'best'"),
        (SSAD(selection="train_labels"), [0, 0], "needs at least 2 known .* are 0"),
        (KDE(), [0], "likelihood needs at least 2 training examples, but there are 1"),
        (KDE(selection="train_labels"), [-1] * 4, "needs at least 4 .* there are 0"),
        (
            SSAD(C_unlabeled=0.3),
            [-1, -1, 0, 0, 0, 0],
            "kappa is 1.0; with these C and labels it must be at most",
        ),
        (KDE(bandwidth=np.float32(-1)), [0, 0], "bandwidth is -1.0; it must be"),
        (KDE(kernel="cosine"), [0, 0], "kernel is 'cosine'; it must be one of"),
    ],
)
def test_what_does_not_fit_the_labels_is_refused(options, semi_targets, message):
    with pytest.raises(ValueError, match=message):
        options.check_labels(np.array(semi_targets))


@pytest.mark.parametrize(
    ("few", "message"),
    [
        (None, "selection_set is not given, but selection is 'test_auc'"),
        ((np.ones((4, 3)), np.zeros(4)), r"4 rows and labels of shape \(4,\) with \[0"),
        ((np.ones((4, 3)), np.arange(3)), r"4 rows and labels of shape \(3,\)"),
        ((np.ones((2, 3)), np.array([-1, 1])), r"with \[-1, 1\]; there must be one"),
    ],
)
def test_test_labels_are_handed_over_or_not_used(few, message):
    x, semi_targets, _ = draw()
    options = OneClassSVM(selection="test_auc")
    with pytest.raises(ValueError, match=message):
        options.fit_rows(x, semi_targets, selection_set=few)


def test_a_selection_without_a_number_to_choose_is_noted():
    x, semi_targets, _ = draw()
    options = SSAD(kernel="linear", selection="train_labels")
    _, found = options.fit_rows(x, semi_targets)
    assert found["by"] == "none"
    assert options.notes(found) == ("selection train_labels had no gamma to choose",)
    assert SSAD().notes(found) == ()
