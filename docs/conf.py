"""The site: `python -m sphinx -W -b html docs build/site`."""

import inspect
import os
import pathlib
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
source_suffix = {".md": "myst-nb", ".rst": "restructuredtext"}

html_theme = "furo"
html_title = f"deepsad_jax {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
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


def setup(app):
    app.connect("autodoc-process-signature", _signature)
