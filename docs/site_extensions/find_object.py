"""Finds the object of a dotted name, without Sphinx: the tests of the site are collected where it is not."""

import pkgutil
from typing import Any


def find(name: str) -> Any:
    """Return the object of a dotted name, or None."""
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError):
        return None
