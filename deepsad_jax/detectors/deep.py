"""What all methods that train networks share: prepared data, networks, their checks."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from deepsad_jax import (
    formulations,
    forward,
    methods,
    model,
    modules,
    networks,
    parallel,
    streams,
    training,
)
from deepsad_jax import preprocessing as preprocessings


class Deep(methods.Method):
    """The base of the options of a method that trains networks.

    A subclass is a frozen dataclass with `encoder`, `dtype`, `initial` and its stages,
    that defines `trained`, `objectives(shape)`, what is trained in each, and
    `fit_many`.

    Attributes:
        learns_from_anomalies: whether there must be known anomalies.
    """

    learns_from_anomalies = False

    def trained(self) -> dict[str, training.Stage]:
        """The stages that are trained, in their order."""
        raise NotImplementedError

    def stages(self) -> dict[str, int]:
        """The stages with their epochs."""
        return {name: stage.epochs for name, stage in self.trained().items()}

    def pair(self, shape: tuple[int, ...]) -> networks.Pair:
        """Encoder and decoder for examples of a shape; the decoder may be None.

        Where no encoder is given, they are those of the model to start from.

        Raises:
            ValueError: if the encoder has another name or shape.
        """
        encoder, decoder = self.encoder, getattr(self, "decoder", None)
        start = self.initial if encoder is None else None
        while start is not None:
            encoder = encoder or getattr(start.objective, "encoder", None)
            decoder = decoder or getattr(start.objective, "decoder", None)
            start = start.base
        encoder, decoder = (
            n.module if isinstance(n, modules.Network) else n
            for n in (encoder, decoder)
        )
        if encoder is None or isinstance(encoder, str):
            if encoder is None:
                found = networks.for_shape(shape, dtype=jnp.dtype(self.dtype))
            else:
                found = networks.pair(encoder, dtype=jnp.dtype(self.dtype))
            if found.input_shape != tuple(shape):
                raise ValueError(
                    f"encoder {encoder} takes examples of shape {found.input_shape}, "
                    f"but those of the data have {tuple(shape)}; choose another, or "
                    "None for the one that fits"
                )
            return found if decoder is None else found._replace(decoder=decoder)
        if decoder is not None and hasattr(decoder, "dtype"):
            decoder = self._typed(decoder)
        return networks.Pair(self._typed(encoder), decoder, tuple(shape))

    def _typed(self, module):
        if jnp.dtype(self.dtype) == jnp.float32:
            return module
        if not hasattr(module, "dtype") or not hasattr(module, "clone"):
            raise ValueError(
                f"dtype is {self.dtype}; an encoder of your own must have a field "
                "dtype to be computed in another type than float32"
            )
        return module.clone(dtype=jnp.dtype(self.dtype))

    def check(self, run: methods.Run, devices: int = 1) -> None:
        data = run.data
        try:
            is_known = jnp.dtype(self.dtype).name in ("float32", "bfloat16")
        except TypeError:
            is_known = False
        if not is_known:
            raise ValueError(f"dtype is {self.dtype!r}; it must be float32 or bfloat16")
        if self.initial is not None and not isinstance(self.initial, model.Model):
            raise ValueError(
                f"initial is a {type(self.initial).__name__}; it must be a model"
            )
        for name, stage in self.trained().items():
            if not isinstance(stage, training.Stage):
                raise ValueError(f"{name} is {stage!r}; it must be a training.Stage")
        if not isinstance(data, (training.TrainingSet, streams.OnDisk)):
            return
        shape = self._features(run)
        pair = self.pair(shape)
        for name, stage in self.trained().items():
            try:
                training.check_batches(stage, int(data.size), devices)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        self._check_start(pair)
        targets = np.asarray(data.semi_targets)[: int(data.size)]
        self._check_anomalies(np.any(targets == -1))
        for objective in self.objectives(shape):
            forward.check_state(objective, shape)

    def _check_start(self, pair):
        if self.initial is None:
            return
        takes, shape = tuple(self.initial.info["shape"]), pair.input_shape
        takes = self.initial.preprocessing.features(takes)
        if takes != shape:
            raise ValueError(
                f"initial is a model of examples of shape {takes}, but those of the "
                f"data have {shape}"
            )
        self.check_initial(pair)

    def _check_anomalies(self, there_are):
        learns = any(stage.epochs for stage in self.trained().values())
        if self.learns_from_anomalies and learns and not there_are:
            raise ValueError(
                f"{self.method} learns from known anomalies, but there are none; "
                "some of the semi_targets must be -1"
            )

    def check_initial(self, pair: networks.Pair) -> None:
        """Raises ValueError if the model to start from is of another method."""
        if self.initial.info["method"] != self.method:
            raise ValueError(
                f"initial is a model of {self.initial.info['method']}, from which "
                f"{self.method} cannot start"
            )

    def prepared(
        self, runs: Sequence[methods.Run], plan: parallel.Plan | None
    ) -> tuple[list, list[preprocessings.Preprocessing]]:
        """Checked training sets whose `x` is scaled, and their preprocessing."""
        if plan is not None and not isinstance(plan, parallel.Plan):
            raise ValueError(f"plan is {plan!r}; it must be a parallel.Plan")
        devices = plan.share if plan is not None else 1
        for run in runs:
            training.check_key(run.key)
            self.check(run, devices)
        if not isinstance(runs[0].data, training.TrainingSet):
            (run,), stages = runs, self.trained().values()
            scaling = self._known_preprocessing(run)
            if isinstance(run.data, streams.OnDisk):
                stream = streams.Stored(run.data, scaling)
            else:
                stream = streams.Stream(
                    run.data,
                    passes=sum(stage.epochs for stage in stages) + self.other_passes(),
                    needs_steps=any(s.needs_steps and s.epochs for s in stages),
                    scaling=scaling,
                    devices=devices,
                )
            self._check_anomalies(stream.has_anomalies)
            self._check_start(self.pair(stream.shape))
            for objective in self.objectives(stream.shape):
                forward.check_state(objective, stream.shape)
            return [stream], [stream.preprocessing]
        ready, found, shared = [], [], {}
        for run in runs:
            data, scaling = run.data, self._known_preprocessing(run)
            if scaling is None:
                scaling = preprocessings.auto(data.x[data.indices[: int(data.size)]])
            if (id(data.x), scaling) not in shared:
                scaling.check(data.x, "x")
                shared[id(data.x), scaling] = preprocessings.prepared(scaling, data.x)
            ready.append(data._replace(x=shared[id(data.x), scaling]))
            found.append(scaling)
        size = max(len(data.indices) for data in ready)
        return [training.padded(data, size) for data in ready], found

    def _known_preprocessing(self, run):
        found = run.preprocessing or getattr(self.initial, "preprocessing", None)
        if found is not None and not isinstance(found, preprocessings.Preprocessing):
            raise ValueError(f"preprocessing is {found!r}; it must be a Preprocessing")
        return found

    def _features(self, run):
        """The shape of a prepared example."""
        shape, found = tuple(run.data.x.shape[1:]), self._known_preprocessing(run)
        return shape if found is None else found.features(shape)

    def other_passes(self) -> int:
        """How often training passes through the data beside its epochs."""
        return 0

    def plan_for(self, runs: Sequence[methods.Run]) -> parallel.Plan | None:
        if not all(isinstance(run.data, training.TrainingSet) for run in runs):
            return None
        if any(
            stage.fixes_steps
            and len({int(run.data.size) // stage.batch_size for run in runs}) > 1
            for stage in self.trained().values()
        ):
            return None  # each has an optimizer of its own
        x, scaling = runs[0].data.x, self._known_preprocessing(runs[0])
        shape = self._features(runs[0])
        is_shared = all(
            run.data.x is x and self._known_preprocessing(run) == scaling
            for run in runs
        )
        plan = parallel.many(
            len(runs),
            shared_inputs=is_shared and scaling is not None,
            # Images train long enough to be worth checkpoints of their own.
            convolutional=x.ndim > 2
            or any(
                forward.is_convolutional(objective, shape)
                for objective in self.objectives(shape)
            ),
        )
        if plan is None or not plan.together:
            return plan
        size = max(stage.batch_size for stage in self.trained().values())
        objectives = self.objectives(shape)
        return formulations.fastest(plan, objectives, shape, size, len(runs))


def is_own(network: modules.Network) -> bool:
    """Whether a network comes from a user."""
    return not type(network.module).__module__.startswith("deepsad_jax.")
