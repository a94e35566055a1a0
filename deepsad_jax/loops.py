"""The compiled loops over the steps and epochs of a stage.

Data are arrays on the device, of which a batch is a gather, or a stream of batches.
XLA runs convolutions inside loops on a slow path on CPUs, so a program that contains
one is called step by step there; all others are one loop over steps and epochs.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deepsad_jax import cpu_settings, parallel, shuffles, training
from deepsad_jax.training import Batch, TrainingSet

# Epochs in one call of a compiled program, at most; it records so many.
PIECE = 64


class Programs:
    """The compiled programs of an objective with an optimizer.

    Args:
        objective: what is trained.
        stage: its optimizer and batch size count.
        plan: on which devices.
        convolutional: whether a step contains convolutions.
        effort: of compiling the loop.
    """

    def __init__(
        self, objective, stage, plan, convolutional, effort=cpu_settings.USUAL
    ):
        # In no cycle, so that what nobody needs any more is freed at once.
        self._run = run = _OneRun(objective, stage, plan.convolutions)
        self.plan = plan
        on_cpu = jax.default_backend() == "cpu"
        self.per_step = convolutional and on_cpu and not plan.many
        options = cpu_settings.training_options(effort, convolutional=self.per_step)
        compile_ = functools.partial(plan.compile, options=options)
        axes = TrainingSet(None if plan.shared_inputs else 0, 0, 0, 0)
        at_once = cpu_settings.training_options(cpu_settings.BRIEF)
        self.start = plan.compile(run.start, options=at_once)
        self._prepare = compile_(run.prepare, (axes, 0, None))
        self._train_on = compile_(run.step, (0, 0, axes, 0, 0, None), donate=(0, 1))
        self._train_on_rows = compile_(run.on_rows, donate=(0, 1), split=2)
        self.loop = compile_(run.loop, (0, axes, 0, None, None), donate=(0,))

    def advance(self, state, data, key, first, last):
        """(state, metrics by epoch) after the epochs `first` to `last - 1`."""
        if not self.per_step:
            return self.loop(state, data, key, first, last)
        steps, records = int(data.size) // self._run.stage.batch_size, []
        for epoch in range(first, last):
            order, step_key = self._prepare(data, key, epoch)
            totals = _zeros(self._run.shapes(state, data.x.shape[1:]))
            for i in range(steps):
                state, totals = self._train_on(state, totals, data, order, step_key, i)
            records.append(totals)
        return state, _stacked(records)

    def advance_stream(self, state, stream, key, first, last):
        """As `advance`, with the batches of a stream."""
        size, records = self._run.stage.batch_size, []
        steps = stream.steps(size)
        for epoch in range(first, last):
            order_key, step_key = _epoch_keys(key, epoch)
            totals = _zeros(self._run.shapes(state, stream.shape))
            done = 0
            for piece, count in self._pieces(stream, epoch, order_key):
                # The next is read while one is computed, and no more are in memory.
                jax.block_until_ready(totals)
                state, totals = self._train_on_rows(
                    state, totals, piece, step_key, done, count, steps
                )
                done += count
            if not done:
                raise ValueError("no batch of data has two rows for every device")
            records.append(totals)
        return state, _stacked(records)

    def _pieces(self, stream, epoch, key):
        """Pieces of an epoch on the device, of one batch where that must be."""
        axis = int(self.plan.share > 1)
        for piece, count in stream.pieces(
            self.plan, self._run.stage.batch_size, epoch, key
        ):
            parts = [(piece, count)]
            if self.per_step and piece.x.shape[axis] > 1:
                at = (slice(None),) * axis
                parts = [
                    (Batch(*(part[*at, i : i + 1] for part in piece)), 1)
                    for i in range(count)
                ]
            for part, number in parts:
                yield part if axis else jax.device_put(part), number


class _OneRun:
    """What is compiled: pure functions of an objective and a stage."""

    def __init__(self, objective, stage, convolutions):
        step = _traced_once(objective, stage, convolutions)
        self.stage, self._step = stage, step

    def start(self, variables):
        # Training overwrites the memory of its state; the caller's arrays stay.
        variables = jax.tree.map(jnp.copy, variables)
        return training.start(variables, self.stage.optimizer_for(1))

    def loop(self, state, data, key, first, last):
        """(state, metrics `[PIECE, ...]`) after the epochs `first` to `last - 1`.

        An epoch depends on the key and its number alone, so training may be cut into
        any pieces. Bounds are dynamic: one compilation serves all.
        """
        steps = data.size // self.stage.batch_size

        def one_epoch(epoch, carry):
            order, step_key = _prepare(data, key, epoch)

            def one_step(i, carry):
                batch = self._batch(data, order, i)
                of_step = jax.random.fold_in(step_key, i)
                state, more = self._step(carry[0], batch, of_step, steps)
                return state, _merged(carry[1], more)

            (state, records), place = carry, epoch - first
            state, totals = lax.fori_loop(0, steps, one_step, (state, zeros))
            records = jax.tree.map(
                lambda series, total: series.at[place].set(total), records, totals
            )
            return state, records

        zeros = _zeros(self.shapes(state, data.x.shape[1:]))
        records = jax.tree.map(lambda z: jnp.zeros((PIECE, *z.shape), z.dtype), zeros)
        return lax.fori_loop(first, last, one_epoch, (state, records))

    def prepare(self, data, key, epoch):
        return _prepare(data, key, epoch)  # a jitted one would keep its programs

    def step(self, state, totals, data, order, key, i):
        steps = data.size // self.stage.batch_size
        batch = self._batch(data, order, i)
        state, more = self._step(state, batch, jax.random.fold_in(key, i), steps)
        return state, _merged(totals, more)

    def on_rows(self, state, totals, piece, key, first, count, steps):
        """(state, totals) after the first `count` batches of a piece, `[most, ...]`."""

        def one_step(i, carry):
            batch = Batch(training.as_float(piece.x[i]), piece.semi_targets[i])
            of_step = jax.random.fold_in(key, first + i)
            state, more = self._step(carry[0], batch, of_step, steps)
            return state, _merged(carry[1], more)

        if len(piece.x) == 1:
            return one_step(0, (state, totals))
        return lax.fori_loop(0, count, one_step, (state, totals))

    def _batch(self, data, order, i):
        share = self.stage.batch_size // parallel.shares()
        entries = lax.dynamic_slice_in_dim(
            order, i * self.stage.batch_size + parallel.rank() * share, share
        )
        x = training.as_float(data.x[data.indices[entries]])
        return Batch(x, data.semi_targets[entries])

    def shapes(self, state, example):
        """Of the metrics of a step, for examples of a shape."""
        share = self.stage.batch_size // parallel.shares()
        x = jax.ShapeDtypeStruct((share, *example), jnp.float32)
        batch = Batch(x, jax.ShapeDtypeStruct((share,), jnp.float32))
        steps = jax.ShapeDtypeStruct((), jnp.int32)
        return jax.eval_shape(self._step, state, batch, jax.random.key(0), steps)[1]


def _traced_once(objective, stage, convolutions):
    """(state, batch, key, steps) -> (state, metrics): a step of an epoch of so many.

    The second time that it is traced for the same shapes, JAX remembers it, wherever
    the first was. So it sees to the plan's convolutions itself.
    """

    def step(state, batch, key, steps):
        optimizer = stage.optimizer_for(steps)
        return training.make_step(objective, optimizer)(state, batch, key)

    return jax.jit(parallel.computed_as(step, convolutions), inline=True)


def _zeros(shapes):
    """The metrics of no step."""
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def _merged(totals, more):
    return {name: totals[name].merge(metric) for name, metric in more.items()}


def _stacked(records):
    return jax.tree.map(lambda *series: np.stack(series), *jax.device_get(records))


def _prepare(
    data: TrainingSet, key: jax.Array, epoch: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The order of an epoch and the key of its steps."""
    order_key, step_key = _keys_of(key, epoch)
    return shuffles.shuffled(order_key, data.indices.shape[0], data.size), step_key


def _keys_of(key, epoch):
    key = jax.random.fold_in(key, epoch)
    return jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)


_epoch_keys = parallel.compiled(_keys_of)
