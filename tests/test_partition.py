"""Partitions: their labels, their errors, and their files."""

import copy
import io
import json
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modfast import Partition, enmeshment, load_partitions, save_partitions


def example():
    return Partition([0, 2, -1, 2, 0], [1, -1, 0, 2], 3)


# --- construction


@pytest.mark.parametrize(
    "make",
    [
        list,
        tuple,
        torch.tensor,
        lambda labels: torch.tensor(labels, dtype=torch.int8),
        lambda labels: torch.tensor(labels, dtype=torch.int32),
        lambda labels: torch.stack([torch.tensor(labels)] * 2, dim=1)[:, 0],
        np.array,
        lambda labels: np.array(labels, dtype=np.int16),
        lambda labels: np.array(labels, dtype=">i8"),
        lambda labels: np.array(labels[::-1])[::-1],
        lambda labels: np.array([[label, 9] for label in labels])[:, 0],
        lambda labels: np.frombuffer(np.array(labels).tobytes(), dtype=np.int64),
    ],
    ids=[
        "list",
        "tuple",
        "tensor",
        "int8",
        "int32",
        "strided tensor",
        "numpy",
        "int16",
        "big-endian",
        "negative stride",
        "strided numpy",
        "read-only",
    ],
)
def test_any_integers(make):
    labels = [0, 2, -1, 2, 0]
    partition = Partition(make(labels), make(labels), 3)
    for side in (partition.row_labels, partition.col_labels):
        assert side.dtype == torch.int64
        assert side.is_contiguous()
        assert side.tolist() == labels


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64])
def test_unsigned_tensors(dtype):
    assert Partition(torch.tensor([1, 0], dtype=dtype), [0], 2).row_labels.tolist() == [1, 0]


def test_empty_sides():
    partition = Partition([], torch.empty(0), 2)
    assert partition.shape == (0, 0)
    assert partition.mask().shape == (0, 0)
    assert partition.sizes().tolist() == [[0, 0], [0, 0]]
    assert partition.row_order().tolist() == []


@pytest.mark.parametrize("given", [torch.tensor([0, 1, 1]), np.array([0, 1, 1])])
def test_keeps_a_copy(given):
    partition = Partition(given, given, 2)
    given[0] = 1
    assert partition.row_labels.tolist() == [0, 1, 1]
    assert partition.col_labels.tolist() == [0, 1, 1]


def test_rows_and_columns_share_no_memory():
    labels = torch.tensor([0, 1])
    partition = Partition(labels, labels, 2)
    assert partition.row_labels.data_ptr() != partition.col_labels.data_ptr()


@pytest.mark.parametrize("bad", [0, -1, 2.0, "2", None, True, np.float32(2), [2], 2**31, torch.tensor(2)])
def test_bad_number_of_clusters(bad):
    with pytest.raises(ValueError, match=r"num_clusters must be .*" + re.escape(repr(bad))):
        Partition([0], [0], bad)
    with pytest.raises(ValueError, match="num_clusters must be"):
        Partition.blocks((4, 4), bad)


