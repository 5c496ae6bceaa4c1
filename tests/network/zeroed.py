"""What zero ablation must equal: columns of zeros in every weight that reads the units."""

import copy

import torch
from torch.utils import _pytree

from modfast.layers.layer import find_layers


def zeroed(model, network, units):
    """A copy whose weights have zeros where they read units; None if one of them is used both ways."""
    model = copy.deepcopy(model)
    layers = {layer.name: layer for layer in find_layers(model)}
    with torch.no_grad():
        for name, read in network.layers.items():
            if read.tied_to is not None:
                continue
            weight = layers[name].weight()
            rows, cols = units[read.row_units], units[read.col_units]
            if len(read.reads) == 2 and bool(rows.any() or cols.any()):
                return None
            if read.reads == ("rows",):
                weight[rows] = 0
            elif read.reads == ("columns",):
                off = cols.expand(len(weight), -1) if cols.dim() == 1 else cols
                weight.masked_fill_(off.reshape(*off.shape, *[1] * (weight.dim() - 2)), 0)
    return model


def outputs(model, inputs):
    """All tensors that a model returns."""
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    args = args if isinstance(args, tuple) else (args,)
    args, kwargs = copy.deepcopy((args, dict(kwargs)))
    with torch.no_grad():
        output = model(*args, **kwargs)
    leaves = _pytree.tree_leaves(dict(output) if hasattr(output, "keys") else output)
    return [leaf.clone() for leaf in leaves if isinstance(leaf, torch.Tensor)]
