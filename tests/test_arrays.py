"""Arrays of every kind, where numbers or labels are taken: the result of a plain tensor, or an error."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

from modfast import (
    Partition,
    clusterability,
    compat,
    laplacian_eigenvalues,
    network_partitions,
    normalized_cut,
    spectral_cluster,
    spectral_cocluster,
)
from modfast.arrays import as_tensor
from modfast.estimators import SpectralClustering, SpectralCoclustering
from modfast.spectral import graph_embedding

Array = np.ndarray[Any, Any]


def in_a_record(array: Array) -> Array:
    records = np.zeros(array.shape, dtype=[("before", "u1"), ("it", array.dtype)])
    records["it"] = array
    return records["it"]


def one_byte_on(array: Array) -> Array:
    memory = np.zeros(array.nbytes + 1, np.uint8)
    shifted = memory[1:].view(array.dtype).reshape(array.shape)
    shifted[:] = array
    return shifted


def read_only(array: Array) -> Array:
    array = array.copy()
    array.flags.writeable = False
    return array


FORMS: dict[str, Callable[[Array], Array]] = {
    "plain": lambda array: array,
    "other byte order": lambda array: array.astype(array.dtype.newbyteorder()),
    "in a record": in_a_record,
    "one byte on": one_byte_on,
    "read-only": read_only,
    "backwards": lambda array: array[::-1].copy()[::-1],
    "columns backwards": lambda array: array[..., ::-1].copy()[..., ::-1],
    "by columns": np.asfortranarray,
    "read-only, by columns": lambda array: read_only(np.asfortranarray(array)),
    "every second": lambda array: np.repeat(array, 2, axis=0)[::2],
    "broadcast": lambda array: np.broadcast_to(array, (1, *array.shape))[0],
    "masked, without a mask": np.ma.masked_array,
}
INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
NUMBERS = ["bool", *INTEGERS, "float16", "float32", "float64", "longdouble"]


def blocks() -> Array:
    """Three of them, of small whole numbers, which every type holds."""
    noise = np.random.default_rng(0).integers(0, 3, (12, 15))
    return np.kron(np.eye(3, dtype=np.int64), np.full((4, 5), 5)) + noise


def as_type(array: Array, dtype: str) -> Array:
    return array > 3 if dtype == "bool" else array.astype(dtype)


def as_doubles(array: Array) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float64))


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("form", list(FORMS))
def test_weights_and_graphs(form: str, dtype: str) -> None:
    weight = as_type(blocks(), dtype)
    graph = as_type(blocks()[:, :12] + blocks()[:, :12].T, dtype)
    before = (FORMS[form](weight).copy(), FORMS[form](graph).copy())
    given = (FORMS[form](weight), FORMS[form](graph))
    partition = spectral_cocluster(as_doubles(weight), 3)
    assert spectral_cocluster(given[0], 3) == partition
    assert normalized_cut(given[0], partition) == pytest.approx(normalized_cut(as_doubles(weight), partition))
    labels = spectral_cluster(as_doubles(graph), 3)
    assert torch.equal(spectral_cluster(given[1], 3), labels)
    assert normalized_cut(given[1], labels) == pytest.approx(normalized_cut(as_doubles(graph), labels))
    expected = graph_embedding(as_doubles(graph), 2).abs()
    torch.testing.assert_close(graph_embedding(given[1], 2).abs(), expected, rtol=1e-4, atol=1e-6)
    for array, unchanged in zip(given, before, strict=True):
        assert np.array_equal(array, unchanged)
        assert array.dtype == unchanged.dtype


@pytest.mark.parametrize("dtype", ["int16", "uint64", "float32", "float64"])
@pytest.mark.parametrize("form", list(FORMS))
def test_estimators(form: str, dtype: str) -> None:
    weight = as_type(blocks(), dtype)
    for estimator, labels in ((SpectralCoclustering(3, random_state=0), "row_labels_"),):
        expected = getattr(copy.deepcopy(estimator).fit(weight.astype(np.float64)), labels)
        assert np.array_equal(getattr(estimator.fit(FORMS[form](weight)), labels), expected)
    graph = as_type(blocks()[:, :12] + blocks()[:, :12].T, dtype)
    clustering = SpectralClustering(3, affinity="precomputed", random_state=0)
    expected = copy.deepcopy(clustering).fit(graph.astype(np.float64)).labels_
    assert np.array_equal(clustering.fit(FORMS[form](graph)).labels_, expected)


LABELS = [0, 1, 2, 0, 1, 2, 2, 1, 0, 0, 1, -1]


def ways_to_give(labels: list[int]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Each makes them anew, since an iterator can be read once."""
    for dtype in INTEGERS:
        if min(labels) >= 0 or not dtype.startswith("u"):
            for form in FORMS:
                yield f"{dtype} {form}", lambda dtype=dtype, form=form: FORMS[form](np.array(labels, dtype))
        yield f"list of {dtype}", lambda dtype=dtype: [np.array(each).astype(dtype)[()] for each in labels]
    yield "list", lambda: labels
    yield "tuple", lambda: tuple(labels)
    yield "generator", lambda: (each for each in labels)
    yield "map", lambda: map(int, labels)
    yield "dict's values", lambda: dict(enumerate(labels)).values()
    for dtype in (torch.int8, torch.int16, torch.int32, torch.int64):
        yield str(dtype), lambda dtype=dtype: torch.tensor(labels, dtype=dtype)
    yield "tensors", lambda: [torch.tensor(each) for each in labels]


