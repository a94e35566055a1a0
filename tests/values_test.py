import collections
import dataclasses
import functools
import inspect
import json
import math
import operator
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from deepsad_jax import layers, losses, networks, objectives, training, values


@dataclasses.dataclass(frozen=True)
class Options:
    content: Any = None
    more: Any = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Value(values.ByContent):
    content: Any = None
    more: Any = 1


def weighted(embeddings, semi_targets, center, *, weight=1.0):
    return weight * losses.deep_sad_loss(embeddings, semi_targets, center)


class Small(nn.Module):
    width: Any = 4

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.width)(x)


class Unknown:
    """Says nothing of its content."""


EQUAL = {
    "numbers": (4, 2 + 2),
    "arrays": (np.arange(3.0, dtype=np.float32), jnp.arange(3.0)),
    "mappings": ({"a": 1, "b": [2]}, {"b": [2], "a": 1}),
    "partials": (
        functools.partial(weighted, weight=2.0),
        functools.partial(weighted, weight=2.0),
    ),
    "dataclasses": (Options([1, {"a": 2}]), Options([1, {"a": 2}])),
    "modules": (Small(3), Small(3)),
    "modules of modules": [
        networks.build_autoencoder(name) for name in ["mnist_LeNet"] * 2
    ],
    "initializers": [
        nn.Dense(3, kernel_init=layers.Uniform(bound))
        for bound in [layers.fan_out_bound] * 2
    ],
    "dtypes": (jnp.float32, np.dtype("float32")),
    "types of numbers": (jnp.bfloat16, jnp.dtype("bfloat16")),
}
UNEQUAL = {
    "an integer and a float": (4, 4.0),
    "an integer and a truth": (1, True),
    "a float and a truth": (1.0, True),
    "widths of numbers": (4.0, np.float32(4.0)),
    "a list and a tuple": ([1], (1,)),
    "numbers inside": (Options((1, 2)), Options((1, 2.0))),
    "numbers in partials": [functools.partial(weighted, weight=w) for w in (2, 2.0)],
    "positional options of partials": [
        functools.partial(operator.add, 2),
        functools.partial(operator.add, 3),
    ],
    "functions": (losses.deep_sad_loss, losses.hypersphere_loss),
    "fields of modules": (Small(4), Small(4.0)),
    "classes of equal fields": (Options(1), Value(1)),
    "types of arrays": (np.arange(3), np.arange(3.0)),
    "shapes of arrays": (np.zeros((2, 1)), np.zeros((1, 2))),
    "dtypes": (jnp.float32, jnp.bfloat16),
    "objects without content": (Unknown(), Unknown()),
}


@pytest.mark.parametrize("pair", EQUAL.values(), ids=EQUAL)
def test_equal_content_has_equal_keys(pair):
    one, other = map(values.key, pair)
    assert one == other and hash(one) == hash(other)
    one, other = map(Value, pair)
    assert one == other and hash(one) == hash(other)


@pytest.mark.parametrize("pair", UNEQUAL.values(), ids=UNEQUAL)
def test_what_differs_in_value_or_type_has_another_key(pair):
    one, other = pair
    assert values.key(one) != values.key(other)
    assert Value(one) != Value(other) and Value(one) == Value(one)


def test_values_are_equal_within_their_class_alone():
    class Other(Value):
        pass

    assert Value(3) != Other(3)
    assert Value(3) != 3


def test_what_has_neither_content_nor_identity_is_named():
    class Moody:
        __hash__ = None

    with pytest.raises(ValueError, match=r"Value.content\[1\].a is a Moody, which can"):
        hash(Value([1, {"a": Moody()}]))
    with pytest.raises(ValueError, match="the value is a set, which cannot be"):
        values.key({1, 2})
    with pytest.raises(ValueError, match="encoder.* is a set|Small.width is a set"):
        objectives.DeepSAD(Small({1}))


WRITTEN = {
    "plain": (None, True, 3, "text", 0.1, (1, (2, "a"))),
    "infinite": (math.inf, -math.inf),
    "mapping": {"a": 1, "b": (1.5, {"c": None})},
    "dtype": jnp.dtype("bfloat16"),
    "numbers": (np.int64(8), np.float32(0.1), np.float64(0.1), np.float64("inf")),
    "function": losses.deep_sad_loss,
    "class": Small,
    "partial": functools.partial(weighted, weight=2.0),
    "dataclass": Options((1, Options()), training.Adam(1e-3, (5, 10))),
    "module": Small(7),
    "network": networks.PAPER["fmnist_LeNet"].autoencoder,
    "initializers": nn.Dense(3, kernel_init=layers.Uniform(layers.xavier_bound)),
    "objective": objectives.DeepSAD(
        networks.MLPEncoder((4,), 2), functools.partial(weighted, weight=2)
    ),
    "boundary": objectives.SoftBoundary(networks.MLPEncoder((4,), 2), nu=0.3),
}


