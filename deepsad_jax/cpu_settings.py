"""What CPUs are told: XLA's options for them, and the C library's for memory."""

import ctypes
import functools
import os
from typing import Any, NamedTuple

import jax

from deepsad_jax import parallel

_LEVEL, _EMITTERS = "xla_backend_optimization_level", "xla_cpu_use_fusion_emitters"
_NEEDED = ((_LEVEL, 1), (_EMITTERS, True))
# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


@functools.cache
def compiler_options() -> dict[str, Any] | None:
    """XLA's options for convolutions that use all cores of a CPU; None elsewhere.

    XLA's library of microkernels has the faster convolutions on one core, but runs them
    on one; its older ones share the work.
    """
    if jax.default_backend() != "cpu" or parallel.cores() == 1:
        return None
    options = {"xla_cpu_experimental_ynn_fusion_type": ""}
    return options if _are_known(tuple(options.items())) else None


class Effort(NamedTuple):
    """How much XLA does for a program: its level of optimization, and whether loops are
    fused by its newer emitters, which take longer."""

    level: int
    emitters: bool


# Running takes as long as with all effort: what is slow in a perceptron are its many
# small loops, in a convolutional network the library's products. Random draws of few
# numbers along several axes, such as a small kernel's, would be unrolled, which takes
# seconds.
USUAL = Effort(1, True)
# Compiled in two thirds of the time; a perceptron is up to twice as slow, a
# convolutional network by a tenth.
SHORT = Effort(1, False)
# Compiled in half of the time; a perceptron is five times slower.
BRIEF = Effort(0, False)


def training_options(
    effort: Effort = USUAL, *, convolutional: bool = False
) -> dict[str, Any] | None:
    """XLA's options for training on a CPU; None elsewhere.

    A level of optimization in `XLA_FLAGS` counts before ours.

    Args:
        effort: of compiling.
        convolutional: whether what is compiled has convolutions.
    """
    if jax.default_backend() != "cpu":
        return None
    options = dict((compiler_options() if convolutional else None) or {})
    if _LEVEL not in os.environ.get("XLA_FLAGS", "") and _are_known(_NEEDED):
        options[_LEVEL] = effort.level
        if not effort.emitters:
            options[_EMITTERS] = False
    return options or None


@functools.cache
def _are_known(options: tuple[tuple[str, Any], ...]) -> bool:
    """Whether this version of XLA has the options."""
    try:
        jax.jit(lambda: 0, compiler_options=dict(options)).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def keep_freed_memory(large: bool) -> None:
    """Lets the C library keep what is freed, instead of returning it to the system.

    XLA frees and allocates its large buffers at every step; with glibc's defaults, page
    faults then take a fifth of the time of a convolutional network's step on a CPU.
    Only what comes before JAX's first computation counts.

    Args:
        large: whether an example's largest activation has 2^14 numbers or more (2^13 on
            one core; measured). The arenas of other threads are too small for the
            buffers of such a network, so that it gets one arena; a small network on
            several threads would queue for it.
    """
    try:
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        if large:
            library.mallopt(_M_ARENA_MAX, 1)
    except (AttributeError, OSError, TypeError):
        return  # another C library
