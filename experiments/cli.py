"""The command line: a config with overrides, and one sentence for what is wrong."""

import ctypes
import logging as python_logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
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
    "Address HOST:PORT of the first of several processes that share each batch.",
)
PROCESSES = flags.DEFINE_integer("processes", 1, "How many processes there are.", 1)
PROCESS = flags.DEFINE_integer("process", 0, "Which of them this is, from 0.", 0)


def start(program: Callable) -> None:
    """Parses the flags, calls `program(config)` and exits.

    Wrong flags, ValueError, OSError and training that cannot go on end in one sentence
    on the standard error and the exit status 2; with `--verbosity=1` after a traceback.
    """

    # JAX tells of every accelerator that is not there.
    python_logging.getLogger("jax").setLevel(python_logging.WARNING)

    def parse(argv):
        if not any(arg.lstrip("-").split("=")[0] == "config" for arg in argv[1:]):
            argv = [argv[0], f"--config={DEFAULT_CONFIG}", *argv[1:]]
        try:
            remaining = flags.FLAGS(argv)
            # Some errors wait until the config is looked at.
            CONFIG.value  # noqa: B018
        except Exception as error:
            _fail(error)
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
            _quieten_orbax()
        if len(remaining) > 1:
            _fail(ValueError(f"unexpected argument {remaining[1]!r}"))
        return remaining

    def main(argv):
        del argv
        from deepsad_jax import checkpoints, training

        try:
            prepare_jax(CONFIG.value)
            program(CONFIG.value)
        except (ValueError, OSError, training.TrainingError) as error:
            _fail(error)
        except checkpoints.Interrupted as interruption:
            print(f"interrupted: {interruption}", file=sys.stderr)
            sys.exit(128 + signal.SIGTERM)
        except KeyboardInterrupt:
            sys.exit("interrupted")

    app.run(main, flags_parser=parse)


def keep_freed_memory(networks: Iterable[str]) -> None:
    """Lets the C library keep what is freed, instead of returning it to the system.

    XLA frees and allocates its large buffers at every step; with glibc's defaults, page
    faults then take a fifth of the time of a convolutional network's step on a CPU. The
    arenas of other threads are too small for the buffers of a large network, so that it
    gets one arena; a small one on several threads would queue for it. Where the one
    ends and the other begins was measured. Only what comes before JAX's first
    computation counts.

    Args:
        networks: names of the networks that this process will train.
    """
    from deepsad_jax import networks as registered
    from deepsad_jax import parallel

    large = 2**14 if parallel.cores() > 1 else 2**13
    try:
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        if any(registered.largest_activation(name) >= large for name in networks):
            library.mallopt(_M_ARENA_MAX, 1)
    except (AttributeError, OSError, TypeError):
        return  # another C library


def prepare_jax(config: ml_collections.ConfigDict) -> None:
    """Joins the other processes, if any, and keeps compiled programs between runs."""
    import jax

    from deepsad_jax import parallel

    keep_freed_memory([config.network] if config.network else [])
    # A CPU is one device unless told otherwise; its cores can share batches, too.
    told = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not told and config.devices > max(1, jax.config.jax_num_cpu_devices):
        jax.config.update("jax_num_cpu_devices", min(config.devices, parallel.cores()))
    if COORDINATOR.value:
        jax.distributed.initialize(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    # Most programs are small; JAX by itself keeps only those that took a second.
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"),
        "deepsad_jax",
        "xla",
    )
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


def _quieten_orbax() -> None:
    """Leaves it to one sentence to say that a disk is full or a checkpoint damaged.

    Orbax logs tracebacks of its own, and TensorStore prints one for each array that
    fails after another one has.
    """
    orbax = f"{os.sep}orbax{os.sep}"
    logging.get_absl_logger().addFilter(lambda record: orbax not in record.pathname)
    show = sys.unraisablehook

    def show_others(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    sys.unraisablehook = show_others


def _fail(error: Exception) -> None:
    if flags.FLAGS.is_parsed() and logging.get_verbosity() >= logging.DEBUG:
        traceback.print_exception(error)
    message = str(error.args[0]) if len(error.args) == 1 else str(error)
    if "Traceback" in message:  # ml_collections puts that of a config file in
        message = re.split(r"\n\w*Error: ", message)[-1]
    if match := re.search(r'Did you mean "(\w+)" instead of "(\w+)"', message):
        message = f'the config has no field "{match[2]}"; did you mean "{match[1]}"?'
    elif "no attribute 'get_config'" in message:
        message = "the config file must define get_config()"
    elif isinstance(error, (AttributeError, KeyError)):
        message = f"the config has no field {message}; configs/default.py has them all"
    elif "Failed loading config file" in message:
        message = f"the config file cannot be loaded: {message.splitlines()[-1]}"
    message = " ".join(message.split())
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
