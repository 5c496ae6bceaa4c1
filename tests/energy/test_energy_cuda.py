"""The CUDA kernels, held to the specification and to the CPU's.

They run on an emulated GPU as well (gpu.py), which shows nothing of speed, of the memory model, or of blocks
and streams that really run at once.
"""

from contextlib import nullcontext

import pytest
import torch
from gpu import DEVICE, EMULATED, cpu_kernels, like_on_device, needs_a_real_gpu, to_device
from labelled import (
    DTYPES,
    LAYOUTS,
    OPS,
    SHAPES,
    SUM_TOLERANCE,
    assert_split,
    assert_sums,
    labels_of,
    product_tolerance,
    random_partition,
)
from torch import nn

import modfast
from modfast import EnmeshmentLoss, Partition, block_energy, enmeshment, reference

pytestmark = pytest.mark.cuda


def on_gpu(tensors):
    return [like_on_device(tensor) for tensor in tensors]


def model_of(shapes, layout, dtype, counts):
    weights = [LAYOUTS[layout](shape, dtype) for shape in shapes]
    partitions = [random_partition(shape, k) for shape, k in zip(shapes, counts, strict=True)]
    labels = [
        [partition.row_labels for partition in partitions],
        [partition.col_labels for partition in partitions],
        [partition.num_clusters for partition in partitions],
    ]
    return weights, partitions, labels


@needs_a_real_gpu
def test_this_build_has_kernels_for_this_gpu():
    assert modfast.backend()["cuda"]
    assert torch.cuda.is_available()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_block_operators_against_reference(shape, dtype, layout):
    weight = LAYOUTS[layout](shape, dtype)
    gpu = like_on_device(weight)
    assert (gpu.shape, gpu.stride()) == (weight.shape, weight.stride())
    for k in (1, 70) if EMULATED else (1, 3, 70):  # emulation takes its time
        partition = random_partition(shape, k)
        labels = [labels.to(DEVICE) for labels in labels_of(partition)]
        other, factors = torch.randn(shape, dtype=dtype), torch.randn(k + 1, k + 1, dtype=torch.float64)
        assert_sums(OPS.block_inner(gpu, None, *labels, k).cpu(), weight, None, partition)
        assert_sums(OPS.block_inner(gpu, other.to(DEVICE), *labels, k).cpu(), weight, other, partition)
        scaled = OPS.block_scale(gpu, factors.to(DEVICE), *labels)
        exact = reference.labelled_block_scale(weight.double(), factors, *labels_of(partition))
        assert (scaled.dtype, scaled.shape) == (dtype, shape)
        torch.testing.assert_close(scaled.double().cpu(), exact, **product_tolerance(dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grad_layout", ["contiguous", "transposed", "columns of a wider", "kernel permuted"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_model_operators_against_reference(dtype, layout, grad_layout):
    shapes = [(13, 17), (129, 40), (3, 1030), (8, 4, 3, 3), (0, 4), (512, 512), (260, 1024)]
    shapes[-2:] = [(256, 160), (260, 300)] if EMULATED else shapes[-2:]
    weights, partitions, labels = model_of(shapes, layout, dtype, (1, 4, 9, 2, 3, 4, 64))
    gpu_labels = [on_gpu(labels[0]), on_gpu(labels[1]), labels[2]]
    gpu_weights = on_gpu(weights)
    doubles = [weight.double() for weight in weights]
    losses, energies = OPS.enmeshment(gpu_weights, *gpu_labels)
    assert_split(energies.cpu(), weights, partitions)
    expected, _ = reference.labelled_enmeshment(doubles, *labels)
    torch.testing.assert_close(losses.cpu(), expected, rtol=SUM_TOLERANCE, atol=SUM_TOLERANCE)

    slopes = torch.randn(len(shapes), dtype=torch.float64)
    gpu_slopes = slopes.to(DEVICE)
    wanted = reference.enmeshment_grad(doubles, energies.cpu(), slopes, *labels)
    eps = torch.finfo(dtype).eps

    def assert_gradients(found, before, wanted):
        for grad, old, step in zip(found, before, wanted, strict=True):
            # As on the CPU; see test_accumulation_against_reference.
            allowed = 3 * eps * torch.maximum(old.abs(), step.abs()) + 3 * SUM_TOLERANCE * step.abs()
            assert grad.dtype == dtype
            assert ((grad.double().cpu() - old - step).abs() <= allowed + torch.finfo(dtype).tiny).all()

    zeros = [torch.zeros_like(weight) for weight in doubles]
    assert_gradients(OPS.enmeshment_grad(gpu_weights, energies, gpu_slopes, *gpu_labels), zeros, wanted)
    grads = [LAYOUTS[grad_layout](shape, dtype) for shape in shapes]
    before, gpu_grads = [grad.double() for grad in grads], on_gpu(grads)
    OPS.add_enmeshment_grad_(gpu_weights, gpu_grads, energies, gpu_slopes, *gpu_labels)
    assert_gradients(gpu_grads, before, wanted)
    gpu_grads = on_gpu(grads)
    again = OPS.accumulate_enmeshment_grad_(gpu_weights, gpu_grads, *gpu_labels, 100.0)
    torch.testing.assert_close(again.cpu(), expected, rtol=SUM_TOLERANCE, atol=SUM_TOLERANCE)
    hundred = torch.full_like(slopes, 100.0)
    assert_gradients(gpu_grads, before, reference.enmeshment_grad(doubles, energies.cpu(), hundred, *labels))


def many_layers(count=130 if EMULATED else 300):
    """More than fit one launch's arguments, of every dtype."""
    layers = [nn.Linear(17 + i % 50, 20 + i % 40, dtype=DTYPES[i % 4]) for i in range(count)]
    return nn.ModuleList(layers)


def test_a_model_of_many_layers():
    model = many_layers()
    losses = []
    for on_cpu in (True, False):
        model.to("cpu" if on_cpu else DEVICE).zero_grad()
        with cpu_kernels() if on_cpu else nullcontext():
            loss = EnmeshmentLoss(model, 4)
            losses.append(loss().double().cpu())
            losses.append(loss.accumulate_grad_(0.7).double().cpu())
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0], rtol=1e-10, atol=0.0)


