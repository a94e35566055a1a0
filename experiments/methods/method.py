"""What a method is, and what it has found: all that runs, sweeps and reports know."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from deepsad_jax import checkpoints
from deepsad_jax.data import scenario


class Outcome(NamedTuple):
    """What a method has found on one problem.

    Attributes:
        scores: anomaly scores of the test set, `[n_test]`, higher = more anomalous.
        reference_scores: scores of by-products, such as "ae", the autoencoder.
        seconds: times of the stages, "train" among them.
        history: for each stage, metrics per epoch.
        model: what can be saved, if anything.
        network: the network, by name or description, if there is one.
        details: what else results.json should tell.
        tested: which test examples count in the figures, `[n_test]` bool; None if all.
    """

    scores: np.ndarray
    reference_scores: dict[str, np.ndarray]
    seconds: dict[str, float]
    history: dict[str, dict[str, np.ndarray]]
    model: Any
    network: Any
    details: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    tested: np.ndarray | None = None


class Method(NamedTuple):
    """A way to detect anomalies.

    Attributes:
        run: takes problems, as many configs, what to call after some epochs (as
            `deep_sad.fit` has it) or None, and a `checkpoints.Keeper` for each that is
            trained by itself or None; yields an outcome for each. The configs differ in
            the seed and in `data` alone, the data in what is drawn.
        check: takes a problem and a config; raises ValueError for what of the config
            does not fit the data, before anything is trained or written.
        stages: the stages that a run goes through, in their order, with their epochs.
    """

    run: Callable[
        [
            Sequence[scenario.Scenario],
            Sequence[ml_collections.ConfigDict],
            Callable | None,
            Sequence[checkpoints.Keeper] | None,
        ],
        Iterator[Outcome],
    ]
    check: Callable[[scenario.Scenario, ml_collections.ConfigDict], None]
    stages: Callable[[ml_collections.ConfigDict], dict[str, int]]
