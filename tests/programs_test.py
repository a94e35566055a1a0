"""Programs say what the library says, in processes that do not have it."""

import csv
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import types

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import served

import deepsad_jax as sad
from deepsad_jax import calibrated, exporting, programs, tables
from deepsad_jax.detectors import METHODS

# Batches of 1, 7 and 128 rows through one artifact, by JAX alone.
PLAIN = """
import json, sys
import jax, numpy as np
from jax import export
jax.config.update("jax_enable_x64", True)
about = json.load(open(sys.argv[1] + "/export.json", encoding="utf-8"))
content = open(sys.argv[1] + "/" + about["file"], "rb").read()
program = export.deserialize(bytearray(content))
x, found = np.load(sys.argv[2]), {}
for size in (1, 7, 128):
    for name, values in program.call(x[:size]).items():
        found[f"{name}{size}"] = np.asarray(values)
np.savez(sys.argv[3], **found)
print(json.dumps([program.platforms, sorted(sys.modules)]))
"""


@pytest.fixture(scope="module")
def detector():
    return served.detector()


@pytest.fixture(scope="module")
def exported(detector, tmp_path_factory):
    folder = tmp_path_factory.mktemp("programs") / "pump.export"
    sad.export(detector, folder)
    return folder


def about(folder):
    return json.loads((folder / "export.json").read_text(encoding="utf-8"))


def said(made, x):
    """What the program of a model says, compiled here."""
    found = programs.program(made)
    with jax.enable_x64(True):
        return jax.device_get(jax.jit(found.__call__)(np.asarray(x, found.dtype)))


def test_a_process_without_the_library_says_the_same(detector, exported, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(served.FINDER)
    new = served.table(128, 1)
    np.save(tmp_path / "x.npy", detector.model_.preprocessing.encode(new))
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, exported, tmp_path / "x.npy", tmp_path / "y.npz"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    platforms, modules = json.loads(done.stdout)
    assert platforms == ["cpu", "cuda", "tpu"]
    assert not {name.partition(".")[0] for name in modules} & set(served.FORBIDDEN)
    found = np.load(tmp_path / "y.npz")
    for size in (1, 7, 128):
        expected = detector.calibrated_.judge(new[:size])
        names = ("score", "p_value", "is_anomaly")
        served.assert_is_said({n: found[f"{n}{size}"] for n in names}, expected)
    assert 0 < expected.is_anomaly.sum() < 128


def test_the_description_tells_what_goes_in_and_what_comes_out(detector, exported):
    told = about(exported)
    content = (exported / "model.stablehlo").read_bytes()
    assert told["sha256"] == hashlib.sha256(content).hexdigest()
    assert told["versions"] == {"deepsad_jax": sad.__version__, "jax": jax.__version__}
    assert told["platforms"] == ["cpu", "cuda", "tpu"] and "6 months" in told["promise"]
    (rows,) = told["inputs"]
    assert (rows["dtype"], rows["shape"]) == ("float64", ["b", 7])
    columns = {column["name"]: column for column in rows["columns"]}
    assert list(columns) == list(served.table(1, 0))
    assert columns["plant"]["codes"] == {"A": 0, "B": 1, "Köln": 2}
    lots = detector.model_.preprocessing.columns[3].levels
    assert columns["lot"]["codes"] == {level: i for i, level in enumerate(lots)}
    assert columns["lot"]["unknown"] == -1
    assert columns["same"]["holds"] == "nothing"
    assert [out["name"] for out in told["outputs"]] == [
        "score",
        "p_value",
        "is_anomaly",
    ]
    made = detector.calibrated_
    assert told["decision"] == {
        "way": "split",
        "false_alarm_rate": 0.1,
        "threshold": made.threshold,
        "calibration_rows": len(made.scores[0]),
    }


def test_nothing_of_this_machine_is_inside(exported):
    content = b"".join(path.read_bytes() for path in exported.iterdir())
    places = (pathlib.Path(sad.__file__).parents[1], sys.prefix, exported.parent)
    for place in (*map(str, places), ".py", "site-packages", os.path.expanduser("~/")):
        assert place.encode() not in content


def test_the_server_answers_as_deepsad_score_does(detector, exported, tmp_path):
    new = served.table(40, 2)
    new.loc[3, "plant"], new.loc[4, "plant"] = "never seen", None
    new.to_csv(tmp_path / "new.csv", index=False)
    detector.save(tmp_path / "pump")
    command = ("score", "pump", "new.csv", "-o", "scored.csv")
    subprocess.run(
        [sys.executable, "-m", "deepsad_jax", *command],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(pathlib.Path(sad.__file__).parents[1])},
        check=True,
        capture_output=True,
    )
    with open(tmp_path / "scored.csv", newline="", encoding="utf-8") as file:
        scored = list(csv.DictReader(file))
    rows = served.as_objects(new)
    with served.process("serve_stablehlo.py", exported, tmp_path) as address:
        status, found = served.asked(address, rows)
        assert status == 200
        for name in ("score", "p_value"):
            expected = [float(row[name]) for row in scored]
            np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6)
        expected = [row["is_anomaly"] == "true" for row in scored]
        assert found["is_anomaly"] == expected and 0 < sum(expected) < 40
        lists = [[*row.values()] for row in rows[:1]]
        assert served.asked(address, lists)[1]["score"] == pytest.approx(
            found["score"][:1], rel=1e-5
        )
        nothing = {name: [] for name in ("score", "p_value", "is_anomaly")}
        assert served.asked(address, []) == (200, nothing)
        for change, message in (
            ({"pressure": 1e30}, "too far"),
            ({"pressure": "high"}, "could not convert"),
            ({"hot": "perhaps"}, "hot is 'perhaps'"),
            ({"presure": 1.0}, "presure"),
        ):
            status, answer = served.asked(address, [{**rows[0], **change}])
            assert status == 400 and message in answer["error"]


