"""Committees: networks and companions that judge together."""

import dataclasses
import warnings

import jax
import numpy as np
import pytest
from flax import nnx

import deepsad_jax as sad
from deepsad_jax import checkpoints, estimators, methods, parallel, training
from deepsad_jax.detectors import committee, companions, deep_sad

ALL = ("linear", "forest", "extra", "isolation")
STAGES = {
    "pretrain": training.Stage(training.Adam(1e-3), 2, 32),
    "train": training.Stage(training.Adam(1e-3), 2, 32),
}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x, targets = rng.normal(size=(200, 5)).astype(np.float32), np.zeros(200, int)
    targets[:6] = -1
    x[:6] += 3
    return training.training_set(x, targets)


@pytest.fixture(scope="module")
def fitted(data):
    method = deep_sad.DeepSAD(members=2, companions=ALL, **STAGES)
    return method.fit(jax.random.key(0), data)


def test_networks_are_those_that_single_fits_give(fitted, data):
    networks = committee.networks_of(fitted[0])
    for i, network in enumerate(networks):
        key = jax.random.key(0) if not i else jax.random.fold_in(jax.random.key(0), 1)
        alone, _ = deep_sad.DeepSAD(**STAGES).fit(key, data)
        np.testing.assert_array_equal(
            sad.score(network, data.x), sad.score(alone, data.x)
        )


def test_the_score_is_the_mean_of_what_members_say_in_deviations(fitted, data):
    made, usual = fitted[0], np.asarray(data.semi_targets) != -1
    x = made.preprocessing(data.x).astype(np.float32)
    said = []
    for network in committee.networks_of(made):
        said.append(sad.score(network, data.x))
    for name, judge in made.objective.others:
        said.append(np.asarray(judge.score(made.variables[name], x)))
    said = np.array(said, np.float64)
    center = np.median(said[:, usual], axis=1, keepdims=True)
    said = np.clip((said - center) / said[:, usual].std(axis=1, keepdims=True), -3, 5)
    expected = (said[:2].mean(axis=0) + said[2:].sum(axis=0)) / 5
    np.testing.assert_allclose(sad.score(made, data.x), expected, atol=1e-4)


def test_it_is_saved_loaded_and_traced(fitted, data, tmp_path):
    made = fitted[0]
    sad.save(made, tmp_path / "model")
    loaded, expected = sad.load(tmp_path / "model"), sad.score(made, data.x)
    np.testing.assert_array_equal(sad.score(loaded, data.x), expected)
    traced = jax.jit(lambda x: sad.score(loaded, x))(data.x)
    np.testing.assert_allclose(traced, expected, atol=1e-4)
    assert sad.embed(loaded, data.x).shape == (
        200,
        made.objective.embed(made.variables, np.zeros((1, 5), np.float32)).shape[1],
    )


def test_an_observer_of_one_run_is_told_the_mean_of_its_networks(fitted, data):
    told = []
    method = deep_sad.DeepSAD(members=2, **STAGES)
    run = methods.Run(jax.random.key(0), data)
    method.fit_many([run], observe=lambda *one: told.append(one))
    assert [one[:2] for one in told] == [
        *(("pretrain", i) for i in (1, 2)),
        *(("train", i) for i in (1, 2)),
    ]
    assert all(h.shape == (2,) for *_, one in told for h in one.values())
    singles = [
        record.history
        for _, record in (
            deep_sad.DeepSAD(**STAGES).fit(key, data)
            for key in (jax.random.key(0), jax.random.fold_in(jax.random.key(0), 1))
        )
    ]
    expected = np.mean([one["train"]["loss"] for one in singles], axis=0)
    np.testing.assert_allclose(told[-1][2]["loss"], expected, rtol=1e-6)


def test_one_by_one_the_history_that_is_told_is_that_of_the_record(data, tmp_path):
    told = []
    method = deep_sad.DeepSAD(members=2, **STAGES)
    ((_, record),) = method.fit_many(
        [methods.Run(jax.random.key(0), data)],
        observe=lambda stage, done, history: told.append((stage, done, history)),
        keeper=checkpoints.Keeper(tmp_path / "kept", epochs=1, seconds=0.0),
    )
    assert [one[:2] for one in told] == [
        *(("pretrain", i) for i in (1, 2)),
        *(("train", i) for i in (1, 2)),
    ]
    for stage in ("pretrain", "train"):
        loss = next(h["loss"] for s, done, h in told if s == stage and done == 2)
        np.testing.assert_array_equal(loss, record.history[stage]["loss"])


def test_many_runs_are_single_ones(fitted, data):
    method = deep_sad.DeepSAD(members=2, companions=ALL, **STAGES)
    runs = [methods.Run(jax.random.key(i), data, seed=0) for i in (0, 7)]
    together = method.fit_many(runs, plan=method.plan_for(runs))
    np.testing.assert_array_equal(
        sad.score(together[0][0], data.x), sad.score(fitted[0], data.x)
    )
    assert not np.array_equal(
        sad.score(together[1][0], data.x), sad.score(fitted[0], data.x)
    )


def test_it_goes_on_where_it_was_interrupted(fitted, data, tmp_path):
    method = deep_sad.DeepSAD(members=2, companions=ALL, **STAGES)

    class StopsAt:
        def __init__(self, keeper, stage):
            self.keeper, self.stage = keeper, stage

        def restore(self, *arguments):
            return self.keeper.restore(*arguments)

        def offer(self, stage, *arguments, last):
            if stage == self.stage:
                self.keeper.stop()
            self.keeper.offer(stage, *arguments, last=last)

    def keeper():
        return checkpoints.Keeper(tmp_path / "kept", epochs=1, seconds=0.0)

    run = methods.Run(jax.random.key(0), data)
    with pytest.raises(checkpoints.Interrupted):
        method.fit_many([run], keeper=StopsAt(keeper(), "train-1"))
    seen = []
    ((made, _),) = method.fit_many(
        [run], keeper=keeper(), observe=lambda stage, *more: seen.append(stage)
    )
    np.testing.assert_array_equal(sad.score(made, data.x), sad.score(fitted[0], data.x))


