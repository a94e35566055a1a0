"""What a fit leaves: one model, whatever the method, with all that scoring needs.

    scores = score(model, x)              # raw rows in, higher = more anomalous
    save(model, "pump.model"); model = load("pump.model")
    jax.jit(lambda x: score(model, x))    # a pure function of traced rows

A folder holds arrays and JSON, never pickles. Networks and losses of your own are named
by their import path, or passed to `load`.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import os
import platform
from collections.abc import Iterable, Iterator
from typing import Any

import flax.core
import jax
import jax.numpy as jnp
import numpy as np

from deepsad_jax import (
    __version__,
    checkpoints,
    forward,
    modules,
    objectives,
    parallel,
    preprocessing,
    streams,
    training,
    values,
    version_0_1,
)

_PACKAGES = ("jax", "flax", "numpy")
FORMAT = 2
# Rows that are prepared at once.
_BLOCK = 2**16
MEANING = {"+1": "known normal", "0": "unlabeled", "-1": "known anomaly"}


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A trained detector.

    A pytree: `variables` and `base` are its children, everything else is static.

    Attributes:
        variables: of the objective, NumPy arrays.
        objective: what was trained; its `score` is the anomaly score.
        preprocessing: what is applied to raw rows.
        base: the model it started from, such as the autoencoder of Deep SAD; reference
            scores are `score(model.base, x)`.
        info: `method`, `shape` of a raw example, meaning of the `labels`, `versions`.
    """

    variables: dict[str, Any]
    objective: Any
    preprocessing: preprocessing.Preprocessing
    base: "Model | None" = None
    info: Any = flax.core.FrozenDict()  # noqa: RUF009 (immutable)

    def tree_flatten(self):
        static = (self.objective, self.preprocessing, self.info)
        return (self.variables, self.base), static

    @classmethod
    def tree_unflatten(cls, static, children):
        return cls(children[0], static[0], static[1], children[1], static[2])


def make(
    method: str,
    objective: Any,
    variables: dict[str, Any],
    scaling: preprocessing.Preprocessing,
    shape: tuple[int, ...],
    base: Model | None = None,
    versions: dict[str, str] | None = None,
) -> Model:
    """A model.

    Args:
        method: its name.
        objective, variables, base: as in `Model`.
        scaling: its preprocessing.
        shape: of an example, raw or prepared.
        versions: of the packages that made it; today's by default.
    """
    if versions is None:
        versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
        versions |= {"deepsad_jax": __version__, "python": platform.python_version()}
    info = {"method": method, "shape": scaling.raw(shape), "labels": MEANING}
    info = flax.core.freeze({**info, "versions": versions})
    return Model(jax.device_get(variables), objective, scaling, base, info)


def score(model: Model, x: Any, *, plan: parallel.Plan | None = None) -> np.ndarray:
    """Anomaly scores, `[n]`, higher = more anomalous; float64 of kernel methods, else
    float32.

    Args:
        model: from a fit, or from `load`.
        x: raw rows `[n, ...]`, scaled as those of the training (the model prepares
            them), a table with the columns of the training, or an iterable of batches
            of such, `x` or `(x, semi_targets)`. Where the model or x is traced by
            `jit`, `vmap` or `grad`, the result is traced, too, and nothing can be
            checked; tables are then encoded before, see `columns`.
        plan: devices that share the work, `parallel.split_batch()`.

    Raises:
        ValueError: if x is not what the model takes, or holds what is not finite.
    """
    return apply(model, "score", x, plan)


def embed(model: Model, x: Any, *, plan: parallel.Plan | None = None) -> np.ndarray:
    """The encoder's embeddings, `[n, rep_dim]` float32; Args and Raises as `score`.

    Raises:
        ValueError: also if the model has no encoder.
    """
    if not hasattr(_checked(model).objective, "embed"):
        raise ValueError(f"a model of {model.info['method']} has no embeddings")
    return apply(model, "embed", x, plan)


def apply(
    model: Model, name: str, x: Any, plan: parallel.Plan | None = None
) -> np.ndarray:
    """A function of the objective, `name`, of raw rows; Args and Raises as `score`."""
    x = _checked(model).preprocessing.encoded(x)
    leaves = [x, *jax.tree.leaves(model)]
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        model.preprocessing.check_shape(x, "x", tuple(model.info["shape"]))
        prepared = training.as_float(model.preprocessing(x))
        return _wide(getattr(model.objective, name)(model.variables, prepared))
    is_rows = isinstance(x, (list, tuple)) or hasattr(x, "__array__")
    is_rows |= hasattr(x, "toarray") or not isinstance(x, Iterable)
    if callable(x) or not is_rows:
        parts = [apply(model, name, part, plan) for part in streams.chunks(x)]
        if not parts:
            raise ValueError("x has no batch; it must have at least one")
        return np.concatenate(parts)
    if plan is not None and getattr(plan, "many", True):
        raise ValueError(f"plan is {plan!r}; it must be one of parallel.split_batch")
    x = model.preprocessing.check(x, "x", tuple(model.info["shape"]))
    wide = getattr(model.objective, "float64", False)
    parts = []
    with jax.enable_x64(True) if wide else contextlib.nullcontext():
        for first in range(0, len(x), _BLOCK):
            rows = preprocessing.prepared(
                model.preprocessing, x[first : first + _BLOCK]
            )
            parts.append(
                forward.evaluate(model.objective, name, model.variables, rows, plan)
            )
    result = _wide(np.concatenate(parts))
    if not np.isfinite(result).all():
        row = int(np.argmin(np.isfinite(result.reshape(len(x), -1)).all(axis=1)))
        raise ValueError(
            f"the {name} of row {row} of x is not a finite number: its values are too "
            "far from those of the training, or the model is damaged"
        )
    return result


