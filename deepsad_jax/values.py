"""Values: what is equal by content finds the same compiled program, and goes to disk.

Networks, losses and objectives are values: module instances, frozen dataclasses,
functions, and plain data. `key` makes anything of them hashable by content, `to_json`
and `from_json` write and read them, with functions and classes named by their import
path, `module:name`.
"""

import dataclasses
import functools
import hashlib
import importlib
import inspect
import math
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

_NOT_FIELDS = ("parent", "name")


def key(value: Any, where: str = "the value") -> Any:
    """Something hashable that is equal for equal values, and for these alone.

    Types count: 4, 4.0 and True are three values. Functions, and objects that say
    nothing of their content, are equal to themselves alone, and only as long as what
    they hold, or read from outside, is the same: numbers, texts, arrays, other
    functions, and what those read in turn.

    Raises:
        ValueError: for what has neither content nor identity; it is named.
    """
    if isinstance(value, _ARRAYS) and not is_key(value):
        array = np.asarray(value)
        return "array", array.shape, str(array.dtype), array.tobytes()
    if (dtype := _dtype(value)) is not None:
        return "dtype", dtype
    if isinstance(value, getattr(sys.modules.get("flax.nnx"), "Module", ())):
        graph, state = sys.modules["flax.nnx"].split(value)
        leaves = tuple(map(_digest, jax.tree.leaves(state)))
        return "nnx", key(graph, where), leaves, _reads(type(value))
    if isinstance(value, functools.partial):
        content = {"": value.func, **dict(enumerate(value.args)), **value.keywords}
        return "partial", key({str(n): v for n, v in content.items()}, where)
    if isinstance(value, Mapping):
        items = sorted(value.items(), key=lambda item: str(item[0]))
        return "mapping", tuple((n, key(v, f"{where}.{n}")) for n, v in items)
    if isinstance(value, (list, tuple)):
        items = (key(v, f"{where}[{i}]") for i, v in enumerate(value))
        return "sequence", type(value).__name__, tuple(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = (
            (n, key(v, f"{type(value).__name__}.{n}")) for n, v in fields(value).items()
        )
        return type(value), tuple(items), _reads(type(value))
    if not _is_hashable(value):
        raise ValueError(
            f"{where} is a {type(value).__name__}, which cannot be compared by its "
            "content; use numbers, texts, tuples, functions or frozen dataclasses"
        )
    return value, _reads(value)


_PLAIN = (bool, int, float, complex, str, bytes, np.generic, type(None))
_ARRAYS = (np.ndarray, jax.Array)


def _reads(value: Any, seen: set[int] | None = None) -> Any:
    """What a function, a class or an object holds, or reads from outside, that may be
    another next time; of libraries only what their functions have been given."""
    if isinstance(value, _PLAIN):
        return type(value), value
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, (types.ModuleType, jax.core.Tracer)):
        return None
    seen.add(id(value))
    if isinstance(value, _ARRAYS):
        return _digest(value)
    if isinstance(value, (list, tuple)):
        return tuple(_reads(item, seen) for item in value)
    if isinstance(value, Mapping):
        names = sorted(value, key=str)
        return tuple((str(name), _reads(value[name], seen)) for name in names)
    if isinstance(value, types.FunctionType):
        return value, _reads(_names(value), seen)
    if isinstance(value, type):
        own = [kind for kind in value.__mro__ if not _is_of_library(kind.__module__)]
        found = [member for kind in own for member in vars(kind).values()]
        found = [getattr(m, "fget", getattr(m, "__func__", m)) for m in found]
        functions = [m for m in found if isinstance(m, types.FunctionType)]
        return value, tuple(_reads(function, seen) for function in functions)
    held = getattr(value, "__dict__", {})
    held = {name: content for name, content in held.items() if _is_plain(content)}
    held["__wrapped__"] = getattr(value, "__wrapped__", None)  # by jax.jit
    known = value if isinstance(value, Callable) and _is_hashable(value) else None
    return _reads(type(value), seen), known, _reads(held, seen)


def _is_plain(value: Any) -> bool:
    """Whether it is data, and not other objects that may hold anything."""
    items = value.values() if isinstance(value, Mapping) else value
    if isinstance(value, (list, tuple, Mapping)):
        return all(map(_is_plain, items))
    return isinstance(value, _PLAIN + _ARRAYS)


def _names(function: types.FunctionType) -> dict[str, Any]:
    """What a function reads from outside, by name."""
    try:
        found = inspect.getclosurevars(function)
    except ValueError:  # a variable that has no value yet
        return {}
    is_own = not _is_of_library(function.__globals__.get("__name__") or "")
    names = {**(found.globals if is_own else {}), **found.nonlocals}
    return names | {"__wrapped__": getattr(function, "__wrapped__", None)}


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


@functools.cache
def _is_of_library(module: str) -> bool:
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top == "deepsad_jax":
        return True
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return "site-packages" in file or "dist-packages" in file


def numbers(leaf: Any) -> Any:
    """An array as it is; of random keys, their data."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def like(array: Any, leaf: Any) -> Any:
    """The inverse of `numbers`, for the kind of a leaf."""
    if not is_key(leaf):
        return array
    impl = jax.random.key_impl(jax.numpy.empty((), leaf.dtype))
    return jax.random.wrap_key_data(array, impl=impl)


def is_key(leaf: Any) -> bool:
    """Whether it is an array of random keys, or the shape of one."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)


def _digest(leaf: jax.Array) -> tuple[Any, ...]:
    leaf = np.asarray(numbers(leaf))
    return leaf.shape, str(leaf.dtype), hashlib.sha256(leaf.tobytes()).digest()


