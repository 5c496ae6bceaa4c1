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
    "convolution",
    "linear",
    "head",
)


def find_roles(found: Found, units: Tensor) -> dict[Matrix, str]:
    """Return the role of each parameter, by what reads and writes its units."""
    uses = found.uses
    written = {name: frozenset(units[use.out].tolist()) for name, use in uses.items()}
    read = {name: frozenset(units[use.into].tolist()) for name, use in uses.items()}
    linear = [name for name, use in uses.items() if use.kind == "linear"]
    roles = {}
    for name, use in uses.items():
        roles[name] = use.kind
        if use.kind == "embedding" and use.counts:
            roles[name] = "position_embedding"
    parts = found.parts
    for name in linear:
        rows = set(uses[name].out.tolist())
        factors = [part for part in ("query", "key", "value") if rows & parts[part]]
        if uses[name].read and uses[name].read <= parts["attended"]:
            roles[name] = "attention_output"
        elif len(factors) > 1:
            roles[name] = "attention_qkv"
        elif factors:
            roles[name] = f"attention_{factors[0]}"
    for name in linear:
        if roles[name] != "linear":
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
