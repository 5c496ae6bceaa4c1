"""Finds the object of a dotted name; needs no Sphinx, so that the tests of the site can be read without it."""

import pkgutil
from typing import Any


def find(name: str) -> Any:
    """Return the object of a dotted name, or None."""
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError):
        return None
