"""What happens when training diverges: losses or parameters without finite values,
embeddings that are all one point.

A run goes back to before that epoch, and on with a tenth of the updates; where that has
been tried, the stage begins anew with a hundredth, and so on. Of many runs each ends as
it would alone.
"""

import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from deepsad_jax import training

History = dict[str, np.ndarray]


def check_finite(history: History, epoch: int) -> None:
    """Raises `DivergenceError` if the loss of an epoch is not a finite number."""
    loss = np.asarray(history["loss"])[..., epoch]
    if not np.isfinite(loss).all():
        raise training.DivergenceError(
            f"training diverged: the loss of epoch {epoch + 1} is "
            f"{loss[~np.isfinite(loss)].flat[0]}; try a smaller learning rate or a "
            "larger batch, and look for extreme values in the data"
        )


def check_spread(centers: list[np.ndarray], history: History, epoch: int) -> None:
    """Raises `TrainingError` if the embeddings of an epoch are all one point, too.

    Args:
        centers: of each run, `[rep_dim]`.
        history: with the `spread`.
        epoch: its number.
    """
    check_finite(history, epoch)
    spread = np.ravel(history["spread"][..., epoch])[: len(centers)]
    sizes = np.sqrt(np.mean(np.square(centers), axis=-1))
    # Below the rounding of the embeddings themselves, they are all one point.
    if np.any(spread <= 1e-6 * sizes):
        raise training.TrainingError(
            f"the hypersphere collapsed in epoch {epoch + 1}: all embeddings are "
            "equal, so all scores would be; check that the features vary, and try "
            "pretraining, a smaller learning rate or a smaller weight decay"
        )


def mark(history: History, state: training.TrainState, epoch: int) -> None:
    """Makes NaN of the loss of an epoch that left parameters that are not finite.

    The loss of a step is that before its update, so it would tell an epoch later.
    """
    loss = history["loss"][..., epoch]
    for leaf in jax.tree.leaves(jax.device_get(state.variables["params"])):
        inside = tuple(range(loss.ndim, np.ndim(leaf)))
        loss[~np.isfinite(leaf).all(axis=inside)] = np.nan


def rolled_back(
    advance: Callable,
    before: training.TrainState,
    anew: training.TrainState,
    history: History,
    first: int,
    epoch: int,
    error: training.DivergenceError,
) -> tuple[training.TrainState, int]:
    """The state from which runs go on with fewer updates, and the number of its epoch.

    Args:
        advance: `(state, last)` to the state and records after the epochs `first` to
            `last - 1`; it may overwrite the state.
        before: the state before the epoch `first`, which diverged nowhere.
        anew: the state before the stage, from which all runs go on if a run that has
            diverged was slowed before.
        history: of the stage.
        first: of a piece of epochs.
        epoch: of the same piece, whose loss is not finite; parameters may have been
            so since an earlier one.
        error: what is raised when updates are a hundred thousandth already.
    """
    state, epoch = _back(advance, before, history, first, epoch)
    return _slower(state, epoch, anew, history, error)


def _back(advance, before, history, first, epoch):
    """The state before the epoch that has diverged, and the number of that epoch."""
    while True:
        # What comes before is computed again, so that the state does not depend on
        # where pieces end.
        state = jax.tree.map(jnp.copy, before)
        if epoch > first:
            state, _ = advance(state, epoch)
            mark(history, state, epoch - 1)
        if epoch == first or np.isfinite(history["loss"][..., epoch - 1]).all():
            return state, epoch
        epoch -= 1


def _slower(state, epoch, anew, history, error):
    """A tenth of the updates for the runs that have diverged in an epoch."""
    diverged = ~np.isfinite(history["loss"][..., epoch])
    tried = diverged & (np.asarray(state.slowdown) < 1)
    if tried.any():
        slowdown = jnp.where(tried, 0.1 * state.slowdown, anew.slowdown)
        state, epoch = anew, 0
    else:
        slowdown = jnp.where(diverged, 0.1 * state.slowdown, state.slowdown)
    least = float(jnp.min(slowdown))
    if least < 0.9e-5:
        raise training.DivergenceError(
            f"{error} (rolled back five times already)"
        ) from error
    logging.getLogger(__name__).warning(
        "%s; rolled back to epoch %d, updates are now times %.0e",
        *(error, epoch, least),
    )
    return state._replace(slowdown=slowdown), epoch
