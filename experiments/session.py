"""A command from its flags to its exit: JAX, signals, checkpoints, and what it says.

Nothing heavy is imported before it is needed.
"""

import atexit
import contextlib
import importlib
import itertools
import math
import os
import pathlib
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_collections
from absl import flags, logging
from ml_collections import config_flags

from deepsad_jax import console
from experiments import progress, stopping

DEFAULT_CONFIG = "configs/digits.py"
# Without a default, which would be loaded on import, where errors cannot be caught.
CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    f"Config file ({DEFAULT_CONFIG} by default), with an argument behind a colon where "
    "it takes one (configs/odds.py:cardio). Every field can be overridden, as in "
    "--config.train.learning_rate=1e-3; configs/default.py explains all fields.",
)
WORKDIR = flags.DEFINE_string(
    "workdir",
    "",
    "Folder for the results; a new one under runs/ by default. What is finished in it "
    "is never overwritten.",
)
RESUME = flags.DEFINE_enum(
    "resume",
    "auto",
    ["auto", "never"],
    "Whether to go on with the unfinished run of the same config in the working "
    "directory, or to refuse it.",
)
COORDINATOR = flags.DEFINE_string(
    "coordinator",
    "",
    "Address HOST:PORT of the first of several processes that share each batch; auto "
    "where Slurm, Open MPI or Kubernetes says it.",
)
PROCESSES = flags.DEFINE_integer(
    "processes",
    1,
    "How many processes there are: with --coordinator they share each batch of a run, "
    "without it the runs of a grid.",
    1,
)
PROCESS = flags.DEFINE_integer("process", 0, "Which of them this is, from 0.", 0)

# One name for what a command needs.
OneRun, ManyRuns = progress.OneRun, console.ManyRuns
metric_lines = progress.metric_lines
# After this many seconds without a sign of life, a process counts as dead.
_SILENCE = 30


def start(program: Callable, *, every_core: bool = False, grid: bool = False) -> None:
    """Parses the flags, calls `program(config)` and exits.

    Wrong flags, ValueError, OSError, a lack of memory and training that cannot go on
    end in one sentence on the standard error and the exit status 2; with
    `--verbosity=1` after a traceback. SIGINT, SIGTERM and SIGHUP end in one that says
    what is saved, and the exit status 130, 143 or 129.

    Args:
        program: the command.
        every_core: whether each core of a CPU is a device.
        grid: whether processes without a coordinator share the runs of a grid.
    """
    console.begin(stopping.STOP)
    console.help_if_asked()
    try:
        config = _parse(sys.argv, grid)
    except Exception as error:
        _fail(error, _of_flags(error))
    try:
        prepare_jax(config, every_core=every_core)
        program(config)
    except Exception as error:
        if (sentence := _of_program(error)) is None:
            raise  # a mistake of ours
        _fail(error, sentence)


def _parse(argv: list[str], grid: bool) -> ml_collections.ConfigDict:
    if not any(arg.lstrip("-").split("=")[0] == "config" for arg in argv[1:]):
        flags.FLAGS.set_default("config", DEFAULT_CONFIG)
    for arg, following in itertools.pairwise([*argv, ""]):
        name, _, file = arg.partition("=")
        if name.lstrip("-") == "config":  # what stands beside it can be imported
            file = (file or following).partition(":")[0]
            sys.path.append(os.path.dirname(os.path.abspath(file)))
    remaining = flags.FLAGS(argv)
    config = CONFIG.value
    config.keys()  # some errors wait until the config is looked at
    if flags.FLAGS["verbosity"].present:
        logging.use_absl_handler()
    else:
        console.use_plain_lines()
    if len(remaining) > 1:
        raise ValueError(f"unexpected argument {remaining[1]!r}")
    if PROCESS.value >= PROCESSES.value:
        raise ValueError(
            f"--process is {PROCESS.value}; of --processes={PROCESSES.value} the last "
            f"is {PROCESSES.value - 1}"
        )
    address = COORDINATOR.value
    if grid and address:
        raise ValueError(
            "--coordinator is for processes that share each batch; those that share "
            "the runs of a grid need --workdir and --processes alone"
        )
    if grid and PROCESSES.value > 1 and not WORKDIR.value:
        raise ValueError("--processes needs --workdir, the folder that they share")
    if (address or (PROCESSES.value > 1 and not grid)) and not re.fullmatch(
        r".+:\d+|auto", address
    ):
        raise ValueError(
            f"--coordinator is {address!r}; several processes need the address "
            "HOST:PORT of the first, or auto"
        )
    return config


