"""Checkpoints of runs in their working directories, and what SIGTERM does meanwhile."""

import contextlib
import os
import pathlib
import signal
import threading
from collections.abc import Iterator, Sequence

import jax
import ml_collections

from deepsad_jax import checkpoints, training


@contextlib.contextmanager
def keepers(
    configs: Sequence[ml_collections.ConfigDict],
    folders: Sequence[pathlib.Path],
    target: pathlib.Path,
) -> Iterator[list[checkpoints.Keeper] | None]:
    """The keepers of runs, as `config.checkpoint` says; SIGTERM has one save and stop.

    None where several processes train together.

    Args:
        configs: of the runs.
        folders: of the same runs.
        target: the working directory of the command.

    Raises:
        checkpoints.Interrupted: after SIGTERM while one is training.
        OSError: if a checkpoint cannot be written.
        training.TrainingError: as inside, with the last good checkpoint.
    """
    if jax.process_count() > 1:
        yield None
        return
    kept = [
        checkpoints.Keeper(folder / "checkpoints", **config.checkpoint)
        for config, folder in zip(configs, folders, strict=True)
    ]
    try:
        with contextlib.ExitStack() as stack, _on_sigterm(kept):
            for keeper in kept:
                stack.callback(keeper.close)
            yield kept
    except checkpoints.Interrupted as error:
        raise checkpoints.Interrupted(
            f"{error}; go on by the same command with --workdir={target}"
        ) from error
    except training.TrainingError as error:
        for keeper in kept:
            if keeper.is_training and (newest := keeper.newest()):
                message = f"{error}; the last good checkpoint is {newest}"
                raise training.TrainingError(message) from error
        raise


@contextlib.contextmanager
def _on_sigterm(kept: list[checkpoints.Keeper]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return

    def handle(number, frame):
        if training_now := [keeper for keeper in kept if keeper.is_training]:
            for keeper in training_now:
                keeper.stop()
        else:  # there is nothing to save
            signal.signal(signal.SIGTERM, before)
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
