"""Circuits of convolutional networks: the compiled walk against the plain one."""

import copy

import pytest
import torch
from conv_models import case_of, small_vgg, weights_of
from gpu import EMULATED
from torch import nn
from walked_models import CRITERIA, assert_same_masks

import modfast
from modfast import Circuit, Partition, reference
from modfast.circuits import checkpoint as circuit_checkpoint
from modfast.circuits import find_circuit, find_circuits
from modfast.circuits.jobs import ShortTailWarning
from modfast.circuits.walk import Walk
from modfast.models import CNN, LargeCNN

pytestmark = [
    pytest.mark.skipif(EMULATED, reason="a walk along convolutions runs on the CPU alone"),
    # An even kernel with the padding "same" is padded by an operation of its own; PyTorch warns of that.
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
]

LINEAR = ["fc1", "fc2", "fc3"]


def assert_as_reference(model, inputs, label, layers, **options):
    found = find_circuit(model, inputs, label, layers=layers, **options)
    expected = reference.find_circuit(model, inputs, label, layers=list(found.masks), **options)
    assert_same_masks(found, expected)
    for name in ("loss_before", "loss_after", "accuracy_before", "accuracy_after"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-11, abs=1e-13)
    return found


@pytest.fixture(scope="module")
def trained():
    """The paper's network, small, trained on noisy patterns; images and their classes."""
    torch.manual_seed(3)
    labels = torch.arange(180) % 3
    images = torch.randn(3, 2, 7, 6)[labels] + torch.randn(180, 2, 7, 6)
    model = CNN((2, 7, 6), num_classes=3, hidden=5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model, images, labels


@pytest.fixture
def cnn(trained):
    """That network and its images of class 1."""
    model, images, labels = trained
    return copy.deepcopy(model), images[labels == 1]


# --- the decisions of the reference ---


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("first", range(0, 40, 8))
def test_decides_as_the_reference_does(criterion, first):
    kept = decided = 0
    for seed in range(first, first + 8):
        model, inputs, label, options = case_of(seed, criterion)
        found = assert_as_reference(model, inputs, label, weights_of(model), **options)
        kept += found.num_weights
        decided += sum(mask.numel() for mask in found.masks.values())
    assert 0 < kept < decided


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_papers_network(trained, criterion):
    model, images, labels = trained
    if criterion != "balanced":
        images, labels = images[labels == 1], None
    found = assert_as_reference(model, images, 1, "*", criterion=criterion, labels=labels)
    assert list(found.masks) == ["conv1", *LINEAR]
    assert found.masks["conv1"].shape == (16, 2, 3, 3)
    assert 0 < found.sizes["conv1"] < 1


def test_a_small_vgg():
    torch.manual_seed(0)
    model = small_vgg()
    images = torch.rand(80, 1, 8, 8)
    for _ in range(5):
        model(images)  # so that the running statistics are not those of the beginning
    model.eval()
    with torch.no_grad():
        model[-1].bias -= model(images).mean(0)
        images = images[model(images).argmax(1) == 1]
    kept = copy.deepcopy(model.state_dict())
    found = assert_as_reference(model, images, 1, weights_of(model), criterion="loss")
    assert 0 < found.size < 0.9
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_the_notebooks_network():
    torch.manual_seed(0)
    model = LargeCNN((1, 4, 4), num_classes=3).eval()
    model.conv1, model.conv2 = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
    model.bn1, model.fc1 = nn.BatchNorm2d(4).eval(), nn.Linear(4, 6)
    model.fc2, model.fc3 = nn.Linear(6, 5), nn.Linear(5, 3)
    found = assert_as_reference(model, torch.rand(30, 1, 4, 4), 2, ["conv?", "fc2"])
    assert list(found.masks) == ["conv1", "conv2", "fc2"]


def test_a_network_without_linear_layers():
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    images = torch.rand(40, 1, 6, 6)
    for criterion in ("loss", "loss_and_accuracy"):
        for label in range(3):
            found = assert_as_reference(model, images, label, "*", criterion=criterion, tolerance=0.01)
    assert list(found.masks) == ["0", "2"]


def test_sizes_that_fill_no_register(cnn):
    model, images = cnn
    for count in (1, 7, 8, 9, 17):
        assert_as_reference(model, images[:count], 1, "conv1")


def test_weights_and_channels_that_are_zero_already(cnn):
    model, images = cnn
    with torch.no_grad():
        model.conv1.weight[::2] = 0.0
        model.conv1.weight[:, 0, 1] = 0.0
        model.fc2.weight[:, 1] = 0.0
        model.fc1.weight[:, ::5] = 0.0
    found = assert_as_reference(model, images, 1, "*")
    assert not found.masks["conv1"][::2].any()


def test_a_batch_norm_that_forgets_its_channels():
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Conv1d(2, 4, 3),
        nn.BatchNorm1d(4),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(24, 5),
        nn.BatchNorm1d(5),
        nn.ReLU(),
        nn.Linear(5, 3),
    ).eval()
    with torch.no_grad():
        model[1].weight[:2] = 0.0
        model[5].weight[1] = 0.0
    found = assert_as_reference(model, torch.randn(20, 2, 8), 0, "*[047]")
    # Nothing depends on these weights.
    assert not found.masks["0"][:2].any()
    assert not found.masks["4"][1].any()


