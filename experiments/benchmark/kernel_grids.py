"""Grids of the kernel baselines, against the solvers that people would call."""

import time

import numpy as np

from deepsad_jax import kernels
from deepsad_jax.detectors import kde, kernel_machines
from experiments.benchmark import subjects


def kernel_grids(
    x: np.ndarray, semi_targets: np.ndarray, *, most_cvxopt=0, against_others=False
) -> list[dict]:
    """Whole grids of SSAD, one-class SVM and density estimates on one set of images."""
    size = len(x)
    kernel = kernels.Kernel

    def ours_ssad():
        gram = kernels.gram(kernel(), x)
        models = [
            kernel_machines.fit_ssad(x, semi_targets, kernel=kernel(gamma), gram=gram)
            for gamma in kernel_machines.GAMMAS
        ]
        return [np.asarray(model.objective) for model in models]

    def ours_ocsvm():
        gram = kernels.gram(kernel(), x)
        models = [
            kernel_machines.fit_ocsvm(x, kernel=kernel(g), gram=gram)
            for g in kernel_machines.GAMMAS
        ]
        return [np.asarray(model.threshold) for model in models]

    def ours_kde():
        return np.asarray(kde.cross_validate(x, kde.BANDWIDTHS))

    rows = []
    for name, function in {
        "ssad": ours_ssad,
        "ocsvm": ours_ocsvm,
        "kde": ours_kde,
    }.items():
        found = function()
        seconds = subjects.in_turn({"": function}, 3)[""]
        row = {"method": name, "examples": size, "seconds": seconds}
        if against_others:
            row |= _opponent(name, x, semi_targets, found, most_cvxopt)
            row["ratio"] = row["opponent_seconds"] / seconds
        rows.append(row)
    return rows


def _opponent(name, x, semi_targets, found, most_cvxopt) -> dict:
    """An opponent's time, and by how much its values are off ours, relatively."""
    from experiments.benchmark import kernel_opponents

    scale = 1.0
    start = time.perf_counter()
    if name == "ssad":
        few = np.arange(len(x))
        if len(x) > most_cvxopt:
            few = np.random.default_rng(0).permutation(len(x))[:most_cvxopt]
            scale = (len(x) / len(few)) ** 3
        values = kernel_opponents.ssad(
            x[few], semi_targets[few], kernel_machines.GAMMAS
        )
    elif name == "ocsvm":
        values = kernel_opponents.ocsvm(x, kernel_machines.GAMMAS)
    else:
        values = kernel_opponents.kde(x, kde.BANDWIDTHS)
    seconds = (time.perf_counter() - start) * scale
    row = {"opponent_seconds": seconds, "extrapolated": scale > 1}
    if scale == 1:
        row["difference"] = float(np.max(np.abs(np.divide(values, found) - 1)))
    return row


def synthetic(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows like those of `zeros`, which need no files: few causes, many pixels."""
    rng = np.random.default_rng(0)
    causes = rng.normal(size=(size, 16)) @ rng.normal(size=(16, 784))
    semi_targets = np.where(np.arange(size) % 100, 0, -1)
    return (1 / (1 + np.exp(-causes))).astype(np.float32), semi_targets


def zeros(data_dir: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """MNIST's zeros, up to a size, one in a hundred a labeled one; rows in [0, 1]."""
    from deepsad_jax.data import protocol, sources

    source = sources.load("mnist", data_dir)
    drawn = protocol.Protocol(ratio_known_outlier=0.01)
    problem = protocol.make(source, drawn, 0)
    x = problem.x_train[problem.indices].reshape(len(problem.indices), -1) / 255.0
    chosen = np.random.default_rng(0).permutation(len(x))[:size]
    return x[chosen].astype(np.float32), problem.semi_targets[chosen]
