"""What CPUs are told: XLA's options for them, and the C library's for memory."""

import ctypes
import functools
import os
from typing import Any

import jax

from deepsad_jax import parallel

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
    return _known({"xla_cpu_experimental_ynn_fusion_type": ""})


@functools.cache
def quick_options() -> dict[str, Any] | None:
    """XLA's options for training without convolutions, on a CPU; None elsewhere.

    None, too, where `XLA_FLAGS` has a level of optimization of its own.

    Compiling takes two thirds of the time, and running as long as by default: what is
    slow in a perceptron are its many small loops, which gain nothing from more effort.
    Random draws of few numbers along several axes, such as a small kernel's, would be
    unrolled, which takes seconds.
    """
    return _with_effort(1)


@functools.cache
def brief_options() -> dict[str, Any] | None:
    """As `quick_options`, for what computes so little that most of its time is spent
    on compiling it: half of the time again, and programs five times slower."""
    return _with_effort(0, {"xla_cpu_use_fusion_emitters": False}) or quick_options()


def _with_effort(level: int, more: dict[str, Any] | None = None):
    name = "xla_backend_optimization_level"
    if jax.default_backend() != "cpu" or name in os.environ.get("XLA_FLAGS", ""):
        return None
    return _known({name: level, **(more or {})})


def _known(options: dict[str, Any]) -> dict[str, Any] | None:
    """The options, or None if this version of XLA does not have them."""
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None
    return options


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