def test_gradients_are_those_of_the_cpu():
    torch.manual_seed(1)
    model = nn.ModuleList([nn.Linear(300, 200), nn.Conv2d(8, 12, 3), nn.ConvTranspose1d(6, 9, 5)])

    def gradients():
        return [parameter.grad.cpu().clone() for parameter in model.parameters() if parameter.dim() > 1]

    found = []
    for on_cpu in (True, False):
        model.to("cpu" if on_cpu else DEVICE).zero_grad()
        with cpu_kernels() if on_cpu else nullcontext():
            loss = EnmeshmentLoss(model, 3, layers="*")
            loss().backward()
            by_autograd = gradients()
            model.zero_grad()
            loss.accumulate_grad_(1.0)
            found.append(by_autograd + gradients())
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_second_derivatives():
    partition = random_partition((5, 4), 2)
    weight = torch.randn(5, 4, dtype=torch.float64, device=DEVICE, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda w: enmeshment(w, partition), weight)
    assert torch.autograd.gradgradcheck(lambda w: block_energy(w, partition), weight)


def test_same_bits_every_time():
    weights, _, labels = model_of([(700, 1500), (64, 32, 3, 3)], "contiguous", torch.float32, (7, 3))
    gpu, labels = on_gpu(weights), [on_gpu(labels[0]), on_gpu(labels[1]), labels[2]]
    _, first = OPS.enmeshment(gpu, *labels)
    blocks = OPS.block_inner(gpu[0], None, labels[0][0], labels[1][0], 7)
    for _ in range(5 if EMULATED else 50):
        assert torch.equal(OPS.enmeshment(gpu, *labels)[1], first)
        assert torch.equal(OPS.block_inner(gpu[0], None, labels[0][0], labels[1][0], 7), blocks)


