"""The config of an earlier run, to repeat or to vary it: the argument is its file.

python -m experiments.run --config=configs/saved.py:runs/first/config.json
"""

import json
import pathlib

from configs import default


def get_config(path: str = ""):
    if not pathlib.Path(path).is_file():
        raise ValueError(
            f"there is no file {path!r}; pass configs/saved.py:PATH/config.json"
        )
    config = default.get_config()
    with open(path, encoding="utf-8") as file:
        config.update(json.load(file, object_hook=_with_tuples))
    return config


def _with_tuples(section):
    """JSON has lists for tuples."""
    return {n: tuple(v) if isinstance(v, list) else v for n, v in section.items()}
