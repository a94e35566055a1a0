"""What a command says, and how it ends: flags, signals, other processes, damage."""

import json
import math
import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import jax
import ml_collections
import numpy as np
import pytest

from deepsad_jax import checkpoints, console, networks, training
from experiments import session, stopping

ROOT = pathlib.Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
# Commands, each in a process that has imported the configs before: JSON from the
# standard input, and one line of status, output and errors for each.
MANY = """
import json, os, sys, tempfile
from configs import default, digits
from experiments import session
for arguments in json.load(sys.stdin):
    files = [tempfile.TemporaryFile("w+") for _ in range(2)]
    child = os.fork()
    if not child:
        for descriptor, file in enumerate(files, 1):
            os.dup2(file.fileno(), descriptor)
        sys.argv = ["run", *arguments]
        try:
            session.start(lambda config: print("ran", config.seed))
        except SystemExit as end:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(end.code)
        sys.stdout.flush()
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    texts = [file.seek(0) or file.read() for file in files]
    print(json.dumps([status, *texts]), flush=True)
"""
CONFIGS = {
    "module.py": "import nothing_of_that_name",
    "attribute.py": "def get_config():\n    return (3).name",
    "syntax.py": "def get_config(\n",
    "two_lines.py": "def get_config():\n    raise RuntimeError('one\\ntwo')",
    "field.py": "from configs import default\n"
    "def get_config():\n    default.get_config().trian.epochs = 3",
    "empty.py": "",
}
WRONG = {
    "--config.train.learnin_rate=1": 'no field "learnin_rate"; did you mean "learning_',
    "--config.trian.epochs=1": 'no field "trian"; did you mean "train"?',
    "--config.data.zzz=x": 'the config has no field "zzz"; configs/default.py has',
    "--config.label.y=x": 'the config has no field "label"; configs/default.py has',
    "--config.seed.x=1": 'the config has no field "seed.x"; configs/default.py has',
    "--config.train=3": "--config.train is a section of fields; name one of them",
    "--config.train.learning_rate=fast": "could not convert string to float: 'fast'",
    "--config.train.epochs=1.5": "invalid literal for int() with base 10: '1.5'",
    "--config.hybrid=maybe": "Non-boolean argument to boolean flag: maybe",
    "--config=nope.py": "cannot be loaded: [Errno 2] No such file or directory: 'nope",
    "--config=": "config file cannot be loaded: Path to config file is an empty string",
    "--config=module.py": "cannot be loaded: No module named 'nothing_of_that_name'",
    "--config=attribute.py": "cannot be loaded: 'int' object has no attribute 'name'",
    "--config=syntax.py": "cannot be loaded: '(' was never closed (syntax.py, line 1)",
    "--config=two_lines.py": "the config file cannot be loaded: one two",
    "--config=field.py": 'no field "trian"; did you mean "train"?',
    "--config=empty.py": "the config file must define get_config()",
    "--config=configs/odds.py:iris": "has no table 'iris'; it has arrhythmia",
    "--config=configs/digits.py:3": "the config file takes no argument behind a colon",
    "--config=configs/saved.py:nope.json": "no file 'nope.json'",
    "--confg=configs/mnist.py": "Did you mean: config",
    "configs/mnist.py": "unexpected argument 'configs/mnist.py'",
    "--config.seed=1 --config=configs/digits.py": "before a value for --config",
    "--processes=0": "0 is not a positive integer",
    "--process=3": "--process is 3; of --processes=1 the last is 0",
    "--processes=2": "--coordinator is ''; several processes need the address HOST:P",
    "--processes=2 --coordinator=here": "--coordinator is 'here'; several processes",
    "--resume=maybe": "value should be one of <auto|never>",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Status, output and errors of many commands."""
    folder = tmp_path_factory.mktemp("configs")
    for name, text in CONFIGS.items():
        (folder / name).write_text(text)
    (folder / "configs").symlink_to(ROOT / "configs")
    commands = [*WRONG, "--config.seed=3", "--config=configs/digits.py"]
    done = subprocess.run(
        [sys.executable, "-c", MANY],
        input=json.dumps([command.split() for command in commands]),
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = map(json.loads, done.stdout.splitlines())
    return dict(zip(commands, lines, strict=True))


@pytest.mark.parametrize(("command", "message"), WRONG.items())
def test_wrong_commands_get_one_sentence(command, message, answers):
    status, out, errors = answers[command]
    assert status == 2 and not out
    assert message in errors
    assert errors.startswith("error: ") and errors.count("\n") == 1, errors


def test_right_commands_run(answers):
    assert answers["--config.seed=3"] == [0, "ran 3\n", ""]
    assert answers["--config=configs/digits.py"] == [0, "ran 0\n", ""]


def process(code, *arguments, **options):
    """Python code in a process of its own."""
    options = {"cwd": ROOT, "env": ENVIRONMENT} | options
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def answer(running, timeout=30):
    try:
        out, errors = running.communicate(timeout=timeout)
    finally:
        running.kill()
    return running.returncode, out, errors


def module(name, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", name, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        **options,
    )


def test_help_is_what_is_written():
    done = module("experiments.run", "--help")
    assert done.returncode == 0 and not done.stderr
    assert "--config:" in done.stdout and "--workdir:" in done.stdout
    assert "configs/odds.py:cardio" in done.stdout
    assert "--config.data.normal_class=3 \\\n" in done.stdout


def test_a_session_imports_nothing_heavy():
    heavy = "jax", "flax", "optax", "orbax", "matplotlib", "sklearn", "scipy"
    code = f"""
    import sys
    from experiments import session
    assert not set({heavy}) & set(sys.modules)
    """
    assert answer(process(code))[0] == 0


# What ends a command.


@pytest.mark.parametrize(
    ("code", "status", "message"),
    [
        ("raise ValueError('two\\nlines')", 2, "error: two lines\n"),
        ("open('/nowhere/file')", 2, "error: [Errno 2] No such file or directory: '/"),
        ("raise training.DivergenceError('diverged')", 2, "error: diverged\n"),
        ("raise MemoryError", 2, "error: the memory is full; try smaller batches"),
        (
            "raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: x')",
            2,
            "error: the m",
        ),
        ("raise RuntimeError(\"Unable to initialize backend 'cuda'\")", 2, "error: Un"),
        ("raise TypeError('a mistake')", 1, "Traceback"),
        ("warnings.warn('two\\nlines')", 0, "warning: two lines\n"),
        ("logging.getLogger('a').warning('one %s', 2)", 0, "warning: one 2\n"),
    ],
)
def test_an_error_is_one_sentence(code, status, message):
    program = f"""
    import logging, warnings
    from experiments import session
    def program(config):
        import jax
        from deepsad_jax import training
        {code}
    session.start(program)
    """
    found, out, errors = answer(process(program))
    assert found == status and errors.startswith(message), errors
    assert not out and (errors.count("\n") == 1 or "Traceback" in message)


TRAINS = """
    import pathlib, sys, time
    from experiments import progress, session, stopping
    class Keeper:
        is_training, stops = True, False
        def stop(self):
            self.stops = True
        def newest(self):
            return pathlib.Path("run/checkpoints/train/7")
    def program(config):
        from deepsad_jax import checkpoints
        keeper = Keeper()
        stopping.STOP.kept = [keeper]
        stopping.STOP.target = pathlib.Path("run")
        print("ready", flush=True)
        while not keeper.stops or "never" in sys.argv[1]:
            time.sleep(0.01)
        raise checkpoints.Interrupted("stopped after epoch 7 of train, which is saved")
    session.start(program)
    """
WAITS = """
    import hashlib
    from experiments import session
    def program(config):
        print("ready", flush=True)
        # A minute outside of Python, as inside of a compilation.
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
    session.start(program)
    """
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_what_has_nothing_to_save_at_once(number):
    running = process(WAITS)
    assert running.stdout.readline() == "ready\n"
    began = time.monotonic()
    running.send_signal(number)
    status, _, errors = answer(running)
    assert time.monotonic() - began < 5 and status == 128 + number
    assert errors == "interrupted: nothing was saved; begin again by the same command\n"


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_lets_training_save(number):
    running = process(TRAINS, "--workdir=run")
    assert running.stdout.readline() == "ready\n"
    running.send_signal(number)
    status, _, errors = answer(running)
    assert status == 128 + number
    assert errors == "interrupted: stopped after epoch 7 of train, which is saved\n"


def test_a_second_signal_ends_it_at_once_and_says_what_is_saved():
    running = process(TRAINS, "--workdir=never")
    assert running.stdout.readline() == "ready\n"
    running.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert running.poll() is None
    running.send_signal(signal.SIGINT)
    status, _, errors = answer(running)
    assert status == 130
    assert errors == (
        "interrupted: saved is run/checkpoints/train/7; go on by the same command with "
        "--workdir=run\n"
    )


def test_signals_that_are_ignored_stay_so():
    ignore = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)  # noqa: E731
    running = process(TRAINS, "--workdir=never", preexec_fn=ignore)
    assert running.stdout.readline() == "ready\n"
    for _ in range(2):
        running.send_signal(signal.SIGINT)
        time.sleep(0.2)
    assert running.poll() is None
    running.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    running.send_signal(signal.SIGTERM)
    assert answer(running)[0] == 143


# Modules that come early, when the session is there, and with the config.
@pytest.mark.parametrize("name", ["ml_collections", "tqdm", "optax"])
def test_a_signal_during_imports_gets_one_sentence(name, tmp_path):
    text = "import time\nprint('ready', flush=True)\ntime.sleep(60)"
    (tmp_path / f"{name}.py").write_text(text)
    running = subprocess.Popen(
        [sys.executable, "-m", "experiments.run"],
        cwd=ROOT,
        env={**ENVIRONMENT, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout.readline() == "ready\n"
    running.send_signal(signal.SIGINT)
    status, _, errors = answer(running)
    assert status == 130
    assert errors == "interrupted: nothing was saved; begin again by the same command\n"


def test_what_is_saved_is_said_of_every_moment(tmp_path):
    class Keeper:
        newest = staticmethod(lambda: None)

    stop = stopping.Stop()
    assert stop._saved() == "nothing was saved; begin again by the same command"
    stop.target, stop.kept = tmp_path, [Keeper()]
    how = f"go on by the same command with --workdir={tmp_path}"
    assert stop._saved() == f"no checkpoint is saved yet; {how}"
    (tmp_path / "results.json").touch()
    assert stop._saved() == f"but {tmp_path} is finished"


# Processes that train together.

TOGETHER = """
    import sys
    from experiments import progress, session
    def program(config):
        import jax
        import jax.numpy as jnp
        add = jax.pmap(lambda x: jax.lax.psum(x, "i"), "i")
        add(jnp.ones(1)).block_until_ready()
        print("ready", flush=True)
        while True:
            add(jnp.ones(1)).block_until_ready()
    session.start(program)
    """


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_processes_end_with_each_other(number):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = ("--processes=2", f"--coordinator=localhost:{port}")
    first, second = (process(TOGETHER, *shared, f"--process={i}") for i in range(2))
    for running in (first, second):
        lines = iter(running.stdout.readline, "")
        assert any(line == "ready\n" for line in lines), running.stderr.read()
    first.send_signal(number)
    status, _, errors = answer(first)
    if number == signal.SIGTERM:
        assert (status, errors) == (143, f"interrupted: {stopping.ALONE}\n")
    else:
        assert (status, errors) == (-signal.SIGKILL, "")
    status, _, errors = answer(second, timeout=60)
    assert status == 2 and errors.endswith(f"; {stopping.ALONE}\n"), errors
    assert errors.startswith("error: ") and errors.count("\n") == 1, errors


def test_no_scheduler_is_said():
    status, _, errors = answer(process(TOGETHER, "--coordinator=auto"))
    assert status == 2 and errors.count("\n") == 1, errors
    assert errors.startswith("error: --coordinator is auto, but no scheduler that JAX")


# Checkpoints, JAX and bars.


@pytest.fixture
def config():
    checkpoint = ml_collections.ConfigDict({"epochs": 1, "seconds": 0.0, "keep": 2})
    return ml_collections.ConfigDict({"checkpoint": checkpoint})


def test_keepers_say_how_to_go_on(config, tmp_path):
    key, state = jax.random.key(0), {"w": np.ones(3)}
    history = {"loss": np.ones(5, np.float32)}
    with pytest.raises(checkpoints.Interrupted) as stopped:
        with session.keepers([config], [tmp_path], tmp_path) as (keeper,):
            assert stopping.STOP.kept == [keeper]
            keeper.restore("train", state, key, 5)
            keeper.stop()
            keeper.offer("train", 2, 1.0, state, history, key, last=False)
    assert str(stopped.value) == (
        "stopped after epoch 2 of train, which is saved; go on by the same command "
        f"with --workdir={tmp_path}"
    )
    with pytest.raises(training.TrainingError) as stopped:
        with session.keepers([config], [tmp_path], tmp_path) as (keeper,):
            assert keeper.restore("train", state, key, 5)[0] == 2
            raise training.TrainingError("diverged")
    newest = tmp_path / "checkpoints" / "train" / "2"
    assert str(stopped.value) == f"diverged; the last good checkpoint is {newest}"


@pytest.mark.parametrize("name", networks.PAPER)
@pytest.mark.parametrize("cores", [1, 4])
def test_memory_is_kept_as_the_largest_activation_needs_it(name, cores):
    pair, threshold = networks.PAPER[name], 2**14 if cores > 1 else 2**13
    x = jax.ShapeDtypeStruct((1, *pair.input_shape), np.float32)

    def activations(x):
        kept = lambda module, method: method == "__call__"  # noqa: E731
        variables = pair.encoder.init(jax.random.key(0), x, False)
        return pair.encoder.apply(variables, x, False, capture_intermediates=kept)[1]

    found = jax.tree.leaves(jax.eval_shape(activations, x))
    largest = max(math.prod(leaf.shape) for leaf in found)
    config = ml_collections.ConfigDict({"network": name, "data": {"name": "my.csv"}})
    assert session._is_large(config, cores) == (largest >= threshold)


@pytest.mark.parametrize(
    ("fields", "is_large"),
    [
        ({"network": "", "data": {"name": "cifar10"}}, True),
        ({"network": "", "data": {"name": "mnist"}}, False),
        ({"network": "", "data": {"name": "my.npz"}}, False),
        ({"network": "nope"}, False),
        ({}, False),
    ],
)
def test_memory_is_kept_by_the_name_of_the_data(fields, is_large):
    assert session._is_large(ml_collections.ConfigDict(fields), 4) == is_large


def test_imports_in_the_background_harm_nobody(monkeypatch):
    names = []

    def fail(name):
        names.append(name)
        raise ImportError(name)

    monkeypatch.setattr(session.importlib, "import_module", fail)
    session.warm_imports(draw=False)
    (thread,) = [t for t in threading.enumerate() if t.name == "imports"] or [None]
    if thread is not None:
        thread.join(10)
    assert names == ["orbax.checkpoint"]


def test_an_early_end_waits_for_imports_in_the_background():
    code = """
    import sys
    from experiments import session
    session.warm_imports()
    sys.exit(3)
    """
    assert answer(process(code)) == (3, "", "")


def test_damaged_programs_are_compiled_again(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    for name in ("jit_f-12-cache", "jit_f-34-cache", "jit_fg-12-cache", "mine"):
        (tmp_path / name).touch()
    text = "Error reading persistent compilation cache entry for 'jit_f': error: -5"
    console._show_warning(UserWarning(text), UserWarning, "", 0)
    assert {path.name for path in tmp_path.iterdir()} == {"jit_fg-12-cache", "mine"}
    assert capfd.readouterr().err.startswith("warning: damaged programs jit_f are")


def test_programs_are_kept_where_they_can_be_written(tmp_path, monkeypatch, caplog):
    before = jax.config.jax_compilation_cache_dir
    try:
        for writable in (True, False):
            monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "new"))
            monkeypatch.setattr(os, "access", lambda *_, w=writable: w)
            console.keep_programs()
            kept = str(tmp_path / "new") if writable else None
            assert jax.config.jax_compilation_cache_dir == kept
        assert f"{tmp_path}/new cannot be written" in caplog.text
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_metrics_are_written_as_they_come(tmp_path):
    path = tmp_path / "metrics.jsonl"
    bars = session.OneRun(path, {"pretrain": 0, "train": 3, "fit": 2})
    history = {"loss": np.float32([1, 2, np.nan]), "d": np.float32([4, 5, 6])}
    bars("train", 2, history)  # as after a restart
    assert console.is_shown()
    bars("train", 3, history)
    bars("fit", 1, {})
    bars("fit", 2, {})
    bars.close()
    assert not console.is_shown()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"stage": "train", "epoch": 1, "loss": 1.0, "d": 4.0},
        {"stage": "train", "epoch": 2, "loss": 2.0, "d": 5.0},
        {"stage": "train", "epoch": 3, "loss": None, "d": 6.0},
    ]


def test_one_bar_counts_all_runs(capsys):
    bars = session.ManyRuns(14.0, 4)
    bars.starts(2, {"train": 3}, 6.0)
    for done, expected in ((1, 2.0), (3, 6.0)):
        bars("train", done, {"loss": np.zeros((2, 2, 3))})
        assert bars._bar.n == pytest.approx(expected)
    for _ in range(2):  # in turn
        bars.starts(1, {"train": 3, "fit": 1}, 4.0)
        bars("train", 3, {"loss": np.zeros(3)})
        bars("fit", 1, {})
    assert bars._bar.n == pytest.approx(14.0)
    bars.close()
    assert "100%" in capsys.readouterr().err
