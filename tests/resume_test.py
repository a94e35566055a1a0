"""Whatever stops a run, the same command goes on, and ends as if nothing had been.

Some checks need a process of their own: two CPU devices, and commands that are stopped
by a patch, at a moment that is always the same.
"""

import dataclasses
import errno
import importlib
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import kill_harness
import numpy as np
import optax
import pytest

import deepsad_jax as sad
from deepsad_jax import checkpoints, detectors, networks, parallel, training
from experiments import pictures, report, run, sweep, workdir

# What TensorStore prints for each array that fails after another one has.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)
ROOT = pathlib.Path(__file__).parents[1]
EPOCHS = 3
ADAM = training.Adam(1e-3, milestones=(2,))
STAGE = training.Stage(ADAM, epochs=EPOCHS, batch_size=16)
ENCODER, DECODER = networks.MLPEncoder((8,), 3), networks.MLPDecoder((8,), 5)
TABLE = "--config=configs/breast_cancer.py"
QUICK = ("--config.pretrain.epochs=2", "--config.train.epochs=3")
OFTEN = ("--config.checkpoint.epochs=1", "--config.checkpoint.seconds=0")


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch):
    monkeypatch.setattr(pictures, "of_run", lambda *_: {})


def fit(method, keeper=None, observe=None, seed=0, devices=1, stage=STAGE, rows=0):
    rng = np.random.default_rng(rows)
    data = training.training_set(
        rng.random((40, 5), np.float32), rng.integers(-1, 2, 40)
    )
    networks_ = {"encoder": ENCODER}
    if method == "deep_sad":
        networks_["decoder"] = DECODER
    stages = {"train": stage, "pretrain": stage}
    if method == "supervised":
        del stages["pretrain"]
    options = detectors.METHODS[method](**networks_, **stages)
    plan = parallel.split_batch(devices)
    how = {"plan": plan, "keeper": keeper, "observe": observe}
    return options.fit(jax.random.key(seed), data, **how)


def keeper_of(folder, keep=EPOCHS):
    return checkpoints.Keeper(folder, epochs=1, seconds=0.0, keep=keep)


def stop_after(folder, method, stops, **options):
    """Fits again and again, each time stopped at the next epoch, so many times."""
    for _ in range(stops):
        keeper = keeper_of(folder)
        with pytest.raises(checkpoints.Interrupted, match="stopped after epoch"):
            fit(method, keeper, lambda *_, k=keeper: k.stop(), **options)


def go_on(folder, method, **options):
    keeper = keeper_of(folder)
    fitted = fit(method, keeper, **options)
    keeper.close()
    return fitted


def assert_same(actual, expected, assert_leaf=np.testing.assert_array_equal):
    for (model, record), (other, of_other) in [(actual, expected)]:
        # Their preprocessing and info are static and compared, too.
        jax.tree.map(assert_leaf, model, other)
        jax.tree.map(assert_leaf, record.history, of_other.history)


