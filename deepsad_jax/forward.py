"""What an objective is for examples of a shape, and its functions of many rows."""

import functools
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deepsad_jax import cpu_settings, parallel, streams, training
from deepsad_jax.training import Batch

Variables = dict[str, Any]

# Rows evaluated at once: few programs serve any number of rows. One serves those of
# tables, whose scores are then the same bits whatever is scored beside them.
_CHUNKS, _TABLE_CHUNKS = (16, 512), (256,)
_BLOCK = 2**16


@functools.lru_cache(maxsize=64)
def initial(objective: Any, shape: tuple[int, ...]) -> Variables:
    """Shapes and types of an objective's variables, for examples of a shape."""
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    return jax.eval_shape(objective.init, jax.random.key(0), x)


@functools.lru_cache(maxsize=64)
def is_convolutional(objective: Any, shape: tuple[int, ...]) -> bool:
    """Whether training computes convolutions, for examples of a shape."""
    for inner in ("autoencoder", "network"):  # of a hybrid, of a committee
        objective = getattr(objective, inner, objective)
    if not hasattr(objective, "init"):
        return False
    batch, key = _batch(shape), jax.random.key(0)
    variables = initial(objective, shape)
    return parallel.has_convolution(
        lambda variables, batch: objective.loss(variables, batch, key)[0],
        variables,
        batch,
    )


@functools.lru_cache(maxsize=64)
def check_state(objective: Any, shape: tuple[int, ...]) -> None:
    """Raises ValueError if a step changes the form of the variables; warns of
    statistics that it leaves as they are."""
    batch, key = _batch(shape), jax.random.key(0)
    before = initial(objective, shape)
    traced, after = jax.make_jaxpr(
        lambda v, b: objective.loss(v, b, key)[1][0], return_shape=True
    )(before, batch)
    for name, content in after.items():
        if _form(content) != _form(before.get(name)):
            raise ValueError(
                f"a step of the network changes the shapes of its collection {name!r}, "
                "or what is in it; training needs a state of one form, so do not sow "
                "there"
            )
    given = {id(var) for var in traced.jaxpr.invars}
    same = [id(var) in given for var in traced.jaxpr.outvars]
    same = jax.tree.unflatten(jax.tree.structure(after), same)
    if (leaves := jax.tree.leaves(same.get("batch_stats"))) and all(leaves):
        warnings.warn(
            "a step of training leaves the network's batch_stats as they are, so that "
            "its norms do not normalize; where it has a mode for training, it is to be "
            "called as (x, train) and to pass train on",
            stacklevel=2,
        )


def _batch(shape):
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    return Batch(x, jax.ShapeDtypeStruct((2,), jnp.float32))


def _form(tree):
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]


@functools.lru_cache(maxsize=32)
def _evaluator(objective, name, plan, shape, variables):
    del variables  # their shapes

    def function(variables, x):
        return parallel.gather(
            getattr(objective, name)(variables, training.as_float(x))
        )

    on_cpu = jax.default_backend() == "cpu"
    conv = on_cpu and plan.devices == 1 and is_convolutional(objective, shape)
    # Else the same as where devices share the rows, which get the same bits.
    options = cpu_settings.compiler_options() if conv else None
    return plan.compile(function, split=1, options=options)


def evaluate(
    objective: Any,
    name: str,
    variables: Variables,
    x: np.ndarray,
    plan: parallel.Plan | None = None,
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """Applies a function of an objective to many examples, a chunk at a time.

    Args:
        objective: what has the function.
        name: of the function `(variables, x [batch, ...]) -> [batch, ...]`.
        variables: its first argument.
        x: prepared inputs, `[n, ...]`, uint8 or float32.
        plan: devices that share each chunk.
        rows: those of x to evaluate; all by default.

    Returns:
        `[n or len(rows), ...]`.
    """
    plan = plan or parallel.one()
    shapes = tuple(np.shape(leaf) for leaf in jax.tree.leaves(variables))
    function = _evaluator(objective, name, plan, x.shape[1:], shapes)
    variables = jax.device_put(variables)
    size = len(x) if rows is None else len(rows)
    sizes = _CHUNKS if x.ndim > 2 else _TABLE_CHUNKS
    chunk = next((c for c in sizes if size <= c), sizes[-1]) * plan.devices
    results = []
    for first in range(0, size, chunk):
        place = slice(first, first + chunk)
        part = x[place] if rows is None else x[rows[place]]
        missing = chunk - len(part)
        if missing:
            part = np.pad(part, ((0, missing), *((0, 0),) * (x.ndim - 1)))
        results.append(function(variables, plan.by_device(part)))
    return np.concatenate(jax.device_get(results))[:size]


def parts(
    objective: Any, name: str, variables: Variables, data: Any, plan: parallel.Plan
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`evaluate` of a training set or a stream, with their targets, part by part."""
    if isinstance(data, streams.Stream):
        for x, targets in data.batches():
            yield evaluate(objective, name, variables, x, plan), targets
        return
    size = int(data.size)
    for first in range(0, size, _BLOCK):
        rows = data.indices[first : min(first + _BLOCK, size)]
        targets = data.semi_targets[first : first + len(rows)]
        yield evaluate(objective, name, variables, data.x, plan, rows), targets