def test_labels() -> None:
    labels = [max(label, 0) for label in LABELS]
    graph = as_doubles(blocks()[:, :12] + blocks()[:, :12].T)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Linear(4, 3))
    indices = [[i for i, label in enumerate(labels) if label == cluster] for cluster in range(3)]
    expected = Partition(labels, labels, 3)
    for what, make in ways_to_give(labels):
        assert Partition(make(), make(), 3) == expected, what
        assert normalized_cut(graph, make()) == normalized_cut(graph, labels), what
        assert network_partitions(model, make()) == network_partitions(model, labels), what
    for ways in zip(*(ways_to_give(each) for each in indices), strict=True):
        clusters = [{cluster: way[1]() for cluster, way in enumerate(ways)} for _ in range(2)]
        value = compat.clusterability(graph, *clusters, 3)
        assert value == clusterability(graph, expected), ways[0][0]
    for what, make in ways_to_give(LABELS):
        if "list of u" not in what:
            assert Partition(make(), make(), 3) == Partition(LABELS, LABELS, 3), what


def test_labels_that_no_int64_holds() -> None:
    # Read as int64 this one is -1, "in no cluster".
    labels = np.array([0, 1, 2**64 - 1], dtype=np.uint64)
    graph = torch.ones(3, 3)
    for call in (
        lambda: Partition(labels, [0], 2),
        lambda: Partition(torch.from_numpy(labels), [0], 2),
        lambda: normalized_cut(graph, labels),
        lambda: compat.clusterability(graph, {0: labels, 1: []}, {0: [0], 1: []}, 2),
        lambda: network_partitions(torch.nn.Linear(2, 1), labels),
    ):
        with pytest.raises(ValueError, match="got 18446744073709551615"):
            call()


# What is not an array of numbers, and what is said of it.
NO_NUMBERS = {
    "objects": (np.array([[1, 2], [3, None]]), TypeError, "must hold real numbers, got dtype object"),
    "strings": (np.array([["1", "2"]]), TypeError, "must hold real numbers, got dtype <U1"),
    "dates": (np.zeros((2, 2), "datetime64[s]"), TypeError, "must hold real numbers, got dtype datetime64"),
    "records": (np.zeros((2, 2), "i4,f4"), TypeError, "must hold real numbers, got dtype"),
    "complex": (np.ones((2, 2), complex), TypeError, "must be real"),
    "masked": (np.ma.masked_equal([[1.0, 2.0]], 2.0), ValueError, "must have no masked elements, got 1"),
    "one dimension": (np.ones(3), ValueError, r"must have shape .*got \(3,\)"),
    "meta": (
        torch.ones(3, 3, device="meta"),
        ValueError,
        "must hold numbers, got a tensor on the meta device",
    ),
    "a list": ([[1.0, 2.0]], TypeError, "must be a torch.Tensor, a NumPy array or a SciPy sparse matrix"),
}


@pytest.mark.parametrize("kind", list(NO_NUMBERS))
def test_what_is_no_matrix(kind: str) -> None:
    given, error, message = NO_NUMBERS[kind]
    with pytest.raises(error, match=f"weight {message}"):
        spectral_cocluster(given, 1)
    for call in (
        lambda: spectral_cluster(given, 1),
        lambda: normalized_cut(given, [0]),
        lambda: graph_embedding(given, 1),
    ):
        with pytest.raises(error, match=f"adjacency {message}"):
            call()


