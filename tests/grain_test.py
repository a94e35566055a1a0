"""Grain's data sets are trained on as any iterable of batches is (extra `stream`)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import deepsad_jax as sad
from deepsad_jax import checkpoints, training

grain = pytest.importorskip("grain")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 6)).astype(np.float32)
TARGETS = RNG.integers(-1, 2, 64)
STAGE = training.Stage(optax.adam(1e-2), epochs=2)
LINEAR = (
    lambda key, x: 0.5 * jax.random.normal(key, (x.shape[1], 3)),
    lambda weights, x: jnp.tanh(x @ weights),
)


class Rows:
    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return {"x": X[i], "semi_targets": TARGETS[i]}


def batches(epoch):
    rows = grain.MapDataset.source(Rows()).seed(epoch).shuffle()
    return rows.batch(16, drop_remainder=True).to_iter_dataset()


def fit(data, **options):
    options |= {"encoder": LINEAR, "train": STAGE, "pretrain": None}
    return sad.fit(jax.random.key(0), data, **options)[0]


def test_a_data_set_gives_the_model_of_its_batches():
    same = [(batch["x"], batch["semi_targets"]) for batch in batches(0)]
    one, other = fit(batches(0)), fit(same)
    jax.tree.map(np.testing.assert_array_equal, one.variables, other.variables)


def test_another_order_in_each_epoch_goes_on_exactly(tmp_path):
    expected = fit(batches)
    keeper = checkpoints.Keeper(tmp_path, epochs=1, seconds=0)
    with pytest.raises(checkpoints.Interrupted):
        fit(batches, keeper=keeper, observe=lambda *_: keeper.stop())
    keeper = checkpoints.Keeper(tmp_path, epochs=1, seconds=0)
    found = fit(batches, keeper=keeper)
    keeper.close()
    jax.tree.map(np.testing.assert_array_equal, found.variables, expected.variables)
    fixed = fit(batches(0))
    assert not np.array_equal(*(jax.tree.leaves(m)[1] for m in (fixed, expected)))


def test_a_data_loader_will_do():
    loader = grain.DataLoader(
        data_source=Rows(),
        sampler=grain.samplers.IndexSampler(len(X), shuffle=True, seed=0, num_epochs=1),
        operations=[grain.transforms.Batch(16, drop_remainder=True)],
        worker_count=0,
    )
    assert np.isfinite(sad.score(fit(loader), X)).all()
