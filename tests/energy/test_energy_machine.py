"""The energy operators on the machine: threads, instruction sets, large weights, memory."""

import contextlib
import gc
import resource
import threading
import time
import tracemalloc

import pytest
import torch
from gpu import needs_cpu_kernels
from labelled import (
    DTYPES,
    OPS,
    labels_of,
    random_partition,
)

import modfast
from modfast import Partition, block_energy, block_scale, enmeshment


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_for_any_number_of_threads(set_threads, dtype):
    shapes = [(700, 1500), (64, 32, 3, 3)]
    weights = [torch.randn(shape).to(dtype) for shape in shapes]
    partitions = [random_partition(shape, 5) for shape in shapes]
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        for weight, partition in zip(weights, partitions, strict=True):
            leaf = weight.clone().requires_grad_()
            enmeshment(leaf, partition).backward()
            results.append([block_energy(weight, partition), leaf.grad])
        grads = [torch.zeros_like(weight) for weight in weights]
        labels = [[p.row_labels for p in partitions], [p.col_labels for p in partitions], [5, 5]]
        results.append([OPS.accumulate_enmeshment_grad_(weights, grads, *labels, 0.7), *grads])
    for one, two, three in zip(results[:3], results[3:6], results[6:], strict=True):
        for a, b, c in zip(one, two, three, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a, c)


# Prints one digest of everything the kernels compute, over numbers of every kind.
DIGEST = """
import hashlib, torch, modfast.energy
ops, digest = torch.ops.modfast, hashlib.sha256()
generator = torch.Generator().manual_seed(1)
rows = torch.randint(-1, 4, (133,), generator=generator)
cols = torch.randint(-1, 4, (1031,), generator=generator)
factors = torch.randn(5, 5, dtype=torch.float64, generator=generator)
factors[0, 0] = 1e-42  # outside the normal numbers of float32
bits = torch.arange(-2**15, 2**15).repeat(3)[: 133 * 1031].to(torch.int16).reshape(1, -1)
bits = torch.nn.functional.pad(bits, (0, max(0, 133 * 1031 - bits.numel()))).reshape(133, 1031)
every_half, every_bfloat = bits.view(torch.float16), bits.view(torch.bfloat16)
wide = torch.randn(133, 1031, dtype=torch.float64, generator=generator)
wide *= 10.0 ** torch.randint(-30, 30, wide.shape, generator=generator)
wide32 = wide.float()
wide32[:, 7] *= 1e-12  # subnormal numbers among them
def note(tensor):
    number = tensor.contiguous().view(-1)
    kind = {8: torch.int64, 4: torch.int32, 2: torch.int16}[tensor.element_size()]
    # A sum's NaN has no bits of its own; a scaled NaN has.
    if tensor.dtype == torch.float64:
        number = torch.where(number.isnan(), float("nan"), number)
    digest.update(number.view(kind).numpy().tobytes())
for weight in (wide, wide32, every_half, every_half.nan_to_num(), wide.half(), every_bfloat,
               every_bfloat.nan_to_num(), wide32.bfloat16()):
    for view in (weight, weight[:, ::3], weight.t().contiguous().t()):
        view_cols = cols[: view.shape[1]]
        note(ops.block_inner(view, None, rows, view_cols, 4))
        note(ops.block_inner(view, view.flip(0), rows, view_cols, 4))
        for table in (factors, factors.clamp(min=0.1), torch.ones_like(factors)):
            note(ops.block_scale(view, table, rows, view_cols))
        grad = torch.ones_like(view)
        note(ops.accumulate_enmeshment_grad_([view.nan_to_num()], [grad], [rows], [view_cols], [4], 0.7))
        note(grad)
print(modfast.backend()["cpu"], modfast.backend()["threads"], digest.hexdigest())
"""


def test_same_bits_in_every_instruction_set(run_python):
    levels = modfast.backend()["cpu_available"]
    outputs = {}
    for level, threads in [*((level, "1") for level in levels), (levels[-1], "4")]:
        # OMP_NUM_THREADS alone is cut to the number of cores.
        code = f"import torch; torch.set_num_threads({threads})\n{DIGEST}"
        done = run_python(code, MODFAST_CPU=level, OMP_NUM_THREADS=threads)
        assert done.returncode == 0, done.stderr
        used, used_threads, digest = done.stdout.split()
        assert (used, used_threads) == (level, threads)
        outputs[level, threads] = digest
    assert len(set(outputs.values())) == 1, outputs


