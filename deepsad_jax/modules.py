"""The door for networks: any Linen module, any NNX module, or a pair of functions.

`network(thing)` makes a `Network` of it: a value with three pure functions. All that
trains and scores knows networks in this form alone. Variables are dictionaries of
collections, `{"params": ..., "batch_stats": ...}`; what is in `params` is trained.
"""

import dataclasses
import functools
import inspect
import sys
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from deepsad_jax import layers, parallel, values

Variables = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Network(values.ByContent):
    """A network as a value: equal content finds the same compiled program.

    Attributes:
        module: a Linen module.
    """

    module: Any

    def init(self, key: jax.Array, x: jax.Array) -> Variables:
        """Initial variables for inputs like `x`, `[batch, ...]`, from a random key."""
        x = jnp.zeros(x.shape, jnp.float32)
        extra = self._arguments(False)
        variables = layers.init_from_one_draw(
            lambda key: self.module.init(key, x, **extra), key
        )
        return {"params": {}, **_plain(variables)}

    def apply(self, variables: Variables, x: jax.Array) -> jax.Array:
        """The output in evaluation mode, which changes nothing."""
        return self.module.apply(variables, x, **self._arguments(False))

    def apply_train(
        self, variables: Variables, x: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Variables]:
        """The output in training mode and the new variables.

        A stock batch norm sees the whole batch, however many devices share it.

        Args:
            variables: as from `init`.
            x: this device's share of a batch.
            key: random key, for modules that draw (dropout).
        """
        mutable = [name for name in variables if name != "params"]
        with nn.intercept_methods(_synchronize):
            output, updated = self.module.apply(
                variables,
                x,
                rngs={"params": _own_key(key)},
                mutable=mutable,
                **self._arguments(True),
            )
        return output, {**variables, **_plain(updated)}

    def _arguments(self, train: bool) -> dict[str, bool]:
        return {"train": train} if _takes_train(type(self.module).__call__) else {}


def _plain(tree):
    return {name: flax.core.unfreeze(content) for name, content in tree.items()}


# Other names for a mode of training, which nobody would set: dropout and batch norm
# would stay as for evaluation.
_MODES = {"training", "is_training", "deterministic", "use_running_average"}


@functools.cache
def _takes_train(function, given: int = 1) -> bool:
    """Whether it is `(x, train)`, of so many given arguments; others without default
    are refused, and a mode of another name."""
    parameters = list(inspect.signature(function).parameters.values())
    names = {p.name for p in parameters}
    if (others := names & _MODES) and "train" not in names:
        raise ValueError(
            f"{function.__qualname__} is called with {min(others)}; a network is "
            "called as (x, train) or (x), and train is True in training"
        )
    needed = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    needed = [name for name in needed if name not in ("self", "train")]
    if len(needed) > given:
        raise ValueError(
            f"a network is called as (x, train) or (x); this one also needs "
            f"{', '.join(needed[given:])}"
        )
    return "train" in names


def _check_layers(module: nn.Module) -> None:
    """Raises ValueError for layers that have a mode of training and are not told."""
    for layer in module.layers if isinstance(module, nn.Sequential) else ():
        names = {*inspect.signature(type(layer).__call__).parameters}
        is_own = not type(layer).__module__.startswith("flax.")
        if isinstance(layer, nn.Module) and is_own and names & {"train", *_MODES}:
            raise ValueError(
                f"nn.Sequential does not tell {type(layer).__name__} whether it "
                "trains; call it in a module of your own, which is called as (x, train)"
            )


def _own_key(key: jax.Array) -> jax.Array:
    if parallel.shares() == 1:
        return key
    return jax.random.fold_in(key, jax.lax.axis_index(parallel.AXIS))


def _synchronize(call, arguments, options, context):
    module = context.module
    if (
        isinstance(module, nn.BatchNorm)
        and module.axis_name is None
        and parallel.shares() > 1
    ):
        # The copy of the module that lives for this call alone.
        object.__setattr__(module, "axis_name", parallel.AXIS)
    return call(*arguments, **options)