@pytest.fixture(scope="module")
def undisturbed():
    return {method: fit(method) for method in ("deep_sad", "m1_m2")}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Checkpoints of a fit that was stopped after the second epoch of `train`."""
    folder = tmp_path_factory.mktemp("stopped")
    stop_after(folder, "deep_sad", EPOCHS + 2)
    assert {path.name for path in (folder / "train").iterdir()} == {"1", "2"}
    return folder


@pytest.mark.parametrize("method", ["deep_sad", "m1_m2"])
def test_a_fit_stopped_after_every_epoch_ends_the_same(method, undisturbed, tmp_path):
    stop_after(tmp_path, method, 2 * EPOCHS)
    assert_same(go_on(tmp_path, method), undisturbed[method])


def test_an_optimizer_that_draws_goes_on_with_its_draws(tmp_path):
    drawing = optax.chain(optax.add_noise(0.01, 0.5, 0), optax.sgd(1e-2))
    stage = dataclasses.replace(STAGE, optimizer=drawing)
    stop_after(tmp_path, "supervised", 1, stage=stage)
    expected = fit("supervised", stage=stage)
    assert_same(go_on(tmp_path, "supervised", stage=stage), expected)


@pytest.mark.parametrize(
    "other",
    [{"rows": 1}, {"stage": dataclasses.replace(STAGE, optimizer=training.Adam(1e-2))}],
    ids=["rows", "settings"],
)
def test_other_rows_or_settings_find_nothing_to_go_on_from(other, stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "kept")
    found = go_on(tmp_path / "kept", "deep_sad", **other)
    assert_same(found, fit("deep_sad", **other))
    assert len([*(tmp_path / "kept").glob("unused-*")]) == EPOCHS + 2


class Late(checkpoints.Keeper):
    """What it finds took a thousand seconds."""

    def restore(self, *arguments):
        epoch, seconds, *rest = super().restore(*arguments)
        return epoch, 1e3 + seconds, *rest


def test_times_of_a_stage_add_up(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "kept")
    keeper = Late(tmp_path / "kept", epochs=1, seconds=0.0, keep=EPOCHS)
    _, record = fit("deep_sad", keeper)
    keeper.close()
    assert all(1000 < record.seconds[stage] < 1100 for stage in ("pretrain", "train"))


def test_only_stages_that_train_can_be_stopped(stopped, tmp_path):
    keeper = keeper_of(shutil.copytree(stopped, tmp_path / "kept"))
    training_at = []

    def record(stage, done, history):
        training_at.append((stage, done, keeper.is_training))

    assert not keeper.is_training
    fit("deep_sad", keeper, record)
    expected = [("pretrain", 3, False), ("train", 2, True), ("train", 3, True)]
    assert training_at == expected
    assert not keeper.is_training
    # A stage without epochs never trains: nothing would hear the call to stop.
    fit("deep_sad", keeper, stage=training.Stage(epochs=0, batch_size=16))
    assert not keeper.is_training
    keeper.close()


def check_devices(folder):
    folder = pathlib.Path(folder)
    one, two = fit("deep_sad"), fit("deep_sad", devices=2)
    stop_after(folder / "two", "deep_sad", EPOCHS + 2, devices=2)
    assert_same(go_on(folder / "two", "deep_sad", devices=2), two)
    stop_after(folder / "one", "deep_sad", EPOCHS + 1)
    assert_same(
        go_on(folder / "one", "deep_sad", devices=2),
        one,
        # Sums over the batch in another order; Adam's steps are 1e-3.
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
    )


def test_a_fit_goes_on_with_as_many_or_more_devices(tmp_path):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
    }
    code = "import sys, resume_test; resume_test.check_devices(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def truncated(content):
    return content[: len(content) // 2]


def zeroed(content):
    quarter = len(content) // 4
    rest = content[len(content) - quarter :]
    return content[:quarter] + bytes(len(content) - 2 * quarter) + rest


def flipped(content):
    """A bit in every hundredth byte, since some bytes mean nothing."""
    changed = bytearray(content)
    for i in range(len(content) // 2 % 100, len(content), 100):
        changed[i] ^= 1
    return bytes(changed)


def missing(content):
    return None


def garbled(content):
    return b'{"key": [0, 0], "seconds": '


DAMAGES = (truncated, zeroed, flipped, missing, garbled)


def damage(path, how):
    content = how(path.read_bytes())
    path.unlink()
    if content is not None:
        path.write_bytes(content)


def warnings_of(caplog):
    name = checkpoints.__name__
    return [r.getMessage() for r in caplog.records if r.name == name]


def data_files(folder):
    """The files with the arrays."""
    return [path for path in folder.rglob("d/*") if path.is_file()]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_put_aside(how, stopped, undisturbed, tmp_path, caplog):
    kept = shutil.copytree(stopped, tmp_path / "kept")
    newest = kept / "train" / "2"
    meta = [newest / "meta" / "metadata"]
    for path in meta if how is garbled else data_files(newest):
        damage(path, how)
    starts = []
    fitted = go_on(kept, "deep_sad", observe=lambda *args: starts.append(args[:2]))
    assert_same(fitted, undisturbed["deep_sad"])
    (warning,) = warnings_of(caplog)
    assert f"the checkpoint {newest} cannot be used" in warning
    assert starts[:2] == [("pretrain", 3), ("train", 1)]
    (aside,) = kept.glob("unused-train-2-*")
    assert str(aside) in warning and aside.is_dir()


def test_damage_to_any_file_changes_nothing(stopped, undisturbed, tmp_path):
    files = [path for path in (stopped / "train" / "2").rglob("*") if path.is_file()]
    assert len(files) > 5
    damages = (truncated, flipped, missing)
    for i, (file, how) in enumerate(itertools.product(files, damages)):
        kept = shutil.copytree(stopped, tmp_path / str(i))
        damage(kept / file.relative_to(stopped), how)
        assert_same(go_on(kept, "deep_sad"), undisturbed["deep_sad"])
        shutil.rmtree(kept)


def test_without_a_whole_checkpoint_training_begins_again(
    stopped, undisturbed, tmp_path, caplog
):
    kept = shutil.copytree(stopped, tmp_path / "kept")
    for folder in kept.glob("*/*"):
        for path in data_files(folder):
            damage(path, zeroed)
    damaged = {str(path) for path in kept.glob("*/*")}
    starts = []
    fitted = go_on(kept, "deep_sad", observe=lambda *args: starts.append(args[:2]))
    assert_same(fitted, undisturbed["deep_sad"])
    assert starts[0] == ("pretrain", 1)
    warned = {message.split()[2] for message in warnings_of(caplog)}
    assert warned == damaged and len(list(kept.glob("unused-*"))) == len(damaged)


def test_an_older_damaged_checkpoint_does_no_harm(stopped, undisturbed, tmp_path):
    kept = shutil.copytree(stopped, tmp_path / "kept")
    for path in (kept / "train" / "1").rglob("*"):
        if path.is_file():
            damage(path, truncated)
    assert_same(go_on(kept, "deep_sad"), undisturbed["deep_sad"])


def test_checkpoints_of_another_fit_are_not_taken(stopped, tmp_path, caplog):
    kept = shutil.copytree(stopped, tmp_path / "key")
    assert_same(go_on(kept, "deep_sad", seed=1), fit("deep_sad", seed=1))
    assert "belongs to another random key" in caplog.text
    fewer = training.Stage(ADAM, epochs=2, batch_size=16)
    kept = shutil.copytree(stopped, tmp_path / "epochs")
    expected = fit("deep_sad", stage=fewer)
    assert_same(go_on(kept, "deep_sad", stage=fewer), expected)
    assert "another number of epochs" in caplog.text


def test_no_more_checkpoints_are_kept_than_asked(tmp_path):
    keeper = keeper_of(tmp_path, keep=1)
    fit("deep_sad", keeper)
    keeper.close()
    kept = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*")}
    assert kept == {f"pretrain/{EPOCHS}", f"train/{EPOCHS}"}
    assert keeper.newest() == tmp_path / "train" / str(EPOCHS)
    keeper.discard()
    assert not tmp_path.exists()


def command(*arguments, patch="", program="run"):
    """The command line, in a process that runs a patch first."""
    code = f"import runpy\n{patch}\n"
    code += f"runpy.run_module('experiments.{program}', run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


def sigterm_at(stage, done):
    return f"""
