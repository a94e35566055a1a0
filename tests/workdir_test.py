"""A command touches its own folder alone, and shares it with nobody."""

import concurrent.futures
import contextlib
import errno
import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from deepsad_jax import checkpoints, parallel, writing
from deepsad_jax import model as models
from experiments import locks, workdir

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = {"seed": 0, "eta": 1.0, "devices": 1, "train": {"epochs": 3}}


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.fixture
def own(tmp_path):
    """The folder of an experiment that was killed."""
    return workdir.prepare(str(tmp_path / "own"), "", CONFIG)


@pytest.mark.parametrize("name", ["metrics.jsonl", "scores.npz", "model/x", "notes"])
@pytest.mark.parametrize("take", [workdir.prepare, workdir.locked])
def test_a_folder_with_files_of_others_is_refused_and_stays(take, name, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    (tmp_path / ".mine.partial").write_text("mine")
    before = content(tmp_path)
    with pytest.raises(ValueError, match=rf"not of this experiment \({name[:5]}"):
        with contextlib.ExitStack() as stack:
            taken = take(str(tmp_path), "", CONFIG)
            stack.enter_context(taken)
    assert content(tmp_path) == before


def test_only_what_a_killed_command_left_is_removed(own):
    left = [
        own / f".metrics.jsonl.7-ab{writing.PARTIAL}",
        own / f".model.7-ab{writing.PARTIAL}.orbax-checkpoint-tmp-1" / "state",
        own / "model.orbax-checkpoint-tmp-1" / "state",
        own / "checkpoints" / "train" / "2.orbax-checkpoint-tmp" / "state",
    ]
    kept = [own / name for name in (".mine.partial", ".a.abc.partial", "x.partial")]
    kept += [own / ".cache.partial" / "x", own / "checkpoints" / "train" / "1" / "x"]
    for path in (*left, *kept):
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("half")
    workdir.prepare(str(own), "", CONFIG)
    assert not any(path.exists() for path in left)
    assert not list(own.glob("**/*orbax-checkpoint-tmp*"))
    assert all(path.exists() for path in kept)


def test_hidden_files_do_not_matter(tmp_path):
    (tmp_path / ".gitkeep").touch()
    workdir.prepare(str(tmp_path), "", CONFIG)
    assert {path.name for path in tmp_path.iterdir()} == {".gitkeep", "config.json"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eta": 2.0, "seed": 1}, r"\(eta was 1.0, is 2.0; seed was 0, is 1\)"),
        ({"train": {"epochs": 4}}, r"\(train.epochs was 3, is 4\)"),
        ({"network": "", "loss": {}}, r"\(loss is new; network is new\)"),
        ({str(i): i for i in range(7)}, "4 is new; and 2 more"),
    ],
)
def test_another_config_is_refused_with_the_difference(changes, message, own):
    before = content(own)
    with pytest.raises(ValueError, match=f"{own} holds a run of another .*{message}"):
        workdir.prepare(str(own), "", CONFIG | changes)
    with pytest.raises(ValueError, match="seed is gone"):
        workdir.check_same(own, {"eta": 1.0})
    assert content(own) == before


def test_devices_and_checkpoints_may_differ_and_what_else_is_named(own):
    workdir.prepare(str(own), "", CONFIG | {"devices": 2, "checkpoint": {"keep": 1}})
    with pytest.raises(ValueError, match="seed was 0, is 1"):
        workdir.prepare(str(own), "", CONFIG | {"seed": 1})
    others = (*workdir.MAY_DIFFER, "seed")
    workdir.prepare(str(own), "", CONFIG | {"seed": 1}, may_differ=others)
    assert workdir.read_json(own / "config.json")["seed"] == 1


