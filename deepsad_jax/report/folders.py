"""From a folder to its page: a run, a sweep, a comparison, or a model.

    deepsad report runs/cardio                # writes runs/cardio/report.html

Folders are told by the files in them. What one does not hold, its page does not show.
"""

import json
import os
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deepsad_jax import writing
from deepsad_jax.report import cautions, examples, fits, many

NAME = "report.html"
EXAMPLES = "examples.npz"
REFERENCES = {
    "ae": "autoencoder",
    "vae": "VAE",
    "linear": "linear kernel",
    "untrained": "untrained network",
}
_SWEEP = (("AUROC", "auroc"), ("average precision", "average_precision"))


def report(folder: str, options: Any) -> None:
    """The command `deepsad report`: writes the page of a folder.

    Args:
        folder: of a run, a sweep, a comparison or a model.
        options: the flags of the command, see `cli`.

    Raises:
        ValueError: if the folder is none of these, or damaged.
        OSError: if the page exists, or cannot be written.
    """
    path = pathlib.Path(options.output or os.path.join(folder, NAME))
    writing.check_new(path)
    text = page_of(pathlib.Path(folder), path.absolute().parent)
    put(path, text, replace=False)
    print(f"written to {path}")


def write(folder: str | os.PathLike, **more: Any) -> None:
    """Writes `report.html` into a folder that a command has just filled, anew.

    Args:
        folder: of a run, a sweep or a comparison.
        more: as of `page_of`.

    Raises:
        ValueError, OSError: as `report`.
    """
    folder = pathlib.Path(folder)
    put(folder / NAME, page_of(folder, **more))


def put(path: pathlib.Path, text: str, replace: bool = True) -> None:
    """Writes a page, whole or not at all."""
    with writing.atomic(path, replace=replace) as file:
        file.write(text.encode())


def page_of(
    folder: pathlib.Path,
    base: pathlib.Path | None = None,
    reasons: Mapping[int, Sequence[examples.Reason]] | None = None,
) -> str:
    """The page of a folder.

    Args:
        folder: of a run, a sweep, a comparison or a model.
        base: the folder that the page will be in, for links.
        reasons: of a run, what explains the score of test examples, by their place.

    Raises:
        ValueError: if the folder is none of these, or damaged.
    """
    try:
        if (folder / "comparison.json").exists():
            return many.written(_comparison(folder, base or folder))
        if (folder / "summary.json").exists():
            return many.written(_sweep(folder, base or folder))
        if (folder / "results.json").exists():
            return fits.written(_run(folder, reasons))
    except KeyError as error:
        raise ValueError(f"{folder} is damaged: it has no {error}") from error
    if (folder / "_CHECKPOINT_METADATA").exists():
        from deepsad_jax.report import models

        return fits.written(models.known(folder))
    raise ValueError(
        f"{folder} holds no finished run, sweep or comparison (results.json, "
        "summary.json or comparison.json) and no model"
    )


def _json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _run(folder, reasons) -> fits.Fit:
    results = _json(folder / "results.json")
    arrays = _arrays(folder / "scores.npz")
    tested = arrays.get("tested", np.ones(len(arrays["score"]), bool))
    scores, labels = arrays["score"], arrays["label"]
    references = {
        REFERENCES.get(name, name): arrays[key][tested]
        for key in arrays
        if (name := key.removeprefix("reference_")) != key
    }
    looks = [("normal", "normal"), ("anomalous", "anomaly")]
    shown = examples.shown(
        groups(scores, labels, tested),
        examples.load(folder / EXAMPLES),
        scores,
        [looks[int(label)] for label in labels],
        arrays["index"],
        reasons,
    )
    made = fits.Fit(
        title=_head(results),
        method=results["method"],
        sentences=_sentences(results),
        cautions=[],
        scores=scores[tested],
        labels=labels[tested],
        history=_history(folder / "metrics.jsonl"),
        figures=_times(results),
        references=references,
        examples=shown,
        details=_details(results, folder),
    )
    return made._replace(cautions=_doubts(results, made))