def prepare_jax(config: ml_collections.ConfigDict, *, every_core: bool = False) -> None:
    """Joins the other processes, if any, and keeps compiled programs between runs."""
    import jax

    from deepsad_jax import cpu_settings, parallel

    cores = parallel.cores()
    cpu_settings.keep_freed_memory(_is_large(config, cores))
    # A CPU is one device unless told otherwise; its cores can share batches, too.
    told = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    devices = cores if every_core else config.get("devices")
    if not told and isinstance(devices, int):
        if (devices := min(devices, cores)) > max(1, jax.config.jax_num_cpu_devices):
            jax.config.update("jax_num_cpu_devices", devices)
    console.keep_programs()
    if COORDINATOR.value:
        _join()


def _join() -> None:
    """Joins the other processes."""
    import jax

    stopping.STOP.many = True
    if logging.get_verbosity() < logging.DEBUG:
        stopping.tame_aborts()
    # Its notice of a preemption would take SIGTERM from us.
    jax.config.update("jax_enable_preemption_service", False)
    is_told = COORDINATOR.value != "auto"
    where = f"at {COORDINATOR.value} " if is_told else ""
    waits = f"waiting {where}for the other processes"
    timer = threading.Timer(5.0, console.say, [waits])
    timer.daemon = True
    timer.start()
    told = (COORDINATOR.value, PROCESSES.value, PROCESS.value) if is_told else ()
    try:
        jax.distributed.initialize(*told, heartbeat_timeout_seconds=_SILENCE)
    except ValueError as error:
        if is_told:
            raise
        raise ValueError(
            "--coordinator is auto, but no scheduler that JAX knows tells of other "
            "processes; give the address HOST:PORT of the first, with --processes and "
            "--process"
        ) from error
    finally:
        timer.cancel()


def _is_large(config: ml_collections.ConfigDict, cores: int) -> bool:
    """Whether memory is kept as large networks need it, see `cpu_settings`."""
    from deepsad_jax import networks

    data = config.get("data", {}).get("name", "")
    pair = networks.PAPER.get(config.get("network") or f"{data}_LeNet")
    if pair is None or len(pair.input_shape) == 1:
        return False
    activation = (
        math.prod(pair.input_shape[:-1]) * getattr(pair.encoder, "features", (1,))[0]
    )
    return activation >= (2**14 if cores > 1 else 2**13)


def warm_imports(draw: bool = True) -> None:
    """Imports in the background what the end of a run needs, while XLA compiles.

    Only once everything else has been imported: threads whose imports need each other
    would find modules half imported. What cannot be imported fails where it is used.

    Args:
        draw: whether there will be pictures and a page.
    """
    names = ["orbax.checkpoint"]
    if draw:
        names += ["matplotlib.figure", "matplotlib.backends.backend_agg", "jinja2"]
    is_over = threading.Event()

    def work():
        for name in names:
            with contextlib.suppress(Exception):
                if not is_over.is_set():
                    importlib.import_module(name)

    thread = threading.Thread(target=work, name="imports", daemon=True)
    thread.start()
    # A thread that imports while the interpreter ends would crash it.
    atexit.register(lambda: (is_over.set(), thread.join()))


