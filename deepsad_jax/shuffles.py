"""Random orders without sorting: a cipher of positions, as fast as it is long.

Sorting random numbers, as `jax.random.permutation` does, takes a CPU as long as the
training of a small perceptron for as many rows. A Feistel network with random keys is a
permutation by construction and computes each place on its own: Mitchell, Stokes, Frank
and Holmes, "Bandwidth-Optimal Random Shuffling for GPUs", ACM Transactions on Parallel
Computing 9(1), 2022.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# As many as Mitchell et al. take; from 16 on, the tests of ours see no bias.
_ROUNDS = 24


def shuffled(key: jax.Array, entries: int, size: jax.typing.ArrayLike) -> jax.Array:
    """A random order of the entries that count, followed by the padding.

    It depends on the key and the size alone, and not on the padding.

    Args:
        key: random key.
        entries: how many there are, up to 2^31 - 1.
        size: how many of them count.

    Returns:
        `[entries]` int32.
    """
    size = jnp.asarray(size, jnp.uint32)
    # The cipher is one of the cells of a rectangle, by a row larger at most.
    side = jnp.sqrt(size.astype(jnp.float32))
    # An even number, since shifts of odd lengths alone miss half of all orders.
    columns = 2 * jnp.ceil(side / 2).astype(jnp.uint32)
    rows = (size + columns - 1) // columns
    # The key's own words are random; drawing more of them takes XLA long to compile.
    words = jax.random.key_data(key).ravel()
    keys = _mixed(_mixed(jnp.arange(_ROUNDS, dtype=jnp.uint32) ^ words[0]) + words[-1])
    positions = jnp.arange(entries, dtype=jnp.uint32)

    def again(state):
        # Whoever leaves the entries walks on until back: still a permutation.
        *cells, walking = state
        new = _enciphered(*cells, rows, columns, keys)
        row, column = (jnp.where(walking, *p) for p in zip(new, cells, strict=True))
        return row, column, walking & (row * columns + column >= size)

    start = positions // columns, positions % columns, positions < size
    row, column, _ = lax.while_loop(lambda state: jnp.any(state[2]), again, start)
    order = jnp.where(positions < size, row * columns + column, positions)
    return order.astype(jnp.int32)


def _enciphered(row, column, rows, columns, keys):
    """Another cell for each; a bijection of the rectangle."""

    def two_rounds(i, cells):
        row, column = cells
        row = _shifted(row, column, keys[2 * i], rows)
        return row, _shifted(column, row, keys[2 * i + 1], columns)

    return lax.fori_loop(0, _ROUNDS // 2, two_rounds, (row, column))


def _shifted(value, other, key, size):
    """(value + random(other)) modulo size, which is less than 2^16."""
    value = value + (((_mixed(other ^ key) >> 16) * size) >> 16)
    return jnp.where(value >= size, value - size, value)


def _mixed(words):
    """MurmurHash3's finalizer of uint32 words."""
    words = (words ^ (words >> 16)) * np.uint32(0x85EBCA6B)
    words = (words ^ (words >> 13)) * np.uint32(0xC2B2AE35)
    return words ^ (words >> 16)
