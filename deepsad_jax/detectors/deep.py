"""What all methods that train networks share: prepared data, networks, their checks."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deepsad_jax import (
    epochs,
    modules,
    networks,
    parallel,
    streams,
    training,
)
from deepsad_jax import preprocessing as preprocessings

Fitted = tuple[Any, training.Record]


class Deep:
    """The base of the options of a method that trains networks.

    A subclass is a frozen dataclass with `encoder`, `dtype`, `initial`, the stages that
    `plan_of_stages` names, and a `_fit`.

    Attributes:
        method: short name.
        learns_from_anomalies: whether there must be known anomalies.
    """

    method = ""
    learns_from_anomalies = False

    def trained(self) -> dict[str, training.Stage]:
        """The stages that are trained, in their order."""
        raise NotImplementedError

    def stages(self) -> dict[str, int]:
        """The stages with their epochs."""
        return {name: stage.epochs for name, stage in self.trained().items()}

    def pair(self, shape: tuple[int, ...]) -> networks.Pair:
        """Encoder and decoder for examples of a shape; the decoder may be None.

        Raises:
            ValueError: if the encoder has another name or shape.
        """
        encoder, decoder = self.encoder, getattr(self, "decoder", None)
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

    def check(self, data: training.TrainingSet, devices: int = 1) -> None:
        """Raises ValueError for options that do not fit the data."""
        if str(jnp.dtype(self.dtype)) not in ("float32", "bfloat16"):
            raise ValueError(f"dtype is {self.dtype!r}; it must be float32 or bfloat16")
        if not isinstance(data, training.TrainingSet):
            return
        pair = self.pair(data.x.shape[1:])
        for name, stage in self.trained().items():
            try:
                training.check_batches(stage, int(data.size), devices)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        if self.initial is not None:
            self.check_initial(pair)
        learns = any(stage.epochs for stage in self.trained().values())
        if self.learns_from_anomalies and learns:
            if not np.any(np.asarray(data.semi_targets)[: int(data.size)] == -1):
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

    def fit(
        self,
        key: jax.Array,
        data: Any,
        *,
        preprocessing: preprocessings.Preprocessing | None = None,
        plan: parallel.Plan | None = None,
        observe: Callable | None = None,
        keeper: Any = None,
    ) -> Fitted:
        """Trains one run; see `deep_sad.fit`."""
        options = {"plan": plan, "observe": observe, "keeper": keeper}
        return self.fit_many([key], [data], preprocessings=[preprocessing], **options)[
            0
        ]

    def prepared(
        self, keys: Sequence, sets: Sequence, scalings: Sequence | None, plan: Any
    ) -> tuple[list, list[preprocessings.Preprocessing]]:
        """Checked training sets whose `x` is scaled, and the scalings."""
        for key in keys:
            training.check_key(key)
        scalings = scalings or [None] * len(sets)
        if not isinstance(sets[0], training.TrainingSet):
            stages = self.trained().values()
            stream = streams.Stream(
                sets[0],
                passes=sum(stage.epochs for stage in stages) + self.other_passes(),
                needs_steps=any(s.needs_steps and s.epochs for s in stages),
                scaling=scalings[0] or getattr(self.initial, "preprocessing", None),
            )
            self.check(sets[0])
            return [stream], [stream.preprocessing]
        ready, found, shared = [], [], {}
        for data, scaling in zip(sets, scalings, strict=True):
            scaling = scaling or getattr(self.initial, "preprocessing", None)
            if scaling is None:
                rows = np.asarray(data.indices)[: int(data.size)]
                scaling = preprocessings.auto(np.asarray(data.x)[rows])
            self.check(data, plan.share if plan is not None else 1)
            scaling.check(data.x, "x")
            if (id(data.x), scaling) not in shared:
                shared[id(data.x), scaling] = preprocessings.prepared(scaling, data.x)
            ready.append(data._replace(x=shared[id(data.x), scaling]))
            found.append(scaling)
        size = max(len(data.indices) for data in ready)
        return [training.padded(data, size) for data in ready], found

    def other_passes(self) -> int:
        """How often training passes through the data beside its epochs."""
        return 0

    def plan_for(self, sets: Sequence[training.TrainingSet]) -> parallel.Plan | None:
        """The fastest way to train many runs at once, or None if there is none."""
        shape = sets[0].x.shape[1:]
        return parallel.many(
            len(sets),
            shared_inputs=all(data.x is sets[0].x for data in sets),
            convolutional=any(
                epochs.is_convolutional(objective, shape)
                for objective in self.objectives(shape)
            ),
        )


def is_own(network: modules.Network) -> bool:
    """Whether a network comes from a user."""
    return not type(network.module).__module__.startswith("deepsad_jax.")
