"""What an expert's labels are worth, by how the rows are chosen; as Markdown.

    python -m experiments.labeling FOLDER --picture=labeling.png

For each table of the folder (npz files with X and y, 1: anomaly) half of at most 2,000
rows trains Deep SAD with the companions that are its default, at first without any
label. Then it asks for ten labels, which the table gives, goes on from where it is for
some epochs, and asks again, five times. The AUROC is that of the other half.
"""

import argparse
import json
import pathlib
import warnings

import jax
import numpy as np
from sklearn import metrics, model_selection

from deepsad_jax import (
    detectors,
    estimators,
    model,
    preprocessing,
    suggestions,
    training,
)

ROUNDS, NUMBER, MOST = 5, 10, 2000
FEWEST = 20  # anomalies, if a table has them
FIRST = training.Stage(training.Adam(1e-3), epochs=20, batch_size=64)
NEXT = training.Stage(training.Adam(1e-3), epochs=10, batch_size=64)
COMPANIONS = estimators.DeepSAD().companions
RATE = 0.05  # the share of rows above the threshold


def halves(path, seed):
    """Rows to train on and others, with their labels, 1 anomaly."""
    content = np.load(path)
    x, y = content["X"].astype(np.float64), content["y"].ravel().astype(int)
    if len(x) > MOST:
        rows, rest = model_selection.train_test_split(
            np.arange(len(x)), train_size=MOST, stratify=y, random_state=seed
        )
        if y[rows].sum() < FEWEST:
            rows = np.union1d(rows, rest[y[rest] == 1][: FEWEST - y[rows].sum()])
        x, y = x[rows], y[rows]
    return model_selection.train_test_split(
        x, y, test_size=0.5, stratify=y, random_state=seed
    )


def chosen(strategy, fitted, x, known, rng):
    """The rows that are asked about next."""
    if strategy == "random":
        return rng.permutation(np.flatnonzero(~known))[:NUMBER]
    scores = model.score(fitted, x)
    return suggestions.suggest(
        scores,
        float(np.quantile(scores, 1 - RATE)),
        model.embed(fitted, x),
        number=NUMBER,
        strategy=strategy,
        labeled=known,
    )


def curves(path, strategies, seed):
    """AUROC over rounds by strategy, and how many anomalies were found in all."""
    x, others, truth, other_truth = halves(path, seed)
    rng, scaling = np.random.default_rng(seed), preprocessing.auto(x)

    def fit(targets, **options):
        data = training.training_set(x, targets)
        method = detectors.deep_sad.DeepSAD(**options, companions=COMPANIONS)
        return method.fit(jax.random.key(seed), data, preprocessing=scaling)[0]

    def auroc(fitted):
        return float(metrics.roc_auc_score(other_truth, model.score(fitted, others)))

    start = fit(np.zeros(len(x), int), train=FIRST, pretrain=FIRST)
    found = {}
    for strategy in strategies:
        fitted, targets = start, np.zeros(len(x), int)
        line = [auroc(start)]
        for _ in range(ROUNDS):
            rows = chosen(strategy, fitted, x, targets != 0, rng)
            targets[rows] = 1 - 2 * truth[rows]
            fitted = fit(targets, train=NEXT, initial=fitted)
            line.append(auroc(fitted))
        found[strategy] = line, int((targets == -1).sum())
    return found


def labels_for(line, goal):
    """After how many labels a mean AUROC is reached; infinite if never."""
    above = np.flatnonzero(np.array(line) >= goal)
    if not len(above):
        return np.inf
    last = int(above[0])
    if not last:
        return 0.0
    step = (goal - line[last - 1]) / (line[last] - line[last - 1])
    return NUMBER * (last - 1 + step)


def draw(path, means, title):
    """The mean AUROC over labels, a line for each strategy."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4), layout="constrained")
    for name, line in means.items():
        style = {"color": "gray", "linestyle": "--"} if name == "random" else {}
        style |= {"linewidth": 2.5} if name == suggestions.STRATEGIES[0] else {}
        axes.plot(NUMBER * np.arange(ROUNDS + 1), line, marker="o", label=name, **style)
    axes.set(xlabel="labels", ylabel="mean AUROC of new rows", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def main(folder, strategies, seeds, picture, tables):
    """Prints the table, and draws the picture."""
    paths = sorted(pathlib.Path(folder).glob("*.npz"))[tables]
    lines = {strategy: [] for strategy in strategies}
    print("| table | unlabeled | " + " | ".join(strategies) + " |")
    print("| --- | --- |" + " --- |" * len(strategies), flush=True)
    for path in paths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runs = [curves(path, strategies, seed) for seed in range(seeds)]
        cells = []
        for strategy in strategies:
            mean = np.mean([run[strategy][0] for run in runs], axis=0)
            anomalies = np.mean([run[strategy][1] for run in runs])
            lines[strategy].append(mean)
            cells.append(f"{100 * mean[-1]:.1f} ({anomalies:.0f})")
        first = 100 * lines[strategies[0]][-1][0]
        print(f"| {path.stem} | {first:.1f} | " + " | ".join(cells) + " |", flush=True)
    means = {s: np.mean(found, axis=0).tolist() for s, found in lines.items()}
    print(f"\n{json.dumps(means)}\n")
    goal = means["random"][-1]
    for strategy, line in means.items():
        print(
            f"{strategy}: random's last AUROC after {labels_for(line, goal):.0f} labels"
        )
    if picture:
        draw(picture, means, f"{len(paths)} tables, {seeds} seeds")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--picture")
    parser.add_argument("--strategies", default=",".join(suggestions.STRATEGIES))
    parser.add_argument("--half", choices=["", "even", "odd"], default="")
    given = parser.parse_args()
    which = {"": slice(None), "even": slice(0, None, 2), "odd": slice(1, None, 2)}
    names = (*given.strategies.split(","), "random")
    main(given.folder, names, given.seeds, given.picture, which[given.half])