def _dtype(value: Any) -> str | None:
    """The name of what stands for a type of numbers: `jnp.float32`, a dtype."""
    is_class = isinstance(value, type) and issubclass(value, np.generic)
    if isinstance(value, np.dtype) or is_class:
        return np.dtype(value).name
    if isinstance(value, type(jax.numpy.float32)):
        return value.dtype.name
    return None


def fields(value: Any) -> dict[str, Any]:
    """The fields of a dataclass (a Linen module is one) that make its content."""
    hidden = _NOT_FIELDS if isinstance(value, nn.Module) else ()
    return {
        field.name: getattr(value, field.name, None)
        for field in dataclasses.fields(value)
        if field.init and field.name not in hidden
    }


class ByContent:
    """Base of frozen dataclasses (`eq=False`) that are compared by `key`."""

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __getstate__(self) -> dict[str, Any]:
        return {name: field for name, field in vars(self).items() if name != "_key"}

    @functools.cached_property
    def _key(self) -> Any:
        return key(self)


def imported(path: str, what: str = "the name") -> Any:
    """The object of an import path `module:name`.

    Raises:
        ValueError: if there is none.
    """
    module, _, name = path.partition(":")
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{what} is {path!r}, which cannot be imported ({error}); it must be "
            "module:name, of a module on Python's path"
        ) from error
    return found


def path_of(thing: Any) -> str | None:
    """The import path of a function or class, or None if it has none."""
    module, name = getattr(thing, "__module__", ""), getattr(thing, "__qualname__", "")
    if not module or module == "__main__" or not name or "<" in name:
        return None
    try:
        return f"{module}:{name}" if imported(f"{module}:{name}") is thing else None
    except ValueError:
        return None


def to_json(value: Any, *, missing: bool = False) -> Any:
    """The value as JSON, which `from_json` reads.

    Args:
        value: plain data, dataclasses, functions.
        missing: whether a field may be left out that has no import path, such as a
            lambda or a class of the main program; it must then be given on reading.

    Raises:
        ValueError: if something has no import path and must have one.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.number):  # whose type counts where it meets others
        return {"number": str(value), "dtype": value.dtype.name}
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, (list, tuple)):
        items = [to_json(v, missing=missing) for v in value]
        return {"list": items} if isinstance(value, list) else items
    if isinstance(value, Mapping):
        return {"mapping": _all(value, False)}
    if isinstance(value, functools.partial) and not value.args:
        return {"partial": to_json(value.func), "options": _all(value.keywords, False)}
    if (dtype := _dtype(value)) is not None:
        return {"dtype": dtype}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        is_ours = missing and isinstance(value, ByContent)
        return {"type": _named(type(value)), "fields": _all(fields(value), is_ours)}
    return {"object": _named(value)}


def _all(mapping, missing):
    found = {}
    for name, value in mapping.items():
        if not isinstance(name, str):
            raise ValueError(
                f"{name!r} is a key of a dictionary, which is a text in a file; take "
                "pairs, or texts"
            )
        try:
            # What is missing is named by the outermost field that holds it.
            found[name] = to_json(value)
        except ValueError as error:
            if not missing:
                raise
            if hasattr(value, "score"):  # an objective in another names its own
                found[name] = to_json(value, missing=True)
            else:
                found[name] = {"missing": str(error)}
    return found


def _named(thing):
    path = path_of(thing)
    if path is None:
        name = getattr(thing, "__qualname__", f"a {type(thing).__qualname__}")
        raise ValueError(
            f"{name} has no import path: define it at the top of a module that is not "
            "the main program"
        )
    return path


def from_json(content: Any, own: Mapping[str, Any] | None = None) -> Any:
    """The value of what `to_json` wrote.

    Classes must be Linen modules or dataclasses; functions are found, not called, and
    none of Python's own library.

    Args:
        content: the JSON.
        own: values of fields that are taken instead of what is written.

    Raises:
        ValueError: if something cannot be imported, or is not a value.
    """
    if isinstance(content, list):
        return tuple(from_json(v, own) for v in content)
    if not isinstance(content, dict):
        return content
    if "list" in content:
        return [from_json(v) for v in content["list"]]
    if "mapping" in content:
        return {name: from_json(v) for name, v in content["mapping"].items()}
    if "float" in content:
        return float(content["float"])
    if "number" in content:
        return jax.numpy.dtype(content["dtype"]).type(content["number"])
    if "dtype" in content:
        return jax.numpy.dtype(content["dtype"])
    if "type" in content:
        return _rebuilt(content, own or {})
    if "partial" in content:
        options = {n: from_json(v) for n, v in content["options"].items()}
        return functools.partial(from_json(content["partial"]), **options)
    module = str(content["object"]).partition(":")[0].partition(".")[0]
    if module in {*sys.stdlib_module_names, "builtins"}:  # such as os:system
        raise ValueError(
            f"{content['object']} is of Python's own library, of which no model is made"
        )
    found = imported(content["object"], "an object")
    if not isinstance(found, (type, Callable)):
        raise ValueError(f"{content['object']} is not a function or a class")
    return found


def _rebuilt(content, own):
    found = imported(content["type"], "a type")
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ValueError(f"{content['type']} is not a module or a dataclass")
    options = {}
    for name, field in content["fields"].items():
        if name in own:
            options[name] = own[name]
        elif isinstance(field, dict) and "missing" in field:
            raise ValueError(f"{name} must be passed, since {field['missing']}")
        else:
            options[name] = from_json(field, own)
    if not issubclass(found, ByContent):
        return found(**options)
    value = object.__new__(found)  # its fields are what it was made into
    for field in dataclasses.fields(found):
        object.__setattr__(value, field.name, options[field.name])
    return value
