"""The site: `python -m sphinx -W -b html docs build/site`."""

import inspect
import os
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # configs and experiments, which no wheel has

from deepsad_jax import __version__, estimators  # noqa: E402

project = "deepsad_jax"
author = "The deepsad_jax developers"
project_copyright = author
release = version = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
templates_path = ["_templates"]
# The first is that of the pages that autosummary writes.
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb"}

html_theme = "furo"
html_title = f"deepsad_jax {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 240
nb_merge_streams = True
# What libraries say on stderr is noise on a page.
nb_output_stderr = "remove"
# Kernels of notebooks: quiet, quick to compile, and with configs and experiments.
os.environ |= {
    "ABSL_MIN_LOG_LEVEL": "2",
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(ROOT),
    "PYTHONWARNINGS": "ignore",
    "TQDM_DISABLE": "1",
    "XLA_FLAGS": "--xla_backend_optimization_level=0 "
    "--xla_cpu_use_fusion_emitters=false",
}

# Names of attributes, which several classes share, are no links.
suppress_warnings = ["ref.python"]
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False


def _signature(app, what, name, thing, options, signature, result):
    """Estimators have their arguments from their methods."""
    del app, name, options
    if what == "class" and issubclass(thing, estimators.Detector):
        return str(inspect.signature(thing)), result
    return signature, result


# Of reStructuredText, what docstrings do not mean: a substitution, a reference.
_MARK = re.compile(r"(?<!\\)(\|)|(?<=\w)(_)(?=[\s,:.)]|$)")
_NAMES = re.compile(r"^( +)(\w+(?:, \w+)+): ")


def _as_rst(app, what, name, thing, options, lines):
    """Docstrings are read as they are meant: an indented block is code, | is a |."""
    del app, what, name, thing, options
    found, is_code, above = [], False, ["", ""]
    for line in _one_attribute_each(lines):
        is_indented = line.startswith("    ")
        if is_indented and above[0].strip() and not above[0][:1].isspace():
            if not above[1]:
                found += [".. code-block:: none", ""]
                is_code = True
        elif line and not is_indented:
            is_code = False
        above = [above[1], line]
        if not is_code:
            parts = line.split("`")
            parts[::2] = [_MARK.sub(r"\\\g<0>", part) for part in parts[::2]]
            line = "`".join(parts)
        found.append(line)
    lines[:] = found


def _one_attribute_each(lines):
    """`low, high: the range` as two entries, which napoleon does not make of it."""
    found, is_attributes, i = [], False, 0
    while i < len(lines):
        line, i = lines[i], i + 1
        if line and not line[0].isspace():
            is_attributes = line == "Attributes:"
        names = _NAMES.match(line) if is_attributes else None
        if names is None:
            found.append(line)
            continue
        rest = [line[names.end() :]]
        while i < len(lines) and lines[i].startswith(names[1] + " "):
            rest.append(lines[i])
            i += 1
        for name in names[2].split(", "):
            found += [f"{names[1]}{name}: {rest[0]}", *rest[1:]]
    return found


def _skip(app, what, name, thing, skip, options):
    """What scikit-learn and named tuples add by themselves says nothing here."""
    del app, what, options
    if (getattr(thing, "__doc__", None) or "").startswith("Alias for field number"):
        return True
    is_request = name.startswith("set_") and name.endswith("_request")
    return True if is_request or name == "get_metadata_routing" else skip


def setup(app):
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-process-docstring", _as_rst, priority=400)  # before napoleon
    app.connect("autodoc-skip-member", _skip)
