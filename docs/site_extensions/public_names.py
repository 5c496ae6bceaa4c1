"""References to objects by the module that defines them lead to their public name.

Signatures and docstrings name ``modfast.partition.Partition``; the reference has ``modfast.Partition``.
"""

from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

from .find_object import find


def to_public_name(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, contents: nodes.Element
) -> nodes.Element | None:
    """Resolve a reference that no entry of the reference has by that name."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    module, parent = node.get("py:module"), node.get("py:class")
    domain = env.domains["py"]
    wanted = [find(name) for name in (target, f"{module}.{target}", f"{module}.{parent}.{target}") if name]
    for public in domain.objects:
        if public.rsplit(".", 1)[-1] == target.rsplit(".", 1)[-1]:
            found = find(public)
            if found is not None and any(found is each for each in wanted):
                return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", public, node, contents)
    return None


def skip_fields(app: Sphinx, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the fields of named tuples: the docstring's "Attributes" tell of them."""
    return True if type(member).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to references that are not found, and to the choice of members."""
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("missing-reference", to_public_name)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
