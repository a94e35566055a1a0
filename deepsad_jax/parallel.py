"""How a function of one run is executed: step by step or in a loop, once or many times.

The rest of the library writes every computation for *one* run on *one* device. An
`Execution` says what is made of it: `jit` alone, `vmap` over many runs, `pmap` over
devices that share the batches of one run (data parallel), or `pmap` over devices that
each train their share of many runs (run parallel). This is the one module that names
`jax.pmap`, so that replacing it stays a change of one file.

Several processes: after `jax.distributed.initialize`, `jax.device_count()` devices
share the batches of a run; every process passes the same arguments and gets the same
results.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

AXIS_NAME = "data"


@dataclasses.dataclass(frozen=True)
class Execution:
    """How functions written for one run are compiled.

    Attributes:
        per_step: whether training calls one compiled step for each batch, instead of
            one compiled loop over many epochs.
        many: whether arguments carry leading axes of runs; `stack` makes them.
        together: with `many`, whether the runs of a device are computed side by side
            (`vmap`) or one after the other, in the same program.
        shared_inputs: with `many`, whether all runs read the same inputs `x`.
        devices: number of devices, each taking an equal share of the batch or, with
            `many`, of the runs. Without `many`, over all processes.
    """

    per_step: bool = False
    many: bool = False
    together: bool = True
    shared_inputs: bool = True
    devices: int = 1

    def __post_init__(self):
        if self.per_step and self.many:
            raise ValueError("many runs train in one loop: per_step must be False")
        available = jax.local_device_count() if self.many else jax.device_count()
        if not 1 <= self.devices <= available:
            raise ValueError(
                f"devices is {self.devices}; it must be from 1 to {available}, the "
                "number there is"
            )
        if jax.process_count() > 1 and not self.many and self.devices < available:
            raise ValueError(
                f"devices is {self.devices}; the {jax.process_count()} processes have "
                f"{available} in all, and must use every one of them"
            )

    @property
    def axis_name(self) -> str | None:
        """The axis over which a batch is split, or None if it is not."""
        return AXIS_NAME if self.devices > 1 and not self.many else None

    def compile(
        self, function: Callable, in_axes: Any, donate: tuple[int, ...] = ()
    ) -> Callable:
        """Compiles a function of one run.

        Args:
            function: takes and returns pytrees of arrays, positional.
            in_axes: as for `jax.vmap`: 0 for what each run has of its own, None for
                what all runs share. Without `many` it says nothing.
            donate: arguments whose memory may be reused for the result.

        Returns:
            The compiled function; the same one for the same arguments.
        """
        return _compile(self, function, in_axes, donate)


@functools.lru_cache(maxsize=256)
def _compile(execution, function, in_axes, donate):
    if execution.many:
        if not execution.together:
            function = jax.custom_batching.sequential_vmap(function)
        function = jax.vmap(function, in_axes=in_axes)
        # pmap even for one device, so that the axes are those of `stack` in any case.
        devices = jax.local_devices()[: execution.devices]
        return jax.pmap(
            function, in_axes=in_axes, donate_argnums=donate, devices=devices
        )
    if execution.devices == 1:
        options = _threaded_convolutions() if execution.per_step else None
        return jax.jit(function, donate_argnums=donate, compiler_options=options)
    return _data_parallel(execution, function, donate)


@functools.cache
def _threaded_convolutions() -> dict[str, str] | None:
    """XLA's options for convolutions that use all cores of a CPU.

    Its library of microkernels has the faster convolutions on one core, but runs them
    on one; its older ones share the work.
    """
    options = {"xla_cpu_experimental_ynn_fusion_type": ""}
    if jax.default_backend() != "cpu" or cores() == 1:
        return None
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None  # a version of XLA that has no such option
    return options


def _data_parallel(execution, function, donate):
    several = jax.process_count() > 1
    local = jax.local_device_count() if several else execution.devices
    # pmap wants one argument with a mapped axis; all others are the same everywhere.
    compiled = jax.pmap(
        lambda rank, arguments: function(*arguments),
        axis_name=AXIS_NAME,
        in_axes=(0, None),
        out_axes=None,
        devices=None if several else jax.local_devices()[:local],
    )
    del donate  # the arguments travel as one; nothing to be gained on many devices
    ranks = np.arange(local)
    return lambda *arguments: compiled(ranks, arguments)


def stack(runs: Sequence[Any], execution: Execution) -> Any:
    """Pytrees of single runs to one with the axes `[devices, runs / devices]`.

    Where the devices do not divide the number of runs, the last run is repeated.
    """
    share = -(-len(runs) // execution.devices)
    padding = [runs[-1]] * (share * execution.devices - len(runs))

    def join(*leaves):
        joined = jnp.stack(leaves)
        return joined.reshape(execution.devices, share, *joined.shape[1:])

    return jax.tree.map(join, *runs, *padding)


def unstack(tree: Any, count: int) -> list[Any]:
    """The inverse of `stack`: the first `count` runs, as NumPy arrays."""
    tree = jax.device_get(tree)
    merged = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)
    return [jax.tree.map(lambda leaf, i=i: leaf[i], merged) for i in range(count)]


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def for_one_run(is_convolutional: bool, devices: int = 1) -> Execution:
    """The fastest way to train one run on the default backend.

    XLA runs convolutions inside loops on a slow path on CPUs, so these are called step
    by step there. Everything else is one compiled loop.
    """
    on_cpu = jax.default_backend() == "cpu"
    return Execution(per_step=is_convolutional and on_cpu, devices=devices)


def for_many_runs(
    is_convolutional: bool, shared_inputs: bool, count: int
) -> Execution | None:
    """The fastest way to train many runs here, or None for one run after the other.

    A CPU gains nothing from computing small perceptrons side by side, but its cores, as
    devices, share the runs. Its convolutions must stay out of loops, and use all cores.
    """
    on_cpu = jax.default_backend() == "cpu"
    if count == 1 or (on_cpu and is_convolutional):
        return None
    return Execution(
        many=True,
        together=not on_cpu,
        shared_inputs=shared_inputs,
        devices=min(count, jax.local_device_count()),
    )
