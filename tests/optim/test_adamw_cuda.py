"""The CUDA kernels of the optimiser's step beside its specification.

They run on an emulated GPU as well (gpu.py), which shows nothing of speed, of the memory model, or of blocks
and streams that really run at once. test_adamw_operator.py, run with the emulated GPU, tests them too.
"""

import math

import pytest
import torch
from adamw_options import OPTIONS
from gpu import EMULATED, like_on_device, needs_a_real_gpu, to_device
from labelled import DTYPES, LAYOUTS

from modfast import reference
from modfast.reference.optim import keep_largest_

pytestmark = pytest.mark.cuda

adamw_, labelled_energies = torch.ops.modfast.adamw_, torch.ops.modfast.labelled_energies

# A step computes in float32 (float64 for a float64 weight) and rounds some ten times; its result is rounded
# to the weight's type. The specification computes in float64.
TOLERANCES = {torch.float32: 3e-6, torch.float64: 3e-14, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
NARROW = [torch.float32, torch.float16, torch.bfloat16]

# Weights whose elements share memory cannot be written.
WRITABLE = [name for name in LAYOUTS if "for all" not in name]
PLAIN = [(), (1,), (7,), (0,), (70001,), (70004,), (3, 0)]
MATRICES = [(1, 1), (13, 17), (64, 64), (129, 40), (3, 1030), (300, 7), (260, 300), (0, 4)]
KERNELS = [(3, 5, 2), (8, 4, 3, 3), (3, 4, 2, 3, 2)]


def like(tensor, numbers, dtype):
    """The numbers in the tensor's layout and another type."""
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype)
    return made.copy_(numbers)


def arguments(weights, grad_dtype=None, of_loss=lambda weight: weight.dim() >= 2, **options):
    """The operator's arguments for some weights, on the CPU."""
    given = {name: [] for name in ("grads", "exp_avgs", "exp_avg_sqs", "steps", "first_labels")}
    labels, energies, next_label = [], [], 0
    for t, weight in enumerate(weights):
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        given["grads"].append(
            like(
                weight,
                torch.randn(weight.shape),
                wide if wide == torch.float64 else grad_dtype or weight.dtype,
            )
        )
        given["exp_avgs"].append(like(weight, 0.1 * torch.randn(weight.shape), wide))
        given["exp_avg_sqs"].append(like(weight, 0.01 * torch.rand(weight.shape), wide))
        given["steps"].append(torch.tensor(float(t % 5)))
        if not of_loss(weight):
            given["first_labels"].append(-1)
            continue
        rows, cols = weight.shape[:2]
        given["first_labels"].append(next_label)
        labels += [torch.randint(0, 3, (rows,)), torch.randint(0, 4, (cols,))]
        next_label += rows + cols
        energies.append(split_energies(weight, *labels[-2:]))
    given["labels"] = torch.cat(labels).to(torch.int32) if labels else None
    given["energies"] = torch.stack(energies) if energies else None
    given["new_energies"] = torch.full_like(given["energies"], torch.nan) if energies else None
    return {
        "weights": weights,
        **{name: given[name] for name in ("grads", "exp_avgs", "exp_avg_sqs", "steps")},
        **{name: given[name] for name in ("labels", "first_labels", "energies", "new_energies")},
        **OPTIONS,
        **options,
    }


def split_energies(weight, row_labels, col_labels):
    same = row_labels[:, None] == col_labels[None, :]
    squares = weight.double().square()
    squares = squares.flatten(2).sum(2) if weight.dim() > 2 else squares
    return torch.stack([squares[same].sum(), squares[~same].sum()])


def on_device(given):
    return {
        name: [like_on_device(each) for each in value]
        if isinstance(value, list) and value and isinstance(value[0], torch.Tensor)
        else to_device(value)
        if isinstance(value, torch.Tensor)
        else value
        for name, value in given.items()
    }


def step(given):
    adamw_(*given.values())
    return given


def assert_near(ours, theirs):
    """Whether results on the device are those of the specification."""
    for name in ("weights", "exp_avgs", "exp_avg_sqs", "steps", "grads"):
        for one, other in zip(ours[name], theirs[name], strict=True):
            tolerance = TOLERANCES[other.dtype]
            torch.testing.assert_close(
                one.cpu().double(), other.double(), rtol=tolerance, atol=1e-2 * tolerance, equal_nan=True
            )
    if theirs["new_energies"] is not None:
        widest = max(TOLERANCES[weight.dtype] for weight in theirs["weights"] if weight.dim() >= 2)
        torch.testing.assert_close(
            ours["new_energies"].cpu(), theirs["new_energies"], rtol=4 * widest, atol=0.0, equal_nan=True
        )


