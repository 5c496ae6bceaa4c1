"""The loss inside what training loops are made of: accumulation, checkpoints, autocast, functional models."""

import copy

import pytest
import torch
from gpu import needs_cpu_kernels
from torch import nn
from torch.utils.checkpoint import checkpoint

from modfast import EnmeshmentLoss, Partition, reference


def small_model():
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8))


def gradients(model):
    return [parameter.grad.clone() for parameter in model.parameters()]


def expected_gradients(model, step):
    """What plain PyTorch makes of ``step(model, loss)``, the loss being the specification's."""
    model = copy.deepcopy(model)
    model.zero_grad()

    def loss():
        weights = [model[0].weight, model[2].weight]
        each = [reference.enmeshment(w, Partition.blocks(w.shape, 4)) for w in weights]
        return torch.stack(each).mean()

    step(model, loss)
    return gradients(model)


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        # Float32, and the specification sums in another order: a few roundings of 6e-8.
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_gradient_accumulation():
    model, batches = small_model(), torch.randn(3, 5, 12)

    def step(model, loss):
        for batch in batches:
            (model(batch).square().mean() / len(batches) + 0.7 * loss() / len(batches)).backward()

    loss = EnmeshmentLoss(model, 4)
    expected = expected_gradients(model, step)
    step(model, loss)
    assert_same(gradients(model), expected)

    # In place: once for each micro-batch with its share, or once for all.
    for times in (3, 1):
        model.zero_grad()
        for batch in batches:
            (model(batch).square().mean() / len(batches)).backward()
        for _ in range(times):
            loss.accumulate_grad_(0.7 / times)
        assert_same(gradients(model), expected)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(use_reentrant):
    model, batch = small_model(), torch.randn(5, 12, requires_grad=True)

    def step(model, loss):
        outputs = checkpoint(model, batch, use_reentrant=use_reentrant)
        # The loss may be recomputed as well; a reentrant checkpoint needs an input that has a gradient.
        enmeshment = checkpoint(lambda _: loss(), batch, use_reentrant=use_reentrant)
        (outputs.square().mean() + 0.7 * enmeshment).backward()

    expected = expected_gradients(model, step)
    step(model, EnmeshmentLoss(model, 4))
    assert_same(gradients(model), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_leaves_the_loss_in_float32(dtype):
    model, batch = small_model(), torch.randn(5, 12)

    def step(model, loss):
        with torch.autocast("cpu", dtype):
            total = model(batch).float().square().mean() + 0.7 * loss()
        assert total.dtype == torch.float32
        total.backward()

    expected = expected_gradients(model, step)
    step(model, EnmeshmentLoss(model, 4))
    assert_same(gradients(model), expected)


def test_gradient_scaling():
    model, batch = small_model(), torch.randn(5, 12)
    loss = EnmeshmentLoss(model, 4)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(model, loss):
        (model(batch).square().mean() + 0.7 * loss()).backward()

    expected = expected_gradients(model, step)
    scaler.scale(model(batch).square().mean() + 0.7 * loss()).backward()
    scaler.unscale_(optimizer)
    assert_same(gradients(model), expected)


@pytest.mark.parametrize("given", ["after unscaling", "with the scaler", "switched off"])
def test_accumulation_beside_a_gradient_scaler(given):
    model, batch = small_model(), torch.randn(5, 12)
    loss = EnmeshmentLoss(model, 4)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, enabled=given != "switched off")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(model, loss):
        (model(batch).square().mean() + 0.7 * loss()).backward()

    expected = expected_gradients(model, step)
    scaler.scale(model(batch).square().mean()).backward()
    if given == "after unscaling":
        scaler.unscale_(optimizer)
        value = loss.accumulate_grad_(0.7)
        with pytest.raises(ValueError, match=r"scaler has unscaled gradients already: leave it out"):
            loss.accumulate_grad_(0.7, scaler=scaler)
    else:
        value = loss.accumulate_grad_(0.7, scaler=scaler)
        scaler.unscale_(optimizer)
    assert float(value) == pytest.approx(float(loss().detach()))
    assert_same(gradients(model), expected)
    before = model[0].weight.detach().clone()
    scaler.step(optimizer)
    scaler.update()
    assert_same([before - model[0].weight], [0.1 * expected[0]])


@pytest.mark.parametrize("scaler", ["scaler", 2.0, torch.optim.SGD])
def test_a_scaler_is_a_gradient_scaler(scaler):
    with pytest.raises(TypeError, match=r"scaler must be a torch\.amp.GradScaler or None, got "):
        EnmeshmentLoss(small_model(), 4).accumulate_grad_(0.7, scaler=scaler)