import os, signal, time
from experiments import progress
call = progress.OneRun.__call__
def stop(self, *arguments):
    call(self, *arguments)
    if arguments[:2] == ({stage!r}, {done}):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)  # it is heard in another thread
progress.OneRun.__call__ = stop
"""


def assert_refused(done, message):
    assert done.returncode == 2, done.stderr
    last = done.stderr.rstrip("\n").split("\n")[-1]
    assert last.startswith("error: ") and message in last, done.stderr
    assert "Traceback" not in done.stderr


def assert_equal_runs(folder, expected):
    actual, expected = kill_harness.content(folder), kill_harness.content(expected)
    for ignored in ("config.json", "results.json"):
        actual.pop(ignored), expected.pop(ignored)
    assert {"scores.npz", "metrics.jsonl", "model"} <= expected.keys()
    assert actual == expected


def config_of(**overrides):
    config = importlib.import_module("configs.breast_cancer").get_config()
    config.pretrain.epochs, config.train.epochs = 2, 3
    config.update_from_flattened_dict(overrides)
    return config


@pytest.fixture(scope="module")
def undisturbed_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    run.run(config_of(), str(folder))
    return folder


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory):
    """What SIGTERM after the first epoch of `train` leaves, and the process."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    arguments = (TABLE, *QUICK, f"--workdir={folder}")
    return folder, command(*arguments, patch=sigterm_at("train", 1))


