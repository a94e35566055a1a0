"""Compiled programs are kept for the whole session, and for the processes it starts."""

import os
import tempfile

import jax

_NAME = "JAX_COMPILATION_CACHE_DIR"
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers share that of their session
    _CACHE = tempfile.TemporaryDirectory()
    os.environ[_NAME] = _CACHE.name
jax.config.update("jax_compilation_cache_dir", os.environ[_NAME])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
