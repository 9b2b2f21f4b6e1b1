"""MkDocs hook: the home page is README.md, whose links start at the root of the repository."""

from pathlib import Path
from typing import Any

README = Path(__file__).parent.parent / "README.md"
INCLUDE = '--8<-- "README.md"'


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Puts the README into the home page, with links relative to docs/."""
    if page.file.src_uri != "index.md":
        return markdown
    return markdown.replace(INCLUDE, README.read_text(encoding="utf-8").replace("](docs/", "]("))