@pytest.mark.filterwarnings("ignore")  # PyTorch announces the end of some of these
def test_tensors_that_are_no_plain_numbers() -> None:
    quantised = torch.quantize_per_tensor(torch.ones(3, 3), 0.1, 0, torch.qint8)
    nested = torch.nested.nested_tensor([torch.ones(3, 3), torch.ones(2, 3)])
    for given, kind in ((quantised, "torch.qint8"), (nested, "a nested tensor")):
        with pytest.raises(TypeError, match=f"weight must be one tensor of plain numbers, got {kind}"):
            spectral_cocluster(given, 1)
        with pytest.raises(TypeError, match="layer must be one tensor of plain numbers"):
            compat.spectral_clustering(given, 1)
        with pytest.raises(TypeError, match=r"weights\[0\] must be"):
            laplacian_eigenvalues(given, 1)
    with pytest.raises(ValueError, match=r"weights\[0\] must hold numbers, got a tensor on the meta device"):
        laplacian_eigenvalues(torch.ones(3, 3, device="meta"), 1)
    for layout in ("to_sparse", "to_sparse_csr"):
        with pytest.raises(ValueError, match=r"layer must be dense, got layout torch\.sparse"):
            compat.spectral_clustering(getattr(torch.ones(3, 3), layout)(), 1)


def test_memory_is_shared_where_it_can_be() -> None:
    array = np.zeros((3, 4))
    for given in (array, array.T, array[::2], array[:, 1:]):
        as_tensor("it", given).fill_(1.0)
        assert (given == 1.0).all()
        given[:] = 0.0


# --- sparse matrices


@pytest.mark.parametrize("dtype", [each for each in NUMBERS if each != "float16"])
@pytest.mark.parametrize("layout", ["csr", "csc", "bsr", "coo", "dia", "lil", "dok"])
@pytest.mark.parametrize("kind", [scipy.sparse.csr_matrix, scipy.sparse.csr_array])
def test_scipy(kind: Any, layout: str, dtype: str) -> None:
    weight = as_type(blocks(), dtype)
    expected = spectral_cocluster(as_doubles(weight), 3)
    matrix = kind(weight).asformat(layout)
    assert spectral_cocluster(matrix, 3) == expected
    if layout in ("lil", "dok"):
        return
    # As a file of another machine has them.
    matrix.data = matrix.data.astype(matrix.data.dtype.newbyteorder())
    for part in ("indices", "indptr", "row", "col", "offsets"):
        if part in vars(matrix):
            setattr(matrix, part, getattr(matrix, part).astype(np.dtype(np.int64).newbyteorder()))
    before = copy.deepcopy(vars(matrix))
    assert spectral_cocluster(matrix, 3) == expected
    for part, value in vars(matrix).items():
        if isinstance(value, np.ndarray):
            assert value.dtype == before[part].dtype
            assert np.array_equal(value, before[part])


def scattered(weight: Array) -> tuple[Array, Array, Array]:
    """Row starts, columns and values: in no order within a row, and each entry in two parts."""
    rows, cols = np.nonzero(weight)
    starts = np.concatenate([[0], np.cumsum(2 * np.bincount(rows, minlength=len(weight)))])
    values = weight[rows, cols].astype(np.float64)
    generator, order = np.random.default_rng(0), []
    for row in range(len(weight)):
        entries = np.flatnonzero(rows == row)
        order.append(generator.permutation(np.concatenate([entries, entries])))
    picked = np.concatenate(order)
    shares = np.where(np.arange(len(picked)) == [np.flatnonzero(picked == each)[0] for each in picked], 3, -2)
    return starts, cols[picked], values[picked] * shares


def test_entries_in_any_order_and_several_of_one_place() -> None:
    weight = blocks()
    starts, cols, values = scattered(weight)
    expected = spectral_cocluster(as_doubles(weight), 3)
    matrix = scipy.sparse.csr_matrix((values, cols, starts), shape=weight.shape)
    assert np.array_equal(matrix.toarray(), weight)
    before = matrix.copy()
    for index in (torch.int32, torch.int64):
        tensor = torch.sparse_csr_tensor(
            torch.from_numpy(starts).to(index),
            torch.from_numpy(cols).to(index),
            torch.from_numpy(values),
            weight.shape,
            check_invariants=False,
        )
        for affinity in ("abs", "square"):
            for given in (matrix, matrix.tocoo(copy=True), tensor, tensor.to_sparse_coo()):
                found, info = spectral_cocluster(given, 3, affinity=affinity, return_info=True)
                _, exact = spectral_cocluster(as_doubles(weight), 3, affinity=affinity, return_info=True)
                assert found == expected
                torch.testing.assert_close(info["singular_values"], exact["singular_values"])
    assert np.array_equal(matrix.indices, before.indices)
    assert np.array_equal(matrix.data, before.data)


