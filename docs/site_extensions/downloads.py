"""Offers each page that is executed as a notebook, with its outputs, right below its title."""

import re

from sphinx.application import Sphinx


def offer_notebook(app: Sphinx, docname: str, source: list[str]) -> None:
    """Add a line with the link to a page that has code cells."""
    if re.search(r"^```\{code-cell\}", source[0], re.MULTILINE):
        name = docname.rsplit("/", 1)[-1]
        link = f"{{nb-download}}`as a notebook <{name}.ipynb>`"
        line = f"\n\n*Everything on this page was executed when it was built. Take it {link}.*\n"
        source[0] = re.sub(r"^# .*$", lambda title: title[0] + line, source[0], count=1, flags=re.MULTILINE)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to the reading of each page."""
    app.connect("source-read", offer_notebook)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
