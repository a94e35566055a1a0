"""Experiments on folders that stay on disk."""

import numpy as np
import pytest

from configs import breast_cancer
from deepsad_jax import stored, streams
from experiments import build, workdir


@pytest.fixture
def config(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.normal(size=(300, 4)),
        "semi_targets": -1 * (np.arange(300) % 50 == 0),
        "x_test": rng.normal(size=(100, 4)),
        "y_test": np.arange(100) % 2,
    }
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    made = breast_cancer.get_config()
    made.data.name, made.data.stream = str(tmp_path), True
    return made


def test_a_streamed_problem_is_that_of_memory(config):
    streamed = build.experiment(config)
    assert isinstance(streamed.problem.x_test, stored.Array)
    assert isinstance(streamed.run.data, streams.OnDisk)
    config.data.stream = False
    expected = build.experiment(config)
    assert streamed.problem.preprocessing == expected.problem.preprocessing
    assert streamed.options == expected.options and streamed.label == expected.label
    for name in ("indices", "semi_targets", "labels_test", "index_test"):
        one, other = (getattr(e.problem, name) for e in (streamed, expected))
        np.testing.assert_array_equal(one, other)
    config.data.stream, config.data.scaling = True, "standard"
    streamed = build.experiment(config)
    config.data.stream = False
    expected = build.experiment(config).problem.preprocessing
    np.testing.assert_allclose(streamed.problem.preprocessing.low, expected.low)
    np.testing.assert_allclose(streamed.problem.preprocessing.high, expected.high)


def test_a_file_that_has_changed_is_noticed(config, tmp_path):
    workdir.note_data(tmp_path, config.data.name, build.data_digest(config))
    x = np.load(tmp_path / "x_train.npy")
    x[200, 2] += 1
    np.save(tmp_path / "x_train.npy", x)
    with pytest.raises(ValueError, match="holds a run on other data"):
        workdir.note_data(tmp_path, config.data.name, build.data_digest(config))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "kde"}, "config.data.stream is True, but kde looks at all rows at"),
        ({"companions": ("forest",)}, "but forest looks at all rows at once; it must"),
        ({"hybrid": True, "method": "ocsvm"}, "but ocsvm looks at all rows at once"),
        (
            {"data.protocol": "adbench"},
            "is for semi_targets of your own, not for the p",
        ),
        ({"data.name": "digits"}, "digits is not a folder of .npy files, which alone"),
    ],
)
def test_what_cannot_be_streamed_is_refused(config, fields, message):
    config.update_from_flattened_dict(fields)
    with pytest.raises(ValueError, match=message):
        build.experiment(config)


def test_values_that_are_not_finite_are_refused_with_their_place(config, tmp_path):
    x = np.load(tmp_path / "x_test.npy")
    x[7, 1] = np.nan
    np.save(tmp_path / "x_test.npy", x)
    with pytest.raises(
        ValueError, match="the test part from row 0 on contains nan .row"
    ):
        build.experiment(config)
