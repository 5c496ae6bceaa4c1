"""The operator of the optimiser's step beside its specification, for every type, layout and option."""

from __future__ import annotations

import math

import pytest
import torch
from adamw_options import OPTIONS

from modfast import reference
from modfast.optim.operators import adamw_, labelled_energies
from modfast.reference.optim import keep_largest_, memory_offsets, round_stochastically

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# The unit of rounding of the type that is computed in, times the operations of a step.
TOLERANCES = {torch.float32: 3e-6, torch.float64: 3e-14, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}

SHAPES = [
    (),
    (1,),
    (7,),
    (0,),
    (3, 0),
    (1, 1),
    (5, 3),
    (64, 64),
    (33, 70),
    (3, 40000),
    (1500, 40),
    (8, 4, 3, 3),
    (4, 5, 2, 2, 2),
]


def layouts(tensor):
    """The same numbers in other layouts."""
    yield "contiguous", tensor.clone()
    if tensor.dim() >= 2:
        yield "transposed", tensor.transpose(0, 1).contiguous().transpose(0, 1)
        gaps = torch.stack([tensor, torch.full_like(tensor, 7.0)], -1)[..., 0]
        yield "with gaps", gaps
    if tensor.dim() == 4:
        yield "channels last", tensor.contiguous(memory_format=torch.channels_last)
        yield "kernel first", tensor.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)


LAYOUTS = ("contiguous", "transposed", "with gaps", "channels last", "kernel first")


def arguments(weights, *, dtype_of_grads=None, labelled=(), seed=0, **options):
    """Arguments of a call: gradients, moments and labels for some weights."""
    generator = torch.Generator("cpu").manual_seed(seed)

    def like(weight, dtype, scale):
        numbers = torch.randn(weight.shape, generator=generator, dtype=torch.float64) * scale
        made = torch.empty_like(weight, dtype=dtype)
        return made.copy_(numbers)

    grads, means, squares, steps, labels, firsts = [], [], [], [], [], []
    for t, weight in enumerate(weights):
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        grads.append(like(weight, dtype_of_grads or weight.dtype, 0.1))
        means.append(like(weight, wide, 0.1))
        squares.append(like(weight, wide, 0.1).square_())
        steps.append(torch.tensor(float(3 + t)))
        if t in labelled:
            firsts.append(sum(map(len, labels)))
            rows = torch.randint(-1, 3, (weight.shape[0],), generator=generator, dtype=torch.int32)
            cols = torch.randint(-1, 3, (weight.shape[1],), generator=generator, dtype=torch.int32)
            labels += [rows, torch.where(cols < 0, -2, cols)]
        else:
            firsts.append(-1)
    energies = energies_of(weights, labels, firsts) if labelled else None
    given = {
        "weights": weights,
        "grads": grads,
        "exp_avgs": means,
        "exp_avg_sqs": squares,
        "steps": steps,
        "labels": torch.cat(labels).to(torch.int32) if labels else None,
        "first_labels": firsts,
        "energies": energies,
        "new_energies": None if energies is None else torch.full_like(energies, torch.nan),
        **OPTIONS,
    }
    return {**given, **options}


def energies_of(weights, labels, firsts):
    energies, pairs = [], iter(labels)
    for weight, first in zip(weights, firsts, strict=True):
        if first < 0:
            continue
        same = next(pairs)[:, None] == next(pairs)[None, :]
        squares = weight.to(torch.float64).square()
        squares = squares.flatten(2).sum(2) if squares.dim() > 2 else squares
        energies.append(torch.stack([squares[same].sum(), squares[~same].sum()]))
    return torch.stack(energies)


def copied(given):
    """The same arguments in memory of their own, in the same layouts."""

    def same_layout(tensor):
        made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
        return made.copy_(tensor)

    return {
        name: [same_layout(v) if isinstance(v, torch.Tensor) else v for v in value]
        if isinstance(value, list)
        else value.clone()
        if isinstance(value, torch.Tensor)
        else value
        for name, value in given.items()
    }


def run(function, given):
    function(*given.values())
    return given


def assert_same(ours, theirs, dtype):
    tolerance = TOLERANCES[dtype]
    for name in ("weights", "exp_avgs", "exp_avg_sqs", "steps", "grads"):
        for one, other in zip(ours[name], theirs[name], strict=True):
            torch.testing.assert_close(
                one.double(),
                other.double(),
                rtol=tolerance,
                atol=tolerance * 1e-2,
                equal_nan=True,
                msg=lambda text, name=name: f"{name}: {text}",
            )
    if ours["new_energies"] is not None:
        torch.testing.assert_close(
            ours["new_energies"], theirs["new_energies"], rtol=4 * tolerance, atol=0, equal_nan=True
        )


