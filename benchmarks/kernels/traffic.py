"""The bytes that each CUDA kernel cannot avoid to move, for a stated case.

Each number of the input counts once and each number of the output once, however often threads read it: what
is read again may come from a cache. The time that a GPU's bandwidth allows for these bytes is a floor, not a
forecast. A kernel that is not here is shown with unknown bytes, and a test names it.

The sizes of blocks and pieces repeat constants of csrc/. They only set how many partial sums there are, which
is little beside the inputs, and how many blocks a launch has.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple, TypeAlias


class Traffic(NamedTuple):
    """What one launch moves, and of how many blocks of threads it is."""

    case: str
    formula: str  # in words
    bytes: int
    blocks: int


def parts(number: int, each: int) -> int:
    return -(-number // each)


# --- The cases

WEIGHT, GRAPH, TAIL = "weight", "graph", "tail"
CASES = {
    WEIGHT: "4096 x 4096 float32, random labels in 4 clusters",
    GRAPH: "1,000,000 nodes, 10,000,000 edges, each stored at both of its ends; float32 and int32",
    TAIL: "the first linear layer of the paper's network for CIFAR-10, 64 x 4096 float64, on 1,000 images",
}

ROWS = COLS = 4096
CLUSTERS = 4
LABELS = CLUSTERS + 1  # one for rows and columns in no cluster
NUMBERS = ROWS * COLS

NODES, ENTRIES = 1_000_000, 20_000_000

IMAGES, INPUTS, NEURONS = 1000, 4096, 64

FLOAT, DOUBLE, INT, LONG = 4, 8, 4, 8

# --- energy/loss.cu: an item is what a block of threads takes of a matrix.

ITEMS = NUMBERS // (256 * 16 * 4)
SPLIT = 2 * DOUBLE
BOTH_LABELS = LONG * (ROWS + COLS)

# --- energy/blocks.cu

SEGMENTS = parts(ROWS, 1024)  # of the rows; of the columns as many
GROUPS = SEGMENTS  # of segments of rows
PARTIAL_BLOCKS = GROUPS * LABELS * SEGMENTS * LABELS
ORDERS = INT * (ROWS + (LABELS + 1) * SEGMENTS)  # of the rows; of the columns as many

# --- spectral/products.cu


def piece_length(count: int, width: int) -> int:
    """As in spectral/products_threads.h."""
    return 32 * parts(max(128, 16 * width, parts(count, 1024)), 32)


def size_of(type_name: str) -> int:
    return {"float": FLOAT, "double": DOUBLE}[type_name]


Template: TypeAlias = list[str]


def product_tiles(arguments: Template) -> Traffic:
    number, width = size_of(arguments[0]), int(arguments[1])
    pieces = parts(COLS, piece_length(COLS, width))
    return Traffic(
        f"{WEIGHT}, {width} vectors",
        "the weight, the vectors, and the pieces of the sums",
        FLOAT * NUMBERS + number * width * (COLS + pieces * ROWS),
        pieces * parts(ROWS, 4 * 128 // (width // 4)),
    )


def add_up_pieces(arguments: Template) -> Traffic:
    number, width = size_of(arguments[0]), 8
    pieces = parts(COLS, piece_length(COLS, width))
    return Traffic(
        f"{WEIGHT}, {width} vectors",
        "the pieces of the sums, and the sums",
        number * width * ROWS * (pieces + 1),
        parts(ROWS * width, 32),
    )


def sparse_product(arguments: Template) -> Traffic:
    number, width = size_of(arguments[0]), int(arguments[1])
    return Traffic(
        f"{GRAPH}, {width} vectors",
        "starts, indices, values, the vectors, the result",
        INT * (NODES + 1) + (INT + FLOAT) * ENTRIES + 2 * number * width * NODES,
        parts(NODES, 8),
    )


TRAFFIC: dict[str, Callable[[Template], Traffic]] = {
    "item_energies": lambda _: Traffic(
        WEIGHT,
        "the weight, the labels; two sums for each item",
        FLOAT * NUMBERS + BOTH_LABELS + SPLIT * ITEMS,
        ITEMS,
    ),
    "add_up": lambda _: Traffic(
        WEIGHT, "two sums for each item; the energies and the loss", SPLIT * (ITEMS + 1) + DOUBLE, 1
    ),
    "item_scale": lambda _: Traffic(
        WEIGHT,
        "the weight, the labels, the gradient read and written",
        3 * FLOAT * NUMBERS + BOTH_LABELS,
        ITEMS,
    ),
    "sort_segments": lambda _: Traffic(
        WEIGHT, "the rows' labels, their order", LONG * ROWS + ORDERS, SEGMENTS
    ),
    "block_sums": lambda _: Traffic(
        WEIGHT,
        "the weight, the orders; a sum for each group, tile and pair of labels",
        FLOAT * NUMBERS + 2 * ORDERS + DOUBLE * PARTIAL_BLOCKS,
        GROUPS * LABELS * SEGMENTS,
    ),
    "add_up_blocks": lambda _: Traffic(
        WEIGHT,
        "a sum for each group, tile and pair of labels; the blocks",
        DOUBLE * (PARTIAL_BLOCKS + LABELS**2),
        parts(LABELS**2, 256),
    ),
    "block_scales": lambda _: Traffic(
        WEIGHT,
        "the weight read, the result written, the labels, the factors",
        2 * FLOAT * NUMBERS + BOTH_LABELS + DOUBLE * LABELS**2,
        ITEMS,
    ),
    "product_tiles": product_tiles,
    "add_up_pieces": add_up_pieces,
    "dense_sums": lambda _: Traffic(
        WEIGHT,
        "the weight; the pieces of the sums of rows and of columns",
        FLOAT * NUMBERS + DOUBLE * (parts(COLS, 256) * ROWS + parts(ROWS, piece_length(ROWS, 1)) * COLS),
        parts(COLS, 256) * parts(ROWS, piece_length(ROWS, 1)),
    ),
    "sparse_product": sparse_product,
    "sparse_sums": lambda _: Traffic(
        GRAPH,
        "starts, indices, values; the sums",
        INT * (NODES + 1) + (INT + FLOAT) * ENTRIES + DOUBLE * NODES,
        parts(NODES, 8),
    ),
    "turn": lambda _: Traffic(
        GRAPH,
        "sorted columns, order, starts, values; starts, indices and values of the transpose",
        (INT + LONG + FLOAT + LONG + FLOAT) * ENTRIES + (INT + LONG) * (NODES + 1),
        parts(ENTRIES, 256),
    ),
    "edge_gradients": lambda _: Traffic(
        WEIGHT,
        "the weight, the gradient; a term and k numbers for each row and column",
        2 * FLOAT * NUMBERS + DOUBLE * (1 + CLUSTERS) * (ROWS + COLS),
        parts(COLS, 256) * parts(ROWS, 8),
    ),
    "forward_rows": lambda _: Traffic(
        TAIL,
        "the weights, the inputs; the sums and the activations",
        DOUBLE * (NEURONS * (INPUTS + 1) + INPUTS * IMAGES + 2 * NEURONS * IMAGES),
        NEURONS * parts(IMAGES, 128),
    ),
    "walk_one_row": lambda _: Traffic(
        f"{TAIL}, one row",
        "the row's weights, the inputs of each of them",
        DOUBLE * (INPUTS + INPUTS * IMAGES),
        1,
    ),
}

# Kernels that are launched with as much dynamic shared memory as a block may have, in the stated case.
ALL_SHARED = {"walk_one_row"}


def base_name(kernel: str) -> str:
    """Return a kernel's name without its template's arguments."""
    return kernel.partition("<")[0]


def traffic(kernel: str) -> Traffic | None:
    """Return what a kernel moves, or None if there is no formula.

    >>> traffic("add_up<8>").bytes
    16408
    """
    name, _, arguments = kernel.partition("<")
    formula = TRAFFIC.get(name)
    return formula(re.split(r",\s*", arguments.removesuffix(">"))) if formula else None
