"""Derivatives of every order and mode, and of every function that has any, held to plain PyTorch's."""

import itertools

import pytest
import torch
from labelled import random_partition
from torch import nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, linearize, vjp

import modfast
from modfast import EnmeshmentLoss, Partition, laplacian_eigenvalues, reference

# PyTorch prepares forward mode with functions that it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore")

PARTITION = Partition([0, 1, 1, -1], [0, 1, -1], 2)
# Each of a module, modfast or its specification, and a float64 weight (4, 3).
FUNCTIONS = {
    "block_inner": lambda of, weight: of.block_inner(weight, weight.sin(), PARTITION),
    "block_inner of a constant": lambda of, weight: of.block_inner(
        torch.ones_like(weight), weight, PARTITION
    ),
    "block_scale": lambda of, weight: of.block_scale(weight, weight[:2, :2].exp(), PARTITION),
    "block_scale of a constant": lambda of, weight: of.block_scale(
        torch.ones_like(weight), weight[:2, :2], PARTITION
    ),
    "block_energy": lambda of, weight: of.block_energy(weight, PARTITION),
    "enmeshment": lambda of, weight: of.enmeshment(weight, PARTITION),
    "clusterability": lambda of, weight: of.clusterability(weight, PARTITION),
    "enmeshment of a product": lambda of, weight: of.enmeshment(weight @ weight.T @ weight, PARTITION).sin(),
}
MODES = {"f": jacfwd, "r": jacrev}


def weights():
    """Ordinary numbers, none at all, and such as must not be hidden."""
    ordinary = torch.randn(4, 3, dtype=torch.float64)
    found = {"ordinary": ordinary, "zero": torch.zeros_like(ordinary), "tiny": ordinary * 1e-200}
    for name, value, place in [
        ("NaN inside", torch.nan, (0, 0)),
        ("infinity inside", torch.inf, (1, 1)),
        ("infinity across", torch.inf, (0, 1)),
        ("infinity unassigned", -torch.inf, (3, 0)),
    ]:
        found[name] = ordinary.clone()
        found[name][place] = value
    return found


@pytest.mark.parametrize("name", list(FUNCTIONS))
@pytest.mark.parametrize(
    "modes", ["".join(each) for n in (1, 2, 3) for each in itertools.product("fr", repeat=n)]
)
def test_every_order_and_mode(name, modes):
    third = len(modes) == 3  # of many numbers it takes long

    def derivative(of):
        def function(weight):
            value = FUNCTIONS[name](of, weight)
            return value.sin().sum() if third else value

        for mode in modes:
            function = MODES[mode](function)
        return function

    for kind, weight in weights().items():
        if third and kind != "ordinary":
            continue
        torch.testing.assert_close(
            derivative(modfast)(weight),
            derivative(reference)(weight),
            equal_nan=True,
            msg=lambda text, kind=kind: f"{kind}: {text}",
        )


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_torch_func(name):
    def fast(weight):
        return FUNCTIONS[name](modfast, weight)

    def slow(weight):
        return FUNCTIONS[name](reference, weight)

    weight, tangent, other = torch.randn(3, 4, 3, dtype=torch.float64)
    batch = torch.randn(5, 4, 3, dtype=torch.float64)
    for make in (
        lambda f: jvp(f, (weight,), (tangent,)),
        lambda f: jvp(lambda w: jvp(f, (w,), (tangent,))[1], (weight,), (other,)),
        lambda f: jvp(torch.vmap(f), (batch,), (batch.cos(),)),
        lambda f: torch.vmap(lambda w: jvp(f, (w,), (tangent,))[1])(batch),
        lambda f: torch.vmap(lambda w: jvp(f, (weight,), (w,))[1])(batch),
        lambda f: torch.vmap(jacfwd(jacfwd(f)))(batch),
        lambda f: torch.vmap(hessian(f))(batch),
        lambda f: jacfwd(torch.vmap(f))(batch),
        lambda f: grad(lambda w: jvp(f, (w,), (tangent,))[1].sum())(weight),
        lambda f: jvp(grad(lambda w: f(w).sum()), (weight,), (tangent,)),
        lambda f: vjp(lambda w: jvp(f, (w,), (tangent,))[1], weight)[1](f(other)),
        lambda f: linearize(f, weight)[1](tangent),
        lambda f: torch.autograd.functional.jvp(f, weight, tangent),
    ):
        torch.testing.assert_close(make(fast), make(slow))
    with torch.no_grad():
        torch.testing.assert_close(hessian(fast)(weight), hessian(slow)(weight))


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_dual_numbers(name):
    weight, tangent = torch.randn(2, 4, 3, dtype=torch.float64)
    weight.requires_grad_()

    def everything(of, before):
        """The tangent, the gradient of it, and a gradient's own tangent without ``create_graph``."""
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(weight, tangent)
            value = FUNCTIONS[name](of, dual)
            (gradient,) = torch.autograd.grad(value.square().sum(), dual, retain_graph=True)
            along = forward_ad.unpack_dual(value).tangent
            (of_tangent,) = torch.autograd.grad(along.sum(), weight, retain_graph=True)
            # Of a graph that was made before forward mode began.
            slopes = forward_ad.make_dual(torch.ones_like(before), before.detach().cos())
            (late,) = torch.autograd.grad(before, weight, slopes, retain_graph=True)
            both = [forward_ad.unpack_dual(each) for each in (gradient, late)]
            return along.detach(), of_tangent, *((each.primal, each.tangent) for each in both)

    results = [everything(of, FUNCTIONS[name](of, weight)) for of in (modfast, reference)]
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_forward_mode_of_narrow_numbers(dtype):
    weight, tangent = torch.randn(2, 13, 17).to(dtype)
    partition = random_partition((13, 17), 3)
    value, along = jvp(lambda w: modfast.enmeshment(w, partition), (weight,), (tangent,))
    assert value.dtype == along.dtype == torch.float32
    expected = jvp(lambda w: reference.enmeshment(w, partition), (weight.double(),), (tangent.double(),))
    torch.testing.assert_close((value, along), tuple(each.float() for each in expected))


