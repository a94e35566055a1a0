"""The one way through the epochs, and the one way to evaluate.

Programs are compiled once for equal values; see `loops` for what they are.
"""

import concurrent.futures
import functools
import json
import math
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deepsad_jax import (
    cpu_settings,
    divergence,
    forward,
    methods,
    optimizers,
    parallel,
    streams,
    training,
    values,
)
from deepsad_jax.loops import PIECE, Programs

Variables = dict[str, Any]
History = dict[str, np.ndarray]

# Inputs and parameters, times the steps of a stage, below which less is spent on
# compiling: some tenths of a second of computing, of tables, and of images and series.
_BRIEF, _SHORT = 4_000_000, 20_000_000
# Traces and compiles what others will need; what fails there fails again where it is
# needed. One at a time each: more would only share the time.
_TRACES = concurrent.futures.ThreadPoolExecutor(1, "tracing")
_COMPILES = concurrent.futures.ThreadPoolExecutor(1, "compilation")


# What is found again: enough for the stages of a few methods on data of a few shapes,
# and not without end.
@functools.lru_cache(maxsize=16)
def _programs(
    objective, optimizer, batch_size, plan, convolutional, effort, steps, differ
):
    del differ
    if steps is not None:
        optimizer = optimizer(steps)
    stage = training.Stage(optimizer, batch_size=batch_size)
    return Programs(objective, stage, plan, convolutional, effort)


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
        if keeper is not None and not hasattr(keeper, "restore"):
            raise ValueError(f"keeper is {keeper!r}; it must be a checkpoints.Keeper")
        self.plan, self.sets = plan or parallel.one(), sets
        self.history: dict[str, History] = {}
        self.seconds: dict[str, float] = {}
        self._observe, self._keeper = observe, keeper
        self._keys, self._uses = tuple(keys), uses
        self._count, self._warming = len(keys), {}
        self.data = self._on_device()

    @functools.cached_property
    def keys(self) -> dict[str, Any]:
        """The key of each use, of each run."""
        derived = _derived()(self._keys, len(self._uses))
        return {use: self.put(derived[i]) for i, use in enumerate(self._uses)}

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
        with jax.debug_nans(False):  # a center that is not yet known
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
            yield forward.parts(objective, name, variables, data, plan)

    def warm(self, name: str, objective: Any, stage: training.Stage) -> None:
        """Compiles what `run` will need, in the background of what comes before."""
        # Processes must start programs that talk to each other in one order.
        is_alone = self.plan.processes == 1
        if stage.epochs and is_alone and not isinstance(self.data, streams.Stream):
            self._warming[name] = _TRACES.submit(self._warm, objective, stage)

    def _warm(self, objective, stage):
        """Traces a stage; returns the future of its compilation."""
        key = self.put([jax.random.key(0)] * self._count)
        variables = jax.tree.map(
            lambda leaf: np.zeros(key.shape + leaf.shape, leaf.dtype),
            forward.initial(objective, self.shape),
        )
        made = self._programs(objective, stage)
        arguments = made.start(variables), self.data, key, 0, 0
        if made.per_step:
            return _COMPILES.submit(int)
        if hasattr(made.loop, "lower"):
            return _COMPILES.submit(made.loop.lower(*arguments).compile)
        return _COMPILES.submit(made.loop, *arguments)

    def _programs(self, objective, stage):
        is_stream = isinstance(self.data, streams.Stream)
        shapes = [self.example] if is_stream else self.data
        found = (objective, stage.optimizer, stage.batch_size, self.plan)
        found = (*found, forward.is_convolutional(objective, self.shape))
        found = (*found, self._effort(objective, stage))
        size, steps = stage.batch_size, []
        if stage.fixes_steps:
            steps = [
                s.steps(size) if is_stream else int(s.size) // size for s in self.sets
            ]
        if len({*steps}) > 1:
            raise ValueError(
                "the optimizer is made for a number of steps, but the runs have "
                f"{min(steps)} to {max(steps)} in an epoch; leave out the plan"
            )
        known = max(1, steps[0]) if steps else None
        # What a function reads from outside counts, too.
        differ = values.key(stage.optimizer), *((a.shape, a.dtype) for a in shapes)
        return _programs(*found, known, differ)

    def _effort(self, objective, stage):
        """What it is worth to spend on compiling what computes so little."""
        if isinstance(self.data, streams.Stream) or getattr(
            objective, "is_random", False
        ):
            # Random draws alone and among many runs would not be the same bits.
            return cpu_settings.USUAL
        leaves = jax.tree.leaves(forward.initial(objective, self.shape))
        numbers = stage.batch_size * math.prod(self.shape)
        numbers += sum(math.prod(leaf.shape) for leaf in leaves)
        is_table = len(self.shape) == 1
        # Of tables all rows there are, whatever runs are trained together; a CPU trains
        # others one by one.
        sizes = [len(data.x) if is_table else int(data.size) for data in self.sets]
        numbers *= stage.epochs * max(1, max(sizes) // stage.batch_size)
        if not is_table:
            return cpu_settings.SHORT if numbers < _SHORT else cpu_settings.USUAL
        return cpu_settings.BRIEF if numbers < _BRIEF else cpu_settings.USUAL

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
                may raise `TrainingError`. `divergence.check_finite` by default.

        Raises:
            training.TrainingError: as `check` does, unless training is rolled back.
        """
        began, check = time.perf_counter(), check or divergence.check_finite
        key, data = self.keys[name], self.data
        start, advance = self._ready(name, objective, stage)
        state = start(variables)
        optimizers.warn_of_averages(state.opt_state)
        fit = "" if self._keeper is None else self._fingerprint(objective, stage)
        first, seconds, state, history = self._begun(name, state, key, stage, fit)
        began, done, piece = began - seconds, first, 1
        while done < stage.epochs:
            last, clock = min(done + piece, stage.epochs), time.perf_counter()
            if stage.on_divergence == "rollback":
                before = jax.tree.map(jnp.copy, state)
            state, records = advance(state, data, key, done, last)
            self._write(history, records, done, last, stage.epochs)
            divergence.mark(history, state, last - 1)
            seconds = time.perf_counter() - clock
            try:
                for epoch in range(done, last):
                    check(history, epoch)
            except training.DivergenceError as error:
                if stage.on_divergence == "stop":
                    raise
                state, done = divergence.rolled_back(
                    lambda s, last, first=done: advance(s, data, key, first, last),
                    *(before, start(variables), history, done, epoch, error),
                )
                piece = 1
                continue
            # The first piece includes the compilation and says nothing of the speed.
            if done > first:
                piece = self._next_piece(last - done, seconds)
            done = last
            self._report(name, done, history)
            if self._keeper is not None:
                seconds = time.perf_counter() - began
                saved = (name, done, seconds, state, history, key, fit)
                self._keeper.offer(*saved, last=done == stage.epochs)
        self.history[name] = history
        self.seconds[name] = (time.perf_counter() - began) / self._count
        return state.variables

    def _ready(self, name, objective, stage):
        """What starts a stage, and what advances it."""
        if name in self._warming:
            traced = self._warming.pop(name)
            if traced.exception() is None:
                concurrent.futures.wait([traced.result()])
        made = self._programs(objective, stage)
        is_stream = isinstance(self.data, streams.Stream)
        return made.start, made.advance_stream if is_stream else made.advance

    def _fingerprint(self, objective, stage):
        """A text that is another one for other data, and for other settings as far as
        they can be written; how long a stage is, and what it does when it diverges, is
        free."""
        checksum = self._of_data
        for thing in (objective, stage.optimizer):
            try:
                text = json.dumps(values.to_json(thing, missing=True), sort_keys=True)
            except ValueError:  # without an import path
                text = type(thing).__name__
            checksum = zlib.crc32(text.encode(), checksum)
        return f"{stage.batch_size}-{checksum:08x}"

    @functools.cached_property
    def _of_data(self):
        """The checksum of the training sets; streams have none."""
        sets = [s for s in self.sets if not isinstance(s, streams.Stream)]
        inputs = {id(data.x): data.x for data in sets}  # that runs share
        rows = [a[: s.size] for s in sets for a in (s.indices, s.semi_targets)]
        checksum = 0
        for array in map(np.ascontiguousarray, [*inputs.values(), *rows]):
            checksum = zlib.crc32(array.view(np.uint8).reshape(-1), checksum)
        return checksum

    def _begun(self, name, state, key, stage, fit):
        """Epochs done, seconds, state and history: at the start, or as saved."""
        if self._keeper is not None:
            found = self._keeper.restore(name, state, key, stage.epochs, fit)
            if found is not None:
                first, _, _, history = found
                self._report(name, first, history)
                return found
        return 0, 0.0, state, {}

    def _next_piece(self, epochs, seconds):
        """Epochs of about a quarter of a second, after so many in so long."""
        if self.plan.processes > 1:
            return 1  # the same in all of them, whose clocks differ
        piece = math.floor(epochs * min(4.0, 0.25 / seconds))
        return min(max(1, piece), PIECE)

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
        form = self.plan.convolutions
        details = {} if form == "usual" else {"convolutions": form}
        return [
            methods.Record(history, dict(self.seconds), tuple(own), details)
            for history, own in zip(self.take(self.history), notes, strict=True)
        ]


@functools.cache
def _derived():
    def derived(keys, count):
        uses = jnp.arange(count)  # mapped, since XLA compiles each `fold_in` anew
        found = jax.vmap(lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, uses))
        found = found(jnp.stack(keys))
        return [[own[i] for own in found] for i in range(count)]

    options = cpu_settings.training_options(cpu_settings.BRIEF)
    return jax.jit(derived, static_argnums=1, compiler_options=options)


@functools.lru_cache(maxsize=16)
def _init(objective, shape, plan):
    def init(key):
        return objective.init(key, jnp.zeros(shape))

    return plan.compile(init, options=cpu_settings.training_options(cpu_settings.BRIEF))
