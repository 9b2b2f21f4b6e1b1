"""Pages from templates: everything that comes from a file is escaped, and nothing points outside."""

from functools import partial
from importlib.resources import files
from typing import Any


def render_page(name: str, *, package: str = "sgenas.report", **values: Any) -> str:
    """The template `name`.html.jinja in the folder of `package` with `values`; equal values give equal text.

    Strings are escaped unless they are Markup, and a name that has no value is an error.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(partial(_source, package)),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(**values)


def _source(package: str, name: str) -> str:
    return files(package).joinpath(f"{name}.html.jinja").read_text("utf-8")