def test_gradchecks_in_both_modes():
    weight, other = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    factors = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    for function, operands in [
        (modfast.block_inner, (weight, other)),
        (modfast.block_scale, (weight, factors)),
        (modfast.block_energy, (weight,)),
        (modfast.enmeshment, (weight,)),
        (modfast.clusterability, (weight,)),
    ]:

        def call(*inputs, function=function):
            return function(*inputs, PARTITION)

        assert gradcheck(call, operands, check_forward_ad=True, check_batched_forward_grad=True)
        assert gradgradcheck(call, operands, check_fwd_over_rev=True, check_rev_over_rev=True)


class Both(nn.Module):
    """A model with its loss, as one function of the parameters."""

    def __init__(self, reduction):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        self.loss = EnmeshmentLoss(self.layers, 3, reduction=reduction)

    def forward(self, inputs):
        return self.layers(inputs).square().mean() + 0.7 * self.loss().sum()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_loss_of_a_model(reduction):
    both, inputs = Both(reduction), torch.randn(5, 4, dtype=torch.float64)
    parameters = {name: each.detach() for name, each in both.named_parameters()}

    def fast(parameters):
        return torch.func.functional_call(both, parameters, (inputs,))

    def slow(parameters):
        outputs = torch.func.functional_call(
            both.layers, {name.removeprefix("layers."): each for name, each in parameters.items()}, (inputs,)
        )
        losses = [
            reference.enmeshment(parameters[f"layers.{name}.weight"], partition)
            for name, partition in both.loss.partitions.items()
        ]
        total = torch.stack(losses).mean() if reduction == "mean" else sum(losses)
        return outputs.square().mean() + 0.7 * total

    tangents = {name: torch.randn_like(each) for name, each in parameters.items()}
    for make in (
        hessian,
        lambda f: jacfwd(jacfwd(f)),
        lambda f: lambda given: jvp(f, (given,), (tangents,)),
        lambda f: lambda given: jvp(grad(f), (given,), (tangents,)),
    ):
        torch.testing.assert_close(make(fast)(parameters), make(slow)(parameters))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(FUNCTIONS))
@pytest.mark.parametrize(
    "derive",
    [
        grad,
        hessian,
        lambda f: jacrev(grad(f)),
        lambda f: lambda weight: jvp(f, (weight,), (weight.cos(),)),
        lambda f: lambda weight: jvp(grad(f), (weight,), (weight.cos(),)),
        lambda f: lambda weight: torch.vmap(grad(f))(torch.stack([weight, weight.sin()])),
        lambda f: lambda weight: torch.vmap(f)(torch.stack([weight, weight.sin()])),
    ],
    ids=["grad", "hessian", "twice", "jvp", "jvp of grad", "vmap of grad", "vmap"],
)
def test_compiled_transforms(name, derive):
    def function(weight, of=modfast):
        return FUNCTIONS[name](of, weight).square().sum()

    def specified(weight):
        return function(weight, reference)

    torch._dynamo.reset()
    weight = torch.randn(4, 3, dtype=torch.float64)
    compiled = torch.compile(derive(function), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(weight), derive(specified)(weight))
    # A function compiled before is not taken for what it was outside of the transform.
    alone = torch.compile(function, backend="eager")
    torch.testing.assert_close(alone(weight), specified(weight))
    torch.testing.assert_close(derive(alone)(weight), derive(specified)(weight))


