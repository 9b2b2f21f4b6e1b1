"""HTML pages from templates: strings are escaped, and nothing points outside the page."""

import base64
from typing import Any


def render_page(name: str, **values: Any) -> str:
    """The template ``name``.html.jinja with ``values``; equal values give equal pages.

    Strings are escaped unless they are Markup, and a name without a value is an error.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("sgenas", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(f"{name}.html.jinja").render(**values)


def data_uri(png: bytes) -> str:
    """An image as the ``src`` of an <img> element, so that the page is one file."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