def assert_bits(ours, theirs, names=("weights", "exp_avgs", "exp_avg_sqs", "steps", "new_energies")):
    for name in names:
        pairs = zip(ours[name], theirs[name], strict=True)
        assert all(torch.equal(one.cpu(), other.cpu()) for one, other in pairs), name


@pytest.mark.parametrize("layout", WRITABLE)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_steps_against_the_specification(dtype, layout):
    weights = [LAYOUTS[layout](shape, dtype) for shape in MATRICES + KERNELS]
    weights += [torch.randn(shape, dtype=dtype) for shape in PLAIN]
    weights += [LAYOUTS[layout](shape, dtype) for shape in MATRICES[:4] + KERNELS]
    in_loss = len(MATRICES + KERNELS)
    number = iter(range(len(weights)))
    theirs = arguments(weights, of_loss=lambda _: next(number) < in_loss)
    ours = on_device(theirs)
    for one, other in zip(ours["weights"], weights, strict=True):
        assert one.stride() == other.stride()
    for _ in range(3):
        assert_near(step(ours), reference_step(theirs))
        # The next step begins where the specification stands, so that errors do not add up.
        theirs["energies"].copy_(theirs["new_energies"])
        ours = on_device(theirs)


def reference_step(given):
    reference.adamw_(*given.values())
    return given


@pytest.mark.parametrize("grad_layout", ["transposed", "columns of a wider", "one row for all"])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "kernel permuted", "channels last"])
def test_gradients_and_moments_of_other_layouts(layout, grad_layout):
    shapes = MATRICES[1:6] + KERNELS
    theirs = arguments([LAYOUTS[layout](shape, torch.float32) for shape in shapes])
    theirs["grads"] = [LAYOUTS[grad_layout](shape, torch.float32) for shape in shapes]
    theirs["exp_avgs"] = [LAYOUTS["rows of a taller"](shape, torch.float32) for shape in shapes]
    ours = on_device(theirs)
    assert_near(step(ours), reference_step(theirs))


