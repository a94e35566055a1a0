"""The methods, by the value of `config.method`."""

from experiments.methods import deep_sad, labelled, shallow
from experiments.methods.method import Method, Outcome

__all__ = ["METHODS", "Method", "Outcome", "of"]

METHODS = {
    **dict.fromkeys(deep_sad.LOSSES, deep_sad.METHOD),
    "autoencoder": deep_sad.AUTOENCODER,
    "vae": labelled.VAE,
    "m2": labelled.M2,
    "m1_m2": labelled.M1_M2,
    "supervised": labelled.SUPERVISED,
    **dict.fromkeys(("ssad", "ocsvm", "kde", "isoforest"), shallow.METHOD),
}


def of(config) -> Method:
    """The method that a config names.

    Raises:
        ValueError: if there is none of that name.
    """
    name = config.get("method")
    if not isinstance(name, str) or name not in METHODS:
        found = repr(name) if isinstance(name, str) else f"of {type(name)}"
        raise ValueError(
            f"config.method is {found}; it must be one of {', '.join(METHODS)}"
        )
    return METHODS[name]
