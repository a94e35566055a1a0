"""The one way through the epochs, and the one way to evaluate.

Data are arrays on the device, of which a batch is a gather, or a stream of batches.
Programs are compiled once for equal values. XLA runs convolutions inside loops on a
slow path on CPUs, so a program that contains one is called step by step there; all
others are one loop over steps and epochs.
"""

import concurrent.futures
import functools
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deepsad_jax import fast_cpu, methods, parallel, streams, training
from deepsad_jax.training import Batch, TrainingSet

Variables = dict[str, Any]
History = dict[str, np.ndarray]

# Epochs in one call of a compiled program, at most; it records so many.
PIECE = 64
# Rows evaluated at once: few programs serve any number of rows. One serves those of
# tables, whose scores are then the same bits whatever is scored beside them.
_CHUNKS, _TABLE_CHUNKS = (16, 512), (256,)
_BLOCK = 2**16
# Compiles while others train; what fails there fails again where it is needed.
_BACKGROUND = concurrent.futures.ThreadPoolExecutor(1, "compilation")


class Programs:
    """The compiled programs of an objective with an optimizer.

    Args:
        objective: what is trained.
        stage: its optimizer and batch size count.
        plan: on which devices.
        convolutional: whether a step contains convolutions.
    """

    def __init__(self, objective, stage, plan, convolutional):
        # In no cycle, so that what nobody needs any more is freed at once.
        self._run = run = _OneRun(objective, stage)
        self.plan = plan
        on_cpu = jax.default_backend() == "cpu"
        self.per_step = convolutional and on_cpu and not plan.many
        made = fast_cpu.compiler_options if self.per_step else fast_cpu.quick_options
        compile_ = functools.partial(plan.compile, options=made())
        axes = TrainingSet(None if plan.shared_inputs else 0, 0, 0, 0)
        self.start = plan.compile(run.start, options=fast_cpu.quick_options())
        self._prepare = compile_(run.prepare, (axes, 0, None))
        self._train_on = compile_(run.step, (0, 0, axes, 0, 0, None), donate=(0, 1))
        self._train_on_rows = compile_(run.on_rows, donate=(0, 1), split=2)
        self._loop = compile_(run.loop, (0, axes, 0, None, None), donate=(0,))

    def advance(self, state, data, key, first, last):
        """(state, metrics by epoch) after the epochs `first` to `last - 1`."""
        if not self.per_step:
            return self._loop(state, data, key, first, last)
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
                raise ValueError("no batch of data has rows for every device")
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

    def __init__(self, objective, stage):
        self.objective, self.stage, self._found_shapes = objective, stage, {}

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
        step = training.make_step(self.objective, self.stage.optimizer_for(steps))

        def one_epoch(epoch, carry):
            order, step_key = _prepare(data, key, epoch)

            def one_step(i, carry):
                batch = self._batch(data, order, i)
                state, more = step(carry[0], batch, jax.random.fold_in(step_key, i))
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
        step = training.make_step(self.objective, self.stage.optimizer_for(steps))
        batch = self._batch(data, order, i)
        state, more = step(state, batch, jax.random.fold_in(key, i))
        return state, _merged(totals, more)

    def on_rows(self, state, totals, piece, key, first, count, steps):
        """(state, totals) after the first `count` batches of a piece, `[most, ...]`."""
        step = training.make_step(self.objective, self.stage.optimizer_for(steps))

        def one_step(i, carry):
            batch = Batch(training.as_float(piece.x[i]), piece.semi_targets[i])
            state, more = step(carry[0], batch, jax.random.fold_in(key, first + i))
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
        found = self._found_shapes
        if example not in found:
            found[example] = self._trace_shapes(state, example)
        return found[example]

    def _trace_shapes(self, state, example):
        x = jax.ShapeDtypeStruct((2, *example), jnp.float32)
        batch = Batch(x, jax.ShapeDtypeStruct((2,), jnp.float32))
        step = training.make_step(self.objective, self.stage.optimizer_for(1))
        return jax.eval_shape(step, state, batch, jax.random.key(0))[1]


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
    return streams.shuffled(order_key, data.indices.shape[0], data.size), step_key


def _keys_of(key, epoch):
    key = jax.random.fold_in(key, epoch)
    return jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)


_epoch_keys = parallel.compiled(_keys_of)