def test_what_overflows_is_kept():
    # Without one weight of the kernel both logits of the last input are infinite: no loss is known.
    model = nn.Sequential(
        nn.Conv1d(1, 1, 2, bias=False), nn.MaxPool1d(1), nn.Flatten(), nn.Linear(1, 2, bias=False)
    ).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[[1e200, -1e200]]], dtype=torch.float64))
        model[3].weight.copy_(torch.tensor([[3e200], [2e200]], dtype=torch.float64))
    inputs = torch.tensor([[[1e-200, 0.0]], [[-1e-200, 0.0]]] * 8 + [[[1.0, 1.0]]], dtype=torch.float64)
    found = assert_as_reference(model, inputs, 0, "*")
    assert found.masks["0"].all()


# --- threads and instruction sets ---


def test_same_bits_for_any_number_of_threads(cnn, set_threads):
    model, images = cnn
    images = images.repeat(40, 1, 1, 1)[:700]  # several chunks of inputs, so that threads share them
    images = images + 0.1 * torch.rand_like(images)
    found = []
    for threads in (1, 2, 3, 5):
        set_threads(threads)
        found.append(find_circuit(model, images, 1, layers="*"))
    for each in found[1:]:
        assert_same_masks(each, found[0])
        assert each.loss_after == found[0].loss_after


CODE = """
import hashlib, torch
from modfast.circuits import find_circuit
from torch import nn
digest = hashlib.sha256()
for activation in (nn.ReLU(), nn.GELU(), nn.Tanh()):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), activation, nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, groups=2), activation, nn.AvgPool2d(3, 1), nn.Flatten(), nn.Linear(6, 7),
        activation, nn.Linear(7, 3)
    ).eval()
    circuit = find_circuit(model, torch.randn(50, 2, 11, 10), 2, layers="*[0480]")
    digest.update(repr(circuit.loss_after).encode())
    for mask in circuit.masks.values():
        digest.update(mask.numpy().tobytes())
print(digest.hexdigest())
"""


def test_same_bits_in_every_instruction_set(run_python):
    found = set()
    for level in modfast.backend()["cpu_available"]:
        done = run_python(CODE, MODFAST_CPU=level)
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1


# --- which layers ---


def test_linear_layers_are_the_default(cnn):
    model, images = cnn
    assert list(find_circuit(model, images, 1).masks) == LINEAR
    assert_same_masks(find_circuit(model, images, 1), find_circuit(model, images, 1, layers=LINEAR))


def test_only_named_layers_are_pruned(cnn):
    model, images = cnn
    for layers in ("conv1", ["conv1", "fc2"], ["conv1.weight"]):
        found = assert_as_reference(model, images, 1, layers)
        masked = found.apply(model)
        for name in {"conv1", *LINEAR} - set(found.masks):
            assert torch.equal(masked.get_submodule(name).weight, model.get_submodule(name).weight)
        if "conv1" in found.masks:
            assert torch.equal(masked.conv1.weight != 0, found.masks["conv1"])


