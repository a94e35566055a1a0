"""Kills an experiment again and again, and compares its end with an undisturbed one.

    python tests/kill_harness.py run --kills=25 --seed=0
    python tests/kill_harness.py sweep --kills=25 --seed=0

Processes get SIGKILL at moments that a seeded generator draws: anywhere, while they
train, while a checkpoint is being written, while results are. After each, every file
under a name of its own must be whole; after the last, the run is finished and must
equal the undisturbed one bit for bit.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import PIL.Image

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # as a program, this file knows its own folder only

import deepsad_jax as sad  # noqa: E402

KINDS = ("anywhere", "training", "checkpoint", "results")
OPTIONS = {
    "run": ["--config.pretrain.epochs=300", "--config.train.epochs=300"],
    "sweep": ["--config.pretrain.epochs=150", "--config.train.epochs=150", "--seeds=2"],
}
ALWAYS = ["--config.checkpoint.epochs=1", "--config.checkpoint.seconds=0"]


def start(program, folder, options=None):
    options = OPTIONS[program] if options is None else options
    arguments = [*options, *ALWAYS, f"--workdir={folder}"]
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{program}", *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(kind, process, folder, rng):
    """Waits for the moment of a kill; False if the process has ended before."""

    def found(pattern):  # in a run's folder or those of a sweep's runs
        return [*folder.glob(pattern), *folder.glob(f"*/*/{pattern}")]

    began, before = time.time(), len(found("scores.npz"))
    delay = {"anywhere": 10.0, "training": 1.0, "checkpoint": 0.0, "results": 0.6}[kind]
    delay *= rng.random()

    def has_come():
        if kind == "anywhere":
            return True
        if kind == "results":
            return len(found("scores.npz")) > before
        saved = found("checkpoints/*/*")
        if kind == "checkpoint":
            return any("tmp" in path.name for path in saved)
        return any(_modified(path) > began for path in saved)

    while not has_come():
        if process.poll() is not None:
            return False
        time.sleep(0.001)
    try:
        process.wait(delay)
    except subprocess.TimeoutExpired:
        return True
    return False


def _modified(path):
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def check_files(folder):
    """Every file that has its name is whole."""
    for path in folder.rglob("*"):
        inside = path.relative_to(folder).parts
        if path.is_dir() or any(
            part.startswith((".", "checkpoints")) or "orbax" in part for part in inside
        ):
            continue
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            epochs = collections.Counter()
            for line in path.read_text().splitlines():
                content = json.loads(line)
                epochs[content["stage"]] += 1
                assert content["epoch"] == epochs[content["stage"]], path
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                if path.name == "examples.npz":
                    assert len(arrays["x"]) == len(arrays["place"])
                else:
                    assert len(arrays["score"]) == len(arrays["label"])
        elif path.suffix == ".png":
            PIL.Image.open(path).load()
    for path in folder.rglob("model"):
        if path.is_dir():
            sad.load(path)


def content(folder):
    """What must be equal: all results but times."""
    result = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if "checkpoints" in name or path.is_dir():
            continue
        if path.name == "results.json":
            figures = json.loads(path.read_text())
            result[name] = {k: v for k, v in figures.items() if "seconds" not in k}
        elif path.suffix in (".json", ".jsonl"):
            result[name] = path.read_text()
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                result[name] = {k: arrays[k].tobytes() for k in arrays.files}
    for path in sorted(folder.rglob("model")):
        leaves, tree = jax.tree.flatten(sad.load(path))
        content_of_leaves = [np.asarray(leaf).tobytes() for leaf in leaves]
        result[str(path.relative_to(folder))] = str([tree, content_of_leaves])
    return result


def survive(program, kills, seed, folder, options=None):
    """Kills so many processes, on as many experiments as that takes, and compares all.

    Args:
        program: "run" or "sweep".
        kills: how many processes to kill.
        seed: decides the moments.
        folder: where the experiments go.
        options: of the program, instead of `OPTIONS`.

    Returns:
        How many kills of each kind there were, and how many experiments.
    """
    rng, counts = random.Random(seed), collections.Counter()
    undisturbed = start(program, folder / "undisturbed", options)
    warned = undisturbed.communicate()[1]
    assert undisturbed.returncode == 0, warned
    expected = content(folder / "undisturbed")
    kinds = [KINDS[i % len(KINDS)] for i in range(kills)]
    rng.shuffle(kinds)
    experiments = 0
    while kinds:
        experiments += 1
        killed = folder / f"killed{experiments}"
        done = killed / ("results.json" if program == "run" else "summary.json")
        while not done.exists():
            process = start(program, killed, options)
            if not kinds or not wait_for(kinds[-1], process, killed, rng):
                warned = process.stderr.read()
                assert process.wait() == 0, warned
            else:
                process.kill()
                warned = process.stderr.read()
                process.wait()
                counts[kinds.pop()] += 1
            assert "cannot be used" not in warned, warned
            check_files(killed)
        actual = content(killed)
        assert expected.keys() == actual.keys(), expected.keys() ^ actual.keys()
        for name in expected:
            assert expected[name] == actual[name], name
    return counts, experiments


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", choices=OPTIONS)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts, experiments = survive(
            arguments.program, arguments.kills, arguments.seed, pathlib.Path(folder)
        )
    print(
        f"{arguments.program}: {sum(counts.values())} kills {dict(counts)}, "
        f"{experiments} experiments, all equal to the undisturbed one"
    )
