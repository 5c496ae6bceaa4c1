"""What each weight of a network does, told from what reads and writes its units."""

from __future__ import annotations

from torch import Tensor

from .following import Found, Matrix

ROLES = (
    "embedding",
    "position_embedding",
    "attention_query",
    "attention_key",
    "attention_value",
    "attention_qkv",
    "attention_output",
    "mlp_input",
    "mlp_gate",
    "mlp_output",
    "expert_input",
    "expert_gate",
    "expert_output",
    "router",
    "convolution",
    "linear",
    "head",
)


def find_roles(found: Found, units: Tensor) -> dict[Matrix, str]:
    """Return the role of each parameter, by what reads and writes its units."""
    uses = found.uses
    written = {name: frozenset(units[use.out].tolist()) for name, use in uses.items()}
    read = {name: frozenset(units[use.into].tolist()) for name, use in uses.items()}
    linear = [name for name, use in uses.items() if use.kind == "linear" and not use.routed]
    roles = {}
    for name, use in uses.items():
        roles[name] = use.kind
        if use.kind == "embedding" and use.counts:
            roles[name] = "position_embedding"
    parts = found.parts
    roles.update(_roles_of_experts(found, written))
    for name in linear:
        rows = set(uses[name].out.tolist())
        factors = [part for part in ("query", "key", "value") if rows & parts[part]]
        if uses[name].read and uses[name].read <= parts["attended"]:
            roles[name] = "attention_output"
        elif len(factors) > 1:
            roles[name] = "attention_qkv"
        elif factors:
            roles[name] = f"attention_{factors[0]}"
        elif any(use.routed for use in uses.values()) and rows <= parts["picked"]:
            roles[name] = "router"
    for name in linear:
        if roles[name] != "linear" or read[name] == written[name]:
            continue
        # What reads the stream, whose hidden units another layer reads to write the stream again.
        outputs = [
            other
            for other in linear
            if other != name and read[other] == written[name] and written[other] == read[name]
        ]
        if not outputs or not set(uses[name].out.tolist()):
            continue
        curved = set(uses[name].out.tolist()) <= parts["curved"]
        partners = [o for o in linear if o != name and written[o] == written[name] and read[o] == read[name]]
        roles[name] = "mlp_gate" if partners and curved else "mlp_input"
        for other in outputs:
            roles[other] = "mlp_output"
    everything_read = frozenset().union(*read.values()) if read else frozenset()
    for name in linear:
        if roles[name] == "linear" and not written[name] & everything_read and len(linear) > 1:
            roles[name] = "head"
    return roles


def _roles_of_experts(found: Found, written: dict[Matrix, frozenset[int]]) -> dict[Matrix, str]:
    """The roles of the matrices that the input chooses: what experts read of the stream, and write."""
    experts = {name: use for name, use in found.uses.items() if use.routed}
    roles = {}
    for name, use in experts.items():
        # A gate is what a nonlinearity takes before it meets the rest.
        curved = set(use.out.tolist()) <= found.parts["curved"]
        partners = any(
            other != name
            and other.place == name.place
            and written[other] == written[name]
            and not each.within
            for other, each in experts.items()
        )
        if use.within:
            roles[name] = "expert_output"
        else:
            roles[name] = "expert_gate" if partners and curved else "expert_input"
    return roles
