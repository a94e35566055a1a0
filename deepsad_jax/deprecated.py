"""What version 0.1 called otherwise: it works until 0.3, and says what to use.

    from deepsad_jax import deep_sad
    model = deep_sad.fit(key, data, network="cardio_mlp")  # a DeprecationWarning

Rows are used as they are given, since version 0.1 had them scaled before.
"""

import importlib
import types
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def warn(old: str, new: str) -> None:
    """Warns the caller of what has called this."""
    warnings.warn(
        f"{old} is of version 0.1 and will be gone in 0.3; use {new}",
        DeprecationWarning,
        stacklevel=3,
    )


def getter(module: str, names: Mapping[str, Any]) -> Callable[[str], Any]:
    """A `__getattr__` for a module that knows old names.

    Args:
        module: its name.
        names: old names to what they give.
    """

    def __getattr__(name: str) -> Any:
        if name in names:
            return names[name]
        raise AttributeError(f"module 'deepsad_jax.{module}' has no attribute {name!r}")

    return __getattr__


def _fit_deep_sad(key, data, *, network, execution=None, on_epochs=None, **options):
    from deepsad_jax import preprocessing
    from deepsad_jax.detectors import deep_sad

    warn("deep_sad.fit", "deepsad_jax.fit, which returns a model and a record")
    options |= {"encoder": network, "plan": execution, "observe": on_epochs}
    as_given = preprocessing.Unchanged()
    return deep_sad.fit(key, data, preprocessing=as_given, **options)[0]


def _fit_method(key, data, name, options):
    from deepsad_jax import detectors, preprocessing

    run = {"plan": options.pop("execution", None)}
    run |= {"observe": options.pop("on_epochs", None)}
    run |= {"keeper": options.pop("keeper", None)}
    options["encoder"] = options.pop("network")
    method = detectors.METHODS[name](**options)
    return method.fit(key, data, preprocessing=preprocessing.Unchanged(), **run)[0]


def _fit_dgm(key, data, *, method="m2", **options):
    warn("dgm.fit", f"deepsad_jax.detectors.METHODS[{method!r}](...).fit")
    if method == "vae":
        options.pop("train", None)
    return _fit_method(key, data, method, options)


def _fit_supervised(key, data, **options):
    warn("supervised.fit", "deepsad_jax.detectors.METHODS['supervised'](...).fit")
    return _fit_method(key, data, "supervised", options)


def _score(old):
    def score(model: Any, x: Any, *, execution: Any = None) -> Any:
        from deepsad_jax import model as models

        warn(f"{old}.score", "deepsad_jax.score")
        return models.score(model, x, plan=execution)

    return score


def _embed(model, x, *, execution=None):
    from deepsad_jax import model as models

    warn("deep_sad.embed", "deepsad_jax.embed")
    return models.embed(model, x, plan=execution)


def _reconstruction_score(model, x, *, execution=None):
    from deepsad_jax import model as models

    warn("deep_sad.reconstruction_score", "deepsad_jax.score(model.base, x)")
    return models.score(model.base, x, plan=execution)


def _moved(old: str, module: str, name: str) -> Callable:
    """A function that has another place and the same arguments."""

    def function(*arguments: Any, **options: Any) -> Any:
        warn(old, f"deepsad_jax.{module}.{name}")
        found = getattr(importlib.import_module(f"deepsad_jax.{module}"), name)
        return found(*arguments, **options)

    return function


def _optimization(
    learning_rate: float = 1e-4,
    epochs: int = 150,
    milestones: tuple[int, ...] = (50,),
    batch_size: int = 128,
    weight_decay: float = 0.5e-6,
    on_divergence: str = "stop",
) -> Any:
    from deepsad_jax import training

    warn("training.Optimization", "deepsad_jax.Stage(training.Adam(...), epochs=...)")
    adam = training.Adam(learning_rate, milestones, weight_decay)
    return training.Stage(adam, epochs, batch_size, on_divergence)


def _execution(*, devices: int = 1) -> Any:
    from deepsad_jax import parallel

    warn("parallel.Execution", "deepsad_jax.parallel.split_batch(devices)")
    return parallel.split_batch(devices)


_MACHINES = "detectors.kernel_machines"
# Modules of version 0.1 that are no more, with what they had.
MODULES = {
    "deep_sad": types.SimpleNamespace(
        fit=_fit_deep_sad,
        score=_score("deep_sad"),
        embed=_embed,
        reconstruction_score=_reconstruction_score,
    ),
    "dgm": types.SimpleNamespace(fit=_fit_dgm, score=_score("dgm")),
    "supervised": types.SimpleNamespace(
        fit=_fit_supervised, score=_score("supervised")
    ),
    "ssad": types.SimpleNamespace(
        fit=_moved("ssad.fit", _MACHINES, "fit_ssad"),
        score=_moved("ssad.score", _MACHINES, "score"),
    ),
    "ocsvm": types.SimpleNamespace(
        fit=_moved("ocsvm.fit", _MACHINES, "fit_ocsvm"),
        score=_moved("ocsvm.score", _MACHINES, "score"),
    ),
    "kde": types.SimpleNamespace(
        fit=_moved("kde.fit", "detectors.kde", "fit"),
        score=_moved("kde.score", "detectors.kde", "score"),
    ),
}
# What modules that still are had.
CHECKPOINTS = {
    "save_model": lambda path, model: _moved("checkpoints.save_model", "model", "save")(
        model, path
    ),
    "load_model": _moved("checkpoints.load_model", "model", "load"),
}
TRAINING = {"Optimization": _optimization}
PARALLEL = {"Execution": _execution}