def test_data_that_have_changed_are_refused_and_named(own):
    workdir.check_data(own, "my.csv", "a" * 64)  # nothing is known
    for _ in range(2):
        workdir.note_data(own, "my.csv", "a" * 64)
    before = content(own)
    message = rf"{own} holds a run on other data: my.csv has changed .* was a+, is b+\)"
    with pytest.raises(ValueError, match=message):
        workdir.note_data(own, "my.csv", "b" * 64)
    assert content(own) == before
    (own / workdir.DATA).write_text("[]")
    with pytest.raises(ValueError, match=r"data\.json is damaged"):
        workdir.check_data(own, "my.csv", "a" * 64)


def test_runs_side_by_side_go_on_with_the_convolutions_that_some_began_with(tmp_path):
    folders = [tmp_path / str(i) for i in range(3)]
    for folder in folders:
        folder.mkdir()
    plans = {
        form: parallel.Plan(many=True, convolutions=form)
        for form in parallel.CONVOLUTIONS
    }
    begun = workdir.as_begun(folders[:2], plans["blocks"])
    assert begun == plans["blocks"]
    (folders[0] / workdir.PLAN).unlink()
    assert workdir.as_begun(folders, plans["usual"]) == plans["blocks"]
    assert workdir.as_begun(folders[2:], plans["patches"]) == plans["blocks"]


def test_what_is_finished_or_never_to_be_resumed_is_refused(own):
    with pytest.raises(ValueError, match="holds an unfinished experiment"):
        workdir.prepare(str(own), "", CONFIG, resume=False)
    with pytest.raises(ValueError, match="not of this experiment"):
        workdir.prepare(str(own), "")
    workdir.write_json(own / workdir.RESULTS, {})
    with pytest.raises(ValueError, match="finished experiment, which is never overwr"):
        workdir.prepare(str(own), "", CONFIG)


def test_folders_that_cannot_be_made_are_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file; name a folder"):
        workdir.prepare(str(tmp_path / "file"), "", CONFIG)
    with pytest.raises(OSError, match="--workdir .*file/run cannot be made: Not a"):
        workdir.prepare(str(tmp_path / "file" / "run"), "", CONFIG)


@pytest.mark.parametrize("text", ['{"seed": ', "[]", "\xff"])
def test_a_damaged_config_is_named(text, own):
    (own / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        workdir.prepare(str(own), "", CONFIG)


def test_folders_that_nobody_named_are_made_for_one_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        made = list(pool.map(lambda _: workdir.prepare("", "race", CONFIG), range(60)))
    assert len(set(made)) == 60
    assert all(path.parent == pathlib.Path("runs") for path in made)


# The lock.


@contextlib.contextmanager
def another_command(folder):
    """A process that works in a folder."""
    code = f"""
    import time
    from experiments import workdir
    with workdir.locked({str(folder)!r}, "", {CONFIG!r}):
        print("ready", flush=True)
        time.sleep(60)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_second_command_is_told_who_is_there_and_touches_nothing(tmp_path):
    folder, inside = tmp_path / "run", tmp_path / "run" / "setting" / "seed0"
    with another_command(folder) as process:
        before = content(folder)
        message = f"in use by process {process.pid} on {socket.gethostname()} since 20"
        with pytest.raises(ValueError, match=message):
            with workdir.locked(str(folder), "", CONFIG):
                pass
        with pytest.raises(ValueError, match=message):
            workdir.prepare(str(folder), "", CONFIG)
        assert content(folder) == before
        # Of a sweep, the folders of its runs are taken, too.
        with pytest.raises(ValueError, match=f"--workdir {folder} is in use"):
            with workdir.locked(str(inside), "", CONFIG):
                pass
        workdir.prepare(str(inside), "", CONFIG)  # by the sweep itself
        process.send_signal(signal.SIGKILL)
        process.wait()
        with workdir.locked(str(folder), "", CONFIG) as taken:
            assert taken == folder


def test_a_lock_ends_with_its_block(tmp_path):
    for _ in range(2):
        with contextlib.suppress(KeyError), workdir.locked(str(tmp_path), "", CONFIG):
            assert (tmp_path / locks._LOCK).exists()
            raise KeyError
        assert {path.name for path in tmp_path.iterdir()} == {"config.json"}


def test_of_many_commands_at_once_one_goes_on(tmp_path):
    code = f"""
    import sys, time
    from experiments import workdir
    sys.stdin.read(1)
    try:
        with workdir.locked({str(tmp_path / "run")!r}, "", {CONFIG!r}):
            time.sleep(2)
    except ValueError as error:
        assert "is in use by" in str(error), error
        sys.exit(2)
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
        )
        for _ in range(4)
    ]
    for process in processes:
        process.stdin.write(b"x")
        process.stdin.close()
    assert sorted(process.wait() for process in processes) == [0, 2, 2, 2]


