r"""Measures how fast the library trains here, against plain PyTorch loops where asked.

    python -m experiments.benchmark                     # every network, our side
    python -m experiments.benchmark --torch             # and a PyTorch loop, in turn
    python -m experiments.benchmark --measure=steps --networks=cardio_mlp \
        --batch_sizes=128,1024 --runs=1,10 --devices=1,2 --dtypes=float32,bfloat16
    python -m experiments.benchmark --measure=pipeline,growth --networks=cardio_mlp
    python -m experiments.benchmark --measure=tables --data_dir=DATA --torch
    python -m experiments.benchmark --measure=startup --against=CHECKOUT
    python -m experiments.benchmark --measure=kernels --data_dir=DATA --opponents
    python -m experiments.benchmark --measure=committee --sizes=700,10000 --repeats=2
    python -m experiments.benchmark --measure=serving --networks=mnist_LeNet,committee
    python -m experiments.benchmark --measure=stream --networks=shuttle_mlp
    python -m experiments.benchmark --suite=accelerator --json=figures.json

steps: one epoch of each stage: samples/s, step time, FLOP/s achieved and their share of
what a large matrix product reaches here, compilation time, memory. pipeline: whole
experiments after compilation. growth: twice the samples, runs or epochs. tables: the
six ODDS tables by 10 seeds, start-up and compilation included. startup: one run on a
small table, likewise, in turn with the checkout of another version. kernels: whole
grids of the kernel baselines on MNIST's zeros with one in a hundred labeled, after
compilation, against cvxopt, libsvm and scikit-learn's grid search. committee: fits of
`estimators.DeepSAD` to tables of so many rows, against those of the paper's method
alone. serving: one row in a program of `deepsad export`, by networks and the default
committee, by onnxruntime, too, where jax2onnx is. stream: epochs from `.npy` files
against epochs from memory, of `--sizes` rows. `--torch` and `--opponents` need the
extras `torch` and `cvxopt`. Opponents are timed in turn with ours, with as many
threads. Prints tables and writes JSON with `--json`.

`--suite=accelerator` is for a machine with a GPU or TPU, no network and little beside
JAX, Flax, Optax, Orbax and scikit-learn: steps of every network, of 90 runs of
mnist_LeNet side by side in each form of their convolutions ("usual": grouped), the
kernel baselines on 2,000 synthetic rows, bfloat16, and batches of up to 4,096. It ends
within ten minutes, says what it had no time for, and writes the JSON after each
measurement. The other flags change what it measures.
"""

import contextlib
import logging
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from absl import app, flags

from deepsad_jax import cpu_settings, networks, parallel
from experiments import workdir
from experiments.benchmark import (
    accelerator,
    committee,
    kernel_grids,
    serving,
    steps,
    stream,
    whole,
)

MEASURE = flags.DEFINE_list("measure", ["steps"], "What to measure; see above.")
NETWORKS = flags.DEFINE_list("networks", [], "Networks; all by default.")
BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["128"], "Batch sizes.")
RUNS = flags.DEFINE_list("runs", ["1"], "Numbers of runs trained in one program.")
DTYPES = flags.DEFINE_list("dtypes", ["float32"], "float32 or bfloat16.")
DEVICES = flags.DEFINE_list("devices", ["1"], "Numbers of devices.")
BATCHES = flags.DEFINE_integer("batches", 13, "Batches in an epoch.", 1)
REPEATS = flags.DEFINE_integer("repeats", 5, "How often each thing is timed.", 1)
TORCH = flags.DEFINE_bool("torch", False, "Whether to time a PyTorch loop in turn.")
OPPONENTS = flags.DEFINE_bool(
    "opponents", False, "Whether to time the opponents of the kernel baselines."
)
SIZES = flags.DEFINE_list(
    "sizes",
    ["1000", "2000", "6000"],
    "Training examples of the kernel baselines, committees and streams.",
)
MOST_CVXOPT = flags.DEFINE_integer(
    "most_cvxopt",
    2000,
    "Beyond, cvxopt's time is extrapolated by the cube of the size.",
)
SEEDS = flags.DEFINE_integer("table_seeds", 10, "Seeds of each table.", 1)
AGAINST = flags.DEFINE_string("against", "", "Checkout of a version to start in turn.")
DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder with the real data.")
JSON = flags.DEFINE_string("json", "", "File to write the rows to.")
SUITE = flags.DEFINE_enum(
    "suite", "", ["", "accelerator"], "What is measured together instead; see above."
)
SECONDS = flags.DEFINE_float(
    "seconds",
    540.0,
    "How long a suite may measure; what may not fit is left out.",
)


