"""What the neurons of an outlier dimension's cluster say of the first token of a text, and of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.finetune.texts import read_texts
from modfast import Network

LENGTH = 32
PASSAGES = 256


def measure(model: nn.Module, folder: Path, network: Network, labels: Tensor) -> dict[str, Any]:
    """Return what the neurons say that share a cluster with a single dimension of the residual stream."""
    of_stream = torch.bincount(labels[network.spaces["residual"]])
    cluster = int((of_stream == 1).nonzero().flatten()[0])
    ids, description = passages(folder)
    neurons = loudness(model, network, labels, cluster, ids)
    return {"cluster": cluster, "neurons": neurons, "passages": len(ids), "texts": description}


def passages(folder: Path) -> tuple[Tensor, dict[str, Any]]:
    """Return tokens ``(PASSAGES, LENGTH)``, each row from [CLS] to [SEP], and what they were made of."""
    texts = read_texts(folder, LENGTH)
    return texts.held_out.flatten(0, 1)[:PASSAGES], texts.description


def loudness(
    model: nn.Module, network: Network, labels: Tensor, cluster: int, ids: Tensor
) -> list[dict[str, Any]]:
    """Return for each neuron of a cluster the least that it says of first tokens, and the most of others.

    Args:
        model: a ``BertModel``.
        network: the model's, whose names of layers end in ``layer.NUMBER.intermediate.dense``.
        labels: the cluster of each unit.
        cluster: whose neurons.
        ids: tokens ``(n, length)``, without padding.

    Returns:
        A mapping for each neuron, by block: ``block``, ``neuron``, ``first`` and ``others``, after the
        nonlinearity.
    """
    said: dict[str, Tensor] = {}

    def record(name: str) -> Any:
        return lambda module, inputs, output: said.update({name: output})

    names = [name for name in network.layers if name.endswith(".intermediate.dense")]
    # What follows the linear layer, its nonlinearity included, is what the module around it returns.
    hooks = [
        model.get_submodule(name.removesuffix(".dense")).register_forward_hook(record(name)) for name in names
    ]
    with torch.no_grad():
        model.eval()(input_ids=ids)
    for hook in hooks:
        hook.remove()
    found = []
    for name in names:
        for neuron in (labels[network.layers[name].row_units] == cluster).nonzero().flatten().tolist():
            of_neuron = said[name][:, :, neuron]
            found.append(
                {
                    "block": int(name.split("layer.")[1].split(".")[0]),
                    "neuron": neuron,
                    "first": round(float(of_neuron[:, 0].min()), 2) + 0.0,
                    "others": round(float(of_neuron[:, 1:].max()), 2) + 0.0,  # never -0.0
                }
            )
    return found
