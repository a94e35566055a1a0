"""The commands `deepsad score` and `deepsad evaluate`: a model, and rows of a file."""

import contextlib
import itertools
import sys
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from deepsad_jax import calibrated, console, evaluation, fitting, new_rows, writing


def score(folder: str, source: str, options: Any) -> None:
    """Scores a file and writes its columns with some more.

    Args:
        folder: where the model is.
        source: the file, or a folder of images.
        options: the flags of the command, see `cli`.

    Raises:
        ValueError: for what is wrong with the model, the file or a flag.
        OSError: if the output cannot be written.
    """
    made, rate = calibrated.load(folder), options.false_alarm_rate
    total = alarms = 0
    with contextlib.ExitStack() as stack:
        given = stack.enter_context(new_rows.opened(source, made, options))
        blocks = given.blocks()
        first = list(itertools.islice(blocks, 1))  # what is wrong at once is said first
        if not first:
            console.say(f"warning: {given.where} has no rows")
        file = stack.enter_context(_output(options.output))
        sink = stack.enter_context(given.sink(file, options.output))
        is_seen = options.output == "-" and sys.stdout.isatty()
        bar = console.bar(given.total, "score", "row", disable=is_seen)
        stack.enter_context(bar)
        for block in itertools.chain(first, blocks):
            found = given.judged(block, rate)
            sink(block, found)
            total, alarms = total + len(block.x), alarms + int(found.is_anomaly.sum())
            bar.update(len(block.x))
        bar.total = total
    given.warn()
    rate = rate or made.false_alarm_rate
    said = f"{total} rows, {alarms} of them alarms at a false alarm rate of {rate:g}"
    if options.output == "-":
        console.say(said)
    else:
        print(f"{said}\nwritten to {options.output}")


def evaluate(folder: str, source: str, options: Any) -> None:
    """Says how well a model tells the labeled rows of a file.

    Args:
        folder, source, options: as of `score`.

    Raises:
        ValueError: as `score`, or if no row is labeled.
    """
    made, rate = calibrated.load(folder), options.false_alarm_rate
    known = set(made.details.get("command", {}).get("known", []))
    parts, seen, total = [], 0, 0
    with (
        new_rows.opened(source, made, options, labeled=True) as given,
        console.bar(given.total, "evaluate", "row") as bar,
    ):
        for block in given.blocks():
            found, kept = given.judged(block, rate), block.semi_targets != 0
            is_anomaly = block.semi_targets[kept] == -1
            parts.append((found.score[kept], is_anomaly, found.is_anomaly[kept]))
            texts = fitting.fingerprints(made, block.x[kept])
            seen, total = seen + sum(t in known for t in texts), total + len(block.x)
            bar.update(len(block.x))
        bar.total = total
    given.warn()
    labeled = sum(len(scores) for scores, *_ in parts)
    if not labeled:
        raise ValueError(f"{given.where} has no labeled rows")
    if seen:
        console.say(
            f"warning: {seen} of the {labeled} labeled rows are among those of the "
            "training, which makes what follows look better than it is"
        )
    merged = tuple(np.concatenate(each) for each in zip(*parts, strict=True))
    rate = rate or made.false_alarm_rate
    lines = evaluation.measured([merged], "known normal", rate).sentences()
    if total > labeled:
        lines.append(f"{total - labeled} rows are unlabeled and not looked at")
    print("\n".join(lines))


@contextlib.contextmanager
def _output(path: str) -> Iterator[IO[bytes]]:
    if path == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with writing.atomic(path, replace=False) as file:
        yield file
