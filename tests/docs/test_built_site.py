"""The site that `make docs` has built, as a reader without a network has it: links, reference, search.

`make docs` says where it lies, in MODFAST_SITE.
"""

import os
import re
import time
import zlib
from pathlib import Path

import pytest
from browser import Browser

import modfast
from docs.site_extensions.check_links import broken_links, external_links
from docs.site_extensions.find_object import find

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def site():
    if "MODFAST_SITE" not in os.environ:
        pytest.skip("`make docs` runs these tests")
    return Path(os.environ["MODFAST_SITE"]).resolve()


@pytest.fixture(scope="module")
def entries(site):
    """The names in the reference, each with its page."""
    header, packed = (site / "objects.inv").read_bytes().split(b"zlib.\n", 1)
    assert header.startswith(b"# Sphinx inventory version 2")
    lines = zlib.decompress(packed).decode().splitlines()
    found = [re.fullmatch(r"(\S+)\s+(py:\w+)\s+\S+\s+(\S*)\s+.*", line) for line in lines]
    return {match[1]: match[3] for match in found if match}


def imported_names():
    """What the pages import from modfast's modules."""
    for path in sorted(DOCS.rglob("*.md")):
        for module, names in re.findall(
            r"^ *from (modfast[\w.]*) import ([\w, ]+)$", path.read_text(), re.MULTILINE
        ):
            for name in names.split(","):
                yield f"{module}.{name.split(' as ')[0].strip()}"


def test_every_link_leads_somewhere(site):
    assert list(broken_links(site)) == []


def test_links_to_other_sites_are_for_reading_only(site):
    assert all(link.startswith("https://") for link in external_links(site))


def test_every_public_name_is_in_the_reference(entries):
    missing = [name for name in modfast.__all__ if f"modfast.{name}" not in entries]
    assert not missing, f"docs/api/ lacks {missing}"


def not_described(names, entries):
    """Those that have no entry, neither by this name nor by another."""
    described = {id(find(name)) for name in entries}
    return sorted(name for name in names if name not in entries and id(find(name)) not in described)


def test_every_name_that_pages_import_is_in_the_reference(entries):
    names = set(imported_names())
    assert len(names) > 10
    assert not_described(names, entries) == [], "docs/api/ lacks them"


def test_every_name_of_a_public_module_is_in_the_reference(entries):
    modules = {name: find(name) for name in entries}
    modules = {name: module for name, module in modules.items() if hasattr(module, "__all__")}
    assert {"modfast.optim", "modfast.tasks", "modfast.estimators", "modfast.reference"} <= modules.keys()
    names = [f"{name}.{each}" for name, module in modules.items() for each in module.__all__]
    assert not_described(names, entries) == [], "docs/api/ lacks them"


def test_search_works_from_files(site, tmp_path):
    with Browser(tmp_path) as browser:
        browser.open(site / "index.html")
        form = browser.run("(({action, method}) => ({action, method}))(document.querySelector('form'))")
        assert form == {"action": (site / "search.html").as_uri(), "method": "get"}
        browser.open(site / "search.html", query="?q=EnmeshmentLoss")
        links = "[...document.querySelectorAll('#search-results li a')].map(link => link.href)"
        while not any("api/energy.html" in link for link in browser.run(links)):
            time.sleep(0.05)  # pytest's faulthandler_timeout says where this is, should it never come
        assert browser.errors == []
