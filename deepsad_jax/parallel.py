"""Plans: one run, a batch shared by several devices, or many runs at once.

Everything else is written for *one* run on *one* device. A plan says what is made of
it: `jit` alone, `pmap` over devices that share the batches of a run (data parallel), or
`pmap` and `vmap` over many runs (run parallel). This is the one module that names
`jax.pmap` and its axis. A layer or an objective that needs a sum, a mean or all rows of
the whole batch calls `total`, `mean` or `gather`, which look across the devices that
share it and do nothing where there is one.

Several processes: after `jax.distributed.initialize`, `jax.device_count()` devices
share the batches of a run; every process passes the same arguments and gets the same
results.
"""

import contextvars
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deepsad_jax import deprecated

PyTree = Any
# Of the devices that share a batch; a name that nobody else gives to an axis.
AXIS = "devices_that_share_a_batch"
# After so many new programs, what JAX itself keeps of all old ones is cleared.
_TURN = 256
# What a plan may have convolutions computed as, see `Plan`.
CONVOLUTIONS = ("usual", "patches", "blocks")
_CONVOLUTIONS = contextvars.ContextVar("convolutions", default=CONVOLUTIONS[0])
_made = itertools.count(1)


def shares() -> int:
    """How many devices share the batch: known while a function is traced, else 1."""
    try:
        return lax.axis_size(AXIS)
    except NameError:
        return 1


def rank() -> jax.typing.ArrayLike:
    """Which of the devices that share the batch this one is."""
    return 0 if shares() == 1 else lax.axis_index(AXIS)


def total(tree: PyTree) -> PyTree:
    """The sum over the devices that share the batch."""
    return tree if shares() == 1 else lax.psum(tree, AXIS)


def mean(tree: PyTree) -> PyTree:
    """The mean over the devices that share the batch, whose shares are equal."""
    return tree if shares() == 1 else lax.pmean(tree, AXIS)


def gather(x: jax.Array) -> jax.Array:
    """The rows of the whole batch, from this device's `[share, ...]`."""
    return x if shares() == 1 else lax.all_gather(x, AXIS, tiled=True)


def own_share(x: jax.Array, axis: int = 0) -> jax.Array:
    """This device's rows of an array that has those of the whole batch."""
    if shares() == 1:
        return x
    size = x.shape[axis] // shares()
    return lax.dynamic_slice_in_dim(x, rank() * size, size, axis)


def convolutions() -> str:
    """As what the plan has convolutions computed: known while a function is traced."""
    return _CONVOLUTIONS.get()


def computed_as(function: Callable, convolutions: str) -> Callable:
    """A function of positional arguments within which `convolutions` are these."""

    @functools.wraps(function)
    def traced(*arguments):
        token = _CONVOLUTIONS.set(convolutions)
        try:
            return function(*arguments)
        finally:
            _CONVOLUTIONS.reset(token)

    return traced


