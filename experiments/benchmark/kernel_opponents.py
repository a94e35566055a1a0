"""The opponents of the kernel benchmarks: the solvers that people would call.

Kernel SSAD by cvxopt's interior point (extra `cvxopt`), one-class SVM and density
estimates by scikit-learn, each over a whole grid of gammas or bandwidths.
"""

import numpy as np
import sklearn.metrics.pairwise
import sklearn.model_selection
import sklearn.neighbors
import sklearn.svm


def ssad(x: np.ndarray, semi_targets: np.ndarray, gammas: np.ndarray) -> list[float]:
    """Values of the dual for each gamma, all bounds and kappa 1.

    The dual as a dense quadratic programme in alpha, at cvxopt's default tolerances.
    """
    import cvxopt

    cvxopt.solvers.options["show_progress"] = False
    n = len(x)
    y = np.where(semi_targets < 0, -1.0, 1.0)
    labeled = (semi_targets != 0).astype(float)
    bounds = [-np.eye(n), np.eye(n), *([-labeled[None]] if labeled.any() else [])]
    limits = [np.zeros(n), np.ones(n), *([[-1.0]] if labeled.any() else [])]
    inequalities = cvxopt.matrix(np.concatenate(bounds))
    limits = cvxopt.matrix(np.concatenate(limits))
    values = []
    for gamma in gammas:
        matrix = sklearn.metrics.pairwise.rbf_kernel(x.astype(np.float64), gamma=gamma)
        solution = cvxopt.solvers.qp(
            cvxopt.matrix(matrix * np.outer(y, y)),
            cvxopt.matrix(np.zeros(n)),
            inequalities,
            limits,
            cvxopt.matrix(y[None]),
            cvxopt.matrix(1.0),
        )
        values.append(solution["primal objective"])
    return values


def ocsvm(x: np.ndarray, gammas: np.ndarray, nu: float = 0.1) -> list[float]:
    """Offsets of the machines for each gamma, by libsvm at its default tolerance."""
    machines = (sklearn.svm.OneClassSVM(gamma=gamma, nu=nu).fit(x) for gamma in gammas)
    return [machine.offset_[0] for machine in machines]


def kde(x: np.ndarray, bandwidths: np.ndarray) -> np.ndarray:
    """Cross-validated log-likelihood of each bandwidth, by a grid search of 5 folds."""
    search = sklearn.model_selection.GridSearchCV(
        sklearn.neighbors.KernelDensity(), {"bandwidth": bandwidths}, cv=5, refit=False
    )
    return search.fit(x).cv_results_["mean_test_score"]