@needs_a_real_gpu
def test_nothing_waits_for_the_device():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).cuda()
    loss = EnmeshmentLoss(model, 4)
    loss().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss().backward()
        loss.accumulate_grad_(0.7)
        block_energy(model[0].weight, loss.partitions["0"])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_a_real_gpu
def test_captured_in_a_graph():
    model = nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 64)).cuda()
    loss = EnmeshmentLoss(model, 4)
    loss.accumulate_grad_(0.7)
    parameters = [model[0].weight, model[1].weight]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = loss.accumulate_grad_(0.7)
    for _ in range(3):
        with torch.no_grad():
            for parameter in parameters:
                parameter.normal_()
                parameter.grad.zero_()
        graph.replay()
        found, grads = value.clone(), [parameter.grad.clone() for parameter in parameters]
        for parameter in parameters:
            parameter.grad.zero_()
        assert torch.equal(found, loss.accumulate_grad_(0.7))
        for parameter, grad in zip(parameters, grads, strict=True):
            assert torch.equal(parameter.grad, grad)


@needs_a_real_gpu
def test_on_the_current_stream():
    weight = torch.randn(2048, 2048, device="cuda")
    partition = Partition.blocks((2048, 2048), 4).to("cuda")
    expected = enmeshment(weight * 3.0 + 1.0, partition)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        changed = weight.clone()
        for _ in range(20):  # work that has to be over before the loss may look
            changed.copy_(torch.sin(torch.randn_like(weight)))
        changed.copy_(weight * 3.0 + 1.0)
        found = enmeshment(changed, partition)
    stream.synchronize()
    assert torch.equal(found, expected)


@needs_a_real_gpu
def test_on_a_device_that_is_not_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    weight = torch.randn(100, 100)
    partition = Partition.blocks((100, 100), 4)
    assert torch.cuda.current_device() == 0
    torch.testing.assert_close(
        enmeshment(weight.to("cuda:1"), partition).cpu(), enmeshment(weight, partition)
    )
    assert torch.cuda.current_device() == 0


@needs_a_real_gpu
def test_memory_beside_the_results():
    weight = torch.randn(4096, 4096, device="cuda", requires_grad=True)
    partition = random_partition((4096, 4096), 64).to("cuda")
    for function in (enmeshment, block_energy):
        function(weight, partition)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function(weight, partition)
        assert torch.cuda.max_memory_allocated() - before < 8 * 2**20


def test_not_finite_gives_nan():
    for value in (float("nan"), float("inf")):
        weight = torch.randn(40, 40, device=DEVICE)
        weight[3, 3] = value
        weight.requires_grad_()
        result = enmeshment(weight, Partition.blocks((40, 40), 2))
        assert result.isnan()
        assert torch.autograd.grad(result, weight)[0].isnan().all()


@needs_a_real_gpu
def test_tensors_of_the_cpu_are_refused():
    weight, rows, cols = torch.ones(4, 3, device=DEVICE), torch.zeros(4).long(), torch.zeros(3).long()
    with pytest.raises(RuntimeError, match="row_labels must be on the CUDA device"):
        OPS.enmeshment([weight], [rows], [cols.to(DEVICE)], [1])


def test_bad_arguments_raise():
    weight = torch.ones(4, 3, device=DEVICE)
    rows, cols = to_device(torch.zeros(4).long(), torch.zeros(3).long())
    with pytest.raises(RuntimeError, match="has 3 labels"):
        OPS.enmeshment([weight], [cols], [cols], [1])
    with pytest.raises(RuntimeError, match="share memory"):
        OPS.accumulate_enmeshment_grad_([weight], [weight], [rows], [cols], [1], 1.0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler warns about itself
def test_a_compiled_training_step():
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8)).to(DEVICE)
    loss, inputs = EnmeshmentLoss(model, 4), torch.randn(16, 32, device=DEVICE)

    def step():
        return model(inputs).square().mean() + 0.7 * loss()

    gradients = []
    for function in (step, torch.compile(step, fullgraph=True)):
        model.zero_grad()
        function().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for eager, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-6)
