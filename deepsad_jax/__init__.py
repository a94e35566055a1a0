"""Deep semi-supervised anomaly detection (Deep SAD) in JAX.

    import deepsad_jax as sad

    data = sad.training_set(x, semi_targets)     # +1 normal, 0 unlabeled, -1 anomaly
    model, record = sad.fit(jax.random.key(0), data)
    scores = sad.score(model, new_rows)          # higher = more anomalous

Everything is reachable from here, and imported when it is first used.
"""

import importlib
import types
from typing import Any

__version__ = "0.2.0"

# Names that come from inside a module; all other names are modules.
_FROM = {
    "export": "programs",
    "fit": "detectors.deep_sad",
    "semi_targets": "labels",
    **dict.fromkeys(("Model", "embed", "load", "save", "score"), "model"),
    **dict.fromkeys(("Stage", "training_set"), "training"),
}
_MODULES = (
    "attributions",
    "calibrated",
    "checkpoints",
    "columns",
    "data",
    "decisions",
    "detectors",
    "dual",
    "epochs",
    "estimators",
    "evaluation",
    "examples",
    "explanations",
    "fields",
    "generative",
    "held_out",
    "kernels",
    "labels",
    "layers",
    "losses",
    "methods",
    "metrics",
    "model",
    "modules",
    "networks",
    "nystroem",
    "objectives",
    "onnx_programs",
    "parallel",
    "preprocessing",
    "programs",
    "selection",
    "stored",
    "streams",
    "suggestions",
    "tables",
    "torch_weights",
    "training",
    "values",
)
_OF_VERSION_0_1 = ("deep_sad", "dgm", "kde", "ocsvm", "ssad", "supervised")
__all__ = [*_FROM, *_MODULES]


def __getattr__(name: str) -> types.ModuleType | Any:
    if name in _FROM:
        module = importlib.import_module(f"deepsad_jax.{_FROM[name]}")
        return getattr(module, name)
    if name in _MODULES:
        return importlib.import_module(f"deepsad_jax.{name}")
    if name in _OF_VERSION_0_1:
        return importlib.import_module("deepsad_jax.deprecated").MODULES[name]
    raise AttributeError(f"deepsad_jax has no {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
