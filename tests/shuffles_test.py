"""Random orders: permutations whatever the size, and as uniform as chance has them."""

import itertools

import jax
import numpy as np
import pytest
from scipy import stats

from deepsad_jax import shuffles

shuffled = jax.jit(shuffles.shuffled, static_argnums=1)
many = jax.jit(
    jax.vmap(shuffles.shuffled, in_axes=(0, None, None)), static_argnums=(1,)
)
KEYS = jax.random.split(jax.random.key(0), 24_000)


def test_each_entry_comes_once_and_the_padding_last():
    for size in range(70):
        order = np.asarray(shuffled(jax.random.key(size), 70, size))
        assert order.dtype == np.int32
        np.testing.assert_array_equal(np.sort(order[:size]), np.arange(size))
        np.testing.assert_array_equal(order[size:], np.arange(size, 70))


@pytest.mark.parametrize("size", [1, 2, 1000, 25_600, 70_001])
def test_padding_changes_no_order(size):
    order = np.asarray(shuffled(jax.random.key(1), size, size))
    np.testing.assert_array_equal(np.sort(order), np.arange(size))
    padded = np.asarray(shuffled(jax.random.key(1), 80_000, size))
    np.testing.assert_array_equal(padded[:size], order)


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_all_orders_of_a_few_are_equally_likely(size):
    orders = np.asarray(many(KEYS, size, size)) @ size ** np.arange(size)
    places = np.array(list(itertools.permutations(range(size)))) @ size ** np.arange(
        size
    )
    counts = [np.sum(orders == place) for place in places]
    assert sum(counts) == len(KEYS)
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("size", [9, 40, 100])
def test_orders_are_as_irregular_as_chance_has_them(size):
    orders = np.asarray(many(KEYS, size, size))
    counts = np.array([np.bincount(place, minlength=size) for place in orders.T])
    expected = len(KEYS) / size
    surplus = np.sum((counts - expected) ** 2) / expected
    assert stats.chi2.sf(surplus, (size - 1) ** 2) > 1e-4
    steps = np.diff(orders, axis=1).ravel() % size
    assert stats.chisquare(np.bincount(steps, minlength=size)[1:]).pvalue > 1e-4
    # The numbers of fixed points and of inversions of a random permutation.
    fixed = np.sum(orders == np.arange(size), axis=1)
    assert abs(fixed.mean() - 1) < 4 / np.sqrt(len(KEYS))
    assert fixed.var() == pytest.approx(1, abs=0.05)
    later = np.triu_indices(size, 1)
    inversions = np.sum(orders[:, later[0]] > orders[:, later[1]], axis=1)
    variance = size * (size - 1) * (2 * size + 5) / 72
    error = np.sqrt(variance / len(KEYS))
    assert abs(inversions.mean() - size * (size - 1) / 4) < 4 * error
    assert inversions.var() / variance == pytest.approx(1, abs=0.05)


def test_other_keys_have_other_orders():
    found = np.asarray(many(KEYS[:500], 1000, 1000))
    same = [np.mean(a == b) for a, b in itertools.pairwise(found)]
    # Two random orders agree in one place, in the mean.
    assert np.mean(same) == pytest.approx(1e-3, abs=3e-4)