@pytest.mark.parametrize("odd", ["weights", "grads", "exp_avgs"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_that_begin_anywhere(dtype, odd):
    # Of which some lie so that several numbers cannot be taken at once; a GPU refuses to, and so does the
    # sanitizer, where the emulated GPU alone does not.
    shapes = [(8, 64), (8, 64), (8, 4, 3)]
    theirs = arguments([torch.randn(shape).to(dtype) for shape in shapes])
    theirs["weights"][2] = torch.randn(4 * 36).to(dtype).as_strided((8, 4, 3), (4, 1, 36))
    theirs[odd] = [
        torch.empty(1 + 8 * 70, dtype=each.dtype).as_strided(each.shape, strides, first).copy_(each)
        for each, strides, first in zip(theirs[odd], [(64, 1), (65, 1), (4, 1, 33)], [1, 0, 0], strict=True)
    ]
    ours = on_device(theirs)
    assert_near(step(ours), reference_step(theirs))


@pytest.mark.parametrize("grad_dtype", NARROW, ids=str)
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_gradients_of_other_types_and_their_scale(dtype, grad_dtype):
    shapes = [(40, 30), (33, 64), (9,), (8, 4, 3, 3)]
    for scale in (None, torch.tensor(7.0), torch.tensor([1024.0])):
        theirs = arguments([torch.randn(shape).to(dtype) for shape in shapes], grad_dtype, grad_scale=scale)
        ours = on_device(theirs)
        assert_near(step(ours), reference_step(theirs))
        # A quotient is rounded once, by either.
        assert all(
            torch.equal(one.cpu(), other) for one, other in zip(ours["grads"], theirs["grads"], strict=True)
        )


def test_gradients_are_only_read_without_a_scale():
    given = on_device(arguments([torch.randn(30, 40)]))
    before = given["grads"][0].clone()
    assert torch.equal(step(given)["grads"][0], before)


def test_a_large_weight():
    # So large that a thread takes more rows; and one that is cut into rows, with a rest.
    theirs = arguments([torch.randn(1030, 4100), torch.randn(2**22 + 12)])
    ours = on_device(theirs)
    assert_near(step(ours), reference_step(theirs))


def test_many_weights_in_one_call_have_the_bits_of_calls_for_each():
    # More than one launch takes, of several types, some of which only the largest elements stay.
    torch.manual_seed(3)
    weights = [torch.randn(5 + t % 11, 6 + t % 7).to(DTYPES[t % 4]) for t in range(170)]
    weights[3::5] = [torch.randn(31) for _ in weights[3::5]]
    keep = [-1 if t % 3 else weight.numel() // 2 for t, weight in enumerate(weights)]
    given = arguments(weights, keep=keep)
    together, slot = step(on_device(given)), 0
    for t in range(len(weights)):
        alone = {name: [value[t]] for name, value in given.items() if isinstance(value, list)}
        of_loss = given["first_labels"][t] >= 0
        alone["energies"] = given["energies"][slot : slot + 1] if of_loss else None
        alone["new_energies"] = torch.zeros(1, 2, dtype=torch.float64) if of_loss else None
        one = step(on_device({**given, **alone}))
        for name in ("weights", "exp_avgs", "exp_avg_sqs", "steps"):
            assert torch.equal(one[name][0], together[name][t]), (name, t)
        if of_loss:
            assert torch.equal(one["new_energies"][0], together["new_energies"][slot])
        slot += of_loss


def test_same_bits_every_time():
    given = arguments(
        [torch.randn(300, 500), torch.randn(64, 32, 3, 3), torch.randn(90, 80).bfloat16()],
        keep=[30000, -1, 3000],
        stochastic_rounding=True,
    )
    first = step(on_device(given))
    for _ in range(3 if EMULATED else 50):
        assert_bits(step(on_device(given)), first)


def test_energies_in_place():
    given = on_device(arguments([torch.randn(30, 40), torch.randn(50, 20)]))
    apart = step({**given, **{name: [each.clone() for each in given[name]] for name in ("weights", "exp_avgs",
                  "exp_avg_sqs", "steps")}, "new_energies": torch.empty_like(given["energies"])})  # fmt: skip
    given["new_energies"] = given["energies"]
    assert torch.equal(step(given)["energies"], apart["new_energies"])


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("other", ["contiguous", "transposed", "columns of a wider", "kernel permuted"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_pass_alone_finds_the_bits_of_a_step(dtype, other, keep):
    # The gradients' layout may ask for another order of the step, but not of the sums.
    shapes = MATRICES if keep else [*MATRICES, *KERNELS, (4, 6, 3, 3)]
    weights = [torch.randn(shape).to(dtype) for shape in shapes]
    if not keep:
        weights[-1] = weights[-1].to(memory_format=torch.channels_last)
    given = arguments(weights, keep=[weight.numel() // 3 for weight in weights] if keep else [])
    given["grads"] = [LAYOUTS[other](shape, dtype) for shape in shapes]
    given = on_device(given)
    before = labelled_energies(given["weights"], given["labels"], given["first_labels"])
    torch.testing.assert_close(before, given["energies"], rtol=1e-12, atol=0.0)
    skipped = step({**given, "found_inf": torch.ones_like(given["steps"][0])})["new_energies"]
    assert torch.equal(skipped, given["energies"])
    found = step(given)["new_energies"]
    assert torch.equal(labelled_energies(given["weights"], given["labels"], given["first_labels"]), found)
    given["new_energies"] = given["energies"].copy_(found)
    step(given)
    again = labelled_energies(given["weights"], given["labels"], given["first_labels"])
    assert torch.equal(given["energies"], again)


def test_steps_advance_once_for_those_who_share_them():
    given = arguments([torch.randn(3, 3) for _ in range(4)])
    given["steps"] = [torch.tensor(4.0), torch.tensor(7.0), torch.tensor(0.0)]
    ours = on_device(given)
    ours["steps"].insert(1, ours["steps"][0])
    assert [float(each) for each in step(ours)["steps"]] == [5.0, 5.0, 8.0, 1.0]
    ours["steps"][3] = ours["steps"][0]
    with pytest.raises(
        RuntimeError, match="only weights that follow one another may share a step, got weight 3"
    ):
        step(ours)


@pytest.mark.parametrize("found", [1.0, math.nan])
def test_nothing_changes_if_gradients_are_not_finite(found):
    given = arguments([torch.randn(30, 20), torch.randn(7), torch.randn(40, 50)], keep=[3, -1, 0])
    ours = on_device({**given, "grad_scale": torch.tensor(2.0), "found_inf": torch.tensor([found])})
    assert_bits(step(ours), given, ("weights", "grads", "exp_avgs", "exp_avg_sqs", "steps"))
    assert torch.equal(ours["new_energies"].cpu(), given["energies"])
    ours["found_inf"].zero_()
    assert not torch.equal(step(ours)["weights"][0].cpu(), given["weights"][0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_learning_rate_on_the_device(dtype):
    given = arguments([torch.randn(30, 20), torch.randn(7)], lr=0.25)
    by_tensor = {**given, "lr": math.nan, "lr_tensor": torch.tensor(0.25, dtype=dtype)}
    assert_bits(step(on_device(by_tensor)), step(on_device(given)))


@pytest.mark.parametrize("size", [1e-30, 1e-22, 1e18, 1e30, 0.0, math.inf, math.nan])
def test_weights_of_any_size(size):
    # Of some the factors of the loss are too small or too large for float32.
    theirs = arguments([torch.randn(30, 20) * size, torch.randn(30, 20, dtype=torch.float64) * size])
    ours = on_device(theirs)
    assert_near(step(ours), reference_step(theirs))


@pytest.mark.parametrize("layout", WRITABLE)
def test_stochastic_rounding_has_the_bits_of_the_specification(layout):
    weights = [
        torch.zeros(5),
        *(LAYOUTS[layout](shape, torch.bfloat16) for shape in [(90, 70), (8, 12, 3, 3)]),
    ]
    theirs = arguments(weights, stochastic_rounding=True)
    ours = on_device(theirs)
    nearest = step(on_device({**theirs, "stochastic_rounding": False}))
    step(ours)
    reference_step(theirs)
    for t in (1, 2):
        # The specification computes in float64: now and then a number lies on the other side of a border.
        assert (ours["weights"][t].cpu() != theirs["weights"][t]).double().mean() < 1e-2
        assert (nearest["weights"][t].cpu() != theirs["weights"][t]).double().mean() > 0.2


# --- Only the largest elements stay.


def counts_of(weight):
    """Numbers of elements that may stay: none, all, and between."""
    numbers = weight.numel()
    return sorted({0, min(1, numbers), math.ceil(0.01 * numbers), numbers // 3, max(0, numbers - 1), numbers})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_keeps_exactly_the_largest(dtype):
    shapes = [(5, 3), (64, 64), (300, 500), (1, 70000), (0, 4), (8, 4, 3, 3)]
    given = arguments([torch.randn(shape).to(dtype) for shape in shapes])
    plain = step(on_device(given))
    for choice in range(6):
        keep = [counts_of(weight)[min(choice, len(counts_of(weight)) - 1)] for weight in given["weights"]]
        ours = step(on_device({**given, "keep": keep}))
        first = 0
        for t, weight in enumerate(plain["weights"]):
            expected = weight.cpu().clone()
            keep_largest_(expected, keep[t])
            assert torch.equal(ours["weights"][t].cpu(), expected), (shapes[t], keep[t])
            rows, cols = expected.shape[:2]
            row_labels, col_labels = given["labels"][first : first + rows + cols].split([rows, cols])
            exact = split_energies(expected, row_labels, col_labels)
            torch.testing.assert_close(ours["new_energies"][t].cpu(), exact, rtol=1e-12, atol=0.0)
            first += rows + cols
        assert_bits(ours, plain, ("exp_avgs", "exp_avg_sqs", "steps"))  # of zeroed weights, too


KINDS = {
    "all equal": lambda draws, _: torch.ones_like(draws),
    "two magnitudes": lambda draws, _: 1 + draws.remainder(2),
    "few magnitudes": lambda draws, _: draws / 3,
    "zeros": lambda draws, _: torch.zeros_like(draws),
    "infinity": lambda draws, _: torch.where(draws == 0, torch.inf, draws),
    "NaN": lambda draws, _: torch.where(draws == 0, torch.nan, torch.where(draws == 1, torch.inf, draws)),
    "subnormal": lambda draws, dtype: draws * torch.finfo(dtype).smallest_normal / 8,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_magnitudes_stay_in_the_order_of_memory(dtype, kind):
    weights = []
    for shape in [(40, 50), (150, 200), (3, 3000)]:
        signs = torch.randint(0, 2, shape) * 2.0 - 1.0
        draws = torch.randint(0, 4, shape).double()
        weights.append((KINDS[kind](draws, dtype) * signs).to(dtype))
    weights.append(weights[0].T.contiguous().T)
    wider = torch.zeros(40, 64, dtype=dtype)
    wider[:, 5:55] = weights[0]
    weights.append(wider[:, 5:55])  # rows with gaps between
    given = arguments(weights, lr=0.0)
    for name in ("grads", "exp_avgs"):
        given[name] = [torch.zeros_like(each) for each in given[name]]
    given["energies"] = torch.full_like(given["energies"], torch.inf)  # no gradient of the loss that counts
    given["slope"] = 0.0
    plain = step(on_device(given))["weights"]
    for choice in range(6):
        keep = [counts_of(weight)[min(choice, len(counts_of(weight)) - 1)] for weight in weights]
        for weight, found, count in zip(
            plain, step(on_device({**given, "keep": keep}))["weights"], keep, strict=True
        ):
            expected = torch.empty_strided(weight.shape, weight.stride(), dtype=dtype).copy_(weight)
            keep_largest_(expected, count)
            torch.testing.assert_close(found.cpu(), expected, rtol=0.0, atol=0.0, equal_nan=True)


def test_keep_refuses_what_does_not_lie_in_rows():
    given = on_device(arguments([torch.randn(8, 12)[:, ::2]], keep=[3]))
    with pytest.raises(RuntimeError, match="keep needs weights whose rows follow one another"):
        step(given)


def test_too_many_dimensions_apart_are_refused():
    weight = torch.randn(4, 4, 4, 4, 4, 4, 4)[::2, ::2, ::2, ::2, ::2, ::2, ::2]
    with pytest.raises(RuntimeError, match="at most 3 kernel dimensions may lie apart"):
        step(on_device(arguments([weight])))
    with pytest.raises(RuntimeError, match="at most 5 dimensions of a weight may lie apart"):
        step(on_device(arguments([weight], of_loss=lambda _: False)))


def test_more_blocks_than_a_launch_takes_are_refused():
    positions = to_device(torch.zeros(2**16)).as_strided((1, 1, 2**16, 2**16), (1, 1, 1, 0))
    labels = to_device(torch.zeros(2, dtype=torch.int32))
    with pytest.raises(RuntimeError, match="must take at most 2147483647 blocks of threads, got 4294967296"):
        labelled_energies([positions], labels, [0])


@needs_a_real_gpu
@pytest.mark.parametrize(
    "name", ["grads", "steps", "labels", "energies", "lr_tensor", "found_inf", "grad_scale"]
)
def test_tensors_of_the_cpu_are_refused(name):
    given = arguments([torch.randn(6, 5)], lr_tensor=torch.tensor(0.1), found_inf=torch.zeros(1),
                      grad_scale=torch.ones(1))  # fmt: skip
    with pytest.raises(RuntimeError, match=f"{name} must be on a CUDA device"):
        step({**on_device(given), name: given[name]})


def training(steps):
    """Steps on weights of which some are in the loss, with gradients that a tensor holds."""
    torch.manual_seed(0)
    weights = [torch.randn(64, 96), torch.randn(96), torch.randn(300, 64).bfloat16()]
    given = arguments(weights, keep=[2000, -1, 5000], lr_tensor=torch.tensor(0.01), found_inf=torch.zeros(1),
                      stochastic_rounding=True)  # fmt: skip
    given = on_device(given)
    given["new_energies"] = given["energies"]
    return given, [[torch.randn_like(grad) for grad in given["grads"]] for _ in range(steps)]


@needs_a_real_gpu
def test_captured_in_a_graph():
    eager, gradients = training(4)
    for grads in gradients:
        eager["grads"] = grads
        step(eager)
    captured, gradients = training(4)
    captured["grads"] = [grad.clone() for grad in gradients[0]]
    warm, _ = training(0)
    step(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        adamw_(*captured.values())
    for grads in gradients:
        for to, grad in zip(captured["grads"], grads, strict=True):
            to.copy_(grad)
        graph.replay()
    assert_bits(captured, eager)


@needs_a_real_gpu
def test_nothing_waits_for_the_device():
    given, _ = training(0)
    step(given)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(given)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_a_real_gpu
def test_on_the_current_stream():
    given, _ = training(0)
    expected = step(on_device(given))
    stream = torch.cuda.Stream()
    copy = on_device(given)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for grad, right in zip(copy["grads"], given["grads"], strict=True):
            for _ in range(20):  # work that has to be over before the step may look
                grad.copy_(torch.sin(torch.randn_like(right)))
            grad.copy_(right)
        step(copy)
    stream.synchronize()
    assert_bits(copy, expected)
