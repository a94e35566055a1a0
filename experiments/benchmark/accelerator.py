"""What a borrowed machine with an accelerator can do, in minutes and without files."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp

from deepsad_jax import parallel
from experiments.benchmark import kernel_grids, steps

# What batches and types of numbers are tried with.
_FEW = ("mnist_LeNet", "cifar10_LeNet", "shuttle_mlp")
_UNKNOWN = 60.0  # seconds that the first measurement of its kind may take


class Measurement(NamedTuple):
    """One thing to measure.

    Attributes:
        table: where its rows belong.
        label: what it is, in words.
        rows: measures them.
    """

    table: str
    label: str
    rows: Callable[[], list[dict]]


def suite(
    names: Sequence[str],
    runs: Sequence[int],
    batch_sizes: Sequence[int],
    dtypes: Sequence[str],
    sizes: Sequence[int],
    *,
    batches: int,
    repeats: int,
) -> Iterator[Measurement]:
    """What is measured, the most important first.

    Args:
        names: of networks; of the first, many runs are trained in one program.
        runs: how many those are.
        batch_sizes: the usual one first.
        dtypes: names of types of numbers, the usual one first.
        sizes: rows of the grids of the kernel methods.
        batches: in an epoch.
        repeats: how often each epoch is timed.
    """

    def measured(table, name, size, count, dtype, **options):
        label = " ".join([name, f"batch_size {size}", dtype, *options.values()])

        def rows():
            return steps.steps(
                *(name, size, count, 1, jnp.dtype(dtype)),
                **{"batches": batches, "repeats": repeats, **options},
            )

        return Measurement(table, f"{table}: {label}, {count} at once", rows)

    def many(dtype):
        for count in runs:
            for form in parallel.CONVOLUTIONS:
                yield measured(
                    *("many", names[0], batch_sizes[0], count, dtype),
                    convolutions=form,
                )

    few = [name for name in names if name in _FEW] or names[:1]
    yield measured("single", names[0], batch_sizes[0], 1, dtypes[0])
    yield from many(dtypes[0])
    for name in names[1:]:
        yield measured("single", name, batch_sizes[0], 1, dtypes[0])
    for size in sizes:
        data = kernel_grids.synthetic(size)
        yield Measurement("kernels", f"kernels: {size} rows", lambda d=data: _grids(d))
    for dtype in dtypes[1:]:
        yield from (measured("single", n, batch_sizes[0], 1, dtype) for n in few)
        yield from many(dtype)
    for batch_size in batch_sizes[1:]:
        for dtype in dtypes:
            yield from (measured("single", n, batch_size, 1, dtype) for n in few)


def _grids(data) -> list[dict]:
    rows = kernel_grids.kernel_grids(*data)
    return [{**row, "memory_mb": steps.memory_mb()} for row in rows]


def within(
    measurements: Iterator[Measurement],
    seconds: float,
    tell: Callable[[str, list[dict]], None],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Measures what there is time for.

    A measurement is thought to take twice as long as the longest of its table so far;
    where it would end too late, it is left out, and others may still be made.

    Args:
        measurements: in their order.
        seconds: that all of them may take.
        tell: called with a table, or "left_out", and its new rows after each of them.
        clock: seconds since some time.
    """
    began, longest = clock(), {}
    for table, label, measure in measurements:
        start = clock()
        expected = 2 * longest[table] if table in longest else _UNKNOWN
        if start - began + expected > seconds:
            tell("left_out", [{"what": label, "why": "no time is left for it"}])
            continue
        try:
            rows = measure()
        except Exception as error:  # whoever borrowed the machine wants the others
            why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            tell("left_out", [{"what": label, "why": why}])
            continue
        finally:
            longest[table] = max(longest.get(table, 0.0), clock() - start)
        tell(table, rows)
