import jax.numpy as jnp
import numpy as np
import pytest

from deepsad_jax import statistics

CENTER = np.array([1.0, -2.0, 0.5, 3.0])


@pytest.fixture
def groups():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(4, 4))
    z = CENTER + rng.normal(size=(400, 4)) @ mixing + rng.normal(size=4)
    return z.astype(np.float32), rng.choice([0, 0, 1, -1], 400)


def summary(z, semi_targets):
    return statistics.summary(statistics.moments(z, semi_targets, CENTER))


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
    whole = statistics.moments(z, semi_targets, CENTER)
    parts = statistics.zeros(4)
    for rows in np.split(np.arange(400), 50):  # some without known examples
        batch = statistics.moments(z[rows], semi_targets[rows], CENTER)
        parts = statistics.merge(parts, batch)
    for part, expected in zip(parts, whole, strict=True):
        np.testing.assert_allclose(part, expected, rtol=1e-4, atol=1e-3)


def test_a_group_far_from_the_center_keeps_its_covariance(groups):
    z, _ = groups
    far = z + np.float32(100 * z.std())
    parts = statistics.zeros(4)
    for rows in np.split(np.arange(400), 8):
        batch = statistics.moments(far[rows], np.full(50, -1), CENTER)
        parts = statistics.merge(parts, batch)
    actual = statistics.summary(parts)["log_det_anomaly"]
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
