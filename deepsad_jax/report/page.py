"""From a template to a page: everything escaped, style and script in the same file."""

import functools
import pathlib
from typing import Any

TEMPLATES = pathlib.Path(__file__).parent / "templates"


def render(template: str, **content: Any) -> str:
    """A whole HTML page of a template that extends `base.html`.

    Whatever is put into the text is escaped; what scripts need is put in by the filter
    `tojson`, which escapes what could end a script. `inline("NAME.js")` of a template
    is a file of the same folder as it stands.

    Args:
        template: a file of the folder `templates`.
        **content: what it shows.
    """
    return _environment().get_template(template).render(**content)


@functools.cache
def _environment():
    import jinja2
    import markupsafe

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["inline"] = lambda name: markupsafe.Markup(
        (TEMPLATES / name).read_text(encoding="utf-8")
    )
    return made