def test_scipy_with_memory_to_spare() -> None:
    matrix = scipy.sparse.csr_matrix(blocks().astype(float))
    expected = spectral_cocluster(matrix, 3)
    matrix.data = np.concatenate([matrix.data, [np.nan] * 5])
    matrix.indices = np.concatenate([matrix.indices, np.full(5, 10**6, matrix.indices.dtype)])
    assert spectral_cocluster(matrix, 3) == expected


def with_part(layout: str, part: str, change: Callable[[Array], Array]) -> Any:
    matrix = scipy.sparse.random(6, 5, 0.6, format=layout, random_state=0)
    setattr(matrix, part, change(getattr(matrix, part).copy()))
    return matrix


def with_number(layout: str, part: str, place: int, number: int) -> Any:
    def change(array: Array) -> Array:
        array[place] = number
        return array

    return with_part(layout, part, change)


# Named and made one by one: even to print such a matrix may crash.
BROKEN = [
    *(
        (with_number, layout, part, place, number)
        for layout in ("csr", "csc", "bsr")
        for part in ("indptr", "indices")
        for place in (0, 1, -1)
        for number in (10**9, -5)
    ),
    *((with_number, "coo", part, 0, number) for part in ("row", "col") for number in (10**9, -7)),
    *((with_part, layout, "data", lambda data: data[:1]) for layout in ("csr", "csc", "coo", "dia")),
    (with_part, "csr", "indices", lambda indices: indices + 0.5),
    (with_part, "csr", "indptr", lambda starts: starts[:-1]),
]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: f"{broken[1]} {broken[2]}")
def test_scipy_whose_indices_do_not_fit(broken: tuple[Any, ...]) -> None:
    make, *arguments = broken
    with pytest.raises(ValueError, match="a sparse weight must be a valid SciPy matrix: "):
        spectral_cocluster(make(*arguments), 2)


def test_scipy_of_other_dimensions() -> None:
    with pytest.raises(ValueError, match=r"a sparse weight must have shape \(rows, columns\), got \(3,\)"):
        spectral_cocluster(scipy.sparse.coo_array(np.ones(3)), 1)


COO, CSR = torch.sparse_coo_tensor, torch.sparse_csr_tensor
ROWS = "must have 4 row starts and"


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(
    ("make", "parts", "message"),
    [
        (COO, ([[0, 1, 10**9], [0, 1, 2]],), r"row indices must be in \[0, 2\], got 1000000000"),
        (COO, ([[0, 1, 3], [0, 1, 2]],), r"row indices must be in \[0, 2\], got 3"),
        (COO, ([[0, 1, -1], [0, 1, 2]],), r"row indices must be in \[0, 2\], got -1"),
        (COO, ([[0, 1, 2], [0, 1, 3]],), r"column indices must be in \[0, 2\], got 3"),
        (CSR, ([0, 1, 2, 3], [0, 1, 3]), r"column indices must be in \[0, 2\], got 3"),
        (CSR, ([0, 1, 2, 3], [0, 1, -1]), r"column indices must be in \[0, 2\], got -1"),
        (CSR, ([0, 1, 3], [0, 1, 2]), rf"{ROWS} 3 column indices, got \(3,\) and \(3,\)"),
        (CSR, ([0, 1, 2, 2, 3], [0, 1, 2]), rf"{ROWS} 3 column indices, got \(5,\) and \(3,\)"),
        (CSR, ([0, 1, 2, 3], [0, 1]), rf"{ROWS} 3 column indices, got \(4,\) and \(2,\)"),
        (CSR, ([0, 2, 1, 3], [0, 1, 2]), "row starts must rise from 0 to 3"),
        (CSR, ([1, 1, 2, 3], [0, 1, 2]), "row starts must rise from 0 to 3"),
        (CSR, ([0, 1, 2, 5], [0, 1, 2]), "row starts must rise from 0 to 3"),
        (CSR, ([0.0, 1.0, 2.0, 3.0], [0, 1, 2]), "indices must be integers, got torch.float32"),
    ],
)
def test_sparse_tensors_whose_indices_do_not_fit(make: Any, parts: Any, message: str) -> None:
    tensor = make(*map(torch.tensor, parts), torch.ones(3), (3, 3), check_invariants=False)
    with pytest.raises(ValueError, match=f"a sparse weight.*{message}"):
        spectral_cocluster(tensor, 2)
    for call in (lambda: spectral_cluster(tensor, 2), lambda: normalized_cut(tensor, [0, 1, 1])):
        with pytest.raises(ValueError, match=f"a sparse adjacency.*{message}"):
            call()
