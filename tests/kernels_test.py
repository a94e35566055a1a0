import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance
import sklearn.metrics.pairwise as pairwise

from deepsad_jax import kernels

Kernel = kernels.Kernel


def examples(n=300, d=7, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def matrix(gram):
    """The whole kernel matrix, row by row."""
    with jax.enable_x64(True):
        rows = [gram.row(i) for i in range(gram.size)]
        return np.asarray(jnp.stack(rows))[:, : gram.size]


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("n", [2, 64, 300])
@pytest.mark.parametrize(
    ("kernel", "oracle"),
    [
        (Kernel(0.3), lambda x: pairwise.rbf_kernel(x, gamma=0.3)),
        (Kernel(name="linear"), pairwise.linear_kernel),
        (
            Kernel(0.5, 1.0, "poly", 3),
            lambda x: pairwise.polynomial_kernel(x, gamma=0.5, coef0=1.0, degree=3),
        ),
    ],
    ids=["rbf", "linear", "poly"],
)
def test_kernel_matrices_are_scikit_learns(kernel, oracle, n, stored):
    x = examples(n)
    found = matrix(kernels.gram(kernel, x, stored=stored))
    expected = oracle(x.astype(np.float64))
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("stored", [True, False])
def test_the_product_with_a_vector_is_that_of_the_matrix(stored):
    gram = kernels.gram(Kernel(0.2), examples(), stored=stored)
    weights = np.random.default_rng(1).normal(size=len(gram.x))
    weights[gram.size :] = 0
    with jax.enable_x64(True):
        found = np.asarray(gram.times(jnp.asarray(weights)))[: gram.size]
    np.testing.assert_allclose(found, matrix(gram) @ weights[: gram.size], atol=1e-12)


def test_distances_keep_their_accuracy_far_from_the_origin():
    # In float32, 1e4 + small differences would leave nothing of the distances.
    x = examples(100).astype(np.float64) + 1e4
    gram = kernels.gram(Kernel(), x)
    expected = scipy.spatial.distance.cdist(x, x, "sqeuclidean")
    np.testing.assert_allclose(gram.base[:100, :100], expected, atol=1e-6)
    assert np.all(np.diagonal(gram.base) == 0)


def test_bytes_are_images_in_the_unit_interval():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 1), dtype=np.uint8)
    found = matrix(kernels.gram(Kernel(), pixels))
    rows = pixels.reshape(20, 16) / 255.0
    np.testing.assert_allclose(found, pairwise.rbf_kernel(rows, gamma=1.0), rtol=1e-12)


def test_float64_stays_inside():
    kernels.gram(Kernel(), examples(10))
    assert jnp.zeros(1).dtype == jnp.float32


@pytest.mark.parametrize(
    ("kernel", "x", "message"),
    [
        (Kernel(name="cubic"), examples(4), "kernel is 'cubic'; it must be one of rbf"),
        (Kernel(0.0), examples(4), "gamma is 0.0; it must be finite and > 0"),
        (Kernel(name="poly", degree=0), examples(4), "degree is 0"),
        (Kernel(), np.array([[1.0, np.nan]]), "x contains NaN or infinity"),
        (Kernel(), np.zeros((0, 3)), r"x has shape \(0, 3\)"),
        (Kernel(), np.zeros(3), r"x has shape \(3,\)"),
    ],
)
def test_wrong_input_is_refused(kernel, x, message):
    with pytest.raises(ValueError, match=message):
        kernels.gram(kernel, x)
