r"""Measures how fast the library trains here, against plain PyTorch loops where asked.

    python -m experiments.benchmark                     # every network, our side
    python -m experiments.benchmark --torch             # and a PyTorch loop, in turn
    python -m experiments.benchmark --measure=steps --networks=cardio_mlp \
        --batch_sizes=128,1024 --runs=1,10 --devices=1,2 --dtypes=float32,bfloat16
    python -m experiments.benchmark --measure=pipeline,growth --networks=cardio_mlp
    python -m experiments.benchmark --measure=tables --data_dir=DATA --torch
    python -m experiments.benchmark --measure=kernels --data_dir=DATA --opponents
    python -m experiments.benchmark --measure=committee --sizes=700,10000 --repeats=2
    python -m experiments.benchmark --measure=serving --networks=mnist_LeNet,committee
    python -m experiments.benchmark --measure=stream --networks=shuttle_mlp

steps: one epoch of each stage: samples/s, step time, FLOP/s achieved and their share of
what a large matrix product reaches here, compilation time, memory. pipeline: whole
experiments after compilation. growth: twice the samples, runs or epochs. tables: the
six ODDS tables by 10 seeds, start-up and compilation included. kernels: whole grids of
the kernel baselines on MNIST's zeros with one in a hundred labeled, after compilation,
against cvxopt, libsvm and scikit-learn's grid search. committee: fits of
`estimators.DeepSAD` to tables of so many rows, against those of the paper's method
alone. serving: one row in a program of `deepsad export`, by networks and the default
committee, by onnxruntime, too, where jax2onnx is. stream: epochs from `.npy` files
against epochs from memory, of `--sizes` rows. `--torch` and `--opponents` need the
extras `torch` and `cvxopt`. Opponents are timed in turn with ours, with as many
threads. Prints tables and writes JSON with `--json`.
"""

import logging
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from deepsad_jax import (
    console,
    epochs,
    fast_cpu,
    methods,
    model,
    networks,
    parallel,
    training,
)
from deepsad_jax.detectors import deep_sad
from experiments import workdir
from experiments.benchmark import committee, serving, stream

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
DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder with the real data.")
JSON = flags.DEFINE_string("json", "", "File to write the rows to.")

STAGES = ("pretrain", "train")