@dataclasses.dataclass(frozen=True)
class Plan:
    """How functions written for one run are compiled: `one`, `split_batch` or `many`.

    Attributes:
        devices: number of devices, each taking an equal share of the batch or, with
            `many`, of the runs. Without `many`, over all processes.
        many: whether arguments carry leading axes of runs; `stack` makes them.
        together: with `many`, whether the runs of a device are computed side by side
            (`vmap`) or one after the other, in the same program.
        shared_inputs: with `many`, whether all runs read the same inputs `x`.
        convolutions: what the convolutions of our networks are computed as: "usual",
            which of runs side by side are grouped convolutions on an accelerator;
            "patches", products of all that an output reads with the kernel; "blocks",
            products with fewer and larger factors where channels are few, else
            "patches". The results are equal up to rounding.
    """

    devices: int = 1
    many: bool = False
    together: bool = True
    shared_inputs: bool = True
    convolutions: str = CONVOLUTIONS[0]

    def __post_init__(self):
        available = jax.local_device_count() if self.many else jax.device_count()
        is_count = isinstance(self.devices, (int, np.integer))
        if not (is_count and 1 <= self.devices <= available):
            raise ValueError(
                f"devices is {self.devices!r}; it must be from 1 to {available}, the "
                "number there is"
            )
        if jax.process_count() > 1 and not self.many and self.devices < available:
            raise ValueError(
                f"devices is {self.devices}; the {jax.process_count()} processes have "
                f"{available} in all, and must use every one of them"
            )
        if self.convolutions not in CONVOLUTIONS:
            raise ValueError(
                f"convolutions is {self.convolutions!r}; it must be one of "
                f"{', '.join(CONVOLUTIONS)}"
            )

    @property
    def share(self) -> int:
        """Number of devices that share each batch."""
        return 1 if self.many else self.devices

    @property
    def processes(self) -> int:
        """Number of processes that train one run."""
        return 1 if self.many else jax.process_count()

    def by_device(self, rows: np.ndarray, axis: int = 0) -> np.ndarray:
        """The rows of whole batches, split over the devices that share them.

        Args:
            rows: `[..., batch, ...]`.
            axis: that of the batch.

        Returns:
            Those of the devices of this process, `[devices, ..., share, ...]`; where
            one device has whole batches, the rows as they are.
        """
        if self.share == 1:
            return rows
        shape = (*rows.shape[:axis], self.share, -1, *rows.shape[axis + 1 :])
        rows = np.moveaxis(np.reshape(rows, shape), axis, 0)
        first, local = _own_devices(self.share)
        return rows[first : first + local]

    def compile(
        self,
        function: Callable,
        in_axes: Any = 0,
        *,
        donate: tuple[int, ...] = (),
        split: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> Callable:
        """Compiles a function of one run; keep what it returns.

        Args:
            function: takes and returns pytrees of arrays, positional. What devices that
                share a batch return must be the same on each.
            in_axes: as for `jax.vmap`: 0 for what each run has of its own, None for
                what all runs share. It matters to many runs alone.
            donate: arguments whose memory may be reused for the result.
            split: the argument that holds the rows of a batch, as `by_device` makes
                them; None where the function takes its `own_share` by itself.
            options: XLA's, where devices do not share a batch.
        """
        if next(_made) % _TURN == 0:
            jax.clear_caches()
        if self.convolutions != "usual":
            function = computed_as(function, self.convolutions)
        if self.many:
            if not self.together:
                function = jax.custom_batching.sequential_vmap(function)
            function = jax.vmap(function, in_axes=in_axes)
            # pmap even for one device, so that the axes are those of `stack`.
            devices = jax.local_devices()[: self.devices]
            mapped = jax.pmap(
                function, in_axes=in_axes, donate_argnums=donate, devices=devices
            )
            if options is None:
                return mapped  # pmap takes none

            def call(*arguments):
                return mapped(*arguments)

            # Not by functools.wraps: jit would have the method `lower` of pmap.
            call.__name__, function = function.__name__, call
        if self.many or self.devices == 1:
            return jax.jit(function, donate_argnums=donate, compiler_options=options)
        return _data_parallel(function, self.devices, split)


def compiled(function: Callable, static: tuple[int, ...] = (), most: int = 16):
    """`jax.jit` of a function of a module, which keeps but so many programs."""
    made = jax.jit(function, static_argnums=static)

    @functools.wraps(function)
    def call(*arguments):
        if made._cache_size() >= most:
            made.clear_cache()
        return made(*arguments)

    return call


def _own_devices(count: int) -> tuple[int, int]:
    """The first of this process's devices among all that share a batch, and how many
    they are."""
    if jax.process_count() == 1:
        return 0, count
    local = jax.local_device_count()
    return jax.process_index() * local, local


def _data_parallel(function, count, split):
    _, local = _own_devices(count)

    # pmap wants one argument with a mapped axis; others are the same everywhere.
    def on_device(mapped, arguments):
        _, rows = mapped
        if split is not None:
            arguments = (*arguments[:split], rows, *arguments[split:])
        return function(*arguments)

    compiled = jax.pmap(
        on_device,
        axis_name=AXIS,
        # Flat axes would be taken for those of leaves, if these are as many (jax 0.10).
        in_axes=((0, 0), None),
        out_axes=None,
        devices=None if jax.process_count() > 1 else jax.local_devices()[:local],
    )
    ranks = np.arange(local)

    def call(*arguments):
        rows = None
        if split is not None:
            rows = arguments[split]
            arguments = arguments[:split] + arguments[split + 1 :]
        return compiled((ranks, rows), arguments)

    return call


def from_first(content: bytes) -> bytes:
    """What the first of several processes has, in each of them; all must call it."""
    from jax.experimental import multihost_utils

    size = multihost_utils.broadcast_one_to_all(np.int32(len(content)))
    rows = np.zeros(int(size), np.uint8)
    if jax.process_index() == 0:
        rows[:] = np.frombuffer(content, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(rows)).tobytes()


def one() -> Plan:
    """One run on one device."""
    return Plan()


def split_batch(devices: int | None = None) -> Plan:
    """One run whose batches are shared by several devices, all there are by default.

    Gradients are averaged and batch norm sees the whole batch: the numbers are those of
    one device, up to the order of sums.

    Raises:
        ValueError: if there are not so many devices.
    """
    return Plan(jax.device_count() if devices is None else devices)


def many(count: int, *, shared_inputs: bool, convolutional: bool) -> Plan | None:
    """The fastest way to train many runs here, or None for one run after the other.

    A CPU gains nothing from computing small perceptrons side by side, but its cores, as
    devices, share the runs. Its convolutions must stay out of loops and use all cores.

    Args:
        count: number of runs.
        shared_inputs: whether all of them read the same inputs.
        convolutional: whether they contain convolutions; see `has_convolution`.
    """
    on_cpu = jax.default_backend() == "cpu"
    if count == 1 or (on_cpu and convolutional):
        return None
    return Plan(
        devices=min(count, jax.local_device_count()),
        many=True,
        together=not on_cpu,
        shared_inputs=shared_inputs,
    )


def stack(runs: Sequence[PyTree], plan: Plan) -> PyTree:
    """Pytrees of single runs to one with the axes `[devices, runs / devices]`.

    Where the devices do not divide the number of runs, the last run is repeated.
    """
    share = -(-len(runs) // plan.devices)
    padding = [runs[-1]] * (share * plan.devices - len(runs))

    def join(*leaves):
        on_device = any(isinstance(leaf, jax.Array) for leaf in leaves)
        joined = (jnp if on_device else np).stack(leaves)  # jnp compiles for each shape
        return jax.device_put(joined.reshape(plan.devices, share, *joined.shape[1:]))

    return jax.tree.map(join, *runs, *padding)


def unstack(tree: PyTree, count: int) -> list[PyTree]:
    """The inverse of `stack`: the first `count` runs, as NumPy arrays."""
    tree = jax.device_get(tree)
    merged = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)
    return [jax.tree.map(lambda leaf, i=i: leaf[i], merged) for i in range(count)]


def has_convolution(function: Callable, *arguments: Any) -> bool:
    """Whether a function computes a convolution, whatever module it comes from.

    Args:
        function: of pytrees of arrays.
        arguments: arrays, or what tells their shapes.
    """
    return _contains_convolution(jax.make_jaxpr(function)(*arguments).jaxpr)


def _contains_convolution(jaxpr) -> bool:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            return True
        inner = jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda value: hasattr(value, "eqns") or hasattr(value, "jaxpr"),
        )
        for value in inner:
            value = getattr(value, "jaxpr", value)
            if hasattr(value, "eqns") and _contains_convolution(value):
                return True
    return False


@functools.cache
def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


__getattr__ = deprecated.getter("parallel", deprecated.PARALLEL)