def test_training_mode_does_not_matter():
    torch.manual_seed(0)
    model = small_vgg()
    images = torch.rand(30, 1, 8, 8)
    model(images)
    training = find_circuit(model.train(), images, 1, layers="*", tolerance=0.1)
    assert model[1].training
    assert_same_masks(training, find_circuit(model.eval(), images, 1, layers="*", tolerance=0.1))


def test_a_short_tail_says_what_could_be_named():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).eval()
    with pytest.warns(
        ShortTailWarning, match=r"NativeBatchNorm at or after layer '0'. layers= may also name '0'"
    ):
        found = find_circuit(model, torch.randn(9, 4), 1)
    assert list(found.masks) == ["3"]


# --- walks that are stopped and go on ---


def test_interrupted_walk_goes_on(cnn, tmp_path, monkeypatch):
    model, images = cnn
    whole, path = find_circuit(model, images, 1, layers="*"), tmp_path / "walk.npz"
    monkeypatch.setattr(circuit_checkpoint, "_SECONDS_BETWEEN", -1.0)
    decide, steps = Walk._decide, []

    def stop_at(count):
        steps.clear()

        def decide_or_stop(walk, place):
            if len(steps) == count:
                raise KeyboardInterrupt
            steps.append(place)
            decide(walk, place)

        monkeypatch.setattr(Walk, "_decide", decide_or_stop)

    linear = 3 + 5 + 5  # rows, which are steps
    for count in (linear + 3, 4):  # twice in the middle of the convolution
        stop_at(count)
        with pytest.raises(KeyboardInterrupt):
            find_circuit(model, images, 1, layers="*", checkpoint=path)
        assert steps[-1][0] == 0
    stop_at(16 - 3 - 4)
    found = find_circuit(model, images, 1, layers="*", checkpoint=path)
    assert_same_masks(found, whole)
    assert found.loss_after == whole.loss_after
    assert len(steps) == 16 - 3 - 4
    for other in ({"layers": "conv1"}, {"layers": None}, {"label": 2}):
        with pytest.raises(ValueError, match="of a walk over another model"):
            find_circuit(
                **{"model": model, "inputs": images, "label": 1, "layers": "*", "checkpoint": path, **other}
            )


def test_the_reference_goes_on_too(cnn, tmp_path):
    model, images = cnn
    options = {"layers": ["conv1", "fc3"], "checkpoint": tmp_path / "walk.npz", "method": "reference"}
    found = find_circuit(model, images[:9], 1, **options)
    assert_same_masks(find_circuit(model, images[:9], 1, **options), found)


# --- what is done with circuits ---


def test_files_and_measures(trained, tmp_path):
    model, images, labels = trained
    circuits = find_circuits(model, images, labels, layers="*")
    modfast.save_circuits(tmp_path / "circuits.npz", circuits)
    assert modfast.load_circuits(tmp_path / "circuits.npz") == circuits
    circuits[0].save(tmp_path / "one.npz")
    assert Circuit.load(tmp_path / "one.npz") == circuits[0]

    kernels = [circuit.masks["conv1"] for circuit in circuits]
    shared = int((kernels[0] & kernels[1]).sum())
    union = int((kernels[0] | kernels[1]).sum())
    overlap = modfast.circuit_overlap(circuits, "conv1")
    assert overlap[0, 1] == pytest.approx(shared / union)

    rows, cols = torch.arange(16) % 2, torch.tensor([0, 1])
    partition = {"conv1": Partition(rows, cols, num_clusters=2)}
    inside = (rows[:, None] == cols)[:, :, None, None].expand(16, 2, 3, 3)
    shares = modfast.cluster_shares(circuits, partition)["conv1"]
    for circuit, share in zip(kernels, shares, strict=True):
        for cluster in (0, 1):
            of_cluster = circuit & inside & (rows == cluster)[:, None, None, None]
            assert float(share[cluster]) == pytest.approx(int(of_cluster.sum()) / int(circuit.sum()))
    drawn = modfast.random_circuits(circuits, 0)
    assert [int(circuit.masks["conv1"].sum()) for circuit in drawn] == [
        int(kernel.sum()) for kernel in kernels
    ]
    with torch.no_grad():
        logits = circuits[1].apply(model)(images[labels == 1])
        loss = nn.functional.cross_entropy(logits, torch.ones(len(logits), dtype=torch.int64))
    assert circuits[1].loss_after == pytest.approx(float(loss), rel=1e-3)
