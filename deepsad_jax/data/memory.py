"""How much memory there is, so that a file that declares more is refused unread."""

import os
import pathlib
import sys


class TooLargeError(ValueError):
    """More is declared than there is memory."""


def available() -> int:
    """Bytes that this process may take, as far as the system tells."""
    limits = [sys.maxsize]
    for path in ("/proc/meminfo", "/sys/fs/cgroup/memory.max"):
        try:
            text = pathlib.Path(path).read_text()
            _, found, kilobytes = text.partition("MemAvailable:")
            limits.append(1024 * int(kilobytes.split()[0]) if found else int(text))
        except (OSError, ValueError):  # not Linux, or no limit
            pass
    if len(limits) == 1 and hasattr(os, "sysconf"):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(limits)


def check(size: int) -> None:
    """Raises `TooLargeError` if that many bytes are more than there are."""
    limit = available()
    if size > limit:
        raise TooLargeError(
            f"unpacked, it would take {size / 2**30:.3g} GiB of memory, of which "
            f"{limit / 2**30:.3g} GiB are free"
        )