def test_a_run_that_got_sigterm_says_how_to_go_on(stopped_run):
    folder, done = stopped_run
    assert done.returncode == 143
    assert done.stderr.rstrip().endswith(
        "interrupted: stopped after epoch 1 of train, which is saved; go on by the "
        f"same command with --workdir={folder}"
    )
    assert not (folder / "results.json").exists()
    assert (folder / "checkpoints" / "train" / "1").is_dir()
    kill_harness.check_files(folder)


def test_the_same_command_finishes_what_got_sigterm(
    stopped_run, undisturbed_run, tmp_path
):
    folder = shutil.copytree(stopped_run[0], tmp_path / "run")
    done = command(TABLE, *QUICK, f"--workdir={folder}")
    assert done.returncode == 0, done.stderr
    assert_equal_runs(folder, undisturbed_run)
    assert {p.name for p in folder.iterdir()} == {
        p.name for p in undisturbed_run.iterdir()
    }


def test_devices_and_checkpoints_may_be_others(stopped_run, undisturbed_run, tmp_path):
    folder = shutil.copytree(stopped_run[0], tmp_path / "run")
    others = {"devices": 0, "checkpoint.epochs": 1, "checkpoint.seconds": 0.0}
    run.run(config_of(**others, **{"checkpoint.keep": 1}), str(folder))
    assert_equal_runs(folder, undisturbed_run)
    assert json.loads((folder / "config.json").read_text())["checkpoint"]["keep"] == 1


def test_another_config_is_refused_with_the_difference(stopped_run):
    folder, _ = stopped_run
    before = kill_harness.content(folder)
    quick = (QUICK[0], "--config.train.epochs=4", "--config.seed=0")
    done = command(TABLE, *quick, f"--workdir={folder}")
    assert_refused(done, "another config (train.epochs was 3, is 4)")
    assert kill_harness.content(folder) == before
    with pytest.raises(ValueError, match="eta was 1.0, is 2.0; seed was 0, is 1"):
        run.run(config_of(eta=2.0, seed=1), str(folder))


@pytest.fixture
def own_table(tmp_path):
    """A config of a file of one's own, and what writes it with another value in it."""
    path, x = tmp_path / "mine.csv", np.random.default_rng(0).random((60, 3))

    def write(value):
        x[0, 0] = value
        lines = (f"{a},{b},{c},{i % 3 == 0:d}" for i, (a, b, c) in enumerate(x))
        path.write_text("\n".join(["a,b,c,label", *lines]))

    write(0.5)
    return config_of(**{"data.name": str(path), "method": "isoforest"}), write


