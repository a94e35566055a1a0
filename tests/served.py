"""What the tests of programs share: a detector of a table, and processes that serve."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import urllib.error
import urllib.request

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

import deepsad_jax as sad
from deepsad_jax import estimators, model, networks, objectives

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
# A finder that lets nothing of the library and of what it stands on be imported.
FORBIDDEN = ("deepsad_jax", "flax", "optax", "orbax", "sklearn")
FINDER = f"""
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {FORBIDDEN}:
            raise ImportError("this process must do without " + name)
sys.meta_path.insert(0, Finder())
"""


def table(rows, seed):
    """Numbers, texts of few and of many kinds, booleans, gaps and a large offset."""
    rng = np.random.default_rng(seed)
    found = pd.DataFrame(
        {
            "plant": rng.choice(["A", "B", "Köln"], rows),
            "pressure": 1e-3 * rng.normal(size=rows),
            "time": 1.7e9 + 100 * rng.random(rows),
            "lot": rng.choice([f"L{i}" for i in range(60)], rows),
            "hot": rng.random(rows) < 0.3,
            "same": np.ones(rows),
            "gap": np.where(rng.random(rows) < 0.1, np.nan, rng.normal(size=rows)),
        }
    )
    found.loc[found.index % 10 == 0, "pressure"] += 6e-3
    return found


def detector(**options):
    """A committee, which is the default, fitted to such a table."""
    x, y = table(400, 0), np.zeros(400, int)
    y[:100:10], y[1:50] = -1, 1
    y[:50:10] = -1
    stage = sad.Stage(epochs=1, batch_size=64)
    made = estimators.DeepSAD(
        random_state=0, train=stage, pretrain=stage, false_alarm_rate=0.1, **options
    )
    return made.fit(x, y)


def untrained(name, scaling, seed=0):
    """A model of one of the paper's networks, of random weights and statistics."""
    rng, shape = np.random.default_rng(seed), networks.pair(name).input_shape
    objective = objectives.DeepSAD(networks.build_encoder(name))
    variables = objective.init(jax.random.key(seed), jnp.zeros((2, *shape)))
    drawn = lambda x: np.float32(x + 0.05 * rng.random(x.shape))  # noqa: E731
    center = {"center": np.zeros(variables["center"].shape)}
    variables = jax.tree.map(drawn, {**variables, **center})
    return model.make("deep_sad", objective, variables, scaling, shape)


@contextlib.contextmanager
def process(example, folder, tmp_path):
    """An example that serves, away from here and without the library: its address."""
    (tmp_path / "sitecustomize.py").write_text(FINDER)
    started = subprocess.Popen(
        [sys.executable, EXAMPLES / example, folder, "0"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        address = started.stdout.readline().strip()
        assert address, started.stderr.read()
        yield address
    finally:
        started.kill()
        started.communicate()


def asked(address, rows):
    """What it answers: the status, and the content."""
    request = urllib.request.Request(address, json.dumps(rows).encode())
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def as_objects(frame):
    """Rows of a table as JSON has them."""
    return json.loads(frame.to_json(orient="records", double_precision=15))


def assert_is_said(found, judgement):
    """Scores up to rounding, p-values and decisions of a judgement."""
    np.testing.assert_allclose(found["score"], judgement.score, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["p_value"], judgement.p_value, rtol=1e-6)
    np.testing.assert_array_equal(found["is_anomaly"], judgement.is_anomaly)
