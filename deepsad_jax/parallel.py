"""How a function of one run is executed: step by step or in a loop, once or many times.

The rest of the library writes every computation for *one* run on *one* device. An
`Execution` says what is made of it: `jit` alone, `vmap` over many runs, `pmap` over
devices that share the batches of one run (data parallel), or `pmap` over devices that
each train their share of many runs (run parallel). This is the one module that names
`jax.pmap`, so that replacing it stays a change of one file.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

AXIS_NAME = "data"


@dataclasses.dataclass(frozen=True)
class Execution:
    """How functions written for one run are compiled.

    Attributes:
        per_step: whether training calls one compiled step for each batch, instead of
            one compiled loop over many epochs.
        many: whether arguments carry a leading axis of runs.
        devices: number of devices, each taking an equal share of the batch or, with
            `many`, of the runs (arguments then carry the axes `[devices, runs /
            devices]`).
        shared_inputs: with `many`, whether all runs read the same inputs `x`.
    """

    per_step: bool = False
    many: bool = False
    devices: int = 1
    shared_inputs: bool = True

    def __post_init__(self):
        if self.per_step and self.many:
            raise ValueError("many runs train in one loop: per_step must be False")
        if not 1 <= self.devices <= jax.local_device_count():
            raise ValueError(
                f"devices is {self.devices}; this process has "
                f"{jax.local_device_count()}"
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
        function = jax.vmap(function, in_axes=in_axes)
    if execution.devices == 1:
        return jax.jit(function, donate_argnums=donate)
    if execution.many:
        return jax.pmap(function, in_axes=in_axes, donate_argnums=donate)
    return jax.pmap(
        function,
        axis_name=AXIS_NAME,
        in_axes=None,
        out_axes=None,
        donate_argnums=donate,
    )


def default_execution(is_convolutional: bool) -> Execution:
    """The fastest way to train one run on the default backend.

    XLA runs convolutions inside loops on a slow path on CPUs, so these are called step
    by step there. Everything else is one compiled loop.
    """
    on_cpu = jax.default_backend() == "cpu"
    return Execution(per_step=is_convolutional and on_cpu)
