"""The arguments of estimators: their own, and the options of a method."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

_OWN = {
    "random_state": 0,
    "false_alarm_rate": 0.05,
    "calibration": 0.2,
    "scaling": "minmax",
}
# What scikit-learn takes as a default; others are written "default".
_PLAIN = (str, int, float, bool, tuple, type(None))


def init_of(method: Any, other: dict[str, Any]) -> Callable[..., None]:
    """An `__init__` that keeps its arguments, those of `_OWN` and the options.

    Args:
        method: has the options.
        other: defaults that are other than the method's.
    """
    kind = inspect.Parameter.KEYWORD_ONLY
    defaults = dict(_OWN)
    for field in dataclasses.fields(method):
        is_plain = isinstance(field.default, _PLAIN)
        defaults[field.name] = field.default if is_plain else "default"
    defaults |= other
    found = [inspect.Parameter(n, kind, default=d) for n, d in defaults.items()]
    signature = inspect.Signature(
        [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD), *found]
    )

    def __init__(self, **arguments):
        bound = signature.bind(self, **arguments)
        bound.apply_defaults()
        for name in defaults:
            setattr(self, name, bound.arguments[name])

    __init__.__signature__ = signature
    return __init__