def _wide(found):
    """float32 of what was computed in bfloat16."""
    return found.astype(np.float32) if found.dtype == jax.numpy.bfloat16 else found


def _checked(model):
    if not isinstance(model, Model):
        raise ValueError(
            f"model is a {type(model).__name__}; it must be a Model, the first of the "
            "two that a fit returns"
        )
    return model


def save(model: Model, folder: str | os.PathLike) -> None:
    """Writes a model to a new folder.

    Raises:
        FileExistsError: if the folder exists.
        OSError: if it cannot be written.
    """
    leaves, meta = described(_checked(model))
    checkpoints.write(folder, leaves, {"format": FORMAT, **meta})


def described(model: Model) -> tuple[list[np.ndarray], dict[str, Any]]:
    """A model as arrays and JSON, the inverse of `rebuilt`."""
    paths, leaves = [], []
    flat, _ = jax.tree_util.tree_flatten_with_path(model.variables)
    for path, leaf in flat:
        paths.append([str(getattr(p, "key", getattr(p, "idx", p))) for p in path])
        leaves.append(np.asarray(leaf))
    meta = {
        "objective": values.to_json(model.objective, missing=True),
        "preprocessing": model.preprocessing.to_json(),
        "info": flax.core.unfreeze(model.info),
        "paths": paths,
        "base": None,
    }
    if model.base is not None:
        more, meta["base"] = described(model.base)
        leaves += more
    return leaves, meta


def load(
    folder: str | os.PathLike,
    *,
    encoder: Any = None,
    decoder: Any = None,
    loss: Any = None,
) -> Model:
    """Reads what `save` has written, or version 0.1.

    Args:
        folder: the folder.
        encoder, decoder, loss: modules and loss of your own, where they cannot be found
            by their import path.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it does not hold a whole model, or one of other modules.
    """
    leaves, meta = checkpoints.read(folder)
    own = parts_of_own(encoder, decoder, loss)
    with refusing(folder):
        if "format" not in meta:
            return _verified(version_0_1.model(leaves, meta, make))
        check_format(meta)
        return rebuilt(leaves, meta, own)


def parts_of_own(encoder: Any, decoder: Any, loss: Any) -> dict[str, Any]:
    """What `load` was given, as fields that `rebuilt` takes."""
    own = {"encoder": encoder, "decoder": decoder}
    own = {n: modules.network(m, n) for n, m in own.items() if m is not None}
    if loss is not None:
        loss = objectives.named_loss(loss) if isinstance(loss, str) else loss
        if not callable(loss):
            raise ValueError(f"loss is {loss!r}; it must be a function")
        own["loss_function"] = loss
    return own


@contextlib.contextmanager
def refusing(folder: str | os.PathLike) -> Iterator[None]:
    """Turns whatever a changed file may lead to into a ValueError."""
    try:
        yield
    except Exception as error:
        reason = checkpoints.reason(error).replace("loss_function", "loss")
        raise ValueError(f"{folder} does not hold a whole model: {reason}") from error


def check_format(meta: dict[str, Any]) -> None:
    """Raises ValueError for what another version has written."""
    if meta["format"] != FORMAT:
        raise ValueError(
            f"it is of format {meta['format']}, which another version has written; "
            f"this one reads {FORMAT}"
        )


def rebuilt(leaves: Any, meta: dict[str, Any], own: dict[str, Any]) -> Model:
    """The model of what `described` gives, verified; more leaves may follow."""
    return _verified(_rebuilt(leaves, meta, own))


def _rebuilt(leaves, meta, own):
    objective = values.from_json(meta["objective"], own)
    info = {**meta["info"], "shape": tuple(meta["info"]["shape"])}
    count = len(meta["paths"])
    scaling = preprocessing.from_json(meta["preprocessing"])
    shape = scaling.features(info["shape"])
    variables = _restored(objective, leaves[:count], meta["paths"], shape)
    base = _rebuilt(leaves[count:], meta["base"], own) if meta["base"] else None
    return Model(variables, objective, scaling, base, flax.core.freeze(info))


def _restored(objective, leaves, paths, shape):
    """The tree of variables."""
    if hasattr(objective, "init"):
        tree = jax.tree.structure(forward.initial(objective, shape))
        if len(leaves) != tree.num_leaves:
            raise ValueError("its arrays are not those of its networks")
        return jax.tree.unflatten(tree, leaves)
    tree: dict[str, Any] = {}
    for leaf, path in zip(leaves, paths, strict=True):
        inner = tree
        for name in path[:-1]:
            inner = inner.setdefault(name, {})
        inner[path[-1]] = leaf
    return tree


def _verified(model):
    """The model, if its arrays are finite, and those that its objective has."""
    found, shape = _arrays(model.variables), model.info["shape"]
    for path, leaf in found.items():
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not np.isfinite(leaf).all():
            raise ValueError(f"its array {path} has values that are not finite")
    example = jax.ShapeDtypeStruct((1, *shape), np.float32)
    model.preprocessing.check_shape(example, "an example of its training")
    shape = model.preprocessing.features(shape)
    example = jax.ShapeDtypeStruct((1, *shape), np.float32)
    if hasattr(model.objective, "init"):
        expected = _arrays(forward.initial(model.objective, shape))
        for path in sorted(found.keys() | expected.keys()):
            one, other = (_kind(arrays.get(path)) for arrays in (found, expected))
            if one != other:
                raise ValueError(f"its array {path} is {one}, not {other}")
        forward.is_convolutional(model.objective, shape)  # as scoring will
    jax.eval_shape(model.objective.score, model.variables, example)
    if model.base is not None:
        _verified(model.base)
    return model


def _kind(leaf):
    return "missing" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"


def _arrays(tree):
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return {name(path): leaf for path, leaf in paths}