@pytest.mark.parametrize("place", [0, 1000, -1])
def test_the_server_refuses_flipped_bytes(exported, tmp_path, place):
    folder = shutil.copytree(exported, tmp_path / "damaged")
    content = bytearray((folder / "model.stablehlo").read_bytes())
    content[place] ^= 1
    (folder / "model.stablehlo").write_bytes(content)
    sys.path.insert(0, str(served.EXAMPLES))
    try:
        import rows
    finally:
        sys.path.remove(str(served.EXAMPLES))
    rows.opened(exported)
    with pytest.raises(SystemExit, match="checksum of model.stablehlo is wrong"):
        rows.opened(folder)


def test_the_command_writes_the_same_and_says_what(
    detector, exported, tmp_path, capsys
):
    detector.save(tmp_path / "pump")
    options = types.SimpleNamespace(output=str(tmp_path / "one"), format="stablehlo")
    exporting.export(str(tmp_path / "pump"), options)
    output = capsys.readouterr().out
    assert output.startswith("score, p_value, is_anomaly of rows [b, 7] of float64\n")
    one, other = about(tmp_path / "one"), about(exported)
    changing = {"sha256": "", "date": ""}
    assert {**one, **changing} == {**other, **changing}
    sad.save(detector.model_, tmp_path / "model")
    options.output = str(tmp_path / "two")
    exporting.export(str(tmp_path / "model"), options)
    assert "no calibration, so there are scores alone" in capsys.readouterr().out
    assert len(about(tmp_path / "two")["outputs"]) == 1


def test_scores_alone_where_there_is_no_calibration(detector):
    x = detector.model_.preprocessing.encode(served.table(9, 3))
    found = said(detector.model_, x)
    assert list(found) == ["score"]
    np.testing.assert_allclose(
        found["score"], sad.score(detector.model_, x), rtol=1e-5, atol=1e-6
    )
    told = programs.program(detector.model_).about
    assert "scores alone" in told["decision"]["said"]
    without = dataclasses.replace(detector.calibrated_, way="none")
    found, expected = said(without, x), without.judge(x)
    assert sorted(found) == ["is_anomaly", "score"]
    np.testing.assert_array_equal(found["is_anomaly"], expected.is_anomaly)


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5])
def test_folds_judge_together(rate):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(39, 21))
    scaling = sad.preprocessing.auto(rows)
    first, *folds = (served.untrained("cardio_mlp", scaling, seed) for seed in range(4))
    scores = [np.sort(sad.score(m, rows[i::3])) for i, m in enumerate(folds)]
    own = sad.score(first, rows)
    details = {"center": float(np.median(own)), "width": float(own.std())}
    parts = (tuple(scores), "cross", rate, tuple(folds), details)
    made = calibrated.Calibrated(first, *parts)
    x = np.concatenate([rng.normal(size=(60, 21)), 3 * rng.normal(size=(20, 21))])
    expected = made.judge(x)
    assert 0 < expected.is_anomaly.sum() < 80
    served.assert_is_said(said(made, x), expected)


