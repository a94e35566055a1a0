"""Networks of a user's own: Linen and NNX modules, pairs of functions, any shape."""

import functools
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import deepsad_jax as sad
from deepsad_jax import forward, modules, networks, objectives, training
from deepsad_jax.detectors import deep_sad

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
TARGETS = np.random.default_rng(1).integers(-1, 2, 64)
STAGE = training.Stage(optax.adam(1e-3), epochs=1, batch_size=16)


# Compiles quickly.
LINEAR = (
    lambda key, x: jax.random.normal(key, (x.shape[1], 4)),
    lambda weights, x: x @ weights,
)


def fit(encoder, x=X, **options):
    data = training.training_set(x, TARGETS[: len(x)])
    options = {"train": STAGE, "pretrain": None, **options}
    return sad.fit(KEY, data, encoder=encoder, **options)


class Positional(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(4, use_bias=False)(x)
        return nn.Dropout(0.5, deterministic=not train)(x)


class KeywordOnly(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(4, use_bias=False)(x)
        return nn.Dropout(0.5, deterministic=not train)(x)


class Default(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(4, use_bias=False)(x)
        return x + jax.random.normal(self.make_rng("noise"), (4,)) if train else x


class Alike(nn.Module):
    """Called without `train`, and with fields that are lists and mappings."""

    sizes: list
    options: dict

    @nn.compact
    def __call__(self, x):
        for size in self.sizes:
            x = nn.relu(nn.Dense(size, use_bias=False)(x))
        return self.options["factor"] * nn.Dense(4, use_bias=False)(x)


class Counting(nn.Module):
    """With collections of state of its own."""

    @nn.compact
    def __call__(self, x, train):
        count = self.variable("counters", "calls", jnp.zeros, (), jnp.int32)
        mean = self.variable("averages", "mean", jnp.zeros, x.shape[-1:])
        if train and not self.is_initializing():
            count.value += 1
            mean.value = 0.5 * (mean.value + x.mean(axis=0))
        self.sow("intermediates", "seen", x)
        return nn.Dense(4, use_bias=False)(x - mean.value)


@pytest.mark.parametrize("module", [Positional(), KeywordOnly(), Default()])
def test_linen_modules_know_whether_they_train(module):
    network = modules.network(module)
    variables = network.init(KEY, X)
    once, twice = (network.apply(variables, X) for _ in range(2))
    np.testing.assert_array_equal(once, twice)
    drawn, updated = network.apply_train(variables, X, KEY)
    other, _ = network.apply_train(variables, X, jax.random.key(1))
    assert np.any(drawn != once) and np.any(drawn != other)
    assert jax.tree.structure(updated) == jax.tree.structure(variables)


def test_state_of_any_collection_is_carried():
    model, _ = fit(Counting())
    assert model.variables["counters"]["calls"] == 4  # steps of the one epoch
    mean = model.variables["averages"]["mean"]
    assert np.all(mean > 0) and "intermediates" not in model.variables
    x = model.preprocessing(X)
    expected = (x - mean) @ model.variables["params"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(sad.embed(model, X), expected, atol=1e-5)


def test_modules_are_compared_by_content_and_compiled_once(compiled):
    make = functools.partial(Alike, [8, 8], {"factor": 2.0})
    one, other = modules.network(make()), modules.network(make())
    assert one == other and hash(one) == hash(other)
    assert one != modules.network(Alike([8, 8.0], {"factor": 2.0}))
    assert one != modules.network(Alike([8, 8], {"factor": 2}))
    first, _ = fit(make())
    models = []
    assert not compiled(lambda: models.append(fit(make())[0]))
    np.testing.assert_array_equal(sad.score(first, X), sad.score(models[0], X))


def test_fields_that_cannot_be_compared_are_named():
    with pytest.raises(ValueError, match="Alike.sizes is a set, which cannot be"):
        fit(Alike({1, 2}, {}))
    with pytest.raises(ValueError, match="Alike.options.a is a bytearray, which"):
        modules.network(Alike([], {"a": bytearray(2)}))


def test_what_is_no_network_is_named():
    class Masked(nn.Module):
        def __call__(self, x, mask, train):
            return x

    for thing in (3, None, Positional, lambda x: x, (len,), [len, len]):
        with pytest.raises(ValueError, match="decoder is .*it must be a Linen module"):
            modules.network(thing, "decoder")
    with pytest.raises(
        ValueError, match="called as .* or .x.; this one also needs mas"
    ):
        modules.network(Masked())


class Plain(nn.Module):
    function: object

    @nn.compact
    def __call__(self, x):
        return self.function(nn.Dense(4, use_bias=False)(x))


OUTPUTS = {
    "rank 3": (lambda z: z[:, None], r"shape \(2, 1, 4\) for x of shape \(2, 6\)"),
    "a tuple": (lambda z: (z, z), "<class 'tuple'> for x of shape"),
    "other rows": (lambda z: z.reshape(-1, 2), r"shape \(4, 2\) for x of shape"),
    "a vector": (lambda z: z[:, 0], r"shape \(2,\) for x of shape"),
}


@pytest.mark.parametrize("function, found", OUTPUTS.values(), ids=OUTPUTS)
def test_encoders_return_one_embedding_for_each_row(function, found):
    message = f"the encoder returns {found}.*it must return .batch, rep_dim."
    with pytest.raises(ValueError, match=message):
        fit(Plain(function))


def test_a_collection_of_the_hypersphere_s_own_name_is_refused():
    class Taken(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.variable("center", "c", jnp.zeros, ())
            return nn.Dense(4, use_bias=False)(x)

    with pytest.raises(ValueError, match="the encoder has a collection center; rename"):
        fit(Taken())


class Listed(nnx.Module):
    """Everything that carries state, in a list of layers."""

    def __init__(self, *, rngs, width=8):
        self.layers = nnx.List(
            [
                nnx.Linear(6, width, use_bias=False, rngs=rngs),
                nnx.BatchNorm(width, use_bias=False, use_scale=False, rngs=rngs),
                nnx.Dropout(0.5, rngs=rngs),
                nnx.Linear(width, 4, use_bias=False, rngs=rngs),
            ]
        )
        self.steps = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x, train):
        if train:
            self.steps[...] += 1
        for layer in self.layers:
            x = layer(x)
        return x


WAYS = {
    "class": lambda: Listed,
    "partial": lambda: functools.partial(Listed, width=5),
    "factory": lambda: lambda rngs: Listed(rngs=rngs, width=5),
    "instance": lambda: Listed(rngs=nnx.Rngs(3)),
    "instance in evaluation mode": lambda: nnx.view(
        Listed(rngs=nnx.Rngs(3)), deterministic=True, use_running_average=True
    ),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_nnx_modules_are_pure_functions(way):
    network = modules.network(way())
    variables = jax.jit(network.init)(KEY, X)
    apply, apply_train = jax.jit(network.apply), jax.jit(network.apply_train)
    once, twice = (apply(variables, X) for _ in range(2))
    np.testing.assert_array_equal(once, twice)
    drawn, updated = apply_train(variables, X, KEY)
    other, again = apply_train(updated, X, KEY)
    assert np.any(drawn != once) and np.any(drawn != other)  # masks move on
    assert jax.tree.structure(again) == jax.tree.structure(variables)
    assert (variables["rest"]["steps"], again["rest"]["steps"]) == (0, 2)
    assert np.any(updated["batch_stats"]["layers/1/mean"] != 0)


def test_an_nnx_class_draws_from_the_key_and_an_instance_brings_its_weights():
    network = modules.network(Listed)
    kernels = [
        network.init(jax.random.key(i), X)["params"]["layers/0/kernel"] for i in (0, 1)
    ]
    assert np.any(kernels[0] != kernels[1])
    instance = Listed(rngs=nnx.Rngs(3))
    found = modules.network(instance).init(KEY, X)["params"]["layers/3/kernel"]
    np.testing.assert_array_equal(found, instance.layers[3].kernel[...])


def test_an_instance_is_taken_as_it_is_now():
    instance = Listed(rngs=nnx.Rngs(3))
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(instance, nnx.Param)))
    first, _ = fit(instance)
    after = nnx.to_pure_dict(nnx.state(instance, nnx.Param))
    jax.tree.map(np.testing.assert_array_equal, before, after)  # it is not trained
    same, _ = fit(nnx.clone(instance))
    np.testing.assert_array_equal(sad.score(same, X), sad.score(first, X))
    kernel = instance.layers[3].kernel
    kernel[...] = 3 * kernel[...]
    other, _ = fit(instance)
    nothing = training.Stage(epochs=0, batch_size=16)
    start, _ = fit(instance, train=nothing)
    np.testing.assert_array_equal(
        start.variables["params"]["layers/3/kernel"], kernel[...]
    )
    assert np.any(sad.score(other, X) != sad.score(first, X))


def test_random_state_and_what_is_sown_do_no_harm():
    class Noisy(nnx.Module):
        def __init__(self, *, rngs):
            self.linear = nnx.Linear(6, 4, use_bias=False, rngs=rngs)
            self.rngs = rngs

        def __call__(self, x):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.sow(nnx.Intermediate, "seen", x)
            return self.linear(x) + 0.01 * jax.random.normal(self.rngs.noise(), (4,))

    model, record = fit(Noisy)
    assert np.isfinite(record.history["train"]["loss"]).all()
    assert "seen" not in model.variables["rest"]
    np.testing.assert_array_equal(sad.score(model, X), sad.score(model, X))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(16, use_bias=False, name="first")(x)
        x = nn.BatchNorm(
            use_running_average=not train, use_bias=False, use_scale=False, name="norm"
        )(x)
        return nn.Dense(4, use_bias=False, name="last")(nn.relu(x))


class NNX(nnx.Module):
    def __init__(self, *, rngs):
        self.first = nnx.Linear(6, 16, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(16, use_bias=False, use_scale=False, rngs=rngs)
        self.last = nnx.Linear(16, 4, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.norm(self.first(x))))


def test_linen_and_nnx_are_the_same_from_the_same_weights():
    linen, instance = Linen(), NNX(rngs=nnx.Rngs(0))
    params = {
        name: {"kernel": getattr(instance, name).kernel[...]}
        for name in ("first", "last")
    }

    optimizer = optax.adam(1e-2)
    step_keys = jax.random.split(KEY, 3)
    batch = training.Batch(X, TARGETS.astype(np.float32))
    losses = []
    for encoder in (linen, instance):
        objective = objectives.DeepSAD(encoder)
        variables = jax.jit(objective.init)(KEY, X)
        if encoder is linen:
            variables["params"] = params
        variables["center"] = jnp.full(4, 0.5)
        state = training.start(variables, optimizer)
        step = jax.jit(training.make_step(objective, optimizer))
        for key in step_keys:
            state, recorded = step(state, batch, key)
            losses.append(training.computed(recorded)["loss"])
        score = jax.jit(objective.score)(state.variables, X)
        losses.append(np.mean(score))
    np.testing.assert_allclose(losses[:4], losses[4:], rtol=1e-6)
    assert losses[0] > losses[1] > losses[2]


def test_pairs_of_functions_are_networks():
    def init(key, x):
        return [jax.random.normal(key, (x.shape[1], 4))]

    model, _ = fit((init, lambda weights, x: jnp.tanh(x @ weights[0])))
    (weights,) = jax.tree.leaves(model.variables["params"])
    expected = np.tanh(model.preprocessing(X) @ weights)
    np.testing.assert_allclose(sad.embed(model, X), expected, atol=1e-5)
    assert np.any(weights != init(KEY, X)[0])  # it was trained


def test_pairs_of_functions_may_have_state():
    def init(key, x):
        kernel = jax.random.normal(key, (x.shape[1], 4))
        return {"params": {"kernel": kernel}, "mean": jnp.zeros(x.shape[1:])}

    def apply(variables, x, train):
        mean = x.mean(axis=0) if train else variables["mean"]
        output = (x - mean) @ variables["params"]["kernel"]
        return (output, {"mean": mean}) if train else output

    model, _ = fit((init, jax.jit(apply, static_argnames="train")))
    x, mean = model.preprocessing(X), model.variables["mean"]
    assert np.all(np.abs(mean - x.mean(axis=0)) < 0.2) and np.all(mean != 0)
    expected = (x - mean) @ model.variables["params"]["kernel"]
    np.testing.assert_allclose(sad.embed(model, X), expected, atol=1e-5)


class Suspicious(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(8, use_bias=False)(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        return nn.Dense(4, name="last")(nn.relu(x))


def test_what_could_produce_the_center_is_named_once():
    with pytest.warns(
        UserWarning, match="last/bias, norm/bias could produce the ce"
    ) as w:
        _, record = fit(Suspicious())
    assert len([x for x in w if "could produce" in str(x.message)]) == 1
    assert any("last/bias, norm/bias" in note for note in record.notes)


@pytest.mark.parametrize("shape", [(6,), (8, 2), (5, 4, 3)])
def test_our_own_networks_are_not_suspected(shape):
    network = modules.network(networks.for_shape(shape).encoder)
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    variables = jax.jit(lambda key: network.init(key, x))(KEY)
    assert modules.suspects(network, variables, x) == []


# And the epochs after pretraining, which trains the networks of every shape.
SHAPES = {
    "table": ((5,), np.int64, 1),
    "series": ((7, 2), np.float64, 0),
    "image": ((6, 5, 3), np.uint8, 1),
    "volume": ((4, 3, 5, 1), np.float32, 0),
}


@pytest.mark.parametrize("shape, dtype, epochs", SHAPES.values(), ids=SHAPES)
def test_rows_of_any_rank_find_their_networks(shape, dtype, epochs):
    x = np.random.default_rng(0).integers(0, 256, (40, *shape)).astype(dtype)
    stage = training.Stage(optax.adam(1e-3), epochs=1, batch_size=20)
    train = training.Stage(stage.optimizer, epochs, batch_size=20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, record = fit(None, x, train=train, pretrain=stage)
        scores, errors = sad.score(model, x), sad.score(model.base, x)
    assert record.notes == () and list(record.history) == ["pretrain", "train"]
    assert scores.shape == errors.shape == (40,)
    assert np.isfinite(scores).all() and np.all(errors < 1)
    embeddings = sad.embed(model, x)
    distances = np.square(embeddings - model.variables["center"]).sum(axis=1)
    np.testing.assert_allclose(scores, distances, rtol=1e-4)


class Decoder(nnx.Module):
    def __init__(self, *, rngs):
        self.linear = nnx.Linear(4, 6, rngs=rngs)

    def __call__(self, codes):
        return nnx.sigmoid(self.linear(codes))


def test_an_own_encoder_with_an_own_decoder_is_pretrained():
    model, record = fit(Linen(), decoder=Decoder, pretrain=STAGE)
    assert list(record.history) == ["pretrain", "train"] and record.notes == ()
    decoder = modules.part(model.base.variables, "decoder")["params"]
    codes = sad.embed(model.base, X)
    output = codes @ decoder["linear/kernel"] + decoder["linear/bias"]
    x = model.preprocessing(X)
    expected = np.mean(np.square(x - jax.nn.sigmoid(output)), axis=1)
    np.testing.assert_allclose(sad.score(model.base, X), expected, rtol=1e-4)


def test_an_own_encoder_without_a_decoder_says_that_it_is_not_pretrained():
    model, record = fit(Linen(), pretrain=STAGE)
    assert model.base is None and list(record.history) == ["train"]
    assert record.notes == ("not pretrained: the encoder has no decoder",)
    assert fit(Linen())[1].notes == ()  # nobody asked for it


def test_a_decoder_of_another_shape_is_named():
    class Narrow(nn.Module):
        @nn.compact
        def __call__(self, codes):
            return nn.Dense(1)(codes)

    message = r"reconstruction has shape \(\d+, 1\), but x has shape \(\d+, 6\)"
    with pytest.raises(ValueError, match=message):
        fit(Linen(), decoder=Narrow(), pretrain=STAGE)


def test_own_encoders_serve_other_methods():
    supervised = sad.detectors.METHODS["supervised"](encoder=LINEAR, train=STAGE)
    data = training.training_set(X, TARGETS)
    model, _ = supervised.fit(KEY, data)
    assert np.isfinite(sad.score(model, X)).all()


@pytest.mark.parametrize("name", ["deterministic", "training"])
@pytest.mark.parametrize("kind", ["linen", "nnx", "pure"])
def test_the_mode_of_training_has_one_name(name, kind):
    exec(f"def call(self, x, {name}=False): return x", names := {})
    call = names["call"]
    made = {
        "linen": lambda: type("Named", (nn.Module,), {"__call__": call})(),
        "nnx": lambda: type(
            "Named", (nnx.Module,), {"__call__": call, "__init__": lambda s, rngs: None}
        ),
        "pure": lambda: (lambda key, x: {"params": {}}, call),
    }[kind]()
    with pytest.raises(ValueError, match=f"call is called with {name}; a network is"):
        modules.network(made).apply({"params": {}, "batch_stats": {}, "rest": {}}, X)


class Moded(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.BatchNorm(use_running_average=not train)(nn.Dense(3)(x))


def test_layers_that_are_not_told_of_training_are_refused():
    with pytest.raises(ValueError, match="Sequential does not tell Moded whether it"):
        modules.network(nn.Sequential([Moded(), nn.relu]))
    modules.network(nn.Sequential([nn.Dense(4), nn.relu]))


def test_statistics_that_stay_as_they_are_are_told_of():
    class Wrapping(nn.Module):
        @nn.compact
        def __call__(self, *arguments):
            return Moded()(*arguments)

    with pytest.warns(UserWarning, match="leaves the network's batch_stats as they"):
        forward.check_state(objectives.DeepSAD(Wrapping()), (6,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        forward.check_state(objectives.DeepSAD(Moded()), (6,))


def test_a_state_that_grows_is_refused_before_training():
    class Sowing(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.sow("norms", "l2", (x**2).sum())
            return nn.Dense(3, use_bias=False)(x)

    data = training.training_set(np.random.default_rng(0).random((40, 4)), np.zeros(40))
    method = deep_sad.DeepSAD(encoder=Sowing(), train=training.Stage(batch_size=16))
    with pytest.raises(ValueError, match="the shapes of its collection 'norms'"):
        method.fit(jax.random.key(0), data)
