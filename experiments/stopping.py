"""How a command ends before its time: by signals, or with another process."""

import ctypes
import os
import signal
import sys
import tempfile
import threading

from experiments import progress, workdir

ALONE = (
    "several processes save no checkpoints: start all of them again, from the first "
    "epoch on"
)


def say(sentence: str) -> None:
    """Prints a line, from any thread: no lock can keep it."""
    end_of_bar = "\n" if progress.is_shown() else ""
    os.write(sys.stderr.fileno(), f"{end_of_bar}{sentence}\n".encode())


class Stop:
    """Hears signals in a thread of its own, and ends the process.

    Python gives signals to the main thread, which may be inside a compilation for
    minutes. What is being trained saves and stops at the end of its epoch; otherwise,
    and when told again, the process ends at once, which is as safe as killing it.

    Attributes:
        kept: keepers of what is or was trained.
        target: the working directory, once something is trained.
        told: the signal that it has heard.
        many: whether several processes train together.
    """

    def __init__(self):
        self.kept, self.target, self.told, self.many = [], None, 0, False
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
        say(sentence)
        os._exit(status)

    def _hear(self, reader: int, numbers: list[int]) -> None:
        while True:
            if (number := os.read(reader, 1)[0]) not in numbers:
                continue
            training = [keeper for keeper in self.kept if keeper.is_training]
            if not training or self.told:
                self.end(f"interrupted: {self._saved()}", 128 + number)
            self.told = number
            for keeper in training:
                keeper.stop()
            if sys.stderr.isatty():
                say("saving after this epoch; again to stop at once")

    def _saved(self) -> str:
        if self.many:
            return ALONE
        if self.target is None:
            return "nothing was saved; begin again by the same command"
        if (self.target / workdir.RESULTS).exists():
            return f"but {self.target} is finished"
        newest = [n for keeper in self.kept if (n := keeper.newest())]
        saved = f"saved is {newest[-1]}" if newest else "no checkpoint is saved yet"
        return f"{saved}; go on by the same command with --workdir={self.target}"


STOP = Stop()


def tame_aborts() -> None:
    """Has a process that loses another end in one sentence, instead of a crash dump.

    XLA's thread that watches the others writes a dump and aborts. So what is written
    outside of Python goes to a file, which is shown if the reason is another.
    """
    log = tempfile.TemporaryFile()  # open as long as the process
    shown = os.dup(2)
    os.dup2(log.fileno(), 2)
    sys.stderr = os.fdopen(shown, "w", buffering=1)

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def aborted(number):
        text = os.pread(log.fileno(), 2**16, 0)
        if b"JAX distributed service" in text:
            STOP.end(f"error: another process is missing; {ALONE}", 2)
        os.write(shown, text)
        os._exit(128 + number)

    library = ctypes.CDLL(None)
    library.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    library.signal(signal.SIGABRT, ctypes.cast(aborted, ctypes.c_void_p))
    STOP.aborted = log, aborted  # or they would be freed
