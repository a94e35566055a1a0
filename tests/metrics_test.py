import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from deepsad_jax import metrics

CENTER = np.array([1.0, -2.0, 0.5, 3.0])


@pytest.fixture
def groups():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(4, 4))
    z = CENTER + rng.normal(size=(400, 4)) @ mixing + rng.normal(size=4)
    return z.astype(np.float32), rng.choice([0, 0, 1, -1], 400)


def zeros(like):
    return jax.tree.map(jnp.zeros_like, like)


@jax.jit
def moments(z, semi_targets):
    return metrics.Moments.of(z, semi_targets, CENTER)


@jax.jit
def summary(z, semi_targets):
    return metrics.Moments.of(z, semi_targets, CENTER).compute()


def test_mean_of_batches_of_unlike_size_is_the_mean_of_all():
    values = np.random.default_rng(0).normal(size=23).astype(np.float32)
    parts = [metrics.Mean.of(part) for part in np.split(values, [3, 4, 15])]
    merged = zeros(parts[0])  # stands for no batch
    for part in parts:
        merged = merged.merge(part)
    np.testing.assert_allclose(merged.compute(), values.mean(), rtol=1e-6)
    assert math.isnan(zeros(merged).compute())
    # Of integers and narrow numbers, too: sums are float32.
    assert metrics.Mean.of(jnp.full(9, 2000, jnp.float16)).compute() == 2000
    # Of many epochs at once, on the host.
    many = jax.tree.map(lambda *leaves: np.stack(leaves), *parts)
    np.testing.assert_allclose(many.compute(), [part.compute() for part in parts])
    # As leaves of a program.
    inside = jax.jit(lambda mean: mean.merge(mean).compute())(merged)
    np.testing.assert_allclose(inside, values.mean(), rtol=1e-6)


def test_distances_and_log_determinants_are_those_of_numpy(groups):
    z, semi_targets = groups
    actual = summary(z, semi_targets)
    for name, target in (("normal", 1), ("unlabelled", 0), ("anomaly", -1)):
        members = z[semi_targets == target].astype(np.float64)
        distance = np.mean(np.sum((members - CENTER) ** 2, axis=1))
        np.testing.assert_allclose(actual[f"distance_{name}"], distance, rtol=1e-5)
        covariance = np.cov(members.T, bias=True)
        _, log_det = np.linalg.slogdet(covariance)
        np.testing.assert_allclose(actual[f"log_det_{name}"], log_det, atol=1e-3)
        bound = 4 * np.log(np.trace(covariance) / 4)
        np.testing.assert_allclose(actual[f"isotropic_{name}"], bound, atol=1e-4)
        assert bound > log_det


def test_moments_of_batches_merge(groups):
    z, semi_targets = groups
    whole = moments(z, semi_targets)
    parts = zeros(whole)
    for rows in np.split(np.arange(400), 50):  # some without known examples
        parts = parts.merge(moments(z[rows], semi_targets[rows]))
    for part, expected in zip(parts, whole, strict=True):
        np.testing.assert_allclose(part, expected, rtol=1e-4, atol=1e-3)


def test_a_group_far_from_the_center_keeps_its_covariance(groups):
    z, _ = groups
    far = z + np.float32(100 * z.std())
    parts = zeros(moments(z, np.zeros(400)))
    for rows in np.split(np.arange(400), 8):
        parts = parts.merge(moments(far[rows], np.full(50, -1)))
    actual = parts.compute()["log_det_anomaly"]
    _, expected = np.linalg.slogdet(np.cov(far.astype(np.float64).T, bias=True))
    np.testing.assert_allclose(actual, expected, atol=1e-2)