@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("grad_dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("present", [False, True])
def test_gradients_of_another_dtype_than_their_weight_s(weight_dtype, grad_dtype, present):
    """``grad_dtype``: float32 gradients of 16-bit weights, for example."""
    model = small_model().to(weight_dtype)
    for parameter in model.parameters():
        parameter.grad_dtype = grad_dtype
        if present:
            parameter.grad = torch.full_like(parameter, 0.25, dtype=grad_dtype)
    loss = EnmeshmentLoss(model, 4)
    value = loss.accumulate_grad_(0.7)
    torch.testing.assert_close(value, loss().detach())
    coarsest = max(torch.finfo(grad_dtype).eps, 1e-6)
    for index in (0, 2):
        weight = model[index].weight
        exact = weight.detach().double().requires_grad_()
        reference.enmeshment(exact, Partition.blocks(weight.shape, 4)).backward()
        assert weight.grad.dtype == grad_dtype
        # Rounded once to the gradient's dtype, and once more where it is added to what was there.
        expected = 0.25 * present + 0.35 * exact.grad
        torch.testing.assert_close(weight.grad.double(), expected, rtol=2 * coarsest, atol=1e-7)


def test_a_grad_dtype_of_none_takes_gradients_of_any_dtype():
    model = nn.Linear(8, 8).to(torch.bfloat16)
    model.weight.grad_dtype = None
    loss = EnmeshmentLoss(model, 2)
    loss.accumulate_grad_(0.7)
    assert model.weight.grad.dtype == torch.bfloat16
    model.weight.grad = torch.zeros(8, 8)
    loss.accumulate_grad_(0.7)
    assert model.weight.grad.dtype == torch.float32


def test_functional_gradient_and_ensemble():
    models = [small_model() for _ in range(3)]
    loss = EnmeshmentLoss(models[0], 4)
    parameters, buffers = torch.func.stack_module_state(models)

    class Penalty(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = models[0]

        def forward(self):
            return loss()

    penalty = Penalty()

    def value(parameters):
        named = {f"model.{name}": tensor for name, tensor in parameters.items()}
        return torch.func.functional_call(penalty, named)

    one = {name: tensor.detach() for name, tensor in models[1].named_parameters()}
    found = torch.func.grad(value)(one)
    expected = EnmeshmentLoss(models[1], 4)
    expected().backward()
    for name in ("0.weight", "2.weight"):
        torch.testing.assert_close(found[name], dict(models[1].named_parameters())[name].grad)

    # An ensemble at once: as if each were alone.
    together = torch.vmap(torch.func.grad(value))(parameters)
    torch.testing.assert_close(together["0.weight"][1], found["0.weight"])
    assert torch.vmap(value)(parameters).shape == (3,)
    assert not buffers


def test_hooks_see_the_gradient():
    model = nn.Linear(8, 8)
    loss = EnmeshmentLoss(model, 2)
    seen = []
    model.weight.register_hook(lambda grad: seen.append(grad.clone()))
    model.weight.register_post_accumulate_grad_hook(lambda weight: seen.append(weight.grad.clone()))
    loss().backward()
    assert len(seen) == 2
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], torch.autograd.grad(loss(), model.weight)[0])


@needs_cpu_kernels
def test_large_gradients_reuse_the_memory_of_the_last_step():
    model = nn.Linear(1024, 1024, bias=False)  # 4 MiB
    loss = EnmeshmentLoss(model, 4)
    places = []
    for _ in range(3):
        model.zero_grad()
        loss().backward()
        places.append(model.weight.grad.data_ptr())
    assert len(set(places)) == 1
    # What is still in use is not given out again.
    kept = model.weight.grad
    before = kept.clone()
    (fresh,) = torch.autograd.grad(3.0 * loss(), model.weight)
    assert fresh.data_ptr() != kept.data_ptr()
    assert torch.equal(kept, before)


def test_memory_beside_the_weights(run_python):
    """Fewer than 8 MB at any size: no mask, no one-hot, no copy of the weight."""
    done = run_python(
        "import torch\n"
        "from modfast import EnmeshmentLoss, Partition\n"
        "def kib(kind):\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(line.split()[1]) for line in lines if line.startswith(kind))\n"
        "EnmeshmentLoss(torch.nn.Linear(256, 256), 4).accumulate_grad_(1.0)\n"
        "layer = torch.nn.Linear(4096, 4096, bias=False)\n"
        "layer.weight.grad = torch.ones_like(layer.weight)\n"
        "labels = torch.randint(64, (4096,))\n"
        "loss = EnmeshmentLoss(layer, {'': Partition(labels, labels.flip(0), 64)})\n"
        "before = kib('VmRSS')\n"
        "loss.accumulate_grad_(1.0)\n"
        "print(kib('VmHWM') - before)\n"
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 8 * 1024
