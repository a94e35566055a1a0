"""Attributions add up, by closed forms and by what changes when weights do."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepsad_jax import attributions, objectives

ALONE = np.arange(4), 4


@dataclasses.dataclass(frozen=True)
class Quadratic:
    """score(x) = x A x + b x, whose attributions have a closed form."""

    def score(self, variables: Any, x: jax.Array) -> jax.Array:
        return jnp.einsum("ni,ij,nj->n", x, variables["a"], x) + x @ variables["b"]


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    draw = lambda n: rng.normal(size=(n, 4)).astype(np.float32)  # noqa: E731
    return draw(10), draw(5)


@pytest.fixture(scope="module")
def quadratic():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(4, 4)), rng.normal(size=4)
    return {"a": (a + a.T).astype(np.float32), "b": b.astype(np.float32)}


@pytest.fixture(scope="module")
def network(rows):
    """An untrained hypersphere, whose leaky units have kinks."""
    import flax.linen as nn

    encoder = nn.Sequential([nn.Dense(16), nn.leaky_relu, nn.Dense(3)])
    objective = objectives.DeepSAD(encoder)
    variables = objective.init(jax.random.key(0), jnp.asarray(rows[0]))
    return objective, {**variables, "center": np.ones(3, np.float32)}


def expected(variables, x, references):
    """Both integrals of a quadratic: (x - r) (A (x + r) + b), element by element."""
    total = 0.0
    for r in references:
        total = total + (x - r) * ((x + r) @ variables["a"] + variables["b"])
    return total / len(references)


def test_gradients_of_a_quadratic_are_its_closed_form(rows, quadratic):
    x, references = rows
    found = attributions.integrated_gradients(
        Quadratic(), quadratic, x, references, *ALONE
    )
    np.testing.assert_allclose(
        found.values, expected(quadratic, x, references), rtol=1e-4, atol=1e-4
    )


def test_permutations_of_a_quadratic_are_its_shapley_values(rows, quadratic):
    # Two orders, one the reverse of the other, are exact where parts act in pairs.
    x, references = rows

    def score(z):
        return np.asarray(Quadratic().score(quadratic, z))

    found = attributions.permutations(score, x, references, *ALONE)
    np.testing.assert_allclose(
        found.values, expected(quadratic, x, references), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("parts", [ALONE, (np.array([0, 1, 1, 0]), 3)])
def test_attributions_of_a_network_add_up(rows, network, parts):
    x, references = rows
    objective, variables = network
    program = jax.jit(objective.score)

    def score(z):
        return np.asarray(program(variables, z))

    gap = score(x).astype(np.float64) - score(references).mean()
    found = attributions.integrated_gradients(*network, x, references, *parts)
    assert found.values.shape == (10, parts[1])
    assert np.abs(found.residuals).max() <= attributions.TOLERANCE
    most = np.maximum(np.abs(gap), np.std(score(references)))
    assert (np.abs(found.values.sum(axis=1) - gap) <= 1e-3 * most).all()
    by_order = attributions.permutations(score, x, references, *parts)
    np.testing.assert_allclose(by_order.values.sum(axis=1), gap, rtol=1e-4, atol=1e-5)


def test_a_score_with_jumps_is_known_by_its_residuals(rows):
    @dataclasses.dataclass(frozen=True)
    class Steps:
        def score(self, variables, x):
            return jnp.sum(x > 0, axis=1).astype(jnp.float32)

    found = attributions.integrated_gradients(Steps(), {}, *rows, *ALONE)
    assert np.abs(found.residuals).max() > 0.5
    found = attributions.permutations(lambda z: (z > 0).sum(axis=1), *rows, *ALONE)
    # Each column acts alone, so that its part is known.
    alone = (rows[0] > 0) - (rows[1] > 0).mean(axis=0)
    np.testing.assert_allclose(found.values, alone, atol=1e-12)


def test_rows_of_an_uneven_number_are_those_one_by_one(rows, network):
    together = attributions.integrated_gradients(*network, *rows, *ALONE).values
    alone = [
        attributions.integrated_gradients(*network, x[None], rows[1], *ALONE).values[0]
        for x in rows[0][:3]
    ]
    np.testing.assert_allclose(together[:3], alone, rtol=1e-4, atol=1e-5)