def _streamed(network: str) -> list[dict]:
    return [
        row
        for size in map(int, SIZES.value)
        for batch_size in map(int, BATCH_SIZES.value)
        for row in stream.stream(network, size, batch_size, REPEATS.value)
    ]


def table_of(rows: list[dict]) -> str:
    """Rows as aligned lines."""

    def text(value):
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([text(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    )


def _all_steps(network: str) -> list[dict]:
    return [
        row
        for batch_size in map(int, BATCH_SIZES.value)
        for runs in map(int, RUNS.value)
        for devices in map(int, DEVICES.value)
        for dtype in map(jnp.dtype, DTYPES.value)
        for row in steps.steps(
            *(network, batch_size, runs, devices, dtype),
            batches=BATCHES.value,
            repeats=REPEATS.value,
            against_torch=TORCH.value and runs == 1,
        )
    ]


def measured(what: str, names: list[str]) -> list[dict]:
    """The rows of a measure, of some networks where it is of such."""
    sizes, data_dir = [*map(int, SIZES.value)], DATA_DIR.value
    if what == "tables":
        return whole.tables(data_dir, SEEDS.value, against_torch=TORCH.value)
    if what == "startup":
        return whole.startup(REPEATS.value, AGAINST.value)
    if what == "committee":
        return committee.committee(sizes, REPEATS.value)
    if what == "kernels":
        options = {"most_cvxopt": MOST_CVXOPT.value, "against_others": OPPONENTS.value}
        sets = (kernel_grids.zeros(data_dir, size) for size in sizes)
        found = (kernel_grids.kernel_grids(*data, **options) for data in sets)
    elif what == "steps":
        found = map(_all_steps, names)
    elif what == "pipeline":
        found = (whole.pipeline(name, against_torch=TORCH.value) for name in names)
    elif what == "growth":
        found = (whole.growth(name, REPEATS.value) for name in names)
    elif what == "serving":
        served = NETWORKS.value or [*names, serving.COMMITTEE]
        found = map(serving.serving, served)
    elif what == "stream":
        found = map(_streamed, names)
    else:
        raise app.UsageError(f"--measure={what} is not known; see --help")
    return [row for rows in found for row in rows]


def _suite(names: list[str]) -> Iterator[accelerator.Measurement]:
    def given(flag, otherwise, kind=int):
        return [*map(kind, flag.value if flag.present else otherwise)]

    first = sorted(names, key=lambda name: name != "mnist_LeNet")  # the others in order
    return accelerator.suite(
        NETWORKS.value or first,
        given(RUNS, [90]),
        given(BATCH_SIZES, [128, 512, 1024, 4096]),
        given(DTYPES, ["float32", "bfloat16"], str),
        given(SIZES, [2000]),
        batches=BATCHES.value if flags.FLAGS["batches"].present else 25,
        repeats=REPEATS.value,
    )


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    names = NETWORKS.value or list(networks.PAPER)
    cpu_settings.keep_freed_memory(
        any("LeNet" in name for name in names)
    )  # as the other commands do; PyTorch gains as well
    results = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}

    def tell(what, rows):
        print(f"{what}\n{table_of(rows)}\n", flush=True)
        results[what] = results.get(what, []) + rows
        if JSON.value:
            workdir.write_json(pathlib.Path(JSON.value), results)

    if SUITE.value:
        accelerator.within(_suite(names), SECONDS.value, tell)
        return
    for what in MEASURE.value:
        tell(what, measured(what, names))


if __name__ == "__main__":
    # Its bars need what a borrowed machine may lack.
    with contextlib.suppress(ModuleNotFoundError):
        from deepsad_jax import console

        console.help_if_asked()
    logging.getLogger("jax").setLevel(logging.WARNING)
    # As many devices as are asked for, where they can be made.
    jax.config.update("jax_num_cpu_devices", parallel.cores())
    app.run(main)
