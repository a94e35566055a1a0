"""Grids: shared by processes, with autoencoders that are trained once."""

import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest

from configs import breast_cancer, default, digits
from experiments import build, grid, named, run, sweep, workdir

ROOT = pathlib.Path(__file__).parents[1]


pytestmark = pytest.mark.usefixtures("without_pictures")


def forests(folder, seeds):
    config = breast_cancer.get_config()
    config.method = "isoforest"
    configs = grid.expand(config, {}, seeds)
    return [grid.Job(c, folder / "x" / f"seed{c.seed}") for c in configs]


def test_what_another_process_is_at_work_on_is_done_when_it_dies(tmp_path):
    jobs = forests(tmp_path, 3)
    done = []

    def work():
        done.extend(grid.run(jobs, tmp_path, workers=2))

    with workdir.claimed(jobs[1].folder, jobs[1].config.to_dict()) as is_ours:
        assert is_ours
        thread = threading.Thread(target=work)
        thread.start()
        while not (jobs[0].is_finished and jobs[2].is_finished):
            time.sleep(0.05)
        assert not jobs[1].is_finished and thread.is_alive()
    thread.join()
    assert [result["seed"] for result in done] == [0, 1, 2]


def test_a_folder_of_one_process_is_not_shared_with_another(tmp_path):
    with workdir.locked(str(tmp_path), "a", {"a": 1}):
        with pytest.raises(ValueError, match="is in use by process"):
            with workdir.locked(str(tmp_path), "a", {"a": 1}, shared=True):
                pass
    with workdir.locked(str(tmp_path), "a", {"a": 1}, shared=True):
        with workdir.locked(str(tmp_path), "a", {"a": 1}, shared=True) as folder:
            assert folder == tmp_path
        with pytest.raises(ValueError, match="is in use by"):
            with workdir.locked(str(tmp_path), "a", {"a": 1}):
                pass


def test_two_processes_share_a_grid_and_one_is_killed(tmp_path):
    patch = (
        "from experiments import report, session, sweep\n"
        "old = report.finish\n"
        "def finish(folder, *a, **o):\n"
        "    old(folder, *a, **o)\n"
        "    print('did', folder, flush=True)\n"
        "report.finish = finish\n"
        "session.start(sweep.main, every_core=True, grid=True)\n"
    )
    flags = ["--config=configs/breast_cancer.py", "--config.method=isoforest"]
    flags += ["--seeds=8", "--at_once=1", "--processes=2", f"--workdir={tmp_path}"]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", patch, *flags, f"--process={i}"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        for i in range(2)
    ]
    first = workers[0].stdout.readline()
    workers[0].send_signal(signal.SIGKILL)
    killed, survivor = (worker.communicate()[0] for worker in workers)
    assert workers[1].returncode == 0
    lines = [first, *killed.splitlines(), *survivor.splitlines()]
    did = [line.split()[1] for line in lines if line.startswith("did ")]
    assert len(did) == len(set(did))  # nothing twice
    results = sorted(tmp_path.glob("*/seed*/results.json"))
    assert len(results) == 8
    rows = json.loads((tmp_path / "summary.json").read_text())
    aurocs = [json.loads(path.read_text())["auroc"] for path in results]
    np.testing.assert_allclose(rows[0]["auroc_mean"], np.mean(aurocs))


def test_an_autoencoder_is_trained_once_for_all_that_start_from_it(tmp_path):
    config = digits.get_config()
    config.pretrain.epochs, config.train.epochs = 1, 1
    methods = ["autoencoder", "deep_sad", "kde_hybrid"]
    configs = grid.expand(config, {"method": methods}, 1)
    sweep.sweep(configs, str(tmp_path))
    for single in configs[1:]:
        method = grid.method_of(single)
        folder = tmp_path / method / grid.setting(single) / "seed0"
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        assert "pretrain" not in {json.loads(line)["stage"] for line in lines}
        alone = tmp_path / "alone" / method
        run.run(single, str(alone))
        a, b = (np.load(path / "scores.npz")["score"] for path in (folder, alone))
        np.testing.assert_array_equal(a, b)


def test_members_have_autoencoders_of_their_own():
    config = breast_cancer.get_config()
    config.members = 2
    made, job = build.experiment(config), types.SimpleNamespace(is_finished=True)
    assert grid._with_base(made, {grid._base_key(config): job}) is made


def test_families_are_what_shares_data_and_options():
    config = breast_cancer.get_config()
    one, other = grid.expand(config, {}, 2)
    assert grid.family(one) == grid.family(other)
    changed = grid.changed(one, {"data.ratio_pollution": 0.1})
    assert grid.family(changed) == grid.family(one)
    assert grid.family(grid.changed(one, {"eta": 2.0})) != grid.family(one)
    assert grid.method_of(grid.changed(one, {"method": "kde_hybrid"})) == "kde_hybrid"


@pytest.mark.parametrize("present", [0, 1])
def test_a_config_file_holds_for_all_runs_of_a_protocol(monkeypatch, caplog, present):
    config = default.get_config()
    config.data.name, config.encoder = "images.npz", "my_study:ResNet"
    config.encoder_options.width, config.train.epochs = 32, 3
    flag = types.SimpleNamespace(present=present)
    monkeypatch.setattr(grid.flags, "FLAGS", {"config": flag})
    given = {"train.epochs": 3}
    monkeypatch.setattr(grid.config_flags, "get_override_values", lambda _: given)
    begun = default.get_config()
    begun.pretrain.learning_rate = 1e-3
    found = grid.overrides(config, {"data.name", "seed"}, begun)
    if not present:  # flags alone, over the config of the command
        assert found == given
        return
    assert found == {
        **given,
        "encoder": "my_study:ResNet",
        "encoder_options.width": 32,
    }
    assert "data.name of the config file left out" in caplog.text
    told = "not the config file: pretrain.learning_rate is 0.001; a flag sets it"
    assert told in caplog.text
    made = grid.changed(default.get_config(), found)
    assert made.encoder_options.width == 32 and made.data.name != "images.npz"
    with pytest.raises(ValueError, match="--config.train.epochs is what this command"):
        grid.overrides(config, {"train.epochs"}, begun)


def test_runs_of_two_versions_of_ones_own_code_are_told_of(
    tmp_path, monkeypatch, caplog
):
    (tmp_path / "own_code.py").write_text("def loss(z, t, c): return z[:, 0]")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("own_code")
    config = default.get_config()
    config.loss = "own_code:loss"
    (name, first), *_ = named.versions(config).items()
    (tmp_path / "own_code.py").write_text("def loss(z, t, c): return z[:, 1]")
    results = [
        {"versions": {name: v}} for v in (first, *named.versions(config).values())
    ]
    jobs = [grid.Job(config, tmp_path)] * 2
    grid._warn_of_versions(jobs, results[:1] * 2)
    assert not caplog.text
    grid._warn_of_versions(jobs, results)
    assert "own_code has changed between these runs, which are of 2 ver" in caplog.text
