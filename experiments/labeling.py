"""What an expert's labels are worth, by how the rows are chosen; as Markdown.

    python -m experiments.labeling FOLDER --picture=labeling.png

For each table of the folder (npz files with X and y, 1: anomaly) half of at most 2,000
rows trains Deep SAD with the companions that are its default, at first without any
label. Then it asks for ten labels, which the table gives, goes on from where it is for
some epochs, and asks again, five times. AUROC and average precision are those of the
other half.
"""

import argparse
import json
import pathlib
import sys
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
MEASURES = {
    "AUROC": metrics.roc_auc_score,
    "average precision": metrics.average_precision_score,
}


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
    """By strategy the measures over rounds `[2, rounds + 1]`, and how many anomalies
    were found in all."""
    x, others, truth, other_truth = halves(path, seed)
    rng, scaling = np.random.default_rng(seed), preprocessing.auto(x)

    def fit(targets, **options):
        data = training.training_set(x, targets)
        method = detectors.deep_sad.DeepSAD(**options, companions=COMPANIONS)
        return method.fit(jax.random.key(seed), data, preprocessing=scaling)[0]

    def measured(fitted):
        scores = model.score(fitted, others)
        return [of(other_truth, scores) for of in MEASURES.values()]

    start = fit(np.zeros(len(x), int), train=FIRST, pretrain=FIRST)
    found = {}
    for strategy in strategies:
        fitted, targets = start, np.zeros(len(x), int)
        line = [measured(start)]
        for _ in range(ROUNDS):
            rows = chosen(strategy, fitted, x, targets != 0, rng)
            targets[rows] = 1 - 2 * truth[rows]
            fitted = fit(targets, train=NEXT, initial=fitted)
            line.append(measured(fitted))
        found[strategy] = np.transpose(line), int((targets == -1).sum())
    return found


def labels_for(line, goal):
    """After how many labels a mean is reached for the first time; infinite if never."""
    above = np.flatnonzero(np.array(line) >= goal)
    if not len(above):
        return np.inf
    last = int(above[0])
    if not last:
        return 0.0
    step = (goal - line[last - 1]) / (line[last] - line[last - 1])
    return NUMBER * (last - 1 + step)


def draw(path, means, title):
    """Mean measures over labels, a line for each strategy."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for i, (axis, measure) in enumerate(zip(axes, MEASURES, strict=True)):
        for name, lines in means.items():
            style = {"color": "gray", "linestyle": "--"} if name == "random" else {}
            style |= {"linewidth": 2.5} if name == suggestions.STRATEGIES[0] else {}
            x = NUMBER * np.arange(ROUNDS + 1)
            axis.plot(x, 100 * lines[i], marker="o", label=name, **style)
        axis.set(xlabel="labels", ylabel=f"mean {measure} of new rows, percent")
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def summarize(means):
    """Lines: mean measures over labels, and after how many random's last is reached."""
    for i, measure in enumerate(MEASURES):
        labels = " | ".join(str(NUMBER * r) for r in range(ROUNDS + 1))
        yield f"\n| mean {measure}, after labels | {labels} | as random's last after |"
        yield "| --- |" + " ---: |" * (ROUNDS + 2)
        goal = means["random"][i][-1]
        for strategy, lines in means.items():
            cells = " | ".join(f"{100 * value:.1f}" for value in lines[i])
            count = labels_for(lines[i], goal)
            said = f"{count:.0f}" if np.isfinite(count) else "never"
            yield f"| {strategy} | {cells} | {said} |"


def main(folder, strategies, seeds, picture, out):
    """Prints the tables, and draws the picture."""
    paths = sorted(pathlib.Path(folder).glob("*.npz"))
    if not paths:
        sys.exit(f"{folder} has no .npz file")
    lines = {strategy: [] for strategy in strategies}
    print("| table | unlabeled | " + " | ".join(strategies) + " |")
    print("| --- | --- |" + " --- |" * len(strategies), flush=True)
    for path in paths:
        runs = [_kept(out, path, strategies, seed) for seed in range(seeds)]
        cells = []
        for strategy in strategies:
            mean = np.mean([run[strategy][0] for run in runs], axis=0)
            anomalies = np.mean([run[strategy][1] for run in runs])
            lines[strategy].append(mean)
            cells.append(f"{100 * mean[0][-1]:.1f} ({anomalies:.0f})")
        first = 100 * lines[strategies[0]][-1][0][0]
        print(f"| {path.stem} | {first:.1f} | " + " | ".join(cells) + " |", flush=True)
    means = {strategy: np.mean(found, axis=0) for strategy, found in lines.items()}
    print(*summarize(means), sep="\n")
    if picture:
        which = "seed 0" if seeds == 1 else f"seeds 0 to {seeds - 1}"
        draw(picture, means, f"{len(paths)} tables, {which}")


def _kept(out, path, strategies, seed):
    """`curves`, of a file if they are there already."""
    place = pathlib.Path(out, f"{path.stem}-{seed}.json")
    found = json.loads(place.read_text()) if place.exists() else {}
    missing = [strategy for strategy in strategies if strategy not in found]
    if missing:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            new = curves(path, missing, seed)
        found |= {name: (line.tolist(), count) for name, (line, count) in new.items()}
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(found))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--picture")
    parser.add_argument(
        "--out", default="runs/labeling", help="keeps what a version has run"
    )
    parser.add_argument("--strategies", default=",".join(suggestions.STRATEGIES))
    given = parser.parse_args()
    names = (*given.strategies.split(","), "random")
    main(given.folder, names, given.seeds, given.picture, given.out)
