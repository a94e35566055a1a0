"""How a command ends before its time: by signals, or with another process."""

import ctypes
import os
import signal
import sys
import tempfile

from deepsad_jax import console
from experiments import workdir

ALONE = (
    "start all of them again by the same commands, to go on from the last checkpoint"
)


class Stop(console.Stop):
    """Lets what is being trained save and stop at the end of its epoch.

    Otherwise, and when told again, the process ends at once, which is as safe as
    killing it.

    Attributes:
        kept: keepers of what is or was trained.
        target: the working directory, once something is trained.
        told: the signal that it has heard.
        many: whether several processes train together.
    """

    def __init__(self):
        super().__init__()
        self.kept, self.target, self.told, self.many = [], None, 0, False

    def heard(self, number: int) -> None:
        training = [keeper for keeper in self.kept if keeper.is_training]
        if not training or self.told:
            self.end(f"interrupted: {self._saved()}", 128 + number)
        self.told = number
        for keeper in training:
            keeper.stop()
        if sys.stderr.isatty():
            console.say("saving after this epoch; again to stop at once")

    def _saved(self) -> str:
        if self.many:
            return ALONE
        if self.target is None:
            return console.NOTHING_SAVED
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
