"""The bytes that each CUDA kernel cannot avoid to move, for a stated case.

Each number of the input counts once and each number of the output once, however often threads read it: what
is read again may come from a cache. The states of k-means' starts, 32 bytes each, are left out. The time
that a GPU's bandwidth allows for these bytes is a floor, not a forecast. A kernel that is not here is
shown with unknown bytes, and a test names it.

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

WEIGHT, GRAPH, TAIL, POINTS, SAMPLE = "weight", "graph", "tail", "points", "sample"
CASES = {
    WEIGHT: "4096 x 4096 float32, random labels in 4 clusters",
    GRAPH: "1,000,000 nodes in 20 clusters, 10,000,000 edges, each stored at both of its ends; float32 and "
    "int32",
    TAIL: "the first linear layer of the paper's network for CIFAR-10, 64 x 4096 float64, on 1,000 images",
    POINTS: "k-means of 1,000,000 points of 20 float32 coordinates in 20 clusters, from the best start",
    SAMPLE: "10 starts of that k-means side by side, on 32,768 of the points",
}

ROWS = COLS = 4096
CLUSTERS = 4
LABELS = CLUSTERS + 1  # one for rows and columns in no cluster
NUMBERS = ROWS * COLS

NODES, ENTRIES, GRAPH_CLUSTERS = 1_000_000, 20_000_000, 20
BASIS = 64  # vectors of a solver's basis for the graph

IMAGES, INPUTS, NEURONS = 1000, 4096, 64

ALL_POINTS, DIMS, CENTRES = 1_000_000, 20, 20
STARTS, SAMPLED = 10, 32_768

BYTE, HALF, FLOAT, DOUBLE, INT, LONG = 1, 2, 4, 8, 4, 8

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
    return {"float": FLOAT, "double": DOUBLE, "Half": HALF, "BFloat": HALF}[type_name]


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


# --- spectral/basis.cu


def inner_tiles(arguments: Template) -> Traffic:
    number, width = size_of(arguments[0]), int(arguments[1])
    piece = 32 * parts(max(128, parts(NODES, 1024 // parts(BASIS, 64))), 32)
    pieces = parts(NODES, piece)
    groups = 128 // (width // 4 * (64 // 4))  # of threads that share a piece
    return Traffic(
        f"{GRAPH}, {BASIS} vectors by {width}",
        "the basis, the vectors, a weight for each node; the pieces of the products",
        number * NODES * (BASIS + width + 1) + DOUBLE * pieces * groups * BASIS * width,
        pieces * parts(BASIS, 64),
    )


def rotate_tiles(arguments: Template) -> Traffic:
    number, width = size_of(arguments[0]), int(arguments[1])
    return Traffic(
        f"{GRAPH}, {BASIS} vectors to {width}",
        "the basis, the factors; the vectors that replace its first ones",
        number * NODES * (BASIS + width) + DOUBLE * BASIS * width,
        parts(NODES, 4 * 128 // (width // 4)),
    )


def copy_rotated(arguments: Template) -> Traffic:
    number, rows, width = size_of(arguments[0]), (1 << 20) // BASIS, BASIS
    return Traffic(
        f"{GRAPH}, {width} vectors, {rows:,} nodes at a time",
        "the numbers read and written",
        2 * number * rows * width,
        parts(rows * width, 256),
    )


# --- spectral/kmeans*.cu


def record(clusters: int) -> int:
    """The numbers of a record of sums, as in spectral/cuda_kmeans_parts.h."""
    return clusters * (DIMS + 2) + 2


def pieces_of_points() -> int:
    tiles = parts(ALL_POINTS, 128)
    return parts(tiles, parts(tiles, 1024))


def assign(arguments: Template) -> Traffic:
    clusters = min(int(arguments[0]), CENTRES)
    return Traffic(
        POINTS if clusters == CENTRES else f"{POINTS}, but in {clusters} clusters",
        "the points, their weights and labels, the centres; squared distances, the pieces of the sums",
        FLOAT * (ALL_POINTS * (DIMS + 3) + clusters * DIMS) + DOUBLE * pieces_of_points() * record(clusters),
        pieces_of_points(),
    )


# --- optim/adamw.cu, optim/keep.cu

DESCRIPTION = 512  # of a weight, about
BINS = 2048
LABELS_OF_STEP = INT * (ROWS + COLS)


def update_weights(arguments: Template) -> Traffic:
    weight, gradient = map(size_of, arguments)
    moment = max(weight, FLOAT)
    items = NUMBERS // (256 * 16 * (2 if weight == DOUBLE else 4))
    return Traffic(
        WEIGHT if arguments == ["float", "float"] else f"{WEIGHT}, but in the kernel's types",
        "the weight and both moments, read and written, the gradient, the labels; two sums for each item",
        NUMBERS * (2 * weight + gradient + 4 * moment) + LABELS_OF_STEP + (SPLIT + INT) * items,
        items,
    )


# --- spectral/moves.cu

EDGES = INT * (NODES + 1) + (INT + FLOAT) * ENTRIES
TERMS = 2 * DOUBLE + LONG  # of a cluster in the normalised cut
CHUNKS = parts(NODES, 16384)

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
    "inner_tiles": inner_tiles,
    "rotate_tiles": rotate_tiles,
    "copy_rotated": copy_rotated,
    "take_sample": lambda _: Traffic(
        SAMPLE,
        "the sampled points and weights, read and written; the points by coordinate, a bound for each",
        FLOAT * SAMPLED * (3 * DIMS + 3),
        parts(SAMPLED, 256),
    ),
    "draw_centre": lambda _: Traffic(
        SAMPLE,
        "for each start: the sums of blocks of points, three numbers for each point of a block, the centre "
        "read and written",
        STARTS * (DOUBLE * parts(SAMPLED, 1024) + FLOAT * 3 * 1024 + 2 * FLOAT * DIMS),
        STARTS,
    ),
    "measure": lambda _: Traffic(
        SAMPLE,
        "the points, their weights and bounds; for each start the centre, squared distances read and "
        "written, the sums of blocks of points",
        FLOAT * (SAMPLED * (DIMS + 2) + STARTS * (DIMS + 2 * SAMPLED))
        + DOUBLE * STARTS * parts(SAMPLED, 1024),
        STARTS * parts(SAMPLED, 1024),
    ),
    "assign": assign,
    "add_records": lambda _: Traffic(
        POINTS,
        "the pieces of the sums, and the sums",
        DOUBLE * (pieces_of_points() + 1) * record(CENTRES),
        parts(record(CENTRES), 32),
    ),
    "move_centres": lambda _: Traffic(
        POINTS,
        "the sums, the centres",
        DOUBLE * record(CENTRES) + FLOAT * CENTRES * DIMS,
        1,
    ),
    "copy_start": lambda _: Traffic(
        SAMPLE, "the centres of one start, read and written", 2 * FLOAT * CENTRES * DIMS, parts(SAMPLED, 256)
    ),
    "give": lambda _: Traffic(
        POINTS, "the labels read, and written as int64", (INT + LONG) * ALL_POINTS, parts(ALL_POINTS, 256)
    ),
    "read_labels": lambda _: Traffic(
        GRAPH, "the labels read as int64, and written", (LONG + INT) * NODES, parts(NODES, 256)
    ),
    "write_labels": lambda _: Traffic(
        GRAPH, "the labels read, and written as int64", (INT + LONG) * NODES, parts(NODES, 256)
    ),
    "cut_of_nodes": lambda _: Traffic(
        GRAPH,
        "starts, indices, values, labels; two numbers for each node",
        EDGES + INT * NODES + 2 * DOUBLE * NODES,
        parts(NODES, 8),
    ),
    "cut_of_chunks": lambda _: Traffic(
        GRAPH,
        "labels, two numbers for each node; the terms of each cluster in each chunk of nodes",
        (INT + 2 * DOUBLE) * NODES + TERMS * GRAPH_CLUSTERS * CHUNKS,
        CHUNKS,
    ),
    "add_chunks": lambda _: Traffic(
        GRAPH,
        "the terms of each cluster in each chunk of nodes; those of each cluster",
        TERMS * GRAPH_CLUSTERS * (CHUNKS + 1),
        1,
    ),
    "find_nodes_that_gain": lambda _: Traffic(
        GRAPH,
        "starts, indices, values, labels, the terms of each cluster; whether a node gains",
        EDGES + INT * NODES + TERMS * GRAPH_CLUSTERS + BYTE * NODES,
        min(parts(NODES, 8), 4096),
    ),
    "move_nodes_that_gain": lambda _: Traffic(
        f"{GRAPH}, no node gains", "whether a node gains", BYTE * NODES, 1
    ),
    "move_nodes_of_side": lambda _: Traffic(
        f"{WEIGHT}, its rows, no node gains",
        "for each row its ties to each cluster, its degree, its label; the terms of each cluster",
        ROWS * (DOUBLE * (CLUSTERS + 1) + LONG) + TERMS * CLUSTERS,
        1,
    ),
    "prepare_weights": lambda _: Traffic(
        WEIGHT,
        "the description of the weight, and the weight of each item",
        DESCRIPTION + INT * ITEMS,
        1,
    ),
    "update_weights": update_weights,
    "sum_squares": lambda _: Traffic(
        WEIGHT,
        "the weight, the labels; two sums for each item",
        FLOAT * NUMBERS + LABELS_OF_STEP + (SPLIT + INT) * ITEMS,
        ITEMS,
    ),
    "finish_weights": lambda _: Traffic(
        WEIGHT, "two sums for each item; the energies, the step", SPLIT * (ITEMS + 1) + FLOAT, 1
    ),
    "count_digits": lambda _: Traffic(
        f"{WEIGHT}, of which a tenth stays",
        "the weight, the weight of each item; the counts",
        FLOAT * NUMBERS + INT * ITEMS + LONG * BINS,
        ITEMS,
    ),
    "choose_digits": lambda _: Traffic(
        f"{WEIGHT}, of which a tenth stays", "the counts, read and written", 2 * LONG * BINS, 1
    ),
    "set_zeros": lambda _: Traffic(
        f"{WEIGHT}, of which a tenth stays",
        "the weight, read and written, the labels; two sums for each item",
        2 * FLOAT * NUMBERS + LABELS_OF_STEP + (SPLIT + INT) * ITEMS,
        ITEMS,
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


def launch_shared(kernel: str) -> int:
    """Return the bytes of shared memory that a launch adds to those of the kernel, in the stated case.

    >>> launch_shared("assign<32>"), launch_shared("add_up<8>")
    (3536, 0)
    """
    name, arguments = parse(kernel)
    if name == "assign":  # a record
        return DOUBLE * record(min(int(arguments[0]), CENTRES))
    # The ties of a node to each cluster, for each warp.
    return DOUBLE * 8 * GRAPH_CLUSTERS if name in ("find_nodes_that_gain", "move_nodes_that_gain") else 0


def parse(kernel: str) -> tuple[str, Template]:
    """Return a kernel's name, and its template's arguments.

    >>> parse("sparse_product<double, 8>")
    ('sparse_product', ['double', '8'])
    """
    name, _, arguments = kernel.partition("<")
    return name, re.split(r",\s*", arguments.removesuffix(">"))


def base_name(kernel: str) -> str:
    """Return a kernel's name without its template's arguments."""
    return parse(kernel)[0]


def traffic(kernel: str) -> Traffic | None:
    """Return what a kernel moves, or None if there is no formula.

    >>> traffic("add_up<8>").bytes
    16408
    """
    name, arguments = parse(kernel)
    formula = TRAFFIC.get(name)
    return formula(arguments) if formula else None