def test_a_run_does_not_go_on_with_data_that_have_changed(own_table, tmp_path):
    (config, write), folder = own_table, tmp_path / "run"

    def killed(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            run.run(config, str(folder))
    write(0.25)
    message = f"{folder} holds a run on other data: .*mine.csv has changed since"
    with pytest.raises(ValueError, match=message):
        run.run(config, str(folder))
    assert not (folder / "results.json").exists()
    write(0.5)  # restored: only the time of the file is another
    run.run(config, str(folder))


def test_a_sweep_does_not_mix_data(own_table, tmp_path):
    (config, write), folder = own_table, tmp_path / "sweep"
    sweep.sweep(sweep.expand(config, {}, seeds=1), str(folder))
    write(0.25)
    before = kill_harness.content(folder)
    with pytest.raises(ValueError, match="mine.csv has changed since"):
        sweep.sweep(sweep.expand(config, {}, seeds=2), str(folder))
    assert kill_harness.content(folder) == before


def test_resume_never_refuses_what_is_unfinished(stopped_run, tmp_path):
    folder, _ = stopped_run
    done = command(TABLE, *QUICK, f"--workdir={folder}", "--resume=never")
    assert_refused(done, "holds an unfinished experiment")
    (config,) = sweep.expand(config_of(), {}, seeds=1)
    seed = tmp_path / sweep.setting(config) / "seed0"
    shutil.copytree(folder, seed)
    with pytest.raises(ValueError, match="holds an unfinished experiment"):
        sweep.sweep([config], str(tmp_path), resume=False)


@pytest.mark.parametrize("content", ['{"seed": ', "[]", "\xff"])
def test_a_damaged_config_is_named(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        run.run(config_of(), str(tmp_path))


def test_sigterm_before_training_just_ends_the_process(tmp_path):
    patch = """
import os, signal, time
from deepsad_jax.data import protocol
def make(*_):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
protocol.make = make
"""
    done = command(TABLE, *QUICK, f"--workdir={tmp_path / 'run'}", patch=patch)
    assert done.returncode == 143
    assert "interrupted: nothing was saved" in done.stderr
    assert not (tmp_path / "run").exists()


def test_sigterm_in_a_shallow_method_just_ends_the_process(tmp_path):
    # A hybrid has a keeper, of which its second half makes no use.
    folder = tmp_path / "run"
    arguments = (TABLE, *QUICK, "--config.method=isoforest", "--config.hybrid")
    arguments = (*arguments, *OFTEN, f"--workdir={folder}")
    done = command(*arguments, patch=sigterm_at("train", 100))
    assert done.returncode == 143, done.stderr
    assert "go on by the same command" in done.stderr
    config = config_of(method="isoforest", hybrid=True)
    config.checkpoint.epochs, config.checkpoint.seconds = 1, 0.0
    run.run(config, str(folder))
    expected = run.run(config, str(tmp_path / "undisturbed"))
    assert workdir.read_json(folder / "results.json")["auroc"] == expected["auroc"]


@pytest.mark.parametrize("program", ["run", "sweep"])
def test_what_is_killed_at_any_moment_ends_the_same(program, tmp_path):
    kills = {"run": 3, "sweep": 2}[program]
    options = {"run": [TABLE], "sweep": ["--seeds=2"]}[program]
    options += ["--config.pretrain.epochs=6", "--config.train.epochs=6"]
    counts, _ = kill_harness.survive(program, kills, 1, tmp_path, options)
    assert sum(counts.values()) == kills


def test_what_is_streamed_ends_the_same_when_it_is_killed_and_as_from_memory(tmp_path):
    rng = np.random.default_rng(0)
    x, truth = rng.random((400, 5), np.float32), np.arange(400) % 10 == 0
    x[truth] += 0.5
    arrays = {"x_train": x, "semi_targets": -1 * (np.arange(400) % 40 == 0)}
    arrays |= {"x_test": x[:100], "y_test": truth[:100].astype(int)}
    (tmp_path / "data").mkdir()
    for name, array in arrays.items():
        np.save(tmp_path / "data" / f"{name}.npy", array)
    options = [TABLE, f"--config.data.name={tmp_path / 'data'}"]
    options += ["--config.pretrain.epochs=4", "--config.train.epochs=4"]
    streamed = [*options, "--config.data.stream=True"]
    counts, _ = kill_harness.survive("run", 2, 3, tmp_path, streamed)
    assert sum(counts.values()) == 2
    done = command(*options, f"--workdir={tmp_path / 'memory'}")
    assert done.returncode == 0, done.stderr
    scores = []
    for folder in ("undisturbed", "memory"):
        with np.load(tmp_path / folder / "scores.npz") as content:
            scores.append(content["score"])
    np.testing.assert_allclose(*scores, rtol=1e-4)


def test_the_harness_is_a_program():
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "kill_harness.py", "--help"],
        cwd="/",
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "--kills" in done.stdout


def test_a_workdir_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="--workdir .*file/run cannot be made: Not a"):
        run.run(config_of(), str(tmp_path / "file" / "run"))