@pytest.mark.parametrize("number", [2, np.int64(2), np.uint8(2)])
def test_number_of_clusters(number):
    partition = Partition([0], [1], number)
    assert type(partition.num_clusters) is int
    assert partition.num_clusters == 2


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ([0, 3], r"\[-1, 2\], got 3"),
        ([0, -2], r"\[-1, 2\], got -2"),
        (np.array([2**64 - 1], dtype=np.uint64), rf"\[-1, 2\], got {2**64 - 1}"),
        ([2**62], rf"got {2**62}"),
        ([2**70], "integers, got list"),
        ([0.0, 1.0], "integers, got dtype torch.float64"),
        ([True, False], "integers, got dtype torch.bool"),
        (torch.tensor([0.0]), "integers, got dtype torch.float32"),
        (torch.tensor([1j]), "integers, got dtype torch.complex64"),
        (["0", "1"], "integers, got list"),
        ("01", "integers, got str"),
        (None, "integers, got NoneType"),
        ([[0, 1], [1]], "integers, got list"),
        ([[0, 1], [1, 0]], r"1-D and dense, got shape \(2, 2\)"),
        (1, r"1-D and dense, got shape \(\)"),
        (torch.tensor([0, 1]).to_sparse(), "1-D and dense, got shape .*sparse"),
        ({0, 1}, "integers, got set"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("side", ["row_labels", "col_labels"])
def test_bad_labels(bad, told, side):
    arguments = {"row_labels": [0], "col_labels": [0], side: bad}
    with pytest.raises(ValueError, match=f"^{side} must .*{told}"):
        Partition(**arguments, num_clusters=3)


def test_made_in_inference_mode_serves_training():
    with torch.inference_mode():
        partition = Partition.blocks((4, 4), 2)
    weight = torch.randn(4, 4, requires_grad=True)
    enmeshment(weight, partition).backward()
    assert weight.grad.abs().sum() > 0


# --- immutability


def test_immutable():
    partition = example()
    with pytest.raises(AttributeError, match="immutable: cannot set num_clusters"):
        partition.num_clusters = 5
    with pytest.raises(AttributeError, match="immutable: cannot set row_labels"):
        partition.row_labels = torch.tensor([0])
    with pytest.raises(AttributeError, match="immutable: cannot delete row_labels"):
        del partition.row_labels
    with pytest.raises(AttributeError, match="cannot set anything"):
        partition.anything = 1
    assert partition == example()


def test_labels_written_over_are_refused_not_followed():
    # A tensor cannot be frozen; what matters is that no label leads outside a matrix.
    for wrong in (99, -7, 2**40):
        partition = Partition.blocks((4, 4), 2)
        partition.row_labels[0] = wrong
        with pytest.raises(RuntimeError, match=rf"row_labels\[0\] is {wrong}"):
            enmeshment(torch.ones(4, 4), partition)


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda partition: pickle.loads(pickle.dumps(partition))]
)
def test_copies(duplicate):
    partition = duplicate(example())
    assert partition == example()
    assert hash(partition) == hash(example())
    assert partition.row_labels.data_ptr() != example().row_labels.data_ptr()


def test_equality():
    assert example() == example()
    assert example() != Partition([0, 2, -1, 2, 0], [1, -1, 0, 2], 4)
    assert example() != Partition([0, 2, -1, 2, 1], [1, -1, 0, 2], 3)
    assert example() != Partition([0, 2, -1, 2], [1, -1, 0, 2], 3)
    assert example() != "partition"
    assert len({example(), example(), example().transpose()}) == 2


# --- blocks


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=60)
def test_blocks_are_those_of_tensor_split(rows, cols, k):
    if k > min(rows, cols):
        with pytest.raises(ValueError, match=rf"num_clusters must be at most {min(rows, cols)} .*got {k}"):
            Partition.blocks((rows, cols), k)
        return
    partition = Partition.blocks((rows, cols), k)
    for labels, size in ((partition.row_labels, rows), (partition.col_labels, cols)):
        pieces = torch.arange(size).tensor_split(k)
        expected = torch.cat([torch.full_like(piece, label) for label, piece in enumerate(pieces)])
        assert torch.equal(labels, expected)


def test_blocks_of_a_convolution():
    assert Partition.blocks(torch.empty(6, 4, 3, 3).shape, 2) == Partition.blocks((6, 4), 2)


@pytest.mark.parametrize("bad", [(5,), (), None, 5, "54", (5.0, 4.0), (5.9, 4), ("a", 4), (-4, 4), (None, 4)])
def test_bad_shapes(bad):
    with pytest.raises(ValueError, match=f"shape must .*{re.escape(repr(bad))}"):
        Partition.blocks(bad, 1)


def test_no_blocks_of_nothing():
    with pytest.raises(ValueError, match="num_clusters must be at most 0"):
        Partition.blocks((0, 4), 1)


def test_blocks_where_tensors_are_made_without_memory():
    with torch.device("meta"):
        assert Partition.blocks((4, 4), 2).row_labels.tolist() == [0, 0, 1, 1]
        assert Partition([0, 1], [1], 2).row_labels.tolist() == [0, 1]


# --- views


def test_mask_by_hand():
    assert example().mask().int().tolist() == [
        [0, 0, 1, 0],
        [0, 0, 0, 1],
        [0, 0, 0, 0],
        [0, 0, 0, 1],
        [0, 0, 1, 0],
    ]


def test_sizes_by_hand():
    assert example().sizes().tolist() == [[2, 1], [0, 1], [2, 1]]
    assert Partition([0], [0], 4).sizes().tolist() == [[1, 1], [0, 0], [0, 0], [0, 0]]


