"""A program as ONNX, by jax2onnx, which is imported here alone.

Columns are scaled in float64 and networks compute in float32, but jax2onnx makes models
of one of the two. So there are two models, and the second goes on from the first.
"""

import contextlib
import importlib
import importlib.metadata
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deepsad_jax import checkpoints

OPSET = 21
INSTALL = "pip install --no-deps jax2onnx && pip install onnx onnx-ir onnxruntime sympy"
_NEEDED = ("jax2onnx", "onnx.compose", "onnxruntime")
_TOLERANCE = 1e-5
_PROVIDER = "CPUExecutionProvider"
# What numbers become where the program is one of float32.
_NARROW = {"float64": "float32"}
# Functions within a function, and which parameter they are.
_INNER = {
    "jit": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}


def convert(found: Any) -> tuple[bytes, dict[str, Any]]:
    """A program as the bytes of a file, and what else is to be said of it.

    Args:
        found: a `programs.Program`.

    Raises:
        ImportError: if there is no jax2onnx.
        ValueError: if it cannot make the model, or one that says the same.
    """
    with _quiet():
        for name in _NEEDED:
            _imported(name)
        versions = {n: importlib.metadata.version(n) for n in ("jax2onnx", "onnx")}
        try:
            made = _model(found).SerializeToString()
            _check(found, made)
        except Exception as error:  # jax2onnx raises many kinds
            raise ValueError(
                f"jax2onnx {versions['jax2onnx']} cannot make ONNX of this model of "
                f"{found.about['method']}: {checkpoints.reason(error)}; the format "
                "stablehlo takes all models"
            ) from error
    outputs = found.about["outputs"]
    if not found.is_wide:
        outputs = [{**o, "dtype": _NARROW.get(o["dtype"], o["dtype"])} for o in outputs]
    return made, {"opset": OPSET, "versions": versions, "outputs": outputs}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the many warnings of what is not installed, and not needed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"the format onnx needs jax2onnx ({error}), which asks for an old "
            f"orbax-checkpoint; install it without: {INSTALL}"
        ) from error


def _model(found):
    names = [output["name"] for output in found.about["outputs"]]
    rows = found.rows()

    def judge(*prepared):
        said = found.judge(prepared)
        return [said[name] for name in names]

    if rows.dtype != np.float64:
        whole = lambda x: judge(*found.prepare(x))  # noqa: E731
        return _converted(whole, [rows], ["x"], names, found.is_wide)
    kind = np.dtype(np.float64 if found.is_wide else np.float32)

    def prepare(x):
        return [prepared.astype(kind) for prepared in found.prepare(x)]

    with jax.enable_x64(True):
        prepared = jax.eval_shape(prepare, rows)
    inner = [f"prepared{i}" for i in range(len(prepared))]
    first = _to_onnx(prepare, [rows], ["x"], inner, True)
    second = _converted(judge, prepared, inner, names, found.is_wide)
    compose = _imported("onnx.compose")
    # Names of the inside must not be the same in both.
    first = compose.add_prefix(
        first, "prepare/", rename_inputs=False, rename_outputs=False
    )
    return compose.merge_models(first, second, [(name, name) for name in inner])


def _converted(
    function: Callable,
    inputs: Sequence[Any],
    names: list[str],
    outputs: list[str],
    is_wide: bool,
) -> Any:
    """A model of ONNX, of a function that is traced before jax2onnx can replace parts
    of JAX and Flax, with which it takes less."""
    with jax.enable_x64(is_wide):
        traced = jax.make_jaxpr(function)(*inputs)
    replay = lambda *x: _replayed(traced.jaxpr, traced.consts, x)  # noqa: E731
    return _to_onnx(replay, inputs, names, outputs, is_wide)


def _to_onnx(function, inputs, names, outputs, is_wide):
    return _imported("jax2onnx").to_onnx(
        function,
        list(inputs),
        model_name="deepsad_jax",
        opset=OPSET,
        enable_double_precision=is_wide,
        input_names=names,
        output_names=outputs,
    )


def _replayed(jaxpr, consts, arguments):
    """What was traced, as operations that jax2onnx knows for any number of rows."""
    pairs = zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True)
    values = dict(pairs)
    for equation in jaxpr.eqns:
        primitive, params = equation.primitive, equation.params
        given = [_value(values, atom) for atom in equation.invars]
        if primitive.name in _INNER:
            inner = params[_INNER[primitive.name]]
            found = _replayed(inner.jaxpr, inner.consts, given)
        elif primitive.name == "pad" and _is_plain(params):
            widths = [(low, high) for low, high, _ in params["padding_config"]]
            found = [jnp.pad(given[0], widths, constant_values=float(given[1]))]
        elif primitive.name == "reduce_window_max" and _is_pooling(params):
            sides = {"window_shape": params["window_dimensions"][1:-1]}
            sides["strides"] = params["window_strides"][1:-1]
            found = [nn.max_pool(given[0], **sides)]
        else:
            with _evaluation(equation, given):
                found = primitive.bind(*given, **primitive.get_bind_params(params))
            found = found if primitive.multiple_results else [found]
        values.update(zip(equation.outvars, found, strict=True))
    return [_value(values, atom) for atom in jaxpr.outvars]


def _value(values, atom):
    return atom.val if hasattr(atom, "val") else values[atom]


def _evaluation(equation, given):
    """Of numbers at once, so that the padding's is one."""
    is_number = all(variable.aval.shape == () for variable in equation.outvars)
    is_known = given and not any(isinstance(v, jax.core.Tracer) for v in given)
    if is_number and is_known:
        return jax.ensure_compile_time_eval()
    return contextlib.nullcontext()


def _is_plain(params):
    return all(
        low >= 0 and high >= 0 and not inner
        for low, high, inner in params["padding_config"]
    )


def _is_pooling(params):
    """Whether it is `nn.max_pool`, the channels last, without padding."""
    window, strides = params["window_dimensions"], params["window_strides"]
    dilations = (*params["base_dilation"], *params["window_dilation"])
    is_of_examples = window[0] == window[-1] == strides[0] == strides[-1] == 1
    return is_of_examples and not np.any(params["padding"]) and set(dilations) == {1}


def _check(found, made):
    """Raises ValueError unless it has the scores of the program."""
    onnxruntime = _imported("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(made, options, providers=[_PROVIDER])
    (said,) = session.run(["score"], {"x": found.examples})
    with jax.enable_x64(True):
        expected = np.asarray(jax.jit(found.__call__)(found.examples)["score"])
    off = np.abs(said - expected).max()
    if not off <= _TOLERANCE * np.abs(expected).max():
        raise ValueError(f"scores of what it makes are off by {off:g}")