# What is found again: enough for the stages of a few methods on data of a few shapes,
# and not without end.
@functools.lru_cache(maxsize=16)
def _programs(objective, optimizer, batch_size, plan, convolutional, steps, shapes):
    del shapes
    if steps is not None:
        optimizer = optimizer(steps)
    stage = training.Stage(optimizer, batch_size=batch_size)
    return Programs(objective, stage, plan, convolutional)


@functools.lru_cache(maxsize=64)
def initial(objective: Any, shape: tuple[int, ...]) -> Variables:
    """Shapes and types of an objective's variables, for examples of a shape."""
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    return jax.eval_shape(objective.init, jax.random.key(0), x)


@functools.lru_cache(maxsize=64)
def is_convolutional(objective: Any, shape: tuple[int, ...]) -> bool:
    """Whether training computes convolutions, for examples of a shape."""
    for inner in ("autoencoder", "network"):  # of a hybrid, of a committee
        objective = getattr(objective, inner, objective)
    if not hasattr(objective, "init"):
        return False
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    batch = Batch(x, jax.ShapeDtypeStruct((2,), jnp.float32))
    key, variables = jax.random.key(0), initial(objective, shape)
    return parallel.has_convolution(
        lambda variables, batch: objective.loss(variables, batch, key)[0],
        variables,
        batch,
    )


