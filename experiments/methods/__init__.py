"""The methods, by the value of `config.method`."""

from experiments.methods import deep_sad, shallow
from experiments.methods.method import Method, Outcome

__all__ = ["METHODS", "Method", "Outcome", "of"]

METHODS = {
    "deep_sad": deep_sad.METHOD,
    **dict.fromkeys(("ssad", "ocsvm", "kde", "isoforest"), shallow.METHOD),
}


def of(config) -> Method:
    """The method that a config names.

    Raises:
        ValueError: if there is none of that name.
    """
    if config.method not in METHODS:
        raise ValueError(
            f"config.method is {config.method!r}; it must be one of "
            f"{', '.join(METHODS)}"
        )
    return METHODS[config.method]
