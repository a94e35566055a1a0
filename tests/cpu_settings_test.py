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


def test_less_effort_changes_no_draw_and_is_for_cpus(monkeypatch):
    options = cpu_settings.training_options
    is_cpu, key = jax.default_backend() == "cpu", jax.random.key(5)
    with monkeypatch.context() as patch:
        patch.delenv("XLA_FLAGS", raising=False)
        usual, brief = options(), options(cpu_settings.BRIEF)
        images = options(cpu_settings.SHORT, convolutional=True)
    assert is_cpu == (usual is not None) == (brief is not None)
    if is_cpu:
        level = "xla_backend_optimization_level"
        assert (usual[level], brief[level], images[level]) == (1, 0, 1)
        library = cpu_settings.compiler_options() or {}
        assert library.items() <= images.items() and not library.keys() & brief.keys()
    found = jax.jit(draws, compiler_options=usual)(key)
    default = usual and {"xla_backend_optimization_level": 3}
    expected = jax.jit(draws, compiler_options=default)(key)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=2")
    assert options(cpu_settings.BRIEF) is None
    assert options(convolutional=True) == cpu_settings.compiler_options()
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert options() is None


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