@pytest.mark.slow
def test_a_compiled_gradient_of_the_loss_of_a_model():
    torch._dynamo.reset()
    both, inputs = Both("mean"), torch.randn(5, 4, dtype=torch.float64)
    parameters = {name: each.detach() for name, each in both.named_parameters()}

    def function(parameters):
        return torch.func.functional_call(both, parameters, (inputs,))

    compiled = torch.compile(grad(function), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(parameters), grad(function)(parameters))


# --- the Laplacian's eigenvalues: once, in reverse mode


def chain():
    return [torch.randn(5, 6, dtype=torch.float64), torch.randn(4, 5, 2, dtype=torch.float64)]


def test_one_derivative_of_the_laplacian():
    weights = chain()

    def fast(*weights):
        return laplacian_eigenvalues(weights, 3, tol=1e-9)

    def slow(*weights):
        return reference.laplacian_eigenvalues(weights, 3)

    for function in (jacrev, lambda f: grad(lambda *weights: f(*weights).sin().sum(), argnums=(0, 1))):
        torch.testing.assert_close(function(fast)(*weights), function(slow)(*weights))
    batches = [
        torch.stack([each, each + 0.1, each.sin()], dim) for each, dim in zip(weights, (1, 0), strict=True)
    ]
    for function in (lambda f: f, jacrev):
        found = torch.vmap(function(fast), in_dims=(1, 0))(*batches)
        expected = [function(slow)(batches[0][:, i], batches[1][i]) for i in range(3)]
        torch.testing.assert_close(found, torch.stack(expected))
    leaves = tuple(each.requires_grad_() for each in weights)
    assert gradcheck(fast, leaves, check_batched_grad=True)


def test_the_eigenvalues_may_be_changed_in_place():
    weight = torch.rand(6, 5, dtype=torch.float64, requires_grad=True)
    values = laplacian_eigenvalues(weight, 3)
    values[1:] *= 2.0
    (found,) = torch.autograd.grad(values.sum(), weight)
    slopes = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64)
    (expected,) = torch.autograd.grad(laplacian_eigenvalues(weight, 3), weight, slopes)
    torch.testing.assert_close(found, expected)


def test_a_gradient_of_the_laplacian_may_be_kept_for_what_needs_none_of_it():
    weight = torch.rand(6, 5, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(laplacian_eigenvalues(weight, 2).sum(), weight, create_graph=True)
    (again,) = torch.autograd.grad(laplacian_eigenvalues(weight, 2).sum(), weight)
    assert torch.equal(first, again)


def twice(function, weight):
    (first,) = torch.autograd.grad(function(weight), weight, create_graph=True)
    torch.autograd.grad(first.square().sum(), weight)


def in_dual_numbers(function, weight):
    with forward_ad.dual_level():
        function(forward_ad.make_dual(weight, torch.ones_like(weight)))


def dual_then_backward(function, weight):
    value = function(weight)
    with forward_ad.dual_level():
        slope = forward_ad.make_dual(torch.ones_like(value), torch.ones_like(value))
        torch.autograd.grad(value, weight, slope)


@pytest.mark.parametrize(
    "derive",
    [
        twice,
        in_dual_numbers,
        dual_then_backward,
        lambda f, weight: jvp(f, (weight,), (weight,)),
        lambda f, weight: jacfwd(f)(weight),
        lambda f, weight: hessian(f)(weight),
        lambda f, weight: jacrev(jacrev(f))(weight),
        lambda f, weight: torch.vmap(hessian(f))(weight[None]),
        lambda f, weight: torch.autograd.functional.hessian(f, weight),
    ],
)
def test_no_other_derivative_of_the_laplacian(derive):
    weight = torch.rand(6, 5, dtype=torch.float64, requires_grad=True)
    with pytest.raises(NotImplementedError, match="laplacian_eigenvalues can be differentiated once"):
        derive(lambda weight: laplacian_eigenvalues(weight, 3).sum(), weight)
