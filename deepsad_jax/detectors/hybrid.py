"""Hybrids: a shallow detector on an autoencoder's codes, as in Deep SAD's paper."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from deepsad_jax import selection


@dataclasses.dataclass(frozen=True)
class OnCodes:
    """A shallow detector's score of an encoder's codes.

    Attributes:
        encoder: an objective with `embed`.
        inner: the detector's objective.
        reference: an objective of the linear kernel on the same codes, or None.
    """

    encoder: Any
    inner: Any
    reference: Any = None

    def score(self, variables: dict[str, Any], x: jax.Array) -> jax.Array:
        """Scores, `[batch]`; `variables` are those of `encoder` and of `inner`."""
        return self.inner.score(variables["inner"], self.embed(variables, x))

    def embed(self, variables: dict[str, Any], x: jax.Array) -> jax.Array:
        """Codes, `[batch, rep_dim]`."""
        return self.encoder.embed(variables["encoder"], x)


@dataclasses.dataclass(frozen=True)
class Hybrid:
    """An autoencoder and the detector on its codes.

    Attributes:
        autoencoder: options of a method whose models have codes; None where `fit` is
            always given a model.
        detector: options of a shallow method.
    """

    autoencoder: Any
    detector: selection.Shallow

    def stages(self) -> dict[str, int]:
        """The stages with their steps, the autoencoder's first."""
        trained = self.autoencoder.stages() if self.autoencoder is not None else {}
        return {**trained, **self.detector.stages()}

    def check(self, data: Any, seed: int = 0) -> None:
        """Raises ValueError for options that do not fit the data."""
        if self.autoencoder is not None:
            self.autoencoder.check(data)
        self.detector.check(data, seed)

    def fit(
        self,
        key: jax.Array,
        data: Any,
        *,
        preprocessing: Any = None,
        plan: Any = None,
        observe: Callable | None = None,
        keeper: Any = None,
        seed: int = 0,
        selection_set: tuple[np.ndarray, np.ndarray] | None = None,
        initial: Any = None,
    ) -> tuple[Any, Any]:
        """Trains the autoencoder, then fits the detector to its codes.

        Args:
            key, plan, keeper: of the autoencoder's training.
            data, preprocessing, observe, seed, selection_set: see
                `selection.Shallow.fit`.
            initial: a `model.Model` with codes that serves as the autoencoder, with its
                own preprocessing; none is trained then.

        Returns:
            A model whose base is the autoencoder's, and a record of both.

        Raises:
            ValueError: for options that do not fit the data, and where the autoencoder
                has no codes.
        """
        from deepsad_jax import model, training

        self.detector.check(data, seed)
        record = training.Record({}, {}, (), {})
        if initial is None:
            if self.autoencoder is None:
                raise ValueError(
                    "initial is None; without autoencoder it must be given"
                )
            common = {"plan": plan, "observe": observe, "keeper": keeper}
            initial, record = self.autoencoder.fit(
                key, data, preprocessing=preprocessing, **common
            )
        if not hasattr(initial.objective, "embed"):
            kind = type(initial.objective).__name__
            raise ValueError(f"initial is a model of {kind}, which has no codes")

        def codes(x):
            return selection.as_table(model.embed(initial, x, plan=plan))

        x, semi_targets = selection.examples(data)
        x = codes(x)
        if selection_set is not None:
            selection_set = codes(np.asarray(selection_set[0])), selection_set[1]
        began = time.perf_counter()
        (inner, variables), found = self.detector.fit_rows(
            x, semi_targets, seed=seed, observe=observe, selection_set=selection_set
        )
        seconds = {selection.STAGE: time.perf_counter() - began}
        parts = {"encoder": initial.variables, "inner": variables}
        reference = None
        if hasattr(self.detector, "linear") and self.detector.kernel != "linear":
            fit = self.detector.linear().prepare(x, semi_targets, seed)
            reference, parts["reference"] = fit(1.0)
        fitted = model.Model(
            variables=parts,
            objective=OnCodes(initial.objective, inner, reference),
            preprocessing=initial.preprocessing,
            base=initial,
            info={"method": self.detector.method, "hybrid": True},
        )
        return fitted, training.Record(
            record.history,
            {**record.seconds, **seconds},
            (*record.notes, *self.detector.notes(found)),
            {**record.details, "hybrid": True, "selection": found},
        )


def linear(fitted: Any) -> Any:
    """The hybrid with the linear kernel on the same codes, a `model.Model`, or None.

    The published tables set it beside that of the rbf kernel; it was fitted along.

    Args:
        fitted: the model of a hybrid.
    """
    from deepsad_jax import model

    objective = fitted.objective
    if objective.reference is None:
        return None
    parts = fitted.variables
    return model.Model(
        variables={"encoder": parts["encoder"], "inner": parts["reference"]},
        objective=OnCodes(objective.encoder, objective.reference),
        preprocessing=fitted.preprocessing,
        base=fitted.base,
        info={**fitted.info, "kernel": "linear"},
    )