class Trainer:
    """Trains the stages of a fit, of one run or of many at once, and keeps records.

    Args:
        keys: random key of each run.
        sets: prepared training set of each run (or one `streams.Stream`); many runs
            have them of one size, or padded.
        plan: how to run them; `parallel.one()` by default.
        uses: one name for each use of a key, in an order that never changes: the place
            of a name is part of what a seed means. A stage uses the key of its name.
        observe: called with a stage, the number of epochs done, and the history.
        keeper: saves the state of the stages and starts them from what was saved; of
            one run. See `checkpoints.Keeper`.

    Attributes:
        history, seconds: of the stages that have been run, as in `methods.Record`;
            with many runs, the history has leading axes.
    """

    def __init__(self, keys, sets, plan, uses, observe=None, keeper=None):
        self.plan, self.sets = plan or parallel.one(), sets
        self.history: dict[str, History] = {}
        self.seconds: dict[str, float] = {}
        self._observe, self._keeper = observe, keeper
        self._count, self._warming = len(keys), {}
        derived = _derived(tuple(keys), len(uses))
        self.keys = {use: self.put(derived[i]) for i, use in enumerate(uses)}
        self.data = self._on_device()

    def _on_device(self):
        sets = self.sets
        if isinstance(sets[0], streams.Stream):
            return sets[0]
        if not self.plan.many:
            return jax.device_put(sets[0])  # jnp.asarray compiles for each shape
        if not self.plan.shared_inputs:
            return parallel.stack(sets, self.plan)
        data = parallel.stack([s._replace(x=np.zeros(())) for s in sets], self.plan)
        return data._replace(x=jax.device_put(sets[0].x))

    def put(self, runs: Sequence[Any]) -> Any:
        """Values of the runs as what the stages take: stacked, if there are many."""
        return parallel.stack(runs, self.plan) if self.plan.many else runs[0]

    def take(self, tree: Any) -> list[Any]:
        """The inverse of `put`: what each run has, as NumPy arrays."""
        if self.plan.many:
            return parallel.unstack(tree, self._count)
        return [jax.device_get(tree)]

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        """One example, as an objective sees it."""
        first = self.sets[0]
        is_stream = isinstance(first, streams.Stream)
        shape = first.shape if is_stream else first.x.shape[1:]
        return jax.ShapeDtypeStruct((1, *shape), jnp.float32)

    def init(self, objective: Any, use: str) -> Variables:
        """Initial variables of an objective, from the key of that use."""
        example = self.example
        init = _init(objective, example.shape, self.plan)
        return init(self.keys[use])

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an example."""
        return self.example.shape[1:]

    def parts(
        self, objective: Any, name: str, runs: Sequence[Variables]
    ) -> Iterator[Iterator[tuple[np.ndarray, np.ndarray]]]:
        """What a function of an objective gives for the training rows of each run.

        Args:
            objective: what has the function.
            name: of the function `(variables, x) -> [batch, ...]`.
            runs: variables of each run.

        Returns:
            For each run parts of its rows: values `[part, ...]`, and their
            semi-supervised targets.
        """
        plan = parallel.one() if self.plan.many else self.plan
        for variables, data in zip(runs, self.sets, strict=True):
            yield _parts(objective, name, variables, data, plan)

    def warm(self, name: str, objective: Any, stage: training.Stage) -> None:
        """Compiles what `run` will need, in the background of what comes before."""
        if stage.epochs and not isinstance(self.data, streams.Stream):
            self._warming[name] = _BACKGROUND.submit(self._warm, objective, stage)

    def _warm(self, objective, stage):
        key = self.put([jax.random.key(0)] * self._count)
        shapes = jax.eval_shape(_init(objective, self.example.shape, self.plan), key)
        variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        made = self._programs(objective, stage)
        state = made.start(variables)
        if not made.per_step:
            made.advance(state, self.data, key, 0, 0)

    def _programs(self, objective, stage):
        is_stream = isinstance(self.data, streams.Stream)
        shapes = [self.example] if is_stream else self.data
        found = (objective, stage.optimizer, stage.batch_size, self.plan)
        found = (*found, is_convolutional(objective, self.shape))
        size, steps = stage.batch_size, []
        if stage.fixes_steps:
            steps = [
                s.steps(size) if is_stream else int(s.size) // size for s in self.sets
            ]
        known = max(1, steps[0]) if len({*steps}) == 1 else None
        return _programs(*found, known, tuple((a.shape, a.dtype) for a in shapes))

    def run(
        self,
        name: str,
        objective: Any,
        stage: training.Stage,
        variables: Variables,
        check: Callable[[History, int], None] | None = None,
    ) -> Variables:
        """Trains a stage, in pieces of about a quarter of a second.

        Args:
            name: of the stage.
            objective, stage: what is trained, and how.
            variables: where it starts; they stay as they are.
            check: called with the history and the number of an epoch, for every epoch;
                may raise `TrainingError`. `check_finite` by default.

        Raises:
            training.TrainingError: as `check` does, unless training is rolled back.
        """
        began, check = time.perf_counter(), check or check_finite
        key, data = self.keys[name], self.data
        if name in self._warming:
            concurrent.futures.wait([self._warming.pop(name)])
        made = self._programs(objective, stage)
        is_stream = isinstance(data, streams.Stream)
        advance = made.advance_stream if is_stream else made.advance
        state, history, first, piece = made.start(variables), {}, 0, 1
        if self._keeper is not None:
            found = self._keeper.restore(name, state, key, stage.epochs)
            if found is not None:
                first, seconds, state, history = found
                began -= seconds
                self._report(name, first, history)
        done = first
        while done < stage.epochs:
            last = min(done + piece, stage.epochs)
            clock = time.perf_counter()
            if stage.on_divergence == "rollback":
                before = jax.tree.map(jnp.copy, state)
            state, records = advance(state, data, key, done, last)
            self._write(history, records, done, last, stage.epochs)
            seconds = time.perf_counter() - clock
            try:
                for epoch in range(done, last):
                    check(history, epoch)
            except training.DivergenceError as error:
                if stage.on_divergence == "stop":
                    raise
                # What comes before that epoch is computed again, so that the state
                # does not depend on where pieces end.
                if epoch > done:
                    before, _ = advance(before, data, key, done, epoch)
                state = before._replace(slowdown=_slower(before, history, epoch, error))
                done, piece = epoch, 1
                continue
            # The first piece includes the compilation and says nothing of the speed.
            if done > first:
                piece = math.floor((last - done) * min(4.0, 0.25 / seconds))
                piece = min(max(1, piece), PIECE)
            if self.plan.processes > 1:
                piece = 1  # the same in all of them, whose clocks differ
            done = last
            self._report(name, done, history)
            if self._keeper is not None:
                seconds = time.perf_counter() - began
                self._keeper.offer(
                    *(name, done, seconds, state, history, key),
                    last=done == stage.epochs,
                )
        self.history[name] = history
        self.seconds[name] = (time.perf_counter() - began) / self._count
        return state.variables

    def _write(self, history, records, first, last, epochs):
        runs, size = 2 * self.plan.many, last - first
        place = (slice(None),) * runs
        records = jax.tree.map(
            lambda series: series[*place, :size], jax.device_get(records)
        )
        for name, series in training.computed(records).items():
            if name not in history:
                shape = (*series.shape[:runs], epochs)
                history[name] = np.full(shape, np.nan, np.float32)
            history[name][..., first:last] = series

    def _report(self, name, done, history):
        if self._observe is not None:
            self._observe(name, done, history)

    def records(self, notes: Sequence[Sequence[str]]) -> list[methods.Record]:
        """The record of each run."""
        histories = self.take(self.history)
        return [
            methods.Record(history, dict(self.seconds), tuple(own))
            for history, own in zip(histories, notes, strict=True)
        ]


@functools.partial(jax.jit, static_argnums=1)
def _derived(keys, count):
    uses = jnp.arange(count)  # mapped, since XLA compiles each `fold_in` anew
    found = jax.vmap(lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, uses))
    found = found(jnp.stack(keys))
    return [[own[i] for own in found] for i in range(count)]


@functools.lru_cache(maxsize=16)
def _init(objective, shape, plan):
    def init(key):
        return objective.init(key, jnp.zeros(shape))

    return plan.compile(init, options=fast_cpu.quick_options())


def _slower(state, history, epoch, error) -> jax.Array:
    """A tenth for the runs that have diverged; raises once that is of no avail."""
    diverged = ~np.isfinite(history["loss"][..., epoch])
    slower = jnp.where(diverged, 0.1 * state.slowdown, state.slowdown)
    least = float(jnp.min(slower))
    if least < 0.9e-5:
        raise training.DivergenceError(
            f"{error} (rolled back five times already)"
        ) from error
    logging.getLogger(__name__).warning(
        "%s; rolled back, updates are now times %.0e", error, least
    )
    return slower


def check_finite(history: History, epoch: int) -> None:
    """Raises `DivergenceError` if the loss of an epoch is not a finite number."""
    loss = np.asarray(history["loss"])[..., epoch]
    if not np.isfinite(loss).all():
        raise training.DivergenceError(
            f"training diverged: the loss of epoch {epoch + 1} is "
            f"{loss[~np.isfinite(loss)].flat[0]}; try a smaller learning rate or a "
            "larger batch, and look for extreme values in the data"
        )


@functools.lru_cache(maxsize=32)
def _evaluator(objective, name, plan, shape, variables):
    del variables  # their shapes

    def function(variables, x):
        return parallel.gather(
            getattr(objective, name)(variables, training.as_float(x))
        )

    on_cpu = jax.default_backend() == "cpu"
    conv = on_cpu and plan.devices == 1 and is_convolutional(objective, shape)
    # Else the same as where devices share the rows, which get the same bits.
    options = fast_cpu.compiler_options() if conv else None
    return plan.compile(function, split=1, options=options)


def evaluate(
    objective: Any,
    name: str,
    variables: Variables,
    x: np.ndarray,
    plan: parallel.Plan | None = None,
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """Applies a function of an objective to many examples, a chunk at a time.

    Args:
        objective: what has the function.
        name: of the function `(variables, x [batch, ...]) -> [batch, ...]`.
        variables: its first argument.
        x: prepared inputs, `[n, ...]`, uint8 or float32.
        plan: devices that share each chunk.
        rows: those of x to evaluate; all by default.

    Returns:
        `[n or len(rows), ...]`.
    """
    plan = plan or parallel.one()
    shapes = tuple(np.shape(leaf) for leaf in jax.tree.leaves(variables))
    function = _evaluator(objective, name, plan, x.shape[1:], shapes)
    variables = jax.device_put(variables)
    size = len(x) if rows is None else len(rows)
    sizes = _CHUNKS if x.ndim > 2 else _TABLE_CHUNKS
    chunk = next((c for c in sizes if size <= c), sizes[-1]) * plan.devices
    results = []
    for first in range(0, size, chunk):
        place = slice(first, first + chunk)
        part = x[place] if rows is None else x[rows[place]]
        missing = chunk - len(part)
        if missing:
            part = np.pad(part, ((0, missing), *((0, 0),) * (x.ndim - 1)))
        results.append(function(variables, plan.by_device(part)))
    return np.concatenate(jax.device_get(results))[:size]


def _parts(objective, name, variables, data, plan):
    if isinstance(data, streams.Stream):
        for x, targets in data.batches():
            yield evaluate(objective, name, variables, x, plan), targets
        return
    size = int(data.size)
    for first in range(0, size, _BLOCK):
        rows = data.indices[first : min(first + _BLOCK, size)]
        targets = data.semi_targets[first : first + len(rows)]
        yield evaluate(objective, name, variables, data.x, plan, rows), targets
