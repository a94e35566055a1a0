"""What CPUs are told, and that others are told nothing."""

import ctypes

import jax
import numpy as np
import pytest

from deepsad_jax import cpu_settings, parallel


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_compiler_options_are_for_cpus_of_several_cores(monkeypatch, backend):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    for cores in (1, 2):
        monkeypatch.setattr(parallel, "cores", lambda cores=cores: cores)
        cpu_settings.compiler_options.cache_clear()
        options = cpu_settings.compiler_options()
        if backend == "gpu" or cores == 1:
            assert options is None
        else:  # which this version of XLA may lack
            compiled = jax.jit(lambda x: x + 1, compiler_options=options)
            assert compiled(1) == 2
    cpu_settings.compiler_options.cache_clear()


def draws(key):
    shapes = ((3, 2, 2), (4, 5), (7,))
    keys = jax.random.split(key, 3)
    return [jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True)]


def test_quick_options_change_no_bit_and_are_for_cpus(monkeypatch):
    quick = cpu_settings.quick_options.__wrapped__
    with monkeypatch.context() as patch:
        patch.delenv("XLA_FLAGS", raising=False)
        options, key = quick(), jax.random.key(5)
    assert (options is None) == (jax.default_backend() != "cpu")
    found = jax.jit(draws, compiler_options=options)(key)
    default = options and {"xla_backend_optimization_level": 3}
    expected = jax.jit(draws, compiler_options=default)(key)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=2")
    assert quick() is None
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert quick() is None


def test_freed_memory_is_kept_with_one_arena_for_large_networks(monkeypatch):
    calls = []

    class Library:
        def mallopt(self, parameter, value):
            calls.append((parameter, value))

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    cpu_settings.keep_freed_memory(large=False)
    # glibc's malloc.h: M_MMAP_MAX -4, M_TRIM_THRESHOLD -1, M_ARENA_MAX -8.
    assert calls == [(-4, 0), (-1, 2**31 - 1)]
    cpu_settings.keep_freed_memory(large=True)
    assert calls[2:] == [(-4, 0), (-1, 2**31 - 1), (-8, 1)]


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    cpu_settings.keep_freed_memory(large=True)