@needs_cpu_kernels
def test_the_interpreter_runs_on_during_a_kernel():
    ticks, running = 0, True

    def tick():
        nonlocal ticks
        while running:
            ticks += 1
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        # One number, many times over: work without memory. Were the interpreter held for all of it, no amount
        # of it would let another thread run. So there may be more of it, as a faster machine needs.
        for doublings in range(8):
            shape = (20_000 * 2**doublings, 25_000)
            weight, partition = torch.ones(1, 1).expand(shape), Partition.blocks(shape, 2)
            before = ticks
            block_energy(weight, partition)
            if ticks - before >= 5:
                break
        else:
            pytest.fail("no other thread ran meanwhile")
    finally:
        running = False
        thread.join()


def test_calls_from_many_threads_at_once():
    weight, partition = torch.randn(300, 200), random_partition((300, 200), 3)
    expected, failures = block_energy(weight, partition), []

    def work():
        for _ in range(50):
            if not torch.equal(block_energy(weight, partition), expected):
                failures.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.slow
@pytest.mark.parametrize("by", ["row", "column", "number"])
def test_past_2_to_the_31_elements_without_memory(by):
    rows, cols = 65_537, 32_771
    assert rows * cols > 2**31
    source = {"row": (1, cols), "column": (rows, 1), "number": (1, 1)}[by]
    weight = torch.full(source, 2.0).expand(rows, cols)
    partition = Partition.blocks((rows, cols), 3)
    sizes = partition.sizes().double()
    expected = 4.0 * sizes[:, :1] * sizes[:, 1]
    sums = OPS.block_inner(weight, None, *labels_of(partition), 3)
    assert torch.equal(sums[:3, :3], expected)


@pytest.mark.slow
def test_past_2_to_the_31_elements_of_memory():
    rows = cols = 46_342
    assert rows * cols > 2**31
    weight = torch.zeros(rows, cols, dtype=torch.bfloat16)
    labels = torch.full((rows,), -1)
    labels[0], labels[-1], labels[-2] = 0, 1, 2
    partition = Partition(labels, labels, 3)
    corners = {(0, 0): 1.0, (0, -1): 2.0, (-1, 0): 3.0, (-1, -1): 4.0, (-2, -1): 5.0, (7, 7): 6.0}
    for place, value in corners.items():
        weight[place] = value
    assert block_energy(weight, partition).tolist() == [[1.0, 4.0, 0.0], [9.0, 16.0, 0.0], [0.0, 25.0, 0.0]]
    # The last two rows begin past 2^31 elements.
    tail = weight[-2:]
    tail_partition = Partition([0, 1], partition.col_labels, 3)
    scaled = block_scale(tail, torch.full((3, 3), 2.0), tail_partition)
    assert scaled[-1, -1] == 8.0
    assert scaled[0, -1] == 10.0
    assert scaled[-1, 0] == 6.0


@pytest.mark.slow
def test_writes_past_2_to_the_31_elements():
    rows, cols = 46_342, 46_342
    weight = torch.ones(1, 1, dtype=torch.bfloat16).expand(rows, cols)
    partition = Partition.blocks((rows, cols), 2)
    scaled = block_scale(weight, torch.tensor([[1.0, 2.0], [3.0, 4.0]]), partition)
    half = rows // 2
    for i in (0, half - 1, half, rows - 1):
        for j in (0, half - 1, half, cols - 1):
            assert scaled[i, j].item() == 1 + (j >= half) + 2 * (i >= half)
    assert torch.equal(scaled[-1].float().sum(), torch.tensor(half * 7.0))


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@needs_cpu_kernels
def test_no_memory_is_kept():
    partition = random_partition((64, 64), 4)
    weight = torch.randn(64, 64, requires_grad=True)
    grad = torch.zeros(64, 64)
    arguments = ([partition.row_labels], [partition.col_labels], [4], 0.7)
    wrong = torch.full((64,), 9)

    def call():
        enmeshment(weight, partition).backward()
        weight.grad = None
        OPS.accumulate_enmeshment_grad_([weight.detach()], [grad], *arguments)
        with contextlib.suppress(RuntimeError):
            OPS.block_inner(weight, None, wrong, wrong, 4)

    for _ in range(500):
        call()
    tracemalloc.start()
    try:
        before, traced_before = resident_bytes(), tracemalloc.get_traced_memory()[0]
        for _ in range(3000):
            call()
        gc.collect()  # what only waits for the collector is not kept
        grown, traced = resident_bytes() - before, tracemalloc.get_traced_memory()[0] - traced_before
    finally:
        tracemalloc.stop()
    # One 64 x 64 float32 kept from each call would be 48 MiB, one 5 x 5 float64 in Python's hands 0.6 MB.
    assert grown < 8 * 2**20
    assert traced < 200_000
