"""Arrays of all kinds, and what is drawn from them."""

import hypothesis
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import strategies as st
from inputs import (
    ANYTHING,
    FLOATS,
    attempt,
    check_problem,
    images,
    labels_for,
    raw_sources,
    refused,
    tables,
)

from deepsad_jax import preprocessing, training
from deepsad_jax.data import protocol as protocols
from deepsad_jax.data import sources

RATIOS = st.one_of(st.sampled_from([0.0, 0.1, 0.5]), st.floats(0, 1), FLOATS)


PROTOCOLS = st.fixed_dictionaries(
    {},
    optional={
        "normal_class": st.integers(-1, 3),
        "known_outlier_class": st.integers(-1, 3),
        "n_known_outlier_classes": st.integers(-1, 3),
        "ratio_known_normal": RATIOS,
        "ratio_known_outlier": RATIOS,
        "ratio_pollution": RATIOS,
    },
)


@hypothesis.given(
    st.one_of(tables(), images(), ANYTHING), st.data(), st.booleans(), st.booleans()
)
def test_training_sets(x, data, has_labels, has_indices):
    n = len(x) if isinstance(x, np.ndarray) and x.ndim else 3
    semi_targets = data.draw(labels_for(n)) if has_labels else None
    indices = None
    if has_indices:
        rows = st.permutations(range(n)).map(lambda r: np.array(r, np.int64))
        indices = data.draw(st.one_of(rows, rows.map(lambda r: r - 1), ANYTHING))
    made = attempt("arrays", lambda: training.training_set(x, semi_targets, indices))
    if made is None:
        return
    assert made.x is x or made.x.dtype == np.asarray(x).dtype  # raw
    np.testing.assert_array_equal(
        made.indices, np.arange(n) if indices is None else indices
    )
    assert set(np.unique(made.semi_targets)) <= {-1, 0, 1}
    assert made.semi_targets.shape == made.indices.shape


@hypothesis.given(st.one_of(tables(), images(), ANYTHING))
def test_inputs_are_named(x):
    made = attempt("arrays", lambda: preprocessing.auto(x, "the examples"))
    if made is None:
        refused("arrays", "the examples", lambda: preprocessing.auto(x, "the examples"))
        return
    scaled = made(made.check(x, "the examples"))
    assert scaled.dtype == np.float32 and np.isfinite(scaled).all()


@hypothesis.settings(max_examples=400)
@hypothesis.given(raw_sources(), PROTOCOLS, st.sampled_from([0, 1, 2**32 - 1]))
def test_problems(source, fields, seed):
    drawn = attempt("arrays", lambda: protocols.Protocol(**fields))
    if drawn is None:
        drawn = protocols.Protocol()
    problem = attempt("arrays", lambda: protocols.make(source, drawn, seed))
    if problem is not None:
        check_problem(problem)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, "a", None])
def test_seeds_that_are_none(seed):
    source = sources.load("breast_cancer")
    refused(
        "arrays", "seed is", lambda: protocols.make(source, protocols.Protocol(), seed)
    )


@hypothesis.given(
    st.sampled_from(["uint8", "int8", "int16", "uint64", "float16", "float64"]).flatmap(
        lambda dtype: hnp.arrays(
            dtype,
            (10, 2),
            elements={"allow_nan": False, "allow_infinity": False}
            if dtype.startswith("float")
            else None,
        )
    )
)
def test_tables_of_all_types_are_scaled_without_overflow(x):
    source = sources.Source(x, np.zeros(10, int), x, np.zeros(10, int))
    drawn = protocols.Protocol(n_known_outlier_classes=0)
    problem = attempt("arrays", lambda: protocols.make(source, drawn, 0))
    if problem is None:
        assert x.dtype == np.float64  # whose range is too wide for float64
        return
    wide = x.astype(np.longdouble)
    span = wide.max(0) - wide.min(0)
    expected = (wide - wide.min(0)) / np.where(span > 0, span, 1)
    for part in (problem.x_train, problem.x_test):
        scaled = problem.preprocessing(part)
        np.testing.assert_allclose(scaled, expected.astype(np.float64), atol=1e-6)


@hypothesis.given(hnp.arrays(np.uint8, (6, 8, 8, 1)))
def test_bytes_of_images_stay_and_become_numbers_up_to_1(x):
    source = sources.Source(x, np.zeros(6, int), x, np.zeros(6, int))
    problem = protocols.make(source, protocols.Protocol(n_known_outlier_classes=0), 0)
    assert problem.x_train is x
    scaled = problem.preprocessing(x)
    np.testing.assert_allclose(scaled, x.astype(np.float64) / 255, 1e-6)
