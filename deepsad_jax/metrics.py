"""How well scores tell anomalies from normal examples: scikit-learn's measures.

Scores are higher for what is more anomalous; labels are 0 normal and 1 anomaly.
"""

import math

import numpy as np


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve, in [0, 1].

    Args:
        labels: 0 or 1, `[n]`.
        scores: `[n]`, finite.

    Returns:
        The area; NaN if all labels are equal, since it is not defined then.
    """
    import sklearn.metrics

    if len(np.unique(labels)) < 2:
        return math.nan
    return float(sklearn.metrics.roc_auc_score(labels, scores))


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Average precision with anomalies as the positive class, in [0, 1].

    Args, Returns: as for `auroc`.
    """
    import sklearn.metrics

    if len(np.unique(labels)) < 2:
        return math.nan
    return float(sklearn.metrics.average_precision_score(labels, scores))
