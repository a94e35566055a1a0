"""Deletion curves: how fast scores fall as columns become usual, as Markdown.

    python -m tests.deletion FOLDER          # npz files with X and y (1: anomaly)

Deep SAD is trained on half of a table (at most 2,000 rows) with ten labeled anomalies.
Of the anomalies of the other half (those whose score is above that of 95 % of normal
rows), columns are exchanged for those of normal rows, one
by one, those of the highest attributions first. The area under the score along the way,
from 1 at the row to 0 at the normal ones, is small where the order is good.
"""

import argparse
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import model_selection

import deepsad_jax as sad
from deepsad_jax import attributions, estimators, explanations, forward

STAGE = sad.Stage(sad.training.Adam(1e-3), epochs=20, batch_size=64)


def area(score, x, references, order):
    """The area below the mean score of all rows, a half for a straight line.

    Args:
        score: of prepared rows.
        x: prepared rows, `[n, columns]`.
        references: prepared rows by which columns are exchanged; their mean counts.
        order: for each row its columns, the first to be exchanged first.
    """
    ranks = np.argsort(order, axis=1)
    steps = np.arange(x.shape[1] + 1)[:, None]
    total = 0.0
    for row, rank in zip(x, ranks, strict=True):
        mixed = np.where(rank < steps, references[:, None], row)
        along = score(mixed.reshape(-1, x.shape[1])).reshape(len(references), -1)
        total = total + along.mean(axis=0)
    fallen = (total - total[-1]) / (total[0] - total[-1])
    return float(np.trapezoid(fallen) / x.shape[1])


def areas(x, y, seed=0, most=100):
    """The areas of a table, for each kind of attribution."""
    train, new, truth, new_truth = model_selection.train_test_split(
        x, y, train_size=min(len(x) // 2, 2000), stratify=y, random_state=seed
    )
    targets = np.zeros(len(train), int)
    targets[np.flatnonzero(truth)[:10]] = -1
    options = {"random_state": seed, "members": 1, "companions": ()}
    made = estimators.DeepSAD(train=STAGE, pretrain=STAGE, **options)
    made.fit(train, targets)
    model, kept = made.model_, made.calibrated_.examples
    new, normal = (
        explanations.prepared(model.preprocessing, part)
        for part in (new[new_truth == 1], kept.x[kept.normal])
    )
    score = functools.partial(
        forward.evaluate, model.objective, "score", model.variables
    )
    new = new[score(new) > np.quantile(score(normal), 0.95)][:most]
    references, judges = normal[:8], normal[8:24]
    rng, parts = np.random.default_rng(seed), (np.arange(new.shape[1]), new.shape[1])
    own = model.objective, model.variables
    found = {
        "integrated gradients": attributions.integrated_gradients(
            *own, new, references, *parts
        ).values,
        "permutations": attributions.permutations(
            score, new, references, *parts
        ).values,
        "gradient times input": new
        * jax.grad(lambda z: jnp.sum(model.objective.score(model.variables, z)))(new),
        "random": rng.random(new.shape),
    }
    orders = {name: np.argsort(-np.asarray(v), axis=1) for name, v in found.items()}
    return {name: area(score, new, judges, o) for name, o in orders.items()}


def main(folder):
    """Prints a line for each table."""
    lines = []
    for path in sorted(pathlib.Path(folder).glob("*.npz")):
        content = np.load(path)
        if content["X"].shape[1] > 100:
            continue  # as many as a person looks at
        found = areas(content["X"], content["y"].ravel().astype(int), most=50)
        if not lines:
            print("| table | " + " | ".join(found) + " |")
            print("| --- |" + " --- |" * len(found), flush=True)
        lines.append(list(found.values()))
        shown = " | ".join(f"{value:.2f}" for value in lines[-1])
        print(f"| {path.stem} | {shown} |", flush=True)
    print("| mean | " + " | ".join(f"{v:.2f}" for v in np.mean(lines, axis=0)) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    main(parser.parse_args().folder)