def mount(folder, *arguments):
    """Mounts a tmpfs, where that is permitted."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", *arguments, "none", folder], capture_output=True
    )
    if done.returncode:
        pytest.skip("nothing can be mounted here")


def test_a_workdir_that_is_read_only_is_named(tmp_path):
    try:
        mount(tmp_path / "disk", "-o", "ro")
        with pytest.raises(OSError, match="--workdir .*disk cannot be written"):
            run.run(config_of(), str(tmp_path / "disk"))
        with pytest.raises(OSError, match="disk/run cannot be made: Read-only"):
            run.run(config_of(), str(tmp_path / "disk" / "run"))
    finally:
        subprocess.run(["umount", tmp_path / "disk"], capture_output=True)


# Where the disk is full: at the metrics and at checkpoints.
@pytest.mark.parametrize("kilobytes", [8, 64, 300])
def test_a_full_disk_ends_the_run_and_spares_what_is_there(
    kilobytes, undisturbed_run, tmp_path
):
    disk = tmp_path / "disk"
    often = {"checkpoint.epochs": 1, "checkpoint.seconds": 0.0}
    try:
        mount(disk, "-o", f"size={kilobytes}k")
        if kilobytes == 64:
            done = command(TABLE, *QUICK, *OFTEN, f"--workdir={disk / 'run'}")
            assert_refused(done, "cannot be written: No space left on device")
            assert f" {disk / 'run' / 'checkpoints'}" in done.stderr
        else:
            message = rf"{disk}/run/.* cannot be written: .*No space left on device"
            with pytest.raises(OSError, match=message):
                run.run(config_of(**often), str(disk / "run"))
        kill_harness.check_files(disk)
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        run.run(config_of(**often), str(disk / "run"))
        assert_equal_runs(disk / "run", undisturbed_run)
    finally:
        subprocess.run(["umount", disk], capture_output=True)


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("name", ["config.json", "scores.npz", "results.json"])
def test_a_file_that_cannot_be_written_is_named(
    name, undisturbed_run, tmp_path, monkeypatch
):
    folder, replace = tmp_path / "run", os.replace
    with monkeypatch.context() as patch:
        patch.setattr(
            os, "replace", lambda a, b: full() if b == folder / name else replace(a, b)
        )
        message = f"{folder / name} cannot be written: No space left on device"
        with pytest.raises(OSError, match=f"^{message}$"):
            run.run(config_of(), str(folder))
    assert {path.name for path in folder.glob(".*")} <= {".deepsad-lock"}
    kill_harness.check_files(folder)
    run.run(config_of(), str(folder))
    assert_equal_runs(folder, undisturbed_run)


def test_a_checkpoint_that_cannot_be_written_is_named(
    undisturbed, tmp_path, monkeypatch
):
    import orbax.checkpoint as ocp

    stop_after(tmp_path, "deep_sad", 2)
    keeper = keeper_of(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", full)
        with pytest.raises(OSError, match=f"{tmp_path}.* cannot be written: .*space"):
            fit("deep_sad", keeper)
            keeper.close()
    assert_same(go_on(tmp_path, "deep_sad"), undisturbed["deep_sad"])


def test_a_model_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    import orbax.checkpoint as ocp

    def half(self, path, **options):
        path.with_name(f"{path.name}.orbax-checkpoint-tmp-1").mkdir()
        full()

    model, _ = fit("supervised")
    path = tmp_path / "model"
    monkeypatch.setattr(ocp.Checkpointer, "save", half)
    with pytest.raises(OSError, match=f"{path} cannot be written: .*space"):
        sad.save(model, path)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed(stopped_run, tmp_path):
    folder = shutil.copytree(stopped_run[0], tmp_path / "run")
    left = [
        folder / ".metrics.jsonl.abc.deepsad-partial",
        folder / "model.orbax-checkpoint-tmp-1" / "state",
        folder / "checkpoints" / "train" / "2.orbax-checkpoint-tmp" / "state",
    ]
    kept = [folder / ".notes.partial", folder / "model.txt"]
    for path in (*left, *kept):
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    workdir.prepare(str(folder), "", config_of().to_dict())
    assert not any(path.exists() for path in left)
    assert not list(folder.glob("**/*orbax-checkpoint-tmp*"))
    assert all(path.exists() for path in kept)
    assert (folder / "checkpoints" / "train" / "1").is_dir()
