"""An oracle for networks: units may be put in another order without changing what a model computes.

If the units of a space are put in another order in all weights at once, a model computes the same. If a
weight's rows or columns were joined with the wrong ones, or with none, it does not.
"""

from __future__ import annotations

import copy

import torch
from torch.utils import _pytree

from modfast.layers.layer import find_layers


def assert_units_may_be_reordered(model, inputs, network, fixed=()):
    """Reorder the units of each space that a weight writes, but for those that are ``fixed``."""
    torch.manual_seed(0)
    model = copy.deepcopy(model).double().eval()
    layers = {layer.name: layer for layer in find_layers(model)}
    with torch.no_grad():
        matrices = {id(layers[name].parameter) for name in network.layers}
        for parameter in model.parameters():
            # What no weight is has no units here: it must be the same for all.
            if id(parameter) in matrices:
                parameter.normal_().mul_(parameter[0].numel() ** -0.5)
            else:
                parameter.fill_(0.3)
        before = _outputs(model, inputs)
        order = _new_order(network, fixed)
        assert (order != torch.arange(len(order))).any(), "no unit changed its place"
        for name, read in network.layers.items():
            if read.tied_to is None:
                weight = layers[name].weight()
                weight.copy_(weight[_places(read.row_units, order)])
                if read.col_units.dim() == 1:
                    weight.copy_(weight[:, _places(read.col_units, order)])
        after = _outputs(model, inputs)
    assert len(before) == len(after) > 0
    for one, other in zip(before, after, strict=True):
        # The numbers of an output are in another order as well, if they are units.
        # Some models compute parts in float32, whatever the dtype.
        one, other = one.flatten().sort().values, other.flatten().sort().values
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert len(one.unique()) > 1, "an output that is the same everywhere shows nothing"


def _outputs(model, inputs):
    def double(value):
        return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    args = args if isinstance(args, tuple) else (args,)
    args, kwargs = _pytree.tree_map(double, (args, dict(kwargs)))
    output = model(*args, **kwargs)
    leaves = _pytree.tree_leaves(dict(output) if hasattr(output, "keys") else output)
    return [leaf.clone() for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _new_order(network, fixed):
    """For each unit the one whose place it takes, within its space and among those with as many rows."""
    order = torch.arange(network.num_units)
    counts = []
    written, still = set(), set(fixed)
    spaces = {unit: name for name, each in network.spaces.items() for unit in range(each.start, each.stop)}
    for layer in network.layers.values():
        rows, cols = layer.row_units, layer.col_units
        if "embedding" in layer.role and layer.tied_to is None:
            still.update(spaces[int(unit)] for unit in rows)  # the caller says which token it is
        writes = cols if "embedding" in layer.role and layer.tied_to is None else rows
        written.update(spaces[int(unit)] for unit in writes.flatten())
        if layer.role == "router":
            still.update(spaces[int(unit)] for unit in rows)  # each row goes with an expert
        if cols.dim() == 2 and cols.shape[1] > 1:
            # The channels of a group stay together; this test leaves them alone.
            still.update(spaces[int(unit)] for unit in (*rows, *cols.flatten()))
        counts += [torch.bincount(side.flatten(), minlength=network.num_units) for side in (rows, cols)]
    counts = torch.stack(counts, 1)
    for name, space in network.spaces.items():
        if name in written and name not in still:
            _, kinds = counts[space].unique(dim=0, return_inverse=True)
            for kind in kinds.unique():
                units = torch.nonzero(kinds == kind).flatten() + space.start
                order[units] = units[torch.randperm(len(units))]
    return order


def _places(side, order):
    """For each row the row that takes its place."""
    places = torch.empty_like(side)
    by_unit = {unit: torch.nonzero(side == unit).flatten() for unit in side.unique().tolist()}
    for unit, rows in by_unit.items():
        places[rows] = by_unit[int(order[unit])]
    return places
