"""What one row takes in programs that `programs.export` writes, compiled before."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import numpy as np

from deepsad_jax import estimators, model, networks, objectives, programs, training
from deepsad_jax import preprocessing as scalings

COMMITTEE = "committee"


def serving(name: str, repeats: int = 2000) -> list[dict]:
    """Microseconds of one row, from its values to scores, p-values and decisions.

    The least of all calls is what the machine can do; where it has other work to do,
    the time of its processors says more than the median.

    Args:
        name: of a network of the paper, with random weights and no calibration, or
            "committee", the default of `estimators.DeepSAD`, of 20 columns.
        repeats: how often.
    """
    made, x = _committee() if name == COMMITTEE else _network(name)
    found, start = programs.program(made), time.perf_counter()
    content = programs.stablehlo(found)
    row = {"model": name, "kb": len(content) / 1e3}
    row["export_s"] = time.perf_counter() - start
    x = np.asarray(x, found.dtype)
    with jax.enable_x64(True):
        program = jax.jit(jax.export.deserialize(bytearray(content)).call)
        row |= _times(lambda: jax.device_get(program(x)), repeats)
    try:
        from deepsad_jax import onnx_programs

        content, _ = onnx_programs.convert(found)
    except ImportError:
        return [row]
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options)
    times = _times(lambda: session.run(None, {"x": x}), repeats)
    return [{**row, **{f"onnx_{key}": value for key, value in times.items()}}]


def _times(call: Callable[[], Any], repeats: int) -> dict[str, float]:
    call()
    taken, spent = [], time.process_time()
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    spent = (time.process_time() - spent) / repeats
    median = statistics.median(taken)
    return {
        "least_us": 1e6 * min(taken),
        "median_us": 1e6 * median,
        "processors_us": 1e6 * spent,
    }


def _network(name):
    shape, rng = networks.pair(name).input_shape, np.random.default_rng(0)
    x = rng.random((20, *shape))
    if len(shape) == 3:
        x = (256 * x).astype(np.uint8)
    objective = objectives.DeepSAD(networks.build_encoder(name))
    variables = objective.init(jax.random.key(0), np.zeros((2, *shape), np.float32))
    variables["center"] = np.full(len(variables["center"]), 0.1, np.float32)
    scaling = scalings.auto(x)
    return model.make("deep_sad", objective, variables, scaling, shape), x[:1]


def _committee(rows=1000, columns=20):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(rows, columns)), np.zeros(rows, int)
    y[:20] = -1
    x[:20] += 2
    stage = training.Stage(epochs=1)
    made = estimators.DeepSAD(random_state=0, train=stage, pretrain=stage)
    return made.fit(x, y), x[:1]
