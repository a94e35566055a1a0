"""What every command says and does on the terminal, from its first signal to its exit.

Messages, warnings and bars go to the standard error; whatever ends a command early ends
it in one sentence and an exit status of its own.
"""

import atexit
import contextlib
import gc
import itertools
import logging as python_logging
import os
import pathlib
import re
import signal
import sys
import threading
import traceback
import warnings
from typing import Any

import tqdm
from absl import flags, logging

from deepsad_jax import writing

HELP = {"--help", "-help", "-h", "--helpshort", "--helpfull"}
NOTHING_SAVED = "nothing was saved; begin again by the same command"
_newest: tqdm.tqdm | None = None
_OF_RUNS = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"


def say(sentence: str) -> None:
    """Prints a line, from any thread: no lock can keep it."""
    end_of_bar = "\n" if is_shown() else ""
    os.write(sys.stderr.fileno(), f"{end_of_bar}{sentence}\n".encode())


def bar(total: float | None, label: str, unit: str, **options: Any) -> tqdm.tqdm:
    """A progress bar with an estimate of the time left.

    Args:
        total: how many steps there are, if that is known.
        label: what it shows.
        unit: of the steps.
        options: others of tqdm.
    """
    global _newest
    _newest = tqdm.tqdm(
        total=total,
        desc=f"{label:9s}",
        unit=unit,
        dynamic_ncols=True,
        # In a log file, a line now and then is enough.
        mininterval=0.2 if sys.stderr.isatty() else 10.0,
        **options,
    )
    return _newest


def is_shown() -> bool:
    """Whether the cursor stands behind a bar."""
    return _newest is not None and not _newest.disable


class _Observer:
    """What a fit tells of its epochs, as bars."""

    _bar: Any = None

    def __enter__(self):
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()


class Stages(_Observer):
    """Shows a bar for each stage of a fit, as its observer.

    Args:
        stages: the stages in their order, with their epochs or steps.

    Attributes:
        shown: how many epochs of the stage were told before; a bar that is disabled
            does not count them.
    """

    def __init__(self, stages: dict[str, int]):
        self._waiting = dict(stages)
        self._next_stage()

    def __call__(self, stage: str, done: int, history: dict) -> None:
        """Takes what a fit tells its observer; steps have no history."""
        if "loss" in history:
            loss = history["loss"][done - 1]
            self._bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
        self._bar.update(done - self.shown)
        self.shown = done
        if done == self._bar.total:
            self._next_stage()

    def _next_stage(self) -> None:
        self.close()
        self._bar, self.shown = None, 0
        while self._waiting and self._bar is None:
            stage = next(iter(self._waiting))
            epochs = self._waiting.pop(stage)
            if epochs:  # shown before it has compiled
                self._bar = bar(epochs, stage, "step" if stage == "fit" else "epoch")


class ManyRuns(_Observer):
    """One bar over many runs, all at once or in turn.

    Args:
        total: the sum of what the runs weigh, such as their steps or seconds.
        runs: how many there are.
        label: what they are.
    """

    def __init__(self, total: float, runs: int, label: str = "runs"):
        self._bar = bar(total, label, "", bar_format=_OF_RUNS)
        self._done, self._runs, self._weight, self._place = 0, runs, 0.0, 0.0
        self.starts(0, {}, 0.0)

    def __call__(self, stage: str, done: int, history: dict) -> None:
        """Takes what a fit, of one or many runs, tells its observer."""
        del history
        place = (self._before[stage] + done) / self._steps
        self._move(self._weight * (place - self._place))
        self._place = place

    def starts(self, runs: int, stages: dict[str, int], weight: float) -> "ManyRuns":
        """Says of how many runs, with which stages, the next calls speak; itself.

        Those of the call before are finished.
        """
        self._move(self._weight * (1 - self._place))
        self._place = 0.0
        before = [0, *itertools.accumulate(stages.values())]
        self._before, self._steps = dict(zip(stages, before, strict=False)), before[-1]
        self._weight = weight
        self._bar.set_postfix_str(f"{self._done} of {self._runs} runs")
        self._done += runs
        return self

    def skip(self, runs: int, weight: float) -> None:
        """Runs that others have finished."""
        self._done += runs
        self._move(weight)

    def _move(self, weight: float) -> None:
        self._bar.update(min(weight, self._bar.total - self._bar.n))  # rounding


