"""What `import deepsad_jax as sad` promises."""

import ast
import importlib
import inspect
import json
import pathlib
import pkgutil
import subprocess
import sys

import pytest

import deepsad_jax as sad

ROOT = pathlib.Path(sad.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MODULES = [
    importlib.import_module(info.name)
    for info in pkgutil.walk_packages(sad.__path__, "deepsad_jax.")
]
# What takes its time, in the order in which a program comes to need it.
LOADED = """
import json, sys
import deepsad_jax as sad
first = sorted(sys.modules)
dir(sad), sad.__version__, sad.__doc__
second = sorted(sys.modules)
import jax, numpy as np
stage = sad.Stage(epochs=1, batch_size=16)
data = sad.training_set(np.random.default_rng(0).random((32, 3)))
model, _ = sad.fit(jax.random.key(0), data, train=stage, pretrain=None)
sad.score(model, data.x)
print(json.dumps([first, second, sorted(sys.modules)]))
"""
HEAVY = {"jax", "numpy", "flax", "optax", "scipy", "sklearn", "orbax", "torch"}
NOT_FOR_A_FIT = {"sklearn", "scipy.stats", "matplotlib", "torch", "orbax.checkpoint"}


def stubs():
    """Names of the stub file, and where they come from."""
    tree = ast.parse((ROOT / "__init__.pyi").read_text())
    found = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            for name in node.names:
                assert name.asname == name.name  # else it would not be public
                found[name.name] = node.module
    return found


def test_the_import_is_light_and_a_fit_imports_what_it_needs():
    output = subprocess.run(
        [sys.executable, "-c", LOADED],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT.parent,
    ).stdout
    first, second, third = (set(names) for names in json.loads(output))
    assert not HEAVY & second
    ours = {name for name in first if name.startswith("deepsad_jax")}
    assert ours == {"deepsad_jax"} and first == second
    assert not NOT_FOR_A_FIT & third


def test_every_name_is_reached_and_typed():
    typed = stubs()
    assert set(dir(sad)) - {"__version__"} == set(typed)
    for name, source in typed.items():
        found = getattr(sad, name)
        if source == "deepsad_jax":
            assert found is importlib.import_module(f"deepsad_jax.{name}")
        else:
            assert found is getattr(importlib.import_module(source), name)
    assert (ROOT / "py.typed").exists()
    namespace = {}
    exec("from deepsad_jax import *", namespace)
    assert set(typed) <= set(namespace)


def test_public_modules_are_all_reached():
    private = {
        "checks",
        "cpu_settings",
        "deprecated",
        "facts",
        "fast_cpu",
        "likeness",
        "shuffles",
        "trees",
    }
    private |= {
        "divergence",
        "formulations",
        "forward",
        "loops",
        "optimizers",
        "patches",
        "pieces",
        "ranges",
        "signatures",
        "version_0_1",
        "writing",
    }
    private |= {
        "__main__",
        "asking",
        "cli",
        "console",
        "continuing",
        "exporting",
        "fitting",
        "new_rows",
        "report",
        "scoring",
        "usage",
    }
    names = {info.name for info in pkgutil.iter_modules(sad.__path__)}
    assert names - private <= set(dir(sad))


@pytest.mark.parametrize("name", ["nothing", "scenario", "Fitted", "fit_"])
def test_wrong_names_are_attribute_errors(name):
    with pytest.raises(AttributeError, match=f"deepsad_jax has no '{name}'"):
        getattr(sad, name)
    assert not hasattr(sad, name)
    with pytest.raises(ImportError):
        exec(f"from deepsad_jax import {name}")


def public(module):
    """Functions and classes that a module defines."""
    for name, thing in vars(module).items():
        is_own = getattr(thing, "__module__", None) == module.__name__
        if is_own and not name.startswith("_"):
            if inspect.isclass(thing) or inspect.isroutine(inspect.unwrap(thing)):
                yield f"{module.__name__}.{name}", thing


def test_all_that_is_public_is_documented():
    missing = [module.__name__ for module in MODULES if not module.__doc__]
    for module in MODULES:
        for path, thing in public(module):
            written = thing.__dict__.get("__doc__") if inspect.isclass(thing) else None
            written = written or inspect.getdoc(thing)
            is_made = (written or "").startswith(f"{path.split('.')[-1]}(")
            if not written or is_made:  # by dataclasses and named tuples
                missing.append(path)
    assert not missing


def test_what_is_documented_as_an_argument_is_one():
    wrong = []
    for module in MODULES:
        for path, thing in public(module):
            documented = inspect.getdoc(thing) or ""
            if inspect.isclass(thing) or "Args:" not in documented:
                continue
            section = documented.split("Args:")[1].split("\n\n")[0]
            parameters = inspect.signature(thing).parameters
            for line in section.splitlines():
                if line.startswith("    ") and not line.startswith("     "):
                    names = line.split(":")[0].split(",")
                    names = [name.strip().strip("*`") for name in names]
                    wrong += [(path, n) for n in names if n not in parameters]
    assert not wrong


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_the_library_stands_alone():
    for file in FILES:
        roots = {name.split(".")[0] for name in imports(file)}
        assert not roots & {"experiments", "configs", "ml_collections"}, file
        if file.name not in ("cli.py", "console.py"):
            assert not roots & {"absl", "tqdm"}, file


def test_devices_are_the_business_of_one_room():
    for file in FILES:
        tree = ast.parse(file.read_text())
        names = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        if file.name != "parallel.py":
            assert not names & {"pmap", "psum", "pmean", "all_gather"}, file
        for node in ast.walk(tree):
            if isinstance(node, ast.arg) and file.name not in ("layers.py",):
                assert node.arg != "axis_name", file