def test_orders_by_hand():
    assert example().row_order().tolist() == [0, 4, 1, 3, 2]
    assert example().col_order().tolist() == [2, 0, 3, 1]


def test_orders_are_stable_past_the_sizes_that_sort_unstably():
    labels = torch.randint(-1, 3, (5000,))
    order = Partition(labels, [0], 3).row_order()
    expected = sorted(range(5000), key=lambda i: (labels[i] < 0, labels[i]))
    assert order.tolist() == expected


def test_transpose():
    transposed = example().transpose()
    assert transposed.shape == (4, 5)
    assert torch.equal(transposed.mask(), example().mask().T)
    assert transposed.transpose() == example()


def test_to():
    partition = example()
    assert partition.to("cpu") is partition
    assert partition.device == torch.device("cpu")
    assert partition.to("meta").device == torch.device("meta")
    with pytest.raises(ValueError, match="must be on one device, got cpu and meta"):
        Partition([0], torch.tensor([0], device="meta"), 1)


@pytest.mark.cuda
def test_to_gpu_and_back():
    moved = example().to("cuda")
    assert moved.device.type == "cuda"
    assert moved == example()
    assert moved.to("cpu").mask().equal(example().mask())


def test_repr():
    assert repr(example()) == "Partition(shape=(5, 4), num_clusters=3)"


# --- files

ODD_NAMES = [
    "",
    "fc2",
    "a/b",
    "../up",
    "with space",
    "ж\u0301",
    "\ud800",
    "\0",
    "contents",
    "rows_0",
    "x" * 5000,
]


def saved(mapping, tmp_path):
    save_partitions(tmp_path / "partitions.npz", mapping)
    return (tmp_path / "partitions.npz").read_bytes()


def test_round_trip(tmp_path):
    mapping = {name: Partition.blocks((i + 2, 5), 2) for i, name in enumerate(ODD_NAMES)}
    mapping["unassigned"] = Partition([-1, -1], [], 7)
    saved(mapping, tmp_path)
    loaded = load_partitions(str(tmp_path / "partitions.npz"))
    assert loaded == mapping
    assert list(loaded) == list(mapping)


def test_empty_round_trip(tmp_path):
    saved({}, tmp_path)
    assert load_partitions(tmp_path / "partitions.npz") == {}


def test_any_file_name(tmp_path):
    # NumPy's own savez appends ".npz" to a name.
    save_partitions(tmp_path / "partitions.bin", {"fc2": example()})
    assert load_partitions(tmp_path / "partitions.bin") == {"fc2": example()}
    assert [path.name for path in tmp_path.iterdir()] == ["partitions.bin"]


@given(
    st.dictionaries(
        st.text(),
        st.integers(1, 5).flatmap(
            lambda k: st.builds(
                Partition,
                st.lists(st.integers(-1, k - 1), max_size=20),
                st.lists(st.integers(-1, k - 1), max_size=20),
                st.just(k),
            )
        ),
        max_size=4,
    )
)
@settings(max_examples=30)
def test_round_trip_of_anything(tmp_path, mapping):
    saved(mapping, tmp_path)
    assert load_partitions(tmp_path / "partitions.npz") == mapping


@pytest.mark.parametrize("mapping", [{1: example()}, {"fc2": [0, 1]}, {"fc2": None}])
def test_bad_mapping(tmp_path, mapping):
    with pytest.raises(ValueError, match="mapping must map names to Partition"):
        save_partitions(tmp_path / "partitions.npz", mapping)
    assert list(tmp_path.iterdir()) == []


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_partitions(tmp_path / "absent.npz")
    with pytest.raises(IsADirectoryError):
        load_partitions(tmp_path)


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def npz_of(contents, **arrays):
    return npz(contents=np.frombuffer(json.dumps(contents).encode(), dtype=np.uint8), **arrays)


def contents(**entry):
    return {"format": "modfast partitions 1", "entries": [{"name": "a", "num_clusters": 1, **entry}]}


