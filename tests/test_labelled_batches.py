"""Labels and inputs in every form that users have them in; what is no label is named, not counted."""

import numpy as np
import pytest
import torch
from torch import nn

from modfast import Partition, class_accuracy, cluster_accuracy
from modfast.labelled_batches import labelled_batches

INPUTS = torch.randn(2300, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 3, (2300,), generator=torch.Generator().manual_seed(1))


def linear():
    torch.manual_seed(0)
    return nn.Linear(4, 3)


class Two(nn.Module):
    """Of two arguments the sum."""

    def __init__(self):
        super().__init__()
        self.fc = linear()

    def forward(self, a, b):
        return self.fc(a + b)


LABEL_FORMS = {
    "tensor": lambda y: y,
    "int32": lambda y: y.int(),
    "uint8": lambda y: y.to(torch.uint8),
    "uint64": lambda y: y.to(torch.uint64),
    "array": lambda y: y.numpy(),
    "big-endian": lambda y: y.numpy().astype(">i8"),
    "read-only": lambda y: np.frombuffer(y.numpy().tobytes(), dtype=np.int64),
    "backwards": lambda y: y.flip(0).numpy()[::-1],
    "list": lambda y: y.tolist(),
    "tuple": lambda y: tuple(y.tolist()),
}


@pytest.mark.parametrize("form", LABEL_FORMS)
def test_labels_of_any_form(form):
    expected = class_accuracy(linear(), (INPUTS, LABELS))
    labels = LABEL_FORMS[form](LABELS)
    for data in (
        (INPUTS, labels),
        {"input": INPUTS, "labels": labels},
        ({"input": INPUTS}, labels),
        [(INPUTS, labels)],
        [{"input": INPUTS, "labels": labels}],
    ):
        assert torch.equal(class_accuracy(linear(), data), expected)


def test_inputs_of_several_arguments():
    halves = INPUTS / 2
    expected = class_accuracy(Two(), [((halves, halves), LABELS)])
    for data in (
        ((halves, halves), LABELS),
        ([halves, halves], LABELS),
        ((halves, halves), LABELS.tolist()),
        ({"a": halves, "b": halves}, LABELS),
        {"a": halves, "b": halves, "labels": LABELS.numpy()},
    ):
        assert torch.equal(class_accuracy(Two(), data), expected)
        assert all(len(labels) <= 1000 for _, labels in labelled_batches(data))
    partitions = {"fc": Partition([0, 1, 0], [0, 1, 0, 1], 2)}
    assert cluster_accuracy(Two(), ((halves, halves), LABELS), partitions, "only").shape == (2, 3)


def test_two_batches_are_no_pair():
    first, second = (INPUTS[:100], LABELS[:100]), (INPUTS[100:], LABELS[100:])
    expected = class_accuracy(linear(), (INPUTS, LABELS))
    for data in (
        (first, second),
        (list(first), list(second)),
        [first, second],
        ({"input": first[0], "labels": first[1]}, {"input": second[0], "labels": second[1].tolist()}),
    ):
        assert torch.equal(class_accuracy(linear(), data), expected)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (LABELS.float(), TypeError, r"data: labels must be integers, got torch\.float32"),
        (LABELS > 0, TypeError, r"data: labels must be integers, got torch\.bool"),
        (LABELS.numpy() + 0j, TypeError, r"data: labels must be integers, got torch\.complex128"),
        (LABELS[:, None], ValueError, r"data: labels must have shape \(n,\), .* \(2300, 1\)"),
        (nn.functional.one_hot(LABELS), ValueError, r"data: labels must have shape \(n,\), .* \(2300, 3\)"),
        (torch.tensor(1), ValueError, r"data: labels must have shape \(n,\), .* \(\)"),
        (np.array(["cat"] * 2300), TypeError, "data: labels must hold real numbers"),
        (LABELS.to("meta"), ValueError, "data: labels must hold numbers, got a tensor on the meta device"),
        (
            torch.full((2300,), 2**64 - 1, dtype=torch.uint64),
            ValueError,
            r"data: labels must lie below 2\*\*63",
        ),
        (LABELS - 1, ValueError, r"labels must lie in \[0, 2\]"),
    ],
)
def test_what_is_no_label_is_refused(labels, error, message):
    for data in ((INPUTS, labels), [(INPUTS, labels)], {"input": INPUTS, "labels": labels}):
        with pytest.raises(error, match=message):
            class_accuracy(linear(), data)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (None, TypeError, r"data must be a pair \(inputs, labels\), .*, got NoneType"),
        (3, TypeError, r"data must be a pair .*, got int"),
        ((INPUTS, LABELS[:5]), ValueError, "data has 2300 inputs and 5 labels"),
        (((INPUTS, INPUTS[:5]), LABELS), ValueError, "data has 5 inputs and 2300 labels"),
        ((INPUTS[0, 0], LABELS), ValueError, "data has no inputs and 2300 labels"),
        ({"labels": LABELS}, ValueError, "data has no inputs and 2300 labels"),
        ((INPUTS.numpy(), LABELS), TypeError, "data must have its inputs as tensors .*, got ndarray"),
        (((INPUTS, 1.0), LABELS), TypeError, "data must have its inputs as tensors .*, got float"),
        ((["a"] * 2300, LABELS), TypeError, "data must have its inputs as tensors .*, got str"),
        (INPUTS, TypeError, "data must hold pairs .* got Tensor"),
        ([INPUTS, LABELS], TypeError, "data must hold pairs .* got Tensor"),
    ],
)
def test_other_data_are_refused(data, error, message):
    with pytest.raises(error, match=message):
        class_accuracy(linear(), data)