def groups(
    scores: np.ndarray, labels: np.ndarray, tested: np.ndarray
) -> dict[str, np.ndarray]:
    """The examples that the page of a run shows, as places in the test set, by title.

    Args:
        scores, labels: of the test set, `[n]`; 1 is an anomaly.
        tested: which count, `[n]` bool.
    """
    threshold = fits.usual_threshold(scores[tested], labels[tested])
    places = np.flatnonzero(tested)
    picked = examples.picked(scores[tested], threshold)
    return {title: places[group] for title, group in picked.items()}


def _doubts(results, made) -> list[str]:
    known = results.get("n_known_outlier") if results.get("trained") else None
    said = cautions.of_numbers(made.method, known, made.labels)
    if area := fits.auroc(made):
        said += cautions.of_figures(*area[:2], results.get("untrained_auroc"))
    return [*said, *cautions.of_drift(results.get("drift") or ())]


def _arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as found:
            arrays = dict(found)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not {"index", "label", "score"} <= arrays.keys() or not len(arrays["score"]):
        raise ValueError(f"{path} is damaged: it holds no scores of labeled examples")
    return arrays


def _history(path: pathlib.Path) -> dict[str, dict[str, np.ndarray]]:
    """The metrics of each epoch, by stage; nothing without a file."""
    stages: dict[str, dict[str, list[float]]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            values = json.loads(line)
            stage = stages.setdefault(values.pop("stage"), {})
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        for name, value in values.items():
            stage.setdefault(name, []).append(np.nan if value is None else value)
    return {
        s: {n: np.array(v) for n, v in found.items()} for s, found in stages.items()
    }


def _head(results) -> str:
    return f"{results['method']} on {_stem(results['data'])}, seed {results['seed']}"


def _sentences(results) -> list[str]:
    data, seed = results["data"], results["seed"]
    network = f", network {results['network']}" if results.get("network") else ""
    said = []
    if "n_train" in results:
        known = results["n_known_normal"], results["n_known_outlier"]
        count = results["n_train"]
        if results.get("trained", True):
            said.append(
                f"{results['method']} was trained on {count} examples of {data}"
                f"{network}: {known[0]} known normal, {known[1]} known anomalous, "
                f"{count - sum(known)} unlabeled. Its seed is {seed}."
            )
        else:
            said.append(f"{results['method']} was only evaluated, on {data}{network}.")
        said.append(f"The label is {results['label']}.")
        said.append(
            f"It was tested on {results['n_test']} examples, "
            f"{results['n_test_outlier']} of them anomalous. The higher a score, the "
            "more anomalous the example."
        )
    else:
        said.append(f"{results['method']} on {data}, seed {seed}.")
    return said + [
        f"{note[:1].upper()}{note[1:]}." for note in results.get("notes", ())
    ]


def _times(results) -> list[tuple[str, str, str]]:
    names = (("ae_train_seconds", "pretraining"), ("train_seconds", "training"))
    parts = {label: results[n] for n, label in names if results.get(n) is not None}
    said = ", ".join(f"{label} {seconds:.1f} s" for label, seconds in parts.items())
    return [("Time", f"{sum(parts.values()):.1f} s", said)] if parts else []


def _details(results, folder) -> list[tuple[str, str]]:
    found = {name: results.get(name) for name in ("device", "versions", "selection")}
    if (folder / "config.json").exists():
        found = {**_json(folder / "config.json"), **found}
    return many.described(found)


def _stem(name: str) -> str:
    return pathlib.PurePath(name).stem if "/" in name else name


def _sweep(folder, base) -> many.Many:
    rows, config = _json(folder / "summary.json"), {}
    if (folder / "config.json").exists():
        config = _json(folder / "config.json")
    results, unfinished = many.finished(folder)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    own = [row for row in rows if "-all-" not in row["setting"]]  # the mean of others
    means, stds = (
        [None if row.get(name) is None else 100 * row[name] for row in rows]
        for name in ("auroc_mean", "auroc_std")
    )
    pictures = many.bars(means, stds)
    lines = []
    for row, picture in zip(rows, pictures, strict=True):
        line = [many.Cell(row["method"]), many.Cell(row["setting"])]
        line += [many.number(row["runs"], "d")]
        for _, key in _SWEEP:
            mean, std = (row.get(f"{key}_{part}") for part in ("mean", "std"))
            known = mean is not None
            line.append(many.spread(100 * mean, 100 * std) if known else many.Cell(""))
        lines.append([*line, picture])
    columns = ["method", "setting", "runs"]
    columns += [*(f"{label}, %" for label, _ in _SWEEP), "AUROC"]
    data = _stem(str(config.get("data", {}).get("name", "")))
    ranks = many.ranks_of(
        "Average ranks by AUROC",
        (
            (row["method"], row["setting"], row["auroc_mean"])
            for row in own
            if row.get("auroc_mean") is not None
        ),
    )
    return many.Many(
        title=f"Sweep of {', '.join(methods)}" + f" on {data}" * bool(data),
        sentences=[
            f"{sum(row['runs'] for row in own)} runs over {len(settings)} settings of "
            "the data. AUROC is how often an anomaly has a higher score than a normal "
            "example."
        ],
        cautions=many.cautions(results, unfinished, min(row["runs"] for row in rows)),
        tables=[
            *ranks,
            many.Table(
                *("Means over the runs", columns, lines),
                "Mean ± standard deviation over the runs, not of their mean.",
            ),
            many.runs(base, folder, results),
        ],
        details=many.described(config),
    )


def _comparison(folder, base) -> many.Many:
    about = _json(folder / "comparison.json")
    rows, summary = about.pop("cells"), about.pop("summary", [])
    results, unfinished = many.finished(folder)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    data = list(dict.fromkeys(row["data"] for row in rows))
    compared = [row["within"] for row in rows if row["within"] is not None]
    published = [row for row in rows if row["published_mean"] is not None]
    cells = ((r["method"], f"{r['data']} {r['setting']}", r["mean"]) for r in rows)
    ranks = [_ranked(one) for one in summary if one["average_ranks"]]
    if not summary:  # which is by table, and by metric
        ranks = many.ranks_of("Average ranks by AUROC", cells)
    first = rows[0]["setting"].get("metric")
    runs = sum(r["runs"] for r in rows if r["setting"].get("metric") == first)
    sentences = [
        f"{', '.join(methods)} on {', '.join(data)}: {len(rows)} cells of {runs} runs, "
        f"{len(published)} of them beside a published figure."
    ]
    if compared:
        sentences.append(
            f"{sum(compared)} of {len(compared)} that can be tested are within the "
            "spread of the published ones (Welch's test at 5 %)."
        )
    return many.Many(
        title=f"Comparison with published figures: {about.get('table', 'ADBench')}",
        sentences=sentences,
        cautions=many.cautions(results, unfinished, min(row["runs"] for row in rows)),
        tables=[*ranks, _cells(rows), many.runs(base, folder, results)],
        details=many.described(about),
    )


def _ranked(one) -> many.Table:
    """What `experiments.adbench` says of a metric and a share of labels."""
    name = {"auroc": "AUROC", "average_precision": "average precision"}[one["metric"]]
    share, tables = f"{one['percent']} % labeled", f"over {one['tables']} tables"
    return many.ranked(
        f"Average ranks by {name}, {share}, {tables}",
        one["average_ranks"],
        one["critical_difference"],
        {
            "mean, %": one["means"],
            "p against deep_sad (Wilcoxon)": one["p_value_against_deep_sad"],
        },
    )


def _cells(rows) -> many.Table:
    pictures = many.bars([r["mean"] for r in rows], [r["std"] for r in rows])
    lines = []
    for row, picture in zip(rows, pictures, strict=True):
        verdict = {True: "within", False: "differs", None: ""}[row["within"]]
        lines.append(
            [
                *map(many.Cell, (row["data"], row["method"])),
                many.Cell("" if not row["setting"] else many.plain(row["setting"])),
                many.number(row["runs"], "d"),
                many.spread(row["mean"], row["std"]),
                many.spread(row["published_mean"], row["published_std"]),
                many.number(row["difference"], "+.1f"),
                many.number(row["p_value"], ".2g"),
                *map(many.Cell, (verdict, row["note"])),
                picture,
            ]
        )
    columns = ["data", "method", "setting", "runs", "ours, %", "published, %"]
    columns += ["difference", "p", "verdict", "note", "ours"]
    note = (
        "Mean ± standard deviation over the runs; p is of Welch's test of both means."
    )
    return many.Table("Ours beside the published", columns, lines, note)
