"""Deep SAD on a table of the ODDS library (ICLR 2020, appendix): the argument names it.

    python -m experiments.run --config=configs/odds.py:cardio

Tables: arrhythmia, cardio, satellite, satimage-2, shuttle, thyroid. Class 1 are the
anomalies; one in a hundred training rows is a labeled one.
"""

from configs import default
from deepsad_jax.data import sources


def get_config(table: str = "cardio"):
    if table not in sources.ODDS:
        raise ValueError(
            f"configs/odds.py has no table {table!r}; it has {', '.join(sources.ODDS)}"
        )
    config = default.get_config()
    config.network = f"{table}_mlp"
    config.data.name = table
    config.pretrain.learning_rate = 1e-3
    config.train.learning_rate = 1e-3
    return config
