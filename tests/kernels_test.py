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


def test_rows_of_few_features_are_recomputed_from_differences():
    # More than are computed in float64, and far from the origin.
    x = np.random.default_rng(0).normal(size=(4200, 3)) + 1e4
    gram = kernels.gram(Kernel(0.5), x, stored=False)
    some = np.array([0, 17, 4199])
    expected = pairwise.rbf_kernel(x[some] - 1e4, x - 1e4, gamma=0.5)
    with jax.enable_x64(True):
        found = gram.kernel(gram.base_of(jnp.asarray(some)))[:, : gram.size]
        among = gram.between(jnp.asarray(some))
        weights = jnp.zeros(len(gram.x)).at[some].set(jnp.array([0.5, -2.0, 3.0]))
        product = gram.times(weights)[: gram.size]
        nothing = gram.times(jnp.zeros(len(gram.x)))
    assert found.dtype == jnp.float32 and not np.any(nothing)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(among, expected[:, some], atol=1e-6)
    np.testing.assert_allclose(product, [0.5, -2.0, 3.0] @ expected, atol=3e-6)


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
        (
            Kernel(name="poly", degree=0),
            examples(4),
            "degree is 0; it must be a whole number from 1 to 20",
        ),
        (
            Kernel(),
            np.array([[1.0, np.nan]]),
            r"x contains nan \(row 0, column 1; 1 such value",
        ),
        (Kernel(), np.zeros((0, 3)), r"x has shape \(0, 3\)"),
        (Kernel(), np.zeros(3), r"x has shape \(3,\)"),
        (Kernel(np.float32(-1)), examples(4), "gamma is -1.0; it must be finite"),
        (Kernel(name="poly", degree=99), examples(4), "degree is 99; it must be a who"),
        (Kernel(1.0, np.nan, "poly"), examples(4), "coef0 is nan; it must be a finite"),
        (
            Kernel(),
            np.full((2, 2), 1e200),
            r"x has a value of size 1e\+200; it must be",
        ),
        (Kernel(), np.full((2, 2), 1j), "dtype complex128; it must"),
        (Kernel(), np.array([["a", "b"]]), "dtype <U1; it must"),
        (
            Kernel(),
            np.ma.masked_less(examples(4), 0),
            "x has .* masked values; fill or remove",
        ),
    ],
)
def test_wrong_input_is_refused(kernel, x, message):
    with pytest.raises(ValueError, match=message):
        kernels.gram(kernel, x)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.float32(-1), r"n is -1.0; it must be a whole number >= 0"),
        (np.nan, "n is nan; it must be"),
        (np.inf, "n is inf; it must be"),
        (1.5, "n is 1.5; it must be a whole number"),
        ("1", "n is '1'; it must be"),
        (True, "n is True; it must be"),
        (np.array([1, 2]), "n is array"),
    ],
)
def test_numbers_out_of_range_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        kernels.check_number("n", value, 0, whole=True)


@pytest.mark.parametrize("value", [0, 3, np.int64(3), np.float32(2), np.array(4)])
def test_numbers_of_any_real_type_are_taken(value):
    kernels.check_number("n", value, 0, whole=True)


def test_the_cost_of_a_large_matrix_is_told_beforehand(monkeypatch, caplog):
    with caplog.at_level("INFO"), monkeypatch.context() as patch:
        patch.setattr(kernels, "MOST_DOUBLE", 100)
        kernels.gram(Kernel(), examples(200))
    assert "the kernel matrix of 200 examples takes 0.0 GB" in caplog.text
    monkeypatch.setattr(kernels, "MOST_STORED", 100)
    with pytest.warns(RuntimeWarning, match="matrix of 200 examples .* is not kept"):
        kernels.gram(Kernel(), examples(200))