def in_turn(functions: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Median seconds of each function, called one after the other, round by round."""
    times = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            time.sleep(0.3)  # threads that wait for work may spin for a while
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_flops(dtype, size: int = 4096) -> float:
    """FLOP/s of a large square matrix product: what the device reaches in practice."""
    size = size if jax.default_backend() != "cpu" else 2048
    a = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    seconds = in_turn({"": lambda: product(a, a).block_until_ready()}, 5)[""]
    return 2 * size**3 / seconds


def synthetic(network: str, size: int, seed: int = 0) -> training.TrainingSet:
    """Random inputs of a network's shape: bytes for images, one in ten labeled."""
    rng = np.random.default_rng(seed)
    shape = (size, *networks.pair(network).input_shape)
    if len(shape) == 4:
        x = rng.integers(0, 256, shape, dtype=np.uint8)
    else:
        x = rng.random(shape, np.float32)
    semi_targets = rng.choice([-1, 0, 1], size, p=[0.05, 0.9, 0.05])
    return training.training_set(x, semi_targets)


def _method(network, stage, dtype="float32"):
    return deep_sad.DeepSAD(network, train=stage, pretrain=stage, dtype=dtype)


def _objective(stage, network, dtype):
    method = _method(network, training.Stage(), str(jnp.dtype(dtype)))
    own, reconstruction = method.objectives(networks.pair(network).input_shape)
    return reconstruction if stage == "pretrain" else own


class _Stage:
    """One stage of a network, ready to be advanced by an epoch."""

    def __init__(self, stage, network, sets, optimization, plan, dtype):
        self.objective = _objective(stage, network, dtype)
        keys = [jax.random.key(i) for i in range(len(sets))]
        trainer = epochs.Trainer(keys, sets, plan, ("train",))
        starts = trainer.take(trainer.init(self.objective, "train"))
        if stage == "train":
            starts = [{**s, "center": np.full_like(s["center"], 0.1)} for s in starts]
        conv = epochs.is_convolutional(self.objective, trainer.shape)
        programs = epochs.Programs(self.objective, optimization, plan, conv)
        self.state = programs.start(trainer.put(starts))
        self.arguments = (trainer.data, trainer.keys["train"], 0, 1)
        self.advance = programs.advance

    def epoch(self):
        self.state, _ = self.advance(self.state, *self.arguments)
        jax.block_until_ready(self.state)


def step_flops(stage, network, batch_size, dtype) -> float | None:
    """Floating-point operations of one step, as XLA counts them."""
    optimization = training.Stage(batch_size=batch_size, epochs=1)
    data = synthetic(network, batch_size)
    one = _Stage(stage, network, [data], optimization, parallel.one(), dtype)
    step = training.make_step(one.objective, optimization.optimizer_for(1))
    batch = training.Batch(
        training.as_float(jnp.asarray(data.x)), jnp.asarray(data.semi_targets)
    )
    compiled = jax.jit(step).lower(one.state, batch, jax.random.key(0)).compile()
    return (compiled.cost_analysis() or {}).get("flops")


def steps(network, batch_size, runs, devices, dtype, *, against_torch) -> list[dict]:
    """Epochs of both stages, ours and PyTorch's in turn."""
    optimization = training.Stage(batch_size=batch_size, epochs=1)
    size = BATCHES.value * batch_size
    sets = [synthetic(network, size, seed) for seed in range(runs)]
    plan = parallel.split_batch(devices)
    if runs > 1:
        on_cpu = jax.default_backend() == "cpu"
        plan = parallel.Plan(devices, True, not on_cpu, shared_inputs=False)
    peak = peak_flops(dtype) * devices
    rows = []
    for stage in STAGES:
        start = time.perf_counter()
        ours = _Stage(stage, network, sets, optimization, plan, dtype)
        ours.epoch()
        compile_seconds = time.perf_counter() - start
        contest = {"ours": ours.epoch}
        if against_torch:
            contest["torch"] = _torch_epoch(stage, network, sets[0], optimization)
            contest["torch"]()
        seconds = in_turn(contest, REPEATS.value)
        per_step = seconds["ours"] / BATCHES.value
        flops = step_flops(stage, network, batch_size, dtype)
        row = {
            "network": network,
            "stage": stage,
            "batch_size": batch_size,
            "runs": runs,
            "devices": devices,
            "dtype": jnp.dtype(dtype).name,
            "samples_per_second": round(size * runs / seconds["ours"]),
            "step_ms": 1e3 * per_step,
            "gflops": flops and flops * runs / per_step / 1e9,
            "share_of_peak": flops and flops * runs / per_step / peak,
            "compile_seconds": compile_seconds,
            "memory_mb": _memory(),
        }
        if against_torch:
            row["torch_step_ms"] = 1e3 * seconds["torch"] / BATCHES.value
            row["ratio"] = seconds["torch"] / seconds["ours"]
        rows.append(row)
    return rows


def _torch_epoch(stage, network, data, optimization):
    torch_run = _torch_run(network, data)
    optimizer = torch_run.optimizer(stage, optimization)
    return lambda: torch_run.epoch(stage, optimizer, optimization.batch_size)


def _torch_run(network, data):
    import torch

    from experiments.benchmark import torch_loop

    torch.set_num_threads(parallel.cores())
    return torch_loop.TorchRun(
        network, np.asarray(data.x), np.asarray(data.semi_targets)
    )


def _memory() -> float:
    """Most memory used so far, in MB: the device's, or the process's on a CPU."""
    statistics_ = jax.local_devices()[0].memory_stats()
    if statistics_:
        return statistics_["peak_bytes_in_use"] / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def pipeline(network: str, *, against_torch: bool, size: int = 1002) -> list[dict]:
    """A whole experiment (300 epochs, scores), after compilation."""
    stage = training.Stage(training.Adam(1e-3), epochs=150)
    data = synthetic(network, size)

    def ours():
        fitted, _ = _method(network, stage).fit(jax.random.key(0), data)
        model.score(fitted, data.x)

    contest = {"ours": ours}
    if against_torch:

        def theirs():
            run = _torch_run(network, data)
            run.fit(stage, stage)
            run.score(np.asarray(data.x))

        contest["torch"] = theirs
    ours()
    seconds = in_turn(contest, 3)
    row = {"network": network, "samples": size, "seconds": seconds["ours"]}
    if against_torch:
        row |= {
            "torch_seconds": seconds["torch"],
            "ratio": seconds["torch"] / seconds["ours"],
        }
    return [row]


def growth(network: str) -> list[dict]:
    """What twice the samples, epochs or runs cost, after compilation."""

    def seconds(samples=2048, epochs=20, runs=2):
        stage = training.Stage(training.Adam(1e-3), epochs=epochs)
        method = _method(network, stage)
        chosen = [
            methods.Run(jax.random.key(i), synthetic(network, samples, i))
            for i in range(runs)
        ]
        plan = method.plan_for(chosen)

        def work():
            if plan is not None:
                method.fit_many(chosen, plan=plan)
                return
            for run in chosen:
                method.fit_many([run])

        work()
        return in_turn({"": work}, REPEATS.value)[""]

    base = seconds()
    return [
        {"network": network, "twice the": name, "ratio": seconds(**double) / base}
        for name, double in (
            ("samples", {"samples": 4096}),
            ("epochs", {"epochs": 40}),
            ("runs", {"runs": 4}),
        )
    ]


def streamed(network: str) -> list[dict]:
    """Epochs from files against epochs from memory."""
    trained = {s: _objective(s, network, "float32") for s in STAGES}
    return [
        {"network": network, **row}
        for size in map(int, SIZES.value)
        for batch_size in map(int, BATCH_SIZES.value)
        for row in stream.stream(
            synthetic(network, size), trained, batch_size, in_turn, REPEATS.value
        )
    ]


def tables(data_dir: str, seeds: int, *, against_torch: bool) -> list[dict]:
    """Six tables by some seeds as one command, nothing compiled before."""
    from deepsad_jax.data import sources

    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{folder}/xla"}
        command = [
            *(sys.executable, "-m", "experiments.sweep", "--config=configs/odds.py"),
            f"--tables={','.join(sources.ODDS)}",
            f"--seeds={seeds}",
            f"--config.data.dir={os.path.abspath(data_dir)}",
            f"--workdir={folder}/sweep",
        ]
        start = time.perf_counter()
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
    row = {"tables": len(sources.ODDS), "seeds": seeds, "seconds": seconds}
    if against_torch:
        start = time.perf_counter()
        for table in sources.ODDS:
            _torch_table(table, data_dir, seeds)
        row["torch_seconds"] = time.perf_counter() - start
        row["ratio"] = row["torch_seconds"] / seconds
    return [row]


def _torch_table(table, data_dir, seeds) -> None:
    from configs import odds
    from experiments import build

    config = odds.get_config(table)
    config.data.dir = data_dir
    for seed in range(seeds):
        config.seed = seed
        made = build.experiment(config)
        problem, options = made.problem, made.options
        x = problem.preprocessing(problem.x_train[problem.indices])
        run = _torch_run(config.network, made.run.data._replace(x=x))
        run.fit(options.pretrain, options.train)
        run.score(problem.preprocessing(problem.x_test))


def kernel_grids(data_dir: str, size: int, *, against_others: bool) -> list[dict]:
    """Whole grids of SSAD, one-class SVM and density estimates on one set of images."""
    from deepsad_jax import kernels
    from deepsad_jax.detectors import kde, kernel_machines

    x, semi_targets = _zeros(data_dir, size)
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
        seconds = in_turn({"": function}, 3)[""]
        row = {"method": name, "examples": size, "seconds": seconds}
        if against_others:
            row |= _opponent(name, x, semi_targets, found)
            row["ratio"] = row["opponent_seconds"] / seconds
        rows.append(row)
    return rows


def _opponent(name, x, semi_targets, found) -> dict:
    """An opponent's time, and by how much its values are off ours, relatively."""
    from deepsad_jax.detectors import kde, kernel_machines
    from experiments.benchmark import kernel_opponents

    scale = 1.0
    start = time.perf_counter()
    if name == "ssad":
        few = np.arange(len(x))
        if len(x) > MOST_CVXOPT.value:
            few = np.random.default_rng(0).permutation(len(x))[: MOST_CVXOPT.value]
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


def _zeros(data_dir, size) -> tuple[np.ndarray, np.ndarray]:
    """MNIST's zeros, up to a size, one in a hundred a labeled one; rows in [0, 1]."""
    from deepsad_jax.data import protocol, sources

    source = sources.load("mnist", data_dir)
    drawn = protocol.Protocol(ratio_known_outlier=0.01)
    problem = protocol.make(source, drawn, 0)
    x = problem.x_train[problem.indices].reshape(len(problem.indices), -1) / 255.0
    chosen = np.random.default_rng(0).permutation(len(x))[:size]
    return x[chosen].astype(np.float32), problem.semi_targets[chosen]


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


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    names = NETWORKS.value or list(networks.PAPER)
    fast_cpu.keep_freed_memory(
        any("LeNet" in name for name in names)
    )  # as the other commands do; PyTorch gains as well
    results = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    for what in MEASURE.value:
        rows = []
        if what == "steps":
            for name in names:
                for batch_size, runs, devices in (
                    (int(b), int(r), int(d))
                    for b in BATCH_SIZES.value
                    for r in RUNS.value
                    for d in DEVICES.value
                ):
                    for dtype in map(jnp.dtype, DTYPES.value):
                        rows += steps(
                            name,
                            batch_size,
                            runs,
                            devices,
                            dtype,
                            against_torch=TORCH.value and runs == 1,
                        )
        elif what == "pipeline":
            for name in names:
                rows += pipeline(name, against_torch=TORCH.value)
        elif what == "growth":
            for name in names:
                rows += growth(name)
        elif what == "tables":
            rows = tables(DATA_DIR.value, SEEDS.value, against_torch=TORCH.value)
        elif what == "kernels":
            for size in map(int, SIZES.value):
                rows += kernel_grids(
                    DATA_DIR.value, size, against_others=OPPONENTS.value
                )
        elif what == "serving":
            for name in NETWORKS.value or [*networks.PAPER, serving.COMMITTEE]:
                rows += serving.serving(name)
        elif what == "committee":
            rows = committee.committee([*map(int, SIZES.value)], REPEATS.value)
        elif what == "stream":
            for name in names:
                rows += streamed(name)
        else:
            raise app.UsageError(f"--measure={what} is not known; see --help")
        print(f"{what}\n{table_of(rows)}\n", flush=True)
        results[what] = rows
    if JSON.value:
        workdir.write_json(pathlib.Path(JSON.value), results)


if __name__ == "__main__":
    console.help_if_asked()
    logging.getLogger("jax").setLevel(logging.WARNING)
    # As many devices as are asked for, where they can be made.
    jax.config.update("jax_num_cpu_devices", parallel.cores())
    app.run(main)
