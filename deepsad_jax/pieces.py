"""Long work by many calls, between which it tells how far it is."""

import time
from collections.abc import Callable
from typing import Any

import jax


def in_pieces(
    step: Callable, result: Any, count: int, tell: Callable[[float], None]
) -> Any:
    """`step(result, first, last)` for all of `count` blocks, by many calls.

    Args:
        step: a compiled function that goes on with a result, by some blocks.
        result: what it begins with.
        count: of the blocks.
        tell: called after each piece, of about half a second, with the share of the
            blocks that are done.

    Returns:
        The last result.
    """
    first, size = 0, 1
    while first < count:
        began, last = time.perf_counter(), min(first + size, count)
        result = jax.block_until_ready(step(result, first, last))
        size = next_piece(last - first, time.perf_counter() - began)
        first = last
        tell(first / count)
    return result


def next_piece(size: int, seconds: float) -> int:
    """How much to do at once, so that it takes half a second, if `size` took some."""
    return max(1, int(size * min(4.0, 0.5 / max(seconds, 1e-3))))
