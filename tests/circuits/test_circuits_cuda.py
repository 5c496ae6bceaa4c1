"""The walk on a GPU: the bits of the CPU's.

They run on an emulated GPU as well (gpu.py), which shows nothing of speed, of the memory model, or of blocks
and streams that really run at once.
"""

import copy
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
from gpu import DEVICE, EMULATED, cpu_kernels, needs_a_real_gpu
from torch import nn

from modfast.circuits import find_circuit

pytestmark = pytest.mark.cuda

OPS = torch.ops.modfast
ACTIVATIONS = 8


def random_tail(widths, inputs, *, seed=0, zeros=0.2):
    """A tail of random layers as the operators want it, of these widths from the features to the logits."""
    generator = torch.Generator().manual_seed(seed)
    stride = -(-inputs // 8) * 8

    def normal(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    features = torch.zeros(widths[0], stride, dtype=torch.float64)
    features[:, :inputs] = normal(widths[0], inputs).relu()
    signs = torch.zeros(stride, dtype=torch.float64)
    signs[:inputs] = normal(inputs).sign()
    weights, biases, states = [], [], []
    for cols, rows in pairwise(widths):
        weight = normal(rows, cols)
        weights.append(weight.where(torch.rand(weight.shape, generator=generator) >= zeros, 0.0))
        biases.append(normal(rows))
        states.append(torch.zeros(rows, stride, dtype=torch.float64))
    activations = torch.randint(ACTIVATIONS, (len(weights),), generator=generator).tolist()
    activations[-1] = 0
    tail = {
        "features": features,
        "signs": signs,
        "weights": weights,
        "biases": biases,
        "activations": activations,
        "slopes": [0.1] * len(weights),
        "sources": [],
        "groups": [],
        "stage_layers": [],
        "stage_kinds": [],
        "stage_numbers": [],
        "stage_tables": [],
        "pre": states,
        "held": [state.clone() for state in states],
        "label": seed % widths[-1],
        "threads": 1,
    }
    with cpu_kernels():
        OPS.tail_forward_(**tail)
    return tail


def to_gpu(tail):
    """A copy of a tail on the GPU."""

    def moved(value):
        if isinstance(value, list):
            return [moved(each) for each in value]
        return value.to(DEVICE, copy=True) if isinstance(value, torch.Tensor) else value

    return {name: moved(value) for name, value in tail.items()}


def walk_all(tail, bounds):
    """Walk along all rows of all layers, from the last."""
    for layer in reversed(range(len(tail["weights"]))):
        rows, cols = tail["weights"][layer].shape
        for row in range(rows):
            OPS.walk_row_(**tail, layer=layer, row=row, begin=0, end=cols, **bounds)


def assert_same(found, expected):
    for name in ("weights", "pre", "held"):
        for one, other in zip(found[name], expected[name], strict=True):
            assert torch.equal(one.cpu(), other), name


# One block's threads, several inputs for each, more than the memory near them holds.
MANY = 8000 if EMULATED else 20000


@pytest.mark.parametrize("inputs", [1, 30, 129, 1000, 2100, MANY])
@pytest.mark.parametrize("widths", [(7, 2), (20, 5), (12, 9, 10), (9, 8, 7, 5), (6, 5, 6, 7, 4)], ids=str)
@pytest.mark.parametrize("accuracy", [False, True], ids=["loss", "accuracy"])
def test_same_bits_as_on_the_cpu(widths, inputs, accuracy):
    if inputs == MANY:
        widths = widths[-3:]
    tail = random_tail(widths, inputs, seed=len(widths) + inputs)
    gpu = to_gpu(tail)
    OPS.tail_forward_(**gpu)
    assert_same(gpu, tail)
    kept = zeroed = 0
    for share in (0.6, 0.9):
        bounds = {"highest_loss": share * inputs, "least_right": 0.3 * inputs if accuracy else None}
        with cpu_kernels():
            walk_all(tail, bounds)
        walk_all(gpu, bounds)
        assert_same(gpu, tail)
        kept += sum(int((weight != 0).sum()) for weight in tail["weights"])
        zeroed += sum(int((weight == 0).sum()) for weight in tail["weights"])
    assert zeroed > 0
    assert inputs == 1 or kept > 0


def test_the_tail_of_a_real_network():
    tail = random_tail((256, 64, 64, 10), 1000, seed=3, zeros=0.0)
    tail["activations"] = [1, 1, 0]
    with cpu_kernels():
        OPS.tail_forward_(**tail)
    gpu = to_gpu(tail)
    bounds = {"highest_loss": 500.0, "least_right": None}
    for layer, row in ((2, 0), (2, 3), (1, 5), (0, 7)):
        place = {"layer": layer, "row": row, "begin": 3, "end": 60}
        with cpu_kernels():
            OPS.walk_row_(**tail, **place, **bounds)
        OPS.walk_row_(**gpu, **place, **bounds)
        assert_same(gpu, tail)


def test_a_neuron_that_leads_nowhere_loses_its_weights():
    tail = random_tail((6, 5, 4), 40)
    tail["weights"][1][:, 2] = 0.0
    everything = {"layer": 0, "row": 2, "begin": 1, "end": 6, "highest_loss": -1.0, "least_right": None}
    with cpu_kernels():
        OPS.tail_forward_(**tail)
        gpu = to_gpu(tail)
        OPS.walk_row_(**tail, **everything)
    OPS.walk_row_(**gpu, **everything)
    assert_same(gpu, tail)
    assert gpu["weights"][0][2, 1:].count_nonzero() == 0


def test_an_empty_range_changes_nothing():
    tail = random_tail((6, 5, 4), 40)
    gpu = to_gpu(tail)
    OPS.walk_row_(**gpu, layer=0, row=2, begin=3, end=3, highest_loss=1e9, least_right=None)
    assert_same(gpu, tail)


@needs_a_real_gpu
def test_waits_for_its_own_stream_alone():
    tail = random_tail((20, 12, 5), 300)
    bounds = {"highest_loss": 200.0, "least_right": None}
    start, first = to_gpu(tail), to_gpu(tail)
    walk_all(tail, bounds)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        walk_all(first, bounds)  # kernels are loaded and memory is found
    torch.cuda.synchronize()
    for seconds in (1, 10, 100):  # a walk that waits for the other stream is never done before it
        gpu = copy.deepcopy(start)
        torch.cuda.synchronize()
        torch.cuda._sleep(seconds * 2_000_000_000)
        busy = torch.cuda.Event()
        busy.record()
        with torch.cuda.stream(stream):
            walk_all(gpu, bounds)
        stream.synchronize()
        if not busy.query():
            break
    else:
        pytest.fail("the walk waits for the default stream")
    assert_same(gpu, tail)


@needs_a_real_gpu
def test_on_the_current_stream():
    tail = random_tail((20, 12, 5), 300)
    bounds = {"highest_loss": 200.0, "least_right": None}
    gpu = to_gpu(tail)
    weights = [weight.clone() for weight in gpu["weights"]]
    for weight in gpu["weights"]:
        weight.fill_(float("nan"))
    walk_all(tail, bounds)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # work that has to be over before the walk may look
        for weight, copy in zip(gpu["weights"], weights, strict=True):
            weight.copy_(copy)
        walk_all(gpu, bounds)
    stream.synchronize()
    assert_same(gpu, tail)


@needs_a_real_gpu
def test_walks_side_by_side():
    tails = [random_tail((30, 16, 16, 6), 500, seed=seed) for seed in range(12)]
    gpus = [to_gpu(tail) for tail in tails]
    bounds = {"highest_loss": 300.0, "least_right": None}
    torch.cuda.synchronize()

    def walk(gpu):
        with torch.cuda.stream(torch.cuda.Stream()):
            walk_all(gpu, bounds)
            torch.cuda.current_stream().synchronize()

    with ThreadPoolExecutor(len(gpus)) as pool:
        list(pool.map(walk, gpus))
    for tail, gpu in zip(tails, gpus, strict=True):
        walk_all(tail, bounds)
        assert_same(gpu, tail)


def test_convolutions_are_refused():
    model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(9, 2)).to(DEVICE)
    inputs = torch.randn(5, 2, 4, device=DEVICE)
    with pytest.raises(ValueError, match=r"along convolutions and batch norms \('0'\) runs on the CPU alone"):
        find_circuit(model, inputs, 1, layers="*")
    assert list(find_circuit(model, inputs, 1).masks) == ["3"]
    gpu = to_gpu(random_tail((6, 5, 4), 40))
    sources = [torch.zeros(1, 1, dtype=torch.int32, device=DEVICE)] * 2
    with pytest.raises(RuntimeError, match="sources and stage_layers must be empty on a GPU"):
        OPS.tail_forward_(**(gpu | {"sources": sources, "groups": [1, 1]}))


def test_bad_arguments_raise():
    gpu = to_gpu(random_tail((6, 5, 4), 40))
    place = {"layer": 1, "row": 0, "begin": 0, "end": 5, "highest_loss": 1.0, "least_right": None}
    for match, changed in (
        ("features must be on the CUDA device", {"features": gpu["features"].cpu()}),
        ("signs must be on the CUDA device", {"signs": gpu["signs"].cpu()}),
        ("weights must be on the CUDA device", {"weights": [each.cpu() for each in gpu["weights"]]}),
        ("weights must be on the CUDA device", {"weights": [gpu["weights"][0], gpu["weights"][1].cpu()]}),
        ("held must be on the CUDA device", {"held": [gpu["held"][0], gpu["held"][1].cpu()]}),
        ("weights must be Double", {"weights": [each.float() for each in gpu["weights"]]}),
        ("biases must be contiguous, of another shape", {"biases": [each[:-1] for each in gpu["biases"]]}),
        ("features must have a multiple of 8", {"features": gpu["features"][:, :-1].contiguous()}),
        ("lists of one length", {"slopes": [0.1]}),
        ("at least one layer", {name: [] for name in ("weights", "biases", "pre", "held")}),
        ("activations must be in", {"activations": [8, 0]}),
        ("label must be in", {"label": 4}),
        ("threads must be at least 1", {"threads": 0}),
        ("layer must be in", {"layer": 2}),
        ("row must be in", {"row": -1}),
        ("end must be in", {"end": 6}),
        ("begin must be in", {"begin": 6}),
    ):
        if EMULATED and "CUDA device" in match:
            continue  # here one device has all tensors
        with pytest.raises(RuntimeError, match=match):
            OPS.walk_row_(**(gpu | place | changed))
