"""Deep semi-supervised anomaly detection (Deep SAD) in JAX.

Modules are imported one by one: `from deepsad_jax import losses` loads JAX and nothing
heavier.
"""

__version__ = "0.1.0"
