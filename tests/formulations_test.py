import functools
import json

import jax
import numpy as np
import pytest

from deepsad_jax import (
    epochs,
    formulations,
    forward,
    loops,
    methods,
    networks,
    objectives,
    parallel,
    training,
)
from deepsad_jax.detectors import deep_sad

STAGE = training.Stage(training.Adam(1e-3), epochs=2, batch_size=8)
SHAPE = (8, 8, 1)


def method():
    """Two layers of convolutions: of few channels, and of more."""
    encoder = networks.LeNetEncoder(SHAPE, (2, 6), rep_dim=3)
    return deep_sad.DeepSAD(encoder, train=STAGE, pretrain=None)


def runs(count, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.random((24, *SHAPE), np.float32)
    data = training.training_set(x, rng.integers(-1, 2, 24))
    return [methods.Run(jax.random.key(i), data) for i in range(count)]


def test_runs_side_by_side_train_alike_in_every_formulation():
    losses = {}
    for form in parallel.CONVOLUTIONS:
        plan = parallel.Plan(many=True, shared_inputs=False, convolutions=form)
        fitted = method().fit_many(runs(2), plan=plan)
        losses[form] = [record.history["train"]["loss"] for _, record in fitted]
        expected = {} if form == "usual" else {"convolutions": form}
        assert [record.details for _, record in fitted] == [expected] * 2
    for form in ("patches", "blocks"):
        np.testing.assert_allclose(losses[form], losses["usual"], rtol=1e-4)


def test_a_step_has_the_plans_convolutions_wherever_it_is_traced_first():
    encoder = networks.LeNetEncoder(SHAPE, (16, 128), 3)  # "plain" on a CPU
    objective = objectives.DeepSAD(encoder)
    (one,) = runs(1)
    for form, expected in (("usual", True), ("patches", False)):
        plan = parallel.Plan(convolutions=form)
        trainer = epochs.Trainer([one.key], [one.data], plan, ("train",))
        programs = loops.Programs(objective, STAGE, plan, True)
        state = programs.start(trainer.init(objective, "train"))
        programs._run.shapes(state, SHAPE)  # before anything is compiled
        batch = training.Batch(np.zeros((8, *SHAPE), np.float32), np.zeros(8))
        found = parallel.has_convolution(programs._run._step, state, batch, one.key, 3)
        assert found == expected


@pytest.fixture
def accelerator(monkeypatch, tmp_path):
    """As if there were a GPU, and programs were kept in a folder: `(folder, taken,
    measured)`, what a step takes in each form and what has been measured."""
    taken, measured = dict.fromkeys(parallel.CONVOLUTIONS, 2.0), []

    def seconds(objective, plan, shape, batch_size, runs):
        measured.append((plan.convolutions, shape, batch_size, runs))
        return taken[plan.convolutions]

    monkeypatch.setattr(formulations, "step_seconds", seconds)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    forward.is_convolutional.cache_clear()
    yield tmp_path, taken, measured
    forward.is_convolutional.cache_clear()
    jax.config.update("jax_compilation_cache_dir", before)


def test_the_fastest_is_measured_once_and_remembered(accelerator):
    _, taken, measured = accelerator
    taken["patches"] = 1.0
    plan = method().plan_for(runs(3))
    assert plan == parallel.Plan(1, True, shared_inputs=False, convolutions="patches")
    assert measured == [(form, SHAPE, 8, 3) for form in parallel.CONVOLUTIONS]
    taken["blocks"] = 0.5
    assert method().plan_for(runs(3, seed=1)) == plan
    assert len(measured) == 3
    assert method().plan_for(runs(4)).convolutions == "blocks"  # other programs
    assert method().plan_for(runs(3)) == plan


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"a": ', b"\xff", "kept"])
def test_a_damaged_memory_is_measured_anew(accelerator, content):
    folder, taken, measured = accelerator
    path = folder / formulations.FILE
    if content == "kept":  # an answer that this version does not know
        method().plan_for(runs(3))
        names = json.loads(path.read_text())
        content = json.dumps(dict.fromkeys(names, "fourier")).encode()
        measured.clear()
    path.write_bytes(content)
    taken["blocks"] = 1.0
    for _ in range(2):
        assert method().plan_for(runs(3)).convolutions == "blocks"
    assert len(measured) == 3


def test_what_fits_nowhere_is_not_remembered(accelerator):
    folder, taken, _ = accelerator
    taken.update(dict.fromkeys(taken, np.inf))
    assert method().plan_for(runs(3)).convolutions == "usual"
    assert not (folder / formulations.FILE).exists()


def test_nothing_is_measured_where_nothing_could_be_remembered(accelerator):
    _, _, measured = accelerator
    for folder in (None, "gs://bucket/programs"):
        jax.config.update("jax_compilation_cache_dir", folder)
        assert method().plan_for(runs(3)).convolutions == "usual"
    assert not measured


def test_nothing_is_measured_of_convolutions_of_others(accelerator):
    _, _, measured = accelerator
    encoder = networks.ConvEncoder(SHAPE, (2,), 3, 3)  # of Flax's nn.Conv
    others = deep_sad.DeepSAD(encoder, train=STAGE, pretrain=None)
    assert others.plan_for(runs(3)).convolutions == "usual"
    assert not measured


def test_nothing_is_measured_of_perceptrons_or_on_a_cpu(accelerator, monkeypatch):
    folder, _, measured = accelerator
    table = training.training_set(np.random.default_rng(0).random((24, 5)))
    of_tables = [methods.Run(jax.random.key(i), table) for i in range(2)]
    encoder = networks.MLPEncoder((4,), 2)
    perceptron = deep_sad.DeepSAD(encoder, train=STAGE, pretrain=None)
    assert perceptron.plan_for(of_tables).together
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert method().plan_for(runs(3)) is None
    assert not perceptron.plan_for(of_tables).together
    assert not measured and not [*folder.iterdir()]


def test_a_step_is_timed_in_every_formulation():
    objective = objectives.DeepSAD(networks.LeNetEncoder(SHAPE, (2,), rep_dim=2))
    seconds = functools.partial(formulations.step_seconds, objective)
    for form in ("usual", "patches"):
        plan = parallel.Plan(many=True, convolutions=form)
        assert 0 < seconds(plan, SHAPE, 8, 2) < 60


def test_a_full_memory_takes_for_ever(monkeypatch):
    def run(*_):
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(epochs.Trainer, "run", run)
    objective = objectives.DeepSAD(networks.LeNetEncoder(SHAPE, (2,), rep_dim=2))
    arguments = (objective, parallel.Plan(many=True), SHAPE, 8, 2)
    message = "RESOURCE_EXHAUSTED: out of memory"
    assert formulations.step_seconds(*arguments) == np.inf
    message = "INTERNAL: something else"
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        formulations.step_seconds(*arguments)
