"""Hybrids: a shallow detector on an autoencoder's codes, as in Deep SAD's paper."""

import dataclasses
import time
from typing import Any, ClassVar

import jax

from deepsad_jax import methods, selection
from deepsad_jax.detectors import kernel_machines

# Parts of the variables of the linear reference, by their names in the hybrid's.
_LINEAR = {"autoencoder": "autoencoder", "inner": "reference"}


@dataclasses.dataclass(frozen=True)
class OnCodes:
    """A shallow detector's score of an encoder's codes.

    Attributes:
        autoencoder: an objective with `embed`.
        inner: the detector's objective.
        reference: an objective of the linear kernel on the same codes, or None.
    """

    autoencoder: Any
    inner: Any
    reference: Any = None
    float64: ClassVar[bool] = True

    def score(self, variables: dict[str, Any], x: jax.Array) -> jax.Array:
        """Scores, `[batch]`; `variables` are those of `autoencoder` and `inner`."""
        return self.inner.score(variables["inner"], self.embed(variables, x))

    def embed(self, variables: dict[str, Any], x: jax.Array) -> jax.Array:
        """Codes, `[batch, rep_dim]`, in float32 whatever the detector computes in."""
        with jax.enable_x64(False):
            return self.autoencoder.embed(variables["autoencoder"], x)


@dataclasses.dataclass(frozen=True)
class Hybrid(methods.Method):
    """An autoencoder and the detector on its codes.

    Attributes:
        autoencoder: options of a method whose models have codes.
        detector: options of a shallow method.
        initial: a `model.Model` that serves as the autoencoder, with its own
            preprocessing; none is trained then.
    """

    autoencoder: Any
    detector: selection.Shallow
    initial: Any = None

    def stages(self) -> dict[str, int]:
        """The stages with their steps, the autoencoder's first."""
        trained = self.autoencoder.stages() if self.initial is None else {}
        return {**trained, **self.detector.stages()}

    def check(self, run: methods.Run, devices: int = 1) -> None:
        self.detector.check(run)
        if self.initial is None:
            self.autoencoder.check(run, devices)
        elif not hasattr(self.initial.objective, "embed"):
            kind = type(self.initial.objective).__name__
            raise ValueError(f"initial is a model of {kind}, which has no codes")

    def plan_for(self, runs):
        return None if self.initial is not None else self.autoencoder.plan_for(runs)

    def fit_many(self, runs, *, plan=None, observe=None, keeper=None):
        """Trains the autoencoders as the plan says, then fits to their codes."""
        for run in runs:
            self.check(run)
        if self.initial is not None:
            trained = [(self.initial, methods.Record({}, {}))] * len(runs)
        else:
            shared = {"plan": plan, "observe": observe, "keeper": keeper}
            trained = self.autoencoder.fit_many(runs, **shared)
        return [
            self._on_codes(base, run, observe)
            for base, run in zip(trained, runs, strict=True)
        ]

    def _on_codes(self, trained, run, observe):
        from deepsad_jax import model

        (base, record), seed, selection_set = trained, run.seed, run.selection_set
        raw, semi_targets = selection.examples(run.data)
        x = selection.as_table(model.embed(base, raw))
        if selection_set is not None:
            few, labels = selection_set
            selection_set = selection.as_table(model.embed(base, few)), labels
        began = time.perf_counter()
        options = {"seed": seed, "observe": observe, "selection_set": selection_set}
        (inner, variables), found = self.detector.fit_rows(x, semi_targets, **options)
        seconds = {selection.STAGE: time.perf_counter() - began}
        parts, reference = {"autoencoder": base.variables, "inner": variables}, None
        if (
            isinstance(inner, kernel_machines.KernelMachine)
            and inner.kernel != "linear"
        ):
            detector = dataclasses.replace(self.detector, kernel="linear")
            reference, parts["reference"] = detector.prepare(x, semi_targets, seed)(1.0)
        objective = OnCodes(base.objective, inner, reference)
        shape, method = raw.shape[1:], self.detector.method
        made = model.make(method, objective, parts, base.preprocessing, shape, base)
        return made, methods.Record(
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
    objective, parts = fitted.objective, fitted.variables
    if objective.reference is None:
        return None
    return dataclasses.replace(
        fitted,
        variables={n: parts[m] for n, m in _LINEAR.items()},
        objective=OnCodes(objective.autoencoder, objective.reference),
    )