@pytest.mark.parametrize("size", [19, 149, 299])
@pytest.mark.parametrize("wide", [True, False])
def test_no_p_value_is_above_the_rate_that_it_equals(size, wide):
    counts = np.arange(1, size + 2)
    with jax.enable_x64(wide):
        share = jax.jit(lambda count: programs._share(count, size, count > 0))
        found = np.asarray(share(counts))
    exact = counts / (size + 1)
    assert found.dtype == (np.float64 if wide else np.float32)
    assert (found.astype(float) <= exact).all()
    np.testing.assert_allclose(found, exact, rtol=0 if wide else 2e-7)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 127, 128, 129])
def test_equal_scores_count_against_an_alarm(size):
    rng = np.random.default_rng(size)
    calibration = rng.integers(0, 9, size).astype(np.float32)
    scores = np.arange(-1, 10, dtype=np.float32)
    found = np.asarray(programs._at_least(calibration, jnp.asarray(scores)))
    np.testing.assert_array_equal(found, (calibration >= scores[:, None]).sum(axis=1))


def test_images_go_in_as_they_were_in_training():
    rng = np.random.default_rng(0)
    for scaling, x in (
        (sad.preprocessing.Bytes(), rng.integers(0, 256, (3, 28, 28, 1), np.uint8)),
        (sad.preprocessing.Unchanged(0.0, 1.0), rng.random((3, 28, 28, 1), np.float32)),
    ):
        fitted = served.untrained("mnist_LeNet", scaling)
        found = programs.program(fitted)
        assert found.dtype == x.dtype and found.rows().shape[1:] == (28, 28, 1)
        expected = sad.score(fitted, x)
        np.testing.assert_allclose(said(fitted, x)["score"], expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["ssad", "kde", "ocsvm", "isoforest"])
def test_shallow_methods_leave_too_for_any_number_of_rows(name):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, 3)), np.zeros(80, int)
    y[:5] = -1
    scaling = sad.preprocessing.auto(x)
    fitted, _ = METHODS[name]().fit(
        jax.random.key(0), sad.training_set(x, y), preprocessing=scaling
    )
    found = programs.program(fitted)
    loaded = jax.export.deserialize(bytearray(programs.stablehlo(found)))
    with jax.enable_x64(True):
        for size in (1, 80):
            score = np.asarray(loaded.call(x[:size])["score"])
            expected = sad.score(fitted, x[:size])
            np.testing.assert_allclose(score, expected, rtol=1e-9, atol=1e-12)


def test_what_the_library_refuses_is_no_number(detector):
    x = detector.model_.preprocessing.encode(served.table(3, 4))
    x[0, 1], x[1, 1] = np.inf, 1e30
    with pytest.raises(ValueError):
        sad.score(detector.model_, x)
    found = said(detector, x)
    for name in ("score", "p_value"):
        np.testing.assert_array_equal(np.isnan(found[name]), [True, True, False])
    assert not found["is_anomaly"][:2].any()


def test_what_a_robust_scaling_hides_is_no_number_either():
    scaling = tables.learn(served.table(200, 0), scaling="robust")
    x = scaling.encode(served.table(4, 5))
    places = [i for i, c in enumerate(scaling.columns) if hasattr(c, "width")]
    for row, value in enumerate((1e300, -1e20, np.nan)):
        x[row, places[0]] = value
    with jax.enable_x64(True):
        found = np.asarray(jax.jit(programs._prepared, static_argnums=0)(scaling, x))
    far = np.isinf(found).all(axis=1)
    assert far.tolist() == [True, True, False, False]
    with pytest.raises(ValueError, match="too far from the training part's"):
        scaling.check(x[:1])


def test_missing_values_and_robust_columns_stay_what_they_are():
    scaling = tables.learn(served.table(200, 0), scaling="robust")
    x = scaling.encode(served.table(50, 5))
    x[0], x[1, 0] = np.nan, -1
    with jax.enable_x64(True):
        found = np.asarray(jax.jit(scaling)(x))
    np.testing.assert_allclose(found, scaling(x), rtol=1e-6, atol=1e-7)


def test_what_is_wrong_is_said_before_anything_is_written(detector, exported, tmp_path):
    with pytest.raises(FileExistsError, match="nothing is overwritten"):
        sad.export(detector, exported)
    with pytest.raises(ValueError, match="format is 'torch'"):
        sad.export(detector, tmp_path / "one", format="torch")
    with pytest.raises(ValueError, match="model is a dict"):
        sad.export({}, tmp_path / "one")
    with pytest.raises(OSError, match="cannot be written"):
        detector.export(tmp_path / "no folder" / "one")
    assert not list(tmp_path.iterdir())


def test_onnx_without_its_exporter_says_how_to_install_it(
    detector, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ImportError, match="pip install --no-deps jax2onnx && pip "):
        sad.export(detector, tmp_path / "one", format="onnx")
    assert not list(tmp_path.iterdir())
