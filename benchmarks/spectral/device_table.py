"""The tables of spectral clustering on a GPU: weights, graphs, and the product alone. table.py runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.common.rounds import in_rounds, quartiles
from benchmarks.spectral.cases import Case, GraphCase, WeightCase, block_model, plant
from benchmarks.spectral.device_peers import (
    MATMUL,
    graph_contestants,
    on_device,
    product_contestants,
    weight_contestants,
)
from benchmarks.spectral.measured import measure, peer_cells, time_cells
from benchmarks.spectral.peers import FLOOR, LOWRANK, OURS
from modfast import Partition, clusterability

PRODUCTS_CAPTION = (
    "Medians of one product of a solver's step, with the quartiles of modfast's. Copy: of as many bytes as "
    "the matrix once, the vectors and the results; copy / modfast is the share of the possible speed. "
    "Matmul: how many times as long PyTorch's products took, which got the similarities ready-made."
)
CAPTION = (
    "Medians, with the quartiles of modfast's. Under a peer's name: how many times as long as modfast it "
    "took, and in brackets its adjusted Rand index, the lower of rows' and columns'. Time / copy: modfast's, "
    "by the time of a copy of as many bytes as its passes read."
)
HEADINGS = [
    f"{OURS}, ms",
    "quartiles, ms",
    "C found / planted",
    "ARI",
    "passes",
    "copy, ms",
    "time / copy",
    LOWRANK,
]
PRODUCT_HEADINGS = [
    "product",
    f"{OURS}, ms",
    "quartiles, ms",
    "MB moved",
    "copy, ms",
    f"copy / {OURS}",
    MATMUL,
]


def measure_case(case: Case, repeats: int, advance: Callable[[], None], device: str) -> dict[str, Any]:
    """Return the results of clustering a weight or a graph on the device, and of the product alone."""
    if isinstance(case, WeightCase):
        planted = plant(case)
        contestants = weight_contestants(planted, device)
        truth: tuple[Any, ...] = (planted.partition.row_labels.numpy(), planted.partition.col_labels.numpy())
        result, clusterings = measure(case, contestants, truth, repeats, advance, device)
        ours = Partition(*map(torch.from_numpy, clusterings[OURS].labels), case.clusters)
        result |= {
            "clusterability": float(clusterability(planted.weight, ours)),
            "planted_clusterability": float(clusterability(planted.weight, planted.partition)),
        }
        matrix = planted.weight.to(device) if planted.sparse is None else on_device(planted.sparse, device)
    else:
        adjacency, labels = block_model(case)
        contestants = graph_contestants(adjacency, case.clusters, device)
        result, _ = measure(case, contestants, (labels,), repeats, advance, device)
        matrix = on_device(adjacency, device)
    copies = result["passes"] * result["milliseconds"][FLOOR]
    result["time_by_copy"] = result["milliseconds"][OURS] / copies
    del contestants
    return result | {"product": measure_product(case, matrix, repeats, device)}


def measure_product(case: Case, matrix: torch.Tensor, repeats: int, device: str) -> dict[str, Any]:
    calls, moved = product_contestants(matrix, case.clusters, isinstance(case, GraphCase))
    seconds = in_rounds(calls, repeats, lambda: None, device)
    by_name = {name: quartiles(values) for name, values in seconds.items()}
    median = {name: values[1] for name, values in by_name.items()}
    return {
        "bytes_moved": moved,
        "milliseconds": median,
        "quartiles": by_name,
        "share_of_copy": median[FLOOR] / median[OURS],
        "ratio": median[MATMUL] / median[OURS],
    }


# --- The tables


def cells(result: dict[str, Any]) -> list[str]:
    """Return one row of the table of weights and graphs, under its headings."""
    found = "-"
    if "clusterability" in result:
        found = f"{result['clusterability']:.3f} / {result['planted_clusterability']:.3f}"
    return [
        *time_cells(result),
        found,
        ", ".join(f"{index:.3f}" for index in result["adjusted_rand"][OURS]),
        str(result["passes"]),
        f"{result['milliseconds'][FLOOR]:.3f}",
        f"{result['time_by_copy']:.1f}",
        *peer_cells(result, [LOWRANK]),
    ]


def product_cells(result: dict[str, Any]) -> list[str]:
    """Return one row of the table of products, under its headings."""
    product = result["product"]
    low, ours, high = product["quartiles"][OURS]
    return [
        result["case"],
        f"{ours:.3f}",
        f"{low:.3f} - {high:.3f}",
        f"{product['bytes_moved'] / 1e6:.1f}",
        f"{product['milliseconds'][FLOOR]:.3f}",
        f"{product['share_of_copy']:.2f}",
        f"{product['ratio']:.1f} x",
    ]


def tables(report: dict[str, Any]) -> list[tuple[list[str], list[list[str]], str]]:
    """Return headings, rows and caption of each table that has rows."""
    results: Sequence[dict[str, Any]] = [*report["weights"], *report["graphs"]]
    both = [
        (["weights and graphs", *HEADINGS], [cells(result) for result in results], CAPTION),
        (PRODUCT_HEADINGS, [product_cells(result) for result in results], PRODUCTS_CAPTION),
    ]
    return [table for table in both if table[1]]