@contextlib.contextmanager
def keepers(
    configs: Sequence[ml_collections.ConfigDict],
    folders: Sequence[pathlib.Path],
    target: pathlib.Path,
) -> Iterator[list[Any]]:
    """The keepers of runs, as `config.checkpoint` says; signals have one save and stop.

    Of several processes that train together, the first has them.

    Args:
        configs: of the runs.
        folders: of the same runs.
        target: the working directory of the command.

    Raises:
        checkpoints.Interrupted: after a signal while one is training.
        OSError: if a checkpoint cannot be written.
        training.TrainingError: as inside, with the last good checkpoint.
    """
    import jax

    from deepsad_jax import checkpoints, training

    kept = [
        checkpoints.Keeper(folder / "checkpoints", **config.checkpoint)
        for config, folder in zip(configs, folders, strict=True)
    ]
    stopping.STOP.kept, stopping.STOP.target = kept, target
    try:
        with contextlib.ExitStack() as stack:
            for keeper in kept:
                stack.callback(keeper.close)
            several = jax.process_count() > 1
            yield [*map(checkpoints.Shared, kept)] if several else kept
    except checkpoints.Interrupted as error:
        raise checkpoints.Interrupted(
            f"{error}; go on by the same command with --workdir={target}"
        ) from error
    except training.TrainingError as error:
        for keeper in kept:
            if keeper.is_training and (newest := keeper.newest()):
                message = f"{error}; the last good checkpoint is {newest}"
                raise training.TrainingError(message) from error
        raise


def _fail(error: Exception, sentence: str) -> None:
    """Ends the process with a sentence."""
    is_interrupted = sentence.startswith("interrupted")
    status = 128 + (stopping.STOP.told or signal.SIGTERM) if is_interrupted else 2
    trace = flags.FLAGS.is_parsed() and logging.get_verbosity() >= logging.DEBUG
    if stopping.STOP.many:  # where JAX would first wait for the other processes
        if trace:
            traceback.print_exception(error)
        stopping.STOP.end(" ".join(sentence.split()), status)
    console.fail(error, sentence, status, trace=trace)


def _of_program(error: Exception) -> str | None:
    """A sentence for what has stopped a command; None for what should not happen."""
    from deepsad_jax import checkpoints

    text = str(error)
    if isinstance(error, checkpoints.Interrupted):
        return f"interrupted: {text}"
    if stopping.STOP.many and re.match("(?!RESOURCE_EXHAUSTED)[A-Z_]+: ", text):
        return f"error: the processes cannot go on ({text[:150]}); {stopping.ALONE}"
    return console.sentence(error)


def _of_flags(error: Exception) -> str:
    """A sentence for wrong flags and config files."""
    inner = error.args[0] if len(error.args) == 1 else error
    message = str(inner)
    if "Traceback" in message:  # ml_collections puts that of a config file in
        message = re.split(r"\n\w*Error: ", message)[-1]
    message = re.sub(r"\('([^']*)', '([^']*)'\)$", r"\1: \2", message)
    if match := re.search(r'Did you mean "(\w+)" instead of "(\w+)"', message):
        message = f'the config has no field "{match[2]}"; did you mean "{match[1]}"?'
    elif match := re.search(r"Attempting to lookup: (\S+)", message):
        message = (
            f'the config has no field "{match[1]}"; configs/default.py has them all'
        )
    elif isinstance(error, KeyError) or isinstance(inner, KeyError):
        name = message.strip("'\"")
        message = f'the config has no field "{name}"; configs/default.py has them all'
    elif "no attribute 'get_config'" in message:
        message = "the config file must define get_config()"
    elif "get_config() takes 0 positional arguments" in message:
        message = "the config file takes no argument behind a colon"
    elif re.search(r"Failed to parse '.*' as a ConfigDict", message):
        message = f"{message.split('=')[0]} is a section of fields; name one of them"
    elif not isinstance(error, (flags.Error, ValueError)) or "load" in message:
        message = re.sub(r"(?s)^.*failure to load:\s*", "", message)
        if "Failed loading" in message:
            message = message.splitlines()[-1]
        message = f"the config file cannot be loaded: {message}"
    return f"error: {message}"