class Stop:
    """Hears signals in a thread of its own, and ends the process.

    Python gives signals to the main thread, which may be inside a compilation for
    minutes.
    """

    def __init__(self):
        self._once = threading.Lock()

    def listen(self) -> None:
        """Handles the signals that are not ignored, as `nohup` and `&` have it."""
        names = ("SIGINT", "SIGTERM", "SIGHUP")
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        numbers = [n for n in numbers if signal.getsignal(n) is not signal.SIG_IGN]
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, lambda *_: None)
        arguments = (reader, numbers)
        threading.Thread(target=self._hear, args=arguments, daemon=True).start()

    def end(self, sentence: str, status: int) -> None:
        """Says one sentence and ends the process; only the first call counts."""
        self._once.acquire()
        writing.remove_unfinished()
        say(sentence)
        os._exit(status)

    def heard(self, number: int) -> None:
        """Acts on a signal: what is half written is as if it had never been begun."""
        self.end(f"interrupted: {NOTHING_SAVED}", 128 + number)

    def _hear(self, reader: int, numbers: list[int]) -> None:
        while True:
            if (number := os.read(reader, 1)[0]) in numbers:
                self.heard(number)


def begin(stop: Stop) -> None:
    """The first thing that a command does: signals and warnings become sentences."""
    stop.listen()
    # At the end Python would look for cycles in all that JAX has made: half a second.
    atexit.register(gc.freeze)
    # JAX tells of every accelerator that is not there.
    python_logging.getLogger("jax").setLevel(python_logging.WARNING)
    warnings.showwarning = _show_warning


def help_if_asked() -> None:
    """Prints what the main module says of itself, and its flags, and exits with 0, if
    that is among the arguments."""
    if HELP & set(sys.argv[1:]):
        is_full = "--helpfull" in sys.argv
        print((sys.modules["__main__"].__doc__ or "").strip() + "\n\nflags:")
        print(flags.FLAGS.get_help() if is_full else flags.FLAGS.main_module_help())
        sys.exit(0)


def use_plain_lines() -> None:
    """Has what is logged said in lines of their own, from warnings on.

    Orbax logs tracebacks of its own where a disk is full or a checkpoint damaged, and
    TensorStore prints one for each array that fails after another one has; it is left
    to one sentence to say so.
    """
    logging.set_verbosity(logging.WARNING)
    python_logging.root.addHandler(_Lines())
    orbax = f"{os.sep}orbax{os.sep}"
    logging.get_absl_logger().addFilter(lambda record: orbax not in record.pathname)
    show = sys.unraisablehook

    def show_others(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    sys.unraisablehook = show_others


def keep_programs() -> None:
    """Keeps compiled programs between runs, where they can be written."""
    import jax

    cache = _cache()
    with contextlib.suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
    if not os.access(cache, os.W_OK):
        logging.warning("%s cannot be written: programs are compiled anew", cache)
        cache = None
    jax.config.update("jax_compilation_cache_dir", cache and str(cache))
    # Most programs are small; JAX by itself keeps only those that took a second.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


def sentence(error: Exception) -> str | None:
    """What has stopped a command; None for what should not happen."""
    text = str(error)
    # XLA's errors, of several types, begin with a status.
    if isinstance(error, MemoryError) or text.startswith("RESOURCE_EXHAUSTED: "):
        return "error: the memory is full; try smaller batches, or less at once"
    if isinstance(error, (ValueError, OSError)):
        return f"error: {text}"
    from deepsad_jax import training  # which takes a while

    is_known = isinstance(error, training.TrainingError)
    if isinstance(error, RuntimeError):
        is_known |= "Unable to initialize backend" in text
    return f"error: {text}" if is_known else None


def fail(error: Exception, said: str, status: int = 2, *, trace: bool = False) -> None:
    """Ends the process with a sentence, after a traceback if that is wanted."""
    if trace:
        traceback.print_exception(error)
    print(" ".join(said.split()), file=sys.stderr)
    sys.exit(status)


def _cache() -> pathlib.Path:
    if named := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return pathlib.Path(named)
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(caches, "deepsad_jax", "xla")


def _show_warning(message, category, filename, lineno, file=None, line=None):
    """A warning in one line."""
    text = " ".join(str(message).split())
    if match := re.match(r"Error reading persistent .* entry for '(\w+)'", text):
        # Half written by a process that was killed; JAX would never write it again.
        for entry in _cache().glob(f"{match[1]}-*-cache"):
            entry.unlink(missing_ok=True)
        text = f"damaged programs {match[1]} are removed from {_cache()}"
    say(f"warning: {text}")


class _Lines(python_logging.Handler):
    """Says what is logged in a line of its own."""

    def emit(self, record):
        text = " ".join(record.getMessage().split())
        say(f"{record.levelname.lower()}: {text}")