@dataclasses.dataclass(frozen=True, eq=False)
class NNXNetwork(Network):
    """An NNX module: an instance, whose weights it starts from, or what makes one.

    Attributes:
        module: an `nnx.Module`, or a function or class called as `module(rngs=...)`.
    """

    def init(self, key: jax.Array, x: jax.Array) -> Variables:
        from flax import nnx

        del x
        made = self.module
        if not isinstance(made, nnx.Module):
            made = made(rngs=nnx.Rngs(key))
        _, *states = nnx.split(made, *self._kinds)
        named = zip(self._names, states, strict=True)
        return {name: _flat(nnx.to_pure_dict(state)) for name, state in named}

    def apply(self, variables: Variables, x: jax.Array) -> jax.Array:
        module = self._merged(variables, False)
        return module(x, **self._arguments(False))

    def apply_train(self, variables, x, key):
        from flax import nnx

        del key  # NNX modules carry their random state
        module = self._merged(variables, True)
        if parallel.shares() > 1:
            for _, part in nnx.iter_graph(module):
                if isinstance(part, nnx.BatchNorm) and part.axis_name is None:
                    part.axis_name = parallel.AXIS
                if isinstance(part, nnx.RngKey):  # draws of its own for each device
                    part.value = _own_key(part.value)
        output = module(x, **self._arguments(True))
        _, *states = nnx.split(module, *self._kinds)
        for state, name in zip(states[1:], self._names[1:], strict=True):
            pure, old = nnx.to_pure_dict(state), variables[name]
            new = _flat(pure)  # and what was sown, which is dropped
            new |= {n: old[n] for n in _keys(pure)}  # those of this device
            variables = {**variables, name: {n: new[n] for n in old}}
        return output, variables

    _names = ("params", "batch_stats", "rest")

    @functools.cached_property
    def _kinds(self):
        from flax import nnx

        return nnx.Param, nnx.BatchStat, ...

    @functools.cached_property
    def _abstract(self):
        from flax import nnx

        def make():
            if isinstance(self.module, nnx.Module):
                return nnx.clone(self.module)
            return self.module(rngs=nnx.Rngs(0))

        return nnx.eval_shape(make)

    @functools.cached_property
    def _graphs(self):
        """For training and evaluation, the module without its numbers."""
        from flax import nnx

        graphs = {}
        for train in (True, False):
            module = nnx.clone(self._abstract)
            (module.train if train else module.eval)()
            graphs[train] = nnx.split(module, *self._kinds)[0]
        return graphs

    def _merged(self, variables, train):
        from flax import nnx

        states = nnx.split(self._abstract, *self._kinds)[1:]
        states = [jax.tree.map(lambda leaf: leaf, state) for state in states]
        for state, name in zip(states, self._names, strict=True):
            pure = nnx.to_pure_dict(state)
            nnx.replace_by_pure_dict(state, _nested(variables[name], pure))
        return nnx.merge(self._graphs[train], *states)

    def _arguments(self, train):
        from flax import nnx

        module = self.module
        kind = type(module) if isinstance(module, nnx.Module) else type(self._abstract)
        return {"train": train} if _takes_train(kind.__call__) else {}


def _flat(tree) -> dict[str, jax.Array]:
    """Nested dictionaries, whose keys may be numbers, as one with paths for keys."""
    flat = flax.traverse_util.flatten_dict(tree)
    return {
        "/".join(map(str, path)): values.numbers(leaf) for path, leaf in flat.items()
    }


def _keys(tree) -> list[str]:
    """Paths of the random keys."""
    flat = flax.traverse_util.flatten_dict(tree)
    return [
        "/".join(map(str, path)) for path, leaf in flat.items() if values.is_key(leaf)
    ]


def _nested(flat, like):
    """The inverse of `_flat`, for the paths and the kinds of keys of `like`."""
    found = {}
    for path, leaf in flax.traverse_util.flatten_dict(like).items():
        found[path] = values.like(jnp.asarray(flat["/".join(map(str, path))]), leaf)
    return flax.traverse_util.unflatten_dict(found)


# The name of parameters that a pair of functions does not name.
_WHOLE = ""