def random_weight(shape, dtype, seed=1):
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("of_loss", [False, True])
def test_step(shape, dtype, of_loss):
    if of_loss and len(shape) < 2:
        pytest.skip("a weight of the loss is a matrix")
    for name, weight in layouts(random_weight(shape, dtype)):
        given = arguments([weight], labelled=(0,) if of_loss else ())
        assert_same(run(adamw_, copied(given)), run(reference.adamw_, copied(given)), dtype), name


@pytest.mark.parametrize("weight_layout", LAYOUTS)
@pytest.mark.parametrize("grad_layout", LAYOUTS)
def test_mixed_layouts(weight_layout, grad_layout):
    made = dict(layouts(random_weight((8, 6, 3, 3), torch.float32)))
    given = arguments([made[weight_layout]], labelled=(0,))
    given["grads"] = [dict(layouts(given["grads"][0]))[grad_layout]]
    given["exp_avgs"] = [dict(layouts(given["exp_avgs"][0]))["transposed"]]
    assert_same(run(adamw_, copied(given)), run(reference.adamw_, copied(given)), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scaled", [False, True])
def test_gradients_of_other_types(dtype, grad_dtype, scaled):
    given = arguments(
        [random_weight((40, 30), dtype), random_weight((9,), dtype)], labelled=(0,), dtype_of_grads=grad_dtype
    )
    if scaled:
        given["grad_scale"] = torch.tensor(8.0)
    assert_same(run(adamw_, copied(given)), run(reference.adamw_, copied(given)), dtype)


def test_many_weights_at_once_are_as_one_by_one():
    weights = [random_weight((20 + t, 30), torch.float32, t) for t in range(30)]
    weights += [random_weight((300, 400), torch.float32, 99), random_weight((17,), torch.float32, 98)]
    given = arguments(weights, labelled=(*range(0, 30, 2), 30))
    assert_same(run(adamw_, copied(given)), run(reference.adamw_, copied(given)), torch.float32)


def test_a_step_tensor_that_weights_share_advances_once():
    weights = [random_weight((4, 4), torch.float32, t) for t in range(3)]
    given = arguments(weights)
    given["steps"][1] = given["steps"][0]
    ours = run(adamw_, given)
    assert [float(step) for step in ours["steps"]] == [4.0, 4.0, 6.0]


def test_found_inf_changes_nothing():
    given = arguments([random_weight((6, 5), torch.float32)], labelled=(0,), keep=[3])
    before = copied(given)
    run(adamw_, given | {"found_inf": torch.ones(1)})
    for name in ("weights", "grads", "exp_avgs", "exp_avg_sqs", "steps"):
        assert all(torch.equal(a, b) for a, b in zip(given[name], before[name], strict=True))
    assert torch.equal(given["new_energies"], given["energies"])
    run(adamw_, given | {"found_inf": torch.zeros(1)})
    assert not torch.equal(given["weights"][0], before["weights"][0])


def test_energies_may_be_written_in_place():
    given = arguments([random_weight((30, 20), torch.float32)], labelled=(0,))
    apart = run(adamw_, copied(given))["new_energies"]
    given["new_energies"] = given["energies"]
    assert torch.equal(run(adamw_, given)["energies"], apart)


@pytest.mark.parametrize("size", [1e-30, 1e30, 0.0, math.inf, math.nan])
def test_sizes_at_the_ends_of_the_range(size):
    weight = random_weight((30, 20), torch.float32) * size
    given = arguments([weight], labelled=(0,))
    assert_same(run(adamw_, copied(given)), run(reference.adamw_, copied(given)), torch.float32)


def test_learning_rate_as_a_tensor():
    given = arguments([random_weight((6, 5), torch.float32)])
    plain = run(adamw_, copied(given))
    by_tensor = run(
        adamw_, copied(given) | {"lr": 99.0, "lr_tensor": torch.tensor(0.01, dtype=torch.float64)}
    )
    assert torch.equal(plain["weights"][0], by_tensor["weights"][0])


# --- Keeping the largest.


def kept_shapes():
    return [(5, 3), (64, 64), (300, 500), (1, 70000), (700, 130)]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", kept_shapes(), ids=str)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.99, 1.0])
def test_keeps_exactly_the_largest(shape, dtype, share):
    weight = random_weight(shape, dtype)
    count = math.ceil(share * weight.numel())
    given = arguments([weight], labelled=(0,), thresholds=torch.zeros(1, 2, dtype=torch.int64))
    plain = run(adamw_, copied(given))
    expected = plain["weights"][0].clone()
    keep_largest_(expected, count)
    for _ in range(2):  # the second time with what the first left in thresholds
        ours = run(adamw_, copied(given) | {"keep": [count], "thresholds": given["thresholds"]})
        assert torch.equal(ours["weights"][0], expected)
        assert torch.equal(ours["exp_avgs"][0], plain["exp_avgs"][0]), "the moments of zeroed weights live on"
        of_kept = energies_of([expected], given["labels"].split([shape[0], shape[1]]), [0])
        torch.testing.assert_close(ours["new_energies"], of_kept, rtol=1e-12, atol=0)


@pytest.mark.parametrize("floor", [-5, 0, 2000, 4095, 2**40])
def test_what_is_in_thresholds_changes_nothing(floor):
    given = arguments(
        [random_weight((300, 500), torch.float32), random_weight((30, 50), torch.float32)], keep=[777, 77]
    )
    expected = run(adamw_, copied(given))
    ours = run(adamw_, copied(given) | {"thresholds": torch.full((2, 2), floor)})
    assert all(torch.equal(a, b) for a, b in zip(ours["weights"], expected["weights"], strict=True))


def still(weights, **options):
    """Arguments of a step that leaves the weights as they are but for what is kept."""
    given = arguments(weights, lr=0.0, **options)
    return given


@pytest.mark.parametrize("shape", [(40, 50), (300, 500)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "kind", ["equal", "two values", "few values", "zeros", "infinities", "NaN", "subnormal"]
)
@pytest.mark.parametrize("share", [0.1, 0.6])
def test_ties_stay_in_the_order_of_memory(shape, dtype, kind, share):
    generator = torch.Generator("cpu").manual_seed(5)
    signs = torch.randint(0, 2, shape, generator=generator) * 2.0 - 1.0
    draws = torch.randint(0, 4, shape, generator=generator).double()
    numbers = {
        "equal": torch.ones(shape),
        "two values": 1 + draws.remainder(2),
        "few values": draws / 3,
        "zeros": torch.zeros(shape),
        "infinities": torch.where(draws == 0, torch.inf, draws),
        "NaN": torch.where(draws == 0, torch.nan, draws),
        "subnormal": draws * torch.finfo(dtype).smallest_normal / 8,
    }[kind]
    weight = (numbers.double() * signs).to(dtype)
    count = math.ceil(share * weight.numel())
    expected = weight.clone()
    keep_largest_(expected, count)
    given = still([weight], keep=[count])
    given["exp_avgs"][0].zero_()
    given["grads"][0].zero_()
    ours = run(adamw_, given)["weights"][0]
    torch.testing.assert_close(ours, expected, rtol=0, atol=0, equal_nan=True)


def test_keeps_by_the_order_of_memory_in_channels_last():
    weight = torch.ones(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    given = still([weight], keep=[5])
    given["exp_avgs"][0].zero_()
    given["grads"][0].zero_()
    kept = run(adamw_, given)["weights"][0] != 0
    assert sorted(memory_offsets(weight)[kept].tolist()) == [0, 1, 2, 3, 4]


def test_keep_refuses_what_does_not_lie_in_rows():
    weight = torch.ones(4, 6)[:, ::2]
    with pytest.raises(RuntimeError, match="keep needs weights whose rows follow one another"):
        run(adamw_, arguments([weight], keep=[3]))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_bits_for_any_number_of_threads(threads, one_thread_and):
    weights = [random_weight((300, 500), torch.float32), random_weight((64, 64), torch.float32)]
    given = arguments(weights, labelled=(0, 1), keep=[15000, -1])
    results = one_thread_and(threads, lambda: run(adamw_, copied(given)))
    for name in ("weights", "exp_avgs", "exp_avg_sqs"):
        assert all(torch.equal(a, b) for a, b in zip(results[0][name], results[1][name], strict=True))
    assert torch.equal(results[0]["new_energies"], results[1]["new_energies"])


@pytest.fixture
def one_thread_and():
    before = torch.get_num_threads()

    def both(threads, call):
        results = []
        for number in (1, threads):
            torch.set_num_threads(number)
            results.append(call())
        return results

    yield both
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(40, 50), (300, 500)], ids=str)
@pytest.mark.parametrize("stochastic", [False, True])
def test_steps_in_a_row_keep_the_largest_wherever_the_threshold_moves(shape, dtype, stochastic):
    if stochastic and dtype != torch.bfloat16:
        pytest.skip("rounded to the nearest")
    given = arguments([random_weight(shape, dtype)], labelled=(0,), stochastic_rounding=stochastic)
    thresholds = torch.zeros(1, 2, dtype=torch.int64)
    generator = torch.Generator("cpu").manual_seed(3)
    # A threshold that moves little, jumps, and jumps back; and weights that others change.
    for share, lr in [
        (0.5, 1e-4),
        (0.5, 1e-4),
        (0.1, 1e-4),
        (0.1, 1.0),
        (0.1, 1e-9),
        (0.9, 1e-4),
        (0.9, 30.0),
        (0.2, 0.0),
    ]:
        count = math.ceil(share * given["weights"][0].numel())
        given["grads"][0].copy_(torch.randn(shape, generator=generator) * 0.1)
        plain = run(adamw_, copied(given) | {"lr": lr})
        expected = plain["weights"][0].clone()
        keep_largest_(expected, count)
        run(adamw_, given | {"lr": lr, "keep": [count], "thresholds": thresholds})
        assert torch.equal(given["weights"][0], expected)
        assert torch.equal(given["exp_avgs"][0], plain["exp_avgs"][0])
        if lr == 1e-9:
            given["weights"][0].mul_(100)
        given["energies"] = labelled_energies(given["weights"], given["labels"], [0])


@pytest.mark.parametrize(
    "threshold", [[1, 1], [2**40, 2**62], [10**9, 1], [10**9, 10**9], [0x7F800001, 5], [3, -1]]
)
def test_any_window_gives_the_same(threshold):
    given = arguments(
        [random_weight((300, 500), torch.float32), random_weight((30, 50), torch.float32)], keep=[777, 77]
    )
    for weight in given["weights"]:
        weight[::2] = 0
        weight[0, :20] = torch.nan
        weight[1, :20] = torch.inf
    expected = run(adamw_, copied(given))
    ours = run(adamw_, copied(given) | {"thresholds": torch.tensor([threshold, threshold])})
    for a, b in zip(ours["weights"], expected["weights"], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("keep", [-1, 900])
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_energies_of_a_pass_have_the_bits_of_those_of_the_step(dtype, keep, layout):
    for shape in [(40, 50), (300, 500), (8, 40, 3, 3)]:
        given = arguments([dict(layouts(random_weight(shape, dtype)))[layout]], labelled=(0,), keep=[keep])
        if keep >= 0 and layout == "transposed" and len(shape) > 2:
            continue
        run(adamw_, given)
        assert torch.equal(labelled_energies(given["weights"], given["labels"], [0]), given["new_energies"])


# --- Stochastic rounding.


def test_stochastic_rounding_takes_one_of_the_two_neighbours_and_keeps_the_mean():
    values = torch.full((200000,), 1.0 + 2**-9 + 2**-10)  # 3/8 of the way from 1 to 1 + 2**-7
    rounded = round_stochastically(values, torch.arange(len(values)), 0, 1).double()
    assert set(rounded.tolist()) == {1.0, 1.0 + 2**-7}
    share = float((rounded > 1).double().mean())
    assert abs(share - 0.375) < 5 * math.sqrt(0.375 * 0.625 / len(values))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_stochastic_rounding_is_as_specified(layout):
    weight = dict(layouts(random_weight((40, 30, 3, 3), torch.bfloat16)))[layout]
    given = arguments([torch.zeros(2, dtype=torch.bfloat16), weight], labelled=(1,), stochastic_rounding=True)
    ours, theirs = run(adamw_, copied(given)), run(reference.adamw_, copied(given))
    # The specification computes in float64: now and then a number lies on the other side of a border.
    different = ours["weights"][1] != theirs["weights"][1]
    assert float(different.double().mean()) < 1e-2
    torch.testing.assert_close(ours["weights"][1], theirs["weights"][1], rtol=1e-2, atol=1e-3)
    nearest = run(adamw_, copied(given) | {"stochastic_rounding": False})["weights"][1]
    assert float((ours["weights"][1] != nearest).double().mean()) > 0.2


def test_stochastic_rounding_keeps_infinity_and_nan():
    weight = torch.tensor([torch.inf, -torch.inf, torch.nan], dtype=torch.bfloat16)
    given = still([weight], stochastic_rounding=True)
    assert run(adamw_, given)["weights"][0].tolist()[:2] == [torch.inf, -torch.inf]
    assert run(adamw_, given)["weights"][0].isnan().tolist() == [False, False, True]