def test_empty_and_small_groups_have_no_log_determinant(groups):
    z, _ = groups
    semi_targets = np.repeat([0, -1], [396, 4])  # four examples span three dimensions
    single = summary(z, np.repeat([0, 1], [399, 1]))
    assert np.isfinite(single["distance_normal"])
    assert np.isnan(single["isotropic_normal"])
    actual = summary(z, semi_targets)
    assert np.isnan(actual["distance_normal"]) and np.isnan(actual["log_det_normal"])
    assert np.isnan(actual["log_det_anomaly"])
    assert np.isfinite(actual["isotropic_anomaly"])
    assert np.isfinite(actual["log_det_unlabelled"])


def test_collapsed_directions_stay_finite(groups):
    z, semi_targets = groups
    flat = jnp.asarray(z).at[:, 3].set(7.0)
    actual = summary(flat, semi_targets)
    assert np.isfinite(actual["log_det_unlabelled"])
    assert actual["log_det_unlabelled"] < summary(z, semi_targets)["log_det_unlabelled"]


def test_moments_of_many_epochs_are_computed_at_once(groups):
    z, semi_targets = groups
    epochs = [moments(part, semi_targets[:100]) for part in np.split(z, 4)]
    stacked = jax.tree.map(
        lambda *leaves: np.reshape(leaves, (2, 2, *leaves[0].shape)), *epochs
    )
    for name, series in stacked.compute().items():
        expected = [summary(part, semi_targets[:100])[name] for part in np.split(z, 4)]
        np.testing.assert_allclose(series.ravel(), expected, rtol=1e-4, atol=1e-4)
    # Groups that an epoch has not seen are NaN on the host, too, without a warning.
    empty = jax.device_get(zeros(epochs[0])).compute()
    assert np.isnan(list(empty.values())).all()


def test_auroc_is_the_share_of_pairs_in_order_with_ties_as_halves():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    scores = rng.integers(0, 8, 60).astype(float)
    difference = scores[labels == 1][:, None] - scores[labels == 0][None]
    expected = np.mean((difference > 0) + 0.5 * (difference == 0))
    assert math.isclose(metrics.auroc(labels, scores), expected)


def test_average_precision_by_hand():
    # Ranked 1, 0, 1: precision 1 at recall 1/2 and 2/3 at recall 1.
    value = metrics.average_precision(np.array([1, 0, 1]), np.array([3.0, 2.0, 1.0]))
    assert math.isclose(value, 0.5 * 1 + 0.5 * 2 / 3)


@pytest.mark.parametrize("kinds", [5, 10_000])
def test_figures_are_those_of_scikit_learn(kinds):
    rng = np.random.default_rng(kinds)
    labels = (rng.random(3000) < 0.1).astype(int)
    scores = (rng.integers(0, kinds, 3000) + kinds // 4 * labels).astype(np.float32)
    expected = sklearn.metrics.roc_auc_score(labels, scores)
    assert math.isclose(metrics.auroc(labels, scores), expected, rel_tol=1e-12)
    assert metrics.auroc(labels == 1, scores) == metrics.auroc(labels, scores)
    expected = sklearn.metrics.average_precision_score(labels, scores)
    found = metrics.average_precision(labels, scores)
    assert math.isclose(found, expected, rel_tol=1e-12)
    false, hits = metrics.alarms(labels, scores)
    curve = sklearn.metrics.roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(false / false[-1], curve[0])
    np.testing.assert_allclose(hits / hits[-1], curve[1])


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([1, -1], [0.0, 1.0], "labels has other values than 0, normal, and 1, anomaly"),
        ([0, 1], [0.0, np.nan], "scores has values that are not finite"),
        ([0, 1], [0.0], r"labels and scores have shapes \(2,\) and \(1,\)"),
    ],
)
def test_labels_of_another_convention_are_refused(labels, scores, message):
    with pytest.raises(ValueError, match=message):
        metrics.auroc(np.array(labels), np.array(scores))


def test_one_class_alone_has_no_figure():
    scores = np.arange(3.0)
    assert math.isnan(metrics.auroc(np.zeros(3), scores))
    assert math.isnan(metrics.average_precision(np.ones(3), scores))