@pytest.mark.parametrize("how", ["error", "no module"])
def test_where_there_are_no_locks_a_command_says_so_and_goes_on(
    how, tmp_path, monkeypatch, caplog
):
    def flock(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    if how == "error":
        monkeypatch.setattr(locks.fcntl, "flock", flock)
    else:
        monkeypatch.setattr(locks, "fcntl", None)
    with workdir.locked(str(tmp_path), "", CONFIG):
        assert f"{tmp_path} cannot be locked" in caplog.text


# Files.


def test_files_are_whole_or_absent(tmp_path):
    path = tmp_path / "results.json"
    workdir.write_json(path, {"auroc": 0.5, "lost": float("nan")})
    with pytest.raises(TypeError):
        workdir.write_json(path, {"auroc": object()})
    with pytest.raises(KeyboardInterrupt), writing.atomic(path) as file:
        file.write(b"half")
        (half,) = tmp_path.glob(f".results.json.*{writing.PARTIAL}")
        assert str(os.getpid()) in half.name
        raise KeyboardInterrupt
    assert workdir.read_json(path) == {"auroc": 0.5, "lost": None}
    assert list(tmp_path.iterdir()) == [path]


def test_files_have_the_permissions_that_their_user_wants(tmp_path):
    before = os.umask(0o077)
    try:
        workdir.write_json(tmp_path / "x.json", {})
    finally:
        os.umask(before)
    assert (tmp_path / "x.json").stat().st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "scores.npz"
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=f"^{path} cannot be written: No space left"):
        workdir.write_arrays(path, score=np.zeros(3))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def models_of_numbers(monkeypatch):
    """Models that are an array alone."""
    save = lambda model, path: checkpoints.write(path, [model], {})  # noqa: E731
    monkeypatch.setattr(models, "save", save)


def test_a_model_is_saved_whatever_stands_there(models_of_numbers, tmp_path, caplog):
    path = tmp_path / "model"
    workdir.save_model(path, np.arange(3))
    inode = path.stat().st_ino
    workdir.save_model(path, np.arange(3))  # by a process that was killed then
    assert path.stat().st_ino == inode and not caplog.records
    workdir.save_model(path, np.arange(4))
    (aside,) = tmp_path.glob("unused-model-*")
    assert f"{path} held something else, which is now {aside}" in caplog.text
    assert len(checkpoints.read(path)[0][0]) == 4
    assert len(checkpoints.read(aside)[0][0]) == 3


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_a_model_does_not_replace_what_is_none(kind, models_of_numbers, tmp_path):
    path = tmp_path / "model"
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        (path / "x").mkdir(parents=True)
    else:
        path.symlink_to(tmp_path / "nowhere")
    workdir.save_model(path, np.arange(4))
    assert len(checkpoints.read(path)[0][0]) == 4
    (aside,) = tmp_path.glob("unused-model-*")
    assert os.path.lexists(aside)
    assert {p.name for p in tmp_path.iterdir()} == {"model", aside.name}


def test_what_another_is_writing_in_a_shared_folder_stays(tmp_path):
    half = tmp_path / f".config.json.7-ab{writing.PARTIAL}"
    with workdir.locked(str(tmp_path), "grid", {"seed": 0}, shared=True):
        half.write_text("{")
        with workdir.locked(str(tmp_path), "grid", {"seed": 0}, shared=True):
            assert half.exists()
    with workdir.locked(str(tmp_path), "grid", {"seed": 0}):
        assert not half.exists()  # its process is gone
