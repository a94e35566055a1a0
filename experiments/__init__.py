"""The commands of the research: `python -m experiments.run`, `sweep`, `benchmark`."""

import os
import signal
import sys


def _interrupted(number, frame):
    os.write(2, b"interrupted: nothing was saved; begin again by the same command\n")
    os._exit(128 + number)


# What -m names is being located; its imports take a while, and so does the config.
if sys.argv[0] == "-m":
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupted)
