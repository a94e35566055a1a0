"""Scores rows over HTTP by JAX alone, with a program of `deepsad export`.

    pip install jax flatbuffers
    python serve_stablehlo.py pump.export 8000
    curl localhost:8000 -d '[{"plant": "A", "pressure": 0.3, "speed": null}]'

The answer has a list for each output that export.json names.
"""

import sys

import jax
import numpy as np
import rows
from jax import export

about, content = rows.opened(sys.argv[1])
jax.config.update("jax_enable_x64", True)
call = jax.jit(export.deserialize(bytearray(content)).call)


def program(x):
    """For powers of two alone, since each number of rows is compiled once."""
    padded = np.resize(x, (1 << (len(x) - 1).bit_length(), *x.shape[1:]))
    return {name: y[: len(x)] for name, y in jax.device_get(call(padded)).items()}


rows.serve(about, program, int(sys.argv[2]))
