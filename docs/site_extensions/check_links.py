"""Checks the links of a built site: `check_links.py FOLDER` lists those that are broken.

Each link within the site must lead to a file, and its part behind # to an element there. Scripts, styles,
fonts and pictures must lie in the site, so that it works without a network. Links to other sites are only
counted.
"""

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser fetches without being asked, by element and attribute.
FETCHED = {
    ("script", "src"),
    ("link", "href"),
    ("img", "src"),
    ("img", "srcset"),
    ("iframe", "src"),
    ("source", "src"),
    ("video", "src"),
    ("object", "data"),
}
# Links that name another page without fetching it.
NOT_FETCHED = {"canonical", "author", "license", "next", "prev", "search", "index", "contents", "top"}
_CSS_LINK = re.compile(r"""url\(\s*['"]?([^'")]+)|@import\s+['"]([^'"]+)""")


class Page(HTMLParser):
    """The links of a page, what it fetches, and the ids of its elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self._in_style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what an element links to."""
        values = {name: value or "" for name, value in attrs}
        self.ids.update(values[name] for name in ("id", "name") if name in values)
        self._in_style = tag == "style"
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        asks = tag != "link" or not NOT_FETCHED.intersection(values.get("rel", "").split())
        self.fetched += [values[name] for name in values if (tag, name) in FETCHED and asks]

    def handle_data(self, data: str) -> None:
        """Note what a style within the page fetches."""
        if self._in_style:
            self.fetched += css_links(data)

    def handle_endtag(self, tag: str) -> None:
        """Leave a style."""
        self._in_style = False


def css_links(text: str) -> list[str]:
    """Return what a style sheet fetches."""
    return [first or second for first, second in _CSS_LINK.findall(text)]


def broken_links(site: Path) -> Iterator[str]:
    """Yield a sentence for each link that leads nowhere, and for each file that is fetched from elsewhere."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    if not pages:
        yield f"{site} has no pages"
    for path, page in pages.items():
        for link in page.links:
            yield from _broken(path, link, pages, site)
        for link in page.fetched:
            yield from _missing(path, link, site)
    for path in sorted(site.rglob("*.css")):
        for link in css_links(path.read_text(encoding="utf-8")):
            yield from _missing(path, link, site)


def _broken(path: Path, link: str, pages: dict[Path, Page], site: Path) -> Iterator[str]:
    where = path.relative_to(site)
    parts = urlsplit(link)
    if parts.scheme in ("http", "https", "mailto"):
        return
    if parts.scheme or parts.netloc:
        yield f"{where}: {link} is of a kind that is not expected"
        return
    target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
    if site.resolve() not in target.resolve().parents:
        yield f"{where}: {link} leads out of the site"
    elif not target.is_file():
        yield f"{where}: {link} leads to no file"
    elif parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in pages[target].ids:
        yield f"{where}: {link} leads to no element of that page"


def _missing(path: Path, link: str, site: Path) -> Iterator[str]:
    where = path.relative_to(site)
    parts = urlsplit(link)
    if parts.scheme == "data" or link.startswith("#"):
        return
    if parts.scheme or parts.netloc:
        yield f"{where}: {link} would be fetched from elsewhere"
    elif not (path.parent / unquote(parts.path)).is_file():
        yield f"{where}: {link} is missing"


def external_links(site: Path) -> list[str]:
    """Return the addresses of other sites that pages link to."""
    pages = [Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")]
    return sorted(
        {link for page in pages for link in page.links if urlsplit(link).scheme in ("http", "https")}
    )


if __name__ == "__main__":
    folder = Path(sys.argv[1]).resolve()
    found = list(broken_links(folder))
    print(
        "\n".join(found)
        or f"all links within the site lead somewhere; {len(external_links(folder))} lead out of it"
    )
    sys.exit(bool(found))