def zip_of(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


class Trap:
    def __reduce__(self):
        return pytest.fail, ("a pickle was run",)


def pickled_npz():
    file = io.BytesIO()
    np.savez(file, contents=np.array([Trap()], dtype=object))
    return file.getvalue()


ZERO = np.array([0])
FOREIGN = {
    "empty": b"",
    "text": b"hello",
    "png": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "pickle": pickle.dumps(Trap()),
    "npz with a pickle": pickled_npz(),
    "npz of something else": npz(weight=np.ones(3)),
    "npy": npz(a=ZERO)[30:60],
    "zip": zip_of(readme="hello"),
    "zip with text for an array": zip_of(contents="hello"),
    "other format": npz_of({**contents(), "format": "modfast partitions 2"}, rows_0=ZERO, cols_0=ZERO),
    "json is no object": npz_of([1, 2]),
    "json nested too deep": npz(contents=np.frombuffer(b"[" * 200_000, dtype=np.uint8)),
    "no entries": npz_of({"format": "modfast partitions 1"}),
    "entries is no list": npz_of({"format": "modfast partitions 1", "entries": 3}),
    "labels absent": npz_of(contents(), rows_0=ZERO),
    "label out of range": npz_of(contents(), rows_0=ZERO + 1, cols_0=ZERO),
    "labels are floats": npz_of(contents(), rows_0=ZERO + 0.5, cols_0=ZERO),
    "labels are 2-D": npz_of(contents(), rows_0=ZERO[None], cols_0=ZERO),
    "no clusters": npz_of(contents(num_clusters=0), rows_0=ZERO, cols_0=ZERO),
    "clusters no number": npz_of(contents(num_clusters="2"), rows_0=ZERO, cols_0=ZERO),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files(tmp_path, kind):
    path = tmp_path / "partitions.npz"
    path.write_bytes(FOREIGN[kind])
    with pytest.raises(ValueError, match=re.escape(str(path))):
        load_partitions(path)


def damaged(tmp_path, data, original):
    """Either the file is refused or it is read as it was."""
    path = tmp_path / "damaged.npz"
    path.write_bytes(data)
    try:
        loaded = load_partitions(path)
    except ValueError:
        return
    assert loaded == original


def test_truncated_anywhere(tmp_path):
    original = {"fc2": example(), "fc3": Partition.blocks((40, 30), 3)}
    data = saved(original, tmp_path)
    for length in range(0, len(data), 7):
        path = tmp_path / "damaged.npz"
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="partitions file"):
            load_partitions(path)


@given(st.data())
@settings(max_examples=400)
@pytest.mark.filterwarnings("ignore")  # what NumPy or zipfile think of a damaged file is beside the point
def test_flipped_bytes(tmp_path, data):
    original = {"fc2": Partition(torch.arange(3000) % 7, torch.arange(5) % 7, 7), "fc3": example()}
    if not (tmp_path / "partitions.npz").exists():
        saved(original, tmp_path)
    whole = bytearray((tmp_path / "partitions.npz").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    damaged(tmp_path, bytes(whole), original)


def test_a_shortened_array_is_noticed(tmp_path):
    # NumPy would read what the header says and miss the checksum. Not compressed, so that it can change.
    whole = npz_of(contents(), rows_0=np.zeros(4000, dtype=np.int64), cols_0=ZERO)
    assert whole.count(b"(4000,)") == 1
    path = tmp_path / "partitions.npz"
    path.write_bytes(whole)
    assert load_partitions(path)["a"].shape == (4000, 1)
    path.write_bytes(whole.replace(b"(4000,)", b"(1000,)"))
    with pytest.raises(ValueError, match=r"rows_0\.npy"):
        load_partitions(path)


def test_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    saved({"fc2": example()}, tmp_path)

    def interrupted(file, **arrays):
        file.write(b"PK")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        saved({}, tmp_path)
    assert load_partitions(tmp_path / "partitions.npz") == {"fc2": example()}
    assert [path.name for path in tmp_path.iterdir()] == ["partitions.npz"]


def test_a_pair_of_labels_and_their_number_is_refused_in_words():
    labels = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="row_labels must be labels alone, got a pair such as unit_labels"):
        Partition((labels, 2), labels, 2)
    assert Partition((torch.tensor(0), torch.tensor(1)), labels, 2).shape == (2, 2)


@pytest.mark.parametrize("mapping", [None, "fc2", Partition.blocks((4, 4), 2), [Partition.blocks((4, 4), 2)]])
def test_only_a_mapping_is_saved(tmp_path, mapping):
    with pytest.raises(TypeError, match="mapping must map names to Partition, got "):
        save_partitions(tmp_path / "partitions.npz", mapping)
    assert list(tmp_path.iterdir()) == []
