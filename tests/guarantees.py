"""Counts of false alarms and false discoveries on real tables, as Markdown.

    python -m tests.guarantees FOLDER          # npz files with X and y (1: anomaly)
    python -m tests.guarantees FOLDER --clean
    python -m tests.guarantees FOLDER --clean --cross

Half of each table (at most 3,000 rows) trains Deep SAD briefly, with its anomalies
among the unlabeled rows, but for ten of them and a tenth of the normal rows, which are
labeled. The other half (at most 3,000 rows) is new. With --clean, unlabeled anomalies
are left out of the training, and a kernel density is quick. With --cross, all rows
calibrate, in folds.
"""

import argparse
import pathlib
import warnings

import numpy as np
import scipy.stats

import deepsad_jax as sad
from deepsad_jax import decisions, estimators
from deepsad_jax.training import Adam

RATES, MOST, DISCOVERIES = (0.01, 0.05, 0.1), 3000, 0.1
STAGE = sad.Stage(Adam(1e-3), epochs=20)


def halves(truth, rng):
    """Rows to train on and new rows, with anomalies in both."""
    parts = ([], [])
    for kind in (False, True):
        rows = rng.permutation(np.flatnonzero(truth == kind))
        for part, half in zip(parts, np.array_split(rows, 2), strict=True):
            part.append(half[: max(1, int(MOST * len(rows) / len(truth)))])
    return [np.concatenate(part) for part in parts]


def counted(x, truth, seed, clean, calibration):
    """One run: calibration rows, false alarms at each rate, and discoveries."""
    rng = np.random.default_rng(seed)
    train, new = halves(truth, rng)
    y = np.zeros(len(train), int)
    anomalies, normals = (np.flatnonzero(truth[train] == k) for k in (True, False))
    y[rng.permutation(anomalies)[: min(10, len(anomalies) // 2)]] = -1
    y[rng.permutation(normals)[: len(normals) // 10]] = 1
    shared = {"random_state": seed, "calibration": calibration}
    paper = {"members": 1, "companions": ()}
    made = estimators.DeepSAD(train=STAGE, pretrain=STAGE, **paper, **shared)
    if clean:
        kept = ~truth[train] | (y == -1)
        train, y = train[kept], y[kept]
        made = estimators.KernelDensity(selection="none", **shared)
    made.fit(x[train], y)
    judged = [made.calibrated_.judge(x[new], rate) for rate in RATES]
    is_normal = ~truth[new]
    alarms = [int(one.is_anomaly[is_normal].sum()) for one in judged]
    power = float(judged[1].is_anomaly[~is_normal].mean())
    found = decisions.discoveries(judged[0].p_value, DISCOVERIES)
    false = (found & is_normal).sum() / max(1, found.sum())
    size = len(made.calibration_scores_)
    return size, int(is_normal.sum()), alarms, power, float(false), int(found.sum())


def spread(size, new, rate):
    """The deviation of a realized rate, if all rows were exchangeable and normal."""
    k = decisions.steps(size, rate)
    return scipy.stats.betabinom(new, k, size + 1 - k).std() / new if k else 0.0


def main(folder, seeds, clean, cross):
    print("| table | calibration rows | 1 % | 5 % | 10 % | found at 5 % | FDP |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    means, errors, proportions = [], [], []
    order = sorted(pathlib.Path(folder).glob("*.npz"), key=lambda p: p.stat().st_size)
    for path in order:
        content = np.load(path)
        truth = content["y"].astype(bool).ravel()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # rates too small for small tables
            options = clean, "cross" if cross else 0.2
            runs = [
                counted(content["X"], truth, seed, *options) for seed in range(seeds)
            ]
        size, new, *_ = runs[0]
        rates = np.mean([run[2] for run in runs], axis=0) / new
        errors.append([spread(size, new, rate) / np.sqrt(seeds) for rate in RATES])
        means.append(rates)
        power, false = (np.mean([run[i] for run in runs]) for i in (3, 4))
        proportions += [run[4] for run in runs]
        shown = " | ".join(f"{100 * rate:.1f}" for rate in rates)
        print(
            f"| {path.stem} | {size} | {shown} | {100 * power:.0f} | {false:.2f} |",
            flush=True,
        )
    error = np.sqrt(np.square(errors).sum(axis=0)) / len(means)
    shown = " | ".join(
        f"{100 * mean:.2f} ± {100 * e:.2f}"
        for mean, e in zip(np.mean(means, axis=0), error, strict=True)
    )
    print(f"| mean | | {shown} | | {np.mean(proportions):.3f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clean", action="store_true")
    parser.add_argument("--cross", action="store_true")
    arguments = parser.parse_args()
    main(arguments.folder, arguments.seeds, arguments.clean, arguments.cross)
