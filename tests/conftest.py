"""What all tests share: compiled programs on disk, and finished runs.

Programs are kept for the whole session, and for the processes it starts; in memory for
one file of tests.
"""

import contextlib
import ctypes
import fcntl
import gc
import itertools
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import pytest

# Less than half the time of compiling, for slower programs; processes inherit it.
# `full_effort_test` tries with all the effort what depends on it.
_QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
if os.environ.get("DEEPSAD_TEST_EFFORT") != "full":
    if _QUICK not in (flags := os.environ.get("XLA_FLAGS", "")):
        os.environ["XLA_FLAGS"] = f"{flags} {_QUICK}".strip()

# Workers keep all cores busy; threads of linear algebra would wait for each other.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import jax  # noqa: E402, which reads the flags

ROOT = pathlib.Path(__file__).parents[1]
_NAME = "JAX_COMPILATION_CACHE_DIR"
_LEAST = "jax_persistent_cache_min_compile_time_secs"
if _NAME not in os.environ:  # workers share that of their session
    _CACHE = tempfile.TemporaryDirectory()
    os.environ[_NAME] = _CACHE.name
jax.config.update("jax_compilation_cache_dir", os.environ[_NAME])
os.environ[_LEAST.upper()] = "0"  # for the processes that tests start, too
jax.config.update(_LEAST, 0.0)


_MOST = 0.9e9  # bytes
# What takes longest begins first, so that no worker is left alone with it.
_LONGEST = ("resume", "parallel", "full_effort", "checkpoints", "cli", "benchmark")
# Together under a minute on two cores: hardly anything is compiled.
_IN_A_MINUTE = """
    api attributions charts columns decisions delimited evaluation examples frames
    kernels labels losses matlab metrics preprocessing protocol thresholds values
    writing
""".split()


def pytest_collection_modifyitems(items):
    """Marks the quick ones; files in the order in which workers take them, see
    setup.cfg."""
    for item in items:
        if item.path.name.removesuffix("_test.py") in _IN_A_MINUTE:
            item.add_marker("quick")
    places = {f"{name}_test.py": i for i, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(scope="module", autouse=True)
def _a_worker_stays_small():
    """Compiled programs go with the file of tests that needed them."""
    yield
    statm = pathlib.Path("/proc/self/statm")
    if not statm.exists() or int(statm.read_text().split()[1]) * 4096 > _MOST:
        jax.clear_caches()
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # other C libraries
            ctypes.CDLL("libc.so.6").malloc_trim(0)


@pytest.fixture
def compiled(caplog, monkeypatch):
    """`compiled(function, ...)`: names of the programs that JAX compiles for a call.

    What earlier tests have left to the background is waited for, and no turn of the
    programs falls into the test.
    """
    from deepsad_jax import epochs, parallel

    def settle():
        for pool in (epochs._TRACES, epochs._COMPILES):
            pool.submit(int).result()

    def names(function, *arguments, **options):
        settle()
        caplog.clear()
        with jax.log_compiles(), caplog.at_level("WARNING"):
            function(*arguments, **options)
            settle()
        found = (m for m in caplog.messages if m.startswith("Compiling "))
        return [message.split()[1] for message in found]

    monkeypatch.setattr(parallel, "_made", itertools.count(1))
    return names


@pytest.fixture
def without_pictures(monkeypatch):
    """Runs draw nothing and fit no untrained network: those of the finished runs that
    tests share are enough."""
    from experiments import pictures, report

    monkeypatch.setattr(pictures, "of_run", lambda *_: {})
    monkeypatch.setattr(report, "_untrained", lambda made: None)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """`made_once(name, make)`: a folder that one worker makes for all by make(folder).

    If that fails, the next one tries again.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def folder(name, make):
        path = root / f"shared-{name}"
        with open(root / f"shared-{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (path / "done").exists():
                shutil.rmtree(path, ignore_errors=True)
                path.mkdir()
                make(path)
                (path / "done").touch()
        return path

    return folder


@pytest.fixture(scope="session")
def command():
    """Runs a program of experiments in a process of its own, which must succeed."""

    def run(program, *arguments, **environment):
        done = subprocess.run(
            [sys.executable, "-m", f"experiments.{program}", *map(str, arguments)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def finished(made_once, command):
    """A run on the digits, seed 3, two and three epochs: its folder, and its output."""

    def make(folder):
        epochs = ("--config.pretrain.epochs=2", "--config.train.epochs=3")
        workdir = f"--workdir={folder / 'run'}"
        output = command("run", workdir, "--config.seed=3", *epochs)
        (folder / "output.txt").write_text(output)

    folder = made_once("digits", make)
    return folder / "run", (folder / "output.txt").read_text()


@pytest.fixture(scope="session")
def table(made_once):
    """The folder of a run on the breast cancer table, with all its epochs."""
    from configs import breast_cancer
    from experiments import run

    def make(folder):
        run.run(breast_cancer.get_config(), str(folder / "run"))

    return made_once("table", make) / "run"