def test_without_known_anomalies_those_who_learn_from_them_stay_away(data):
    unlabeled = data._replace(semi_targets=np.zeros_like(data.semi_targets))
    method = deep_sad.DeepSAD(companions=ALL, **STAGES)
    made, record = method.fit(jax.random.key(0), unlabeled)
    assert [name for name, _ in made.objective.others] == ["isolation"]
    assert any("no known anomalies" in note for note in record.notes)


def test_another_fit_starts_from_its_networks(fitted, data):
    none = dataclasses.replace(STAGES["train"], epochs=0)
    again = deep_sad.DeepSAD(members=2, initial=fitted[0], train=none)
    made, _ = again.fit(jax.random.key(5), data)
    for old, new in zip(
        committee.networks_of(fitted[0]), committee.networks_of(made), strict=True
    ):
        np.testing.assert_array_equal(sad.score(old, data.x), sad.score(new, data.x))
    single, _ = deep_sad.DeepSAD(initial=fitted[0], train=none).fit(
        jax.random.key(5), data
    )
    np.testing.assert_array_equal(
        sad.score(single, data.x),
        sad.score(committee.networks_of(fitted[0])[0], data.x),
    )


def test_an_encoder_of_ones_own_is_in_it_and_may_be_passed_to_load(data, tmp_path):
    class Own(sad.networks.nn.Module):
        @sad.networks.nn.compact
        def __call__(self, x):
            return sad.networks.nn.Dense(3, use_bias=False)(x)

    own = Own()
    made, _ = sad.fit(
        *(jax.random.key(0), data),
        encoder=own,
        train=STAGES["train"],
        members=2,
        companions=("linear",),
    )
    sad.save(made, tmp_path / "model")
    with pytest.raises(ValueError, match="encoder must be passed"):
        sad.load(tmp_path / "model")
    loaded = sad.load(tmp_path / "model", encoder=own)
    np.testing.assert_array_equal(sad.score(loaded, data.x), sad.score(made, data.x))


def test_images_have_companions_of_their_pixels():
    rng = np.random.default_rng(0)
    x, targets = rng.integers(0, 255, (64, 8, 8, 1), np.uint8), np.zeros(64, int)
    targets[:3] = -1
    short = {name: dataclasses.replace(s, epochs=1) for name, s in STAGES.items()}
    method = deep_sad.DeepSAD(members=2, companions=("isolation",), **short)
    images = training.training_set(x, targets)
    made, _ = method.fit(jax.random.key(0), images)
    assert sad.score(made, x).shape == (64,)


def test_batches_are_shared_by_devices(fitted, data):
    if jax.device_count() < 2:
        pytest.skip("needs two devices")
    method = deep_sad.DeepSAD(members=2, companions=ALL, **STAGES)
    run = methods.Run(jax.random.key(0), data)
    ((made, _),) = method.fit_many([run], plan=parallel.split_batch(2))
    np.testing.assert_allclose(
        sad.score(made, data.x), sad.score(fitted[0], data.x), atol=1e-3
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": 0}, "members is 0; it must be an integer from 1"),
        ({"members": True}, "members is True"),
        (
            {"companions": ("tree",)},
            "companions has 'tree'; those of deep_sad are linear, f",
        ),
        ({"companions": ["linear"]}, "companions is .*; it must be a tuple"),
        ({"companions": ("linear", "linear")}, "each once"),
    ],
)
def test_what_cannot_be_is_refused(data, options, message):
    with pytest.raises(ValueError, match=message):
        deep_sad.DeepSAD(**options).fit(jax.random.key(0), data)


def test_deep_svdd_has_no_companions_that_see_labels(data):
    with pytest.raises(ValueError, match="'forest'; those of deep_svdd are isolation"):
        deep_sad.DeepSVDD(companions=("isolation", "forest")).fit(
            jax.random.key(0), data
        )


def test_batches_have_no_companions(data):
    x = np.asarray(data.x)
    with pytest.raises(ValueError, match="companions need all examples at once"):
        sad.fit(
            *(jax.random.key(0), [(x, np.zeros(200))]),
            companions=("linear",),
            **STAGES,
        )


def test_the_estimator_has_a_committee_and_the_paper_is_one_option_away():
    detector = estimators.DeepSAD()
    assert detector.members == 2 and detector.companions == ALL
    assert estimators.DeepSVDD().members == 1
    assert deep_sad.DeepSAD().companions == () and deep_sad.DeepSAD().members == 1
    assert {*companions.FITS} == {*ALL}


def test_several_networks_want_all_examples_at_once():
    batches = [(np.zeros((8, 3), np.float32), np.zeros(8))]
    method = deep_sad.DeepSAD(members=2, train=training.Stage(epochs=1))
    with pytest.raises(ValueError, match="^members is 2; several networks are put on"):
        method.fit(jax.random.key(0), batches)


def test_members_that_begin_alike_are_told_of():
    rows = training.training_set(np.zeros((8, 4), np.float32))
    made = nnx.Linear(4, 2, use_bias=False, rngs=nnx.Rngs(0))
    method = deep_sad.DeepSAD(members=2, pretrain=None, encoder=made)
    with pytest.warns(UserWarning, match="with which all members begin"):
        committee.check(method, methods.Run(jax.random.key(0), rows))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = dataclasses.replace(method, members=1)
        committee.check(alone, methods.Run(jax.random.key(0), rows))
