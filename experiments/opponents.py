"""Opponents that are not detectors of ours: supervised, on the same splits."""

import warnings

import numpy as np

from deepsad_jax.data import protocol

NAMES = ("boosting",)


def scores(name: str, problem: protocol.Problem, seed: int) -> np.ndarray:
    """Scores of the test part, higher = more anomalous.

    Args:
        name: boosting, scikit-learn's histogram gradient boosting with its defaults, of
            known anomalies against all other training examples.
        problem: the data.
        seed: its random state.

    Raises:
        ValueError: for another name.
    """
    if name != "boosting":
        raise ValueError(f"opponent is {name!r}; it must be {', '.join(NAMES)}")
    from sklearn import ensemble

    machine = ensemble.HistGradientBoostingClassifier(random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        machine.fit(problem.x_train[problem.indices], problem.semi_targets == -1)
    return machine.predict_proba(problem.x_test)[:, 1]
