"""Epochs of each stage: how fast they are, and what the device could do."""

import functools
import time

import jax
import jax.numpy as jnp

from deepsad_jax import forward, networks, parallel, training
from experiments.benchmark import subjects


def step_flops(stage, network, batch_size, dtype) -> float | None:
    """Floating-point operations of one step as it is written, as XLA counts them.

    Those of a compiled one leave out what libraries of an accelerator compute.
    """
    optimizer = training.Stage().optimizer_for(1)
    objective = subjects.objective(stage, network, dtype)
    shape = networks.pair(network).input_shape
    variables = forward.initial(objective, shape)
    state = jax.eval_shape(lambda v: training.start(v, optimizer), variables)
    batch = training.Batch(
        jax.ShapeDtypeStruct((batch_size, *shape), jnp.float32),
        jax.ShapeDtypeStruct((batch_size,), jnp.float32),
    )
    step = jax.jit(training.make_step(objective, optimizer))
    counted = step.lower(state, batch, jax.random.key(0)).cost_analysis()
    return (counted or {}).get("flops")


def steps(
    network,
    batch_size,
    runs,
    devices,
    dtype,
    *,
    batches,
    repeats,
    against_torch=False,
    convolutions=None,
) -> list[dict]:
    """Epochs of both stages of so many batches, ours and PyTorch's in turn.

    With `convolutions`, runs are trained side by side, which compute them as such.
    """
    optimization = training.Stage(batch_size=batch_size, epochs=1)
    size = batches * batch_size
    sets = [subjects.synthetic(network, size, seed) for seed in range(runs)]
    plan = _plan(runs, devices, convolutions)
    peak = peak_flops(dtype) * devices
    rows = []
    for stage in subjects.STAGES:
        start = time.perf_counter()
        objective = subjects.objective(stage, network, dtype)
        ours = subjects.Epochs(objective, sets, optimization, plan)
        program_mb = ours.program_mb()
        ours()
        compile_seconds = time.perf_counter() - start
        contest = {"ours": ours}
        if against_torch:
            contest["torch"] = _torch_epoch(stage, network, sets[0], optimization)
            contest["torch"]()
        seconds = subjects.in_turn(contest, repeats)
        per_step = seconds["ours"] / batches
        flops = step_flops(stage, network, batch_size, dtype)
        row = {
            "network": network,
            "stage": stage,
            "batch_size": batch_size,
            "runs": runs,
            "devices": devices,
            "dtype": jnp.dtype(dtype).name,
            **({"convolutions": convolutions} if convolutions else {}),
            "samples_per_second": round(size * runs / seconds["ours"]),
            "step_ms": 1e3 * per_step,
            "gflops": flops and flops * runs / per_step / 1e9,
            "share_of_peak": flops and flops * runs / per_step / peak,
            "compile_seconds": compile_seconds,
            "program_mb": program_mb,
            "memory_mb": memory_mb(),
        }
        if against_torch:
            row["torch_step_ms"] = 1e3 * seconds["torch"] / batches
            row["ratio"] = seconds["torch"] / seconds["ours"]
        rows.append(row)
    return rows


def _plan(runs, devices, convolutions):
    if runs == 1:
        return parallel.split_batch(devices)
    together = bool(convolutions) or jax.default_backend() != "cpu"
    form = convolutions or parallel.CONVOLUTIONS[0]
    return parallel.Plan(devices, True, together, False, form)


@functools.cache
def peak_flops(dtype, size: int = 4096) -> float:
    """FLOP/s of a large square matrix product: what the device reaches in practice."""
    size = size if jax.default_backend() != "cpu" else 2048
    a = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    seconds = subjects.in_turn({"": lambda: product(a, a).block_until_ready()}, 5)[""]
    return 2 * size**3 / seconds


def _torch_epoch(stage, network, data, optimization):
    run = subjects.torch_run(network, data)
    optimizer = run.optimizer(stage, optimization)
    return lambda: run.epoch(stage, optimizer, optimization.batch_size)


def memory_mb() -> float:
    """Most memory used so far, in MB: the device's, or the process's on a CPU."""
    statistics_ = jax.local_devices()[0].memory_stats()
    if statistics_:
        return statistics_["peak_bytes_in_use"] / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
