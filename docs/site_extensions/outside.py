"""Pages of the site whose text lies elsewhere in the repository, and links to them.

Beside the other pages stands a file of one line, which on GitHub links to the text. On the site the text
takes its place, and every link to the file elsewhere leads to this page.
"""

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
PAGES = {
    "benchmarks": "benchmarks/README.md",
    "changelog": "CHANGELOG.md",
    "contributing": "CONTRIBUTING.md",
    "examples": "examples/README.md",
}
_LINK = re.compile(r"(\]\()([^)#\s]+)")


def replace_text(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put the text from elsewhere into its page, and let links lead to pages of the site."""
    page = Path(app.env.doc2path(docname)).resolve()
    outside = PAGES.get(docname)
    if outside is not None:
        app.env.note_dependency(str(ROOT / outside))
        source[0] = (ROOT / outside).read_text(encoding="utf-8")
    home = page.parent if outside is None else (ROOT / outside).parent
    to_pages = {ROOT / path: Path(app.srcdir) / f"{name}.md" for name, path in PAGES.items()}

    def moved(match: re.Match[str]) -> str:
        target = match[2]
        if "://" in target:
            return match[0]
        leads_to = (home / target).resolve()
        if outside is None and leads_to not in to_pages:
            return match[0]
        leads_to = to_pages.get(leads_to, leads_to)
        return match[1] + Path(os.path.relpath(leads_to, page.parent)).as_posix()

    source[0] = _LINK.sub(moved, source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to the reading of each page."""
    app.connect("source-read", replace_text)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