@dataclasses.dataclass(frozen=True, eq=False)
class PureNetwork(Network):
    """A pair of functions `(init, apply)`.

    `init(key, x)` returns parameters, or variables: a dictionary with `params` and
    collections of state. `apply(parameters or variables, x[, train])` returns the
    output, in training mode also `(output, variables)`.

    Attributes:
        module: the pair.
    """

    def init(self, key, x):
        found = self.module[0](key, jnp.zeros(x.shape, jnp.float32))
        if isinstance(found, dict) and "params" in found:
            return dict(found)
        return {"params": {_WHOLE: found}}

    def apply(self, variables, x):
        output = self._call(variables, x, False)
        return output[0] if isinstance(output, tuple) else output

    def apply_train(self, variables, x, key):
        del key
        output = self._call(variables, x, True)
        if isinstance(output, tuple):
            return output[0], {**variables, **output[1]}
        return output, variables

    def _call(self, variables, x, train):
        params = variables["params"]
        is_whole = isinstance(params, dict) and set(params) == {_WHOLE}
        argument = params[_WHOLE] if is_whole else variables
        takes_train = _takes_train(self.module[1], 2)
        return self.module[1](argument, x, **({"train": train} if takes_train else {}))


def network(thing: Any, name: str = "encoder") -> Network:
    """A Linen module, an NNX module (or its class), or a pair of functions as a value.

    Args:
        thing: one of these, called as `(x, train)` or `(x)`; or a `Network` already.
        name: what it is called in errors.

    Raises:
        ValueError: for anything else, and for a module with a field that cannot be
            compared, such as an object without content.
    """
    if isinstance(thing, Network):
        return thing
    # Nobody has an NNX module before NNX has been imported, which takes its time.
    nnx = sys.modules.get("flax.nnx")
    made = thing.func if isinstance(thing, functools.partial) else thing
    is_nnx = nnx is not None and (
        isinstance(thing, nnx.Module)
        or (isinstance(made, type) and issubclass(made, nnx.Module))
    )
    if isinstance(thing, nn.Module):
        _takes_train(type(thing).__call__)
        _check_layers(thing)
        found = Network(thing)
    elif is_nnx or (callable(thing) and _makes_nnx(thing)):
        # An instance as it is now, whatever becomes of it.
        is_made = is_nnx and isinstance(thing, nnx.Module)
        found = NNXNetwork(nnx.clone(thing) if is_made else thing)
    elif isinstance(thing, tuple) and len(thing) == 2 and all(map(callable, thing)):
        found = PureNetwork(thing)
    else:
        raise ValueError(
            f"{name} is {thing!r}; it must be a Linen module, an NNX module or its "
            "class, or a pair of functions (init, apply)"
        )
    hash(found)
    return found


def has_weights(thing: Any) -> bool:
    """Whether it is an NNX module that is made already, which every fit starts from."""
    nnx = sys.modules.get("flax.nnx")
    made = thing.module if isinstance(thing, NNXNetwork) else thing
    return nnx is not None and isinstance(made, nnx.Module)


def _makes_nnx(thing) -> bool:
    try:
        return "rngs" in inspect.signature(thing).parameters
    except (TypeError, ValueError):
        return False


def join(parts: dict[str, Variables]) -> Variables:
    """Variables of several networks as one: `{collection: {part: ...}}`."""
    joined: Variables = {}
    for name, variables in parts.items():
        for collection, content in variables.items():
            joined.setdefault(collection, {})[name] = content
    return joined


def part(variables: Variables, name: str) -> Variables:
    """The variables of one of the networks that `join` has put together."""
    return {
        collection: content[name]
        for collection, content in variables.items()
        if isinstance(content, dict) and name in content
    }


@functools.lru_cache(maxsize=16)
def _compiled(found):
    return jax.jit(lambda v, params, x: found.apply({**v, "params": params}, x))


def suspects(found: Network, variables: Variables, x: jax.Array) -> list[str]:
    """Parameters that could produce the center of a hypersphere by themselves.

    A network without them maps a zero input to zero. So each vector (or scalar) of
    parameters is moved, and named if the output of a zero input moves with it: a bias
    in the last layer, the shift of an affine norm.
    """
    x = jnp.zeros((2, *x.shape[1:]), jnp.float32)
    apply = functools.partial(_compiled(found), variables)
    leaves, tree = jax.tree_util.tree_flatten_with_path(variables["params"])
    plain, named = [leaf for _, leaf in leaves], []
    before = apply(variables["params"], x)
    for i, (path, leaf) in enumerate(leaves):
        if jnp.ndim(leaf) > 1:
            continue
        moved = [*plain[:i], leaf + 1.0, *plain[i + 1 :]]
        if jnp.any(apply(jax.tree.unflatten(tree, moved), x) != before):
            named.append("/".join(str(getattr(p, "key", p)) for p in path))
    return named