@pytest.mark.parametrize("value", WRITTEN.values(), ids=WRITTEN)
def test_values_survive_json(value):
    written = json.loads(json.dumps(values.to_json(value)))
    found = values.from_json(written)
    assert type(found) is type(value)
    assert values.key(found) == values.key(value)


def test_keys_that_are_no_texts_are_refused():
    with pytest.raises(ValueError, match="3 is a key of a dictionary, which is a text"):
        values.to_json({3: 1.0})


def test_nan_survives_json():
    assert math.isnan(values.from_json(values.to_json(math.nan)))
    json.dumps(values.to_json(math.nan), allow_nan=False)


def test_what_has_no_import_path_must_be_passed_on_reading():
    def loss(embeddings, semi_targets, center):
        return embeddings[:, 0]

    objective = objectives.DeepSAD(networks.MLPEncoder((4,), 2), loss)
    with pytest.raises(ValueError, match="<locals>.loss has no import path: define it"):
        values.to_json(objective)
    written = values.to_json(objective, missing=True)
    with pytest.raises(ValueError, match="loss_function must be passed, since .*loss"):
        values.from_json(written)
    assert values.from_json(written, {"loss_function": loss}) == objective


def test_only_values_come_out_of_json():
    path = "deepsad_jax.networks:PAPER"
    with pytest.raises(ValueError, match=f"{path} is not a function or a class"):
        values.from_json({"object": path})
    for path in ("os:system", "os.path:exists", "builtins:input", "code:interact"):
        with pytest.raises(ValueError, match=f"{path} is of Python's own library"):
            values.from_json({"partial": {"object": path}, "options": {}})
    with pytest.raises(ValueError, match="is not a module or a dataclass"):
        values.from_json({"type": "subprocess:Popen", "fields": {"args": "true"}})


@pytest.mark.parametrize(
    "path", ["no_such_module:name", "math:no_such_name", "math", ":pi", "math:", ""]
)
def test_import_paths_that_lead_nowhere_are_named(path):
    with pytest.raises(ValueError, match=f"config.loss is '{path}', which cannot be"):
        values.imported(path, "config.loss")


def test_import_paths_lead_back():
    assert values.imported(values.path_of(Small)) is Small
    assert values.path_of(nn.Dense) == "flax.linen.linear:Dense"
    assert values.path_of(lambda x: x) is None
    assert values.path_of(Small(3)) is None


OUTSIDE = """
import functools, flax.linen as nn, jax.numpy as jnp, numpy as np
from flax import nnx

SCALE, WEIGHTS, OPTIONS = 1.0, np.ones(3), {"slope": [0.1]}

def inner(h):
    return SCALE * h

def helper(h):
    return inner(h) + OPTIONS["slope"][0]

class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return helper(nn.Dense(3)(x))

class NNX(nnx.Module):
    def __init__(self, *, rngs):
        self.linear = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return helper(self.linear(x)) * WEIGHTS

class Loss:
    def __call__(self, embeddings, semi_targets, center):
        return self.of(embeddings) @ WEIGHTS

    @staticmethod
    def of(embeddings):
        return helper(embeddings)

def loss(embeddings, semi_targets, center):
    return helper(embeddings) @ WEIGHTS

def rate(steps):
    return functools.partial(helper, 1.0)
"""


@pytest.mark.parametrize("name", ["Linen()", "NNX", "Loss()", "loss", "rate"])
@pytest.mark.parametrize(
    "edit",
    [
        "SCALE = 2.0",
        "WEIGHTS[0] = 3.0",
        "OPTIONS['slope'][0] = 0.2",
        "def inner(h): return 2 * h",
    ],
)
def test_what_is_read_from_outside_is_of_the_key(name, edit):
    space = {"__name__": "a_notebook"}
    exec(OUTSIDE, space)
    made = eval(name, space)
    before = values.key(made)
    assert values.key(made) == before and hash(values.key(made)) == hash(before)
    exec(edit, space)
    is_read = not ("WEIGHTS" in edit and name in ("Linen()", "rate"))
    assert (values.key(made) != before) == is_read


def test_options_that_an_object_reads_are_of_the_key():
    options = ml_collections.ConfigDict({"power": 1.0})

    def loss(embeddings, semi_targets, center):
        return embeddings[:, 0] ** options.power

    before = values.key(loss)
    assert values.key(loss) == before
    options.power = 2.0
    assert values.key(loss) != before


def test_what_libraries_do_is_not_looked_through():
    def loss(embeddings, semi_targets, center):
        return optax.adam(1e-3), np.linalg.norm(embeddings, axis=-1)

    counted = collections.Counter()
    looked = inspect.getclosurevars

    def counting(function):
        counted[function.__module__] += 1
        return looked(function)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspect, "getclosurevars", counting)
        values.key(loss)
        values.key(networks.MLPEncoder((8,), 3))
    assert counted == {__name__: 1}
