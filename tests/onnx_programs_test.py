"""What onnxruntime says is what the library says; skipped where it is not installed."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import served

import deepsad_jax as sad
from deepsad_jax import model, networks, objectives, programs

pytest.importorskip("jax2onnx")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


class Own(nn.Module):
    """Layers that Flax has, and the paper's networks do not use."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3))(x)
        x = nn.max_pool(nn.gelu(nn.GroupNorm(2)(x)), (2, 2), (2, 2))
        x = nn.Dense(8)(x.reshape(x.shape[0], -1))
        return nn.Dense(3)(nn.silu(nn.LayerNorm()(x)))


class Sorting(nn.Module):
    """What no exporter knows, yet."""

    @nn.compact
    def __call__(self, x):
        places = jnp.searchsorted(jnp.linspace(0, 1, 9), x.reshape(x.shape[0], -1))
        return nn.Dense(2)(places.astype(jnp.float32))


def model_of(module, shape):
    objective = objectives.DeepSAD(module)
    variables = objective.init(jax.random.key(0), jnp.zeros((2, *shape)))
    variables["center"] = np.float32([0.1] * len(variables["center"]))
    scaling = sad.preprocessing.Unchanged(0.0, 1.0)
    return model.make("deep_sad", objective, variables, scaling, shape)


def exported(made, folder):
    """A session, once the folder holds one file beside what is said of it."""
    sad.export(made, folder, format="onnx")
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["export.json", "model.onnx"]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(folder / "model.onnx"), options)


def assert_same(session, fitted, x):
    for size in (1, 7, len(x)):
        (score,) = session.run(["score"], {"x": x[:size]})
        expected = sad.score(fitted, x[:size])
        off = np.abs(score - expected).max() / np.abs(expected).max()
        assert off < 1e-5


@pytest.mark.parametrize("name", networks.PAPER)
def test_the_networks_of_the_paper_have_the_same_scores(name, tmp_path):
    rng, shape = np.random.default_rng(0), networks.pair(name).input_shape
    x = rng.integers(0, 256, (128, *shape), np.uint8)
    if len(shape) == 1:  # an offset that float32 cannot hold
        x = 1.7e9 + rng.normal(size=(128, *shape))
    fitted = served.untrained(name, sad.preprocessing.auto(x))
    session = exported(fitted, tmp_path / "net")
    assert_same(session, fitted, x)
    (takes,) = session.get_inputs()
    assert takes.name == "x" and takes.shape == ["b", *shape]


def test_modules_of_ones_own_leave_too(tmp_path):
    fitted = model_of(Own(), (8, 8, 1))
    x = np.random.default_rng(0).random((20, 8, 8, 1), np.float32)
    assert_same(exported(fitted, tmp_path / "own"), fitted, x)


def test_what_cannot_leave_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="jax2onnx .* model of deep_sad: .*le_to"):
        sad.export(model_of(Sorting(), (3,)), tmp_path / "one", format="onnx")
    assert not list(tmp_path.iterdir())


def test_a_committee_leaves_whole_and_a_server_answers(tmp_path):
    made = served.detector()
    session = exported(made, tmp_path / "pump")
    told = json.loads((tmp_path / "pump" / "export.json").read_text(encoding="utf-8"))
    assert told["opset"] == 21 and {"jax2onnx", "onnx"} < set(told["versions"])
    content = (tmp_path / "pump" / "model.onnx").read_bytes()
    for place in (sad.__path__[0], str(tmp_path), "site-packages", ".py"):
        assert place.encode() not in content
    graph = onnx.load_from_string(content)
    assert graph.opset_import[0].version == 21
    onnx.checker.check_model(graph)
    new = served.table(60, 1)
    expected, names = made.calibrated_.judge(new), ("score", "p_value", "is_anomaly")
    x = made.model_.preprocessing.encode(new)
    found = dict(zip(names, session.run(names, {"x": x}), strict=True))
    served.assert_is_said(found, expected)
    with served.process("serve_onnx.py", tmp_path / "pump", tmp_path) as address:
        status, answer = served.asked(address, served.as_objects(new))
        assert status == 200
        served.assert_is_said(answer, expected)
        assert served.asked(address, [])[1] == {name: [] for name in names}
    assert 0 < expected.is_anomaly.sum() < 60


def test_methods_of_float64_leave_too(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    fitted, _ = sad.detectors.METHODS["kde"]().fit(
        jax.random.key(0), sad.training_set(x), preprocessing=sad.preprocessing.auto(x)
    )
    assert programs.program(fitted).is_wide
    assert_same(exported(fitted, tmp_path / "kde"), fitted, x)
