import pickle
import sys

import pytest
import torch
from torch import nn

from modfast import EnmeshmentLoss, find_circuits
from modfast.data import load_dataset
from modfast.models import CNN, MLP, LargeCNN, build_model
from modfast.train import TrainConfig, train


def shapes(model):
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def test_cnn_is_the_published_one():
    model = CNN()
    assert shapes(model) == {
        "conv1.weight": (16, 3, 3, 3),
        "conv1.bias": (16,),
        "fc1.weight": (64, 4096),
        "fc2.weight": (64, 64),
        "fc3.weight": (10, 64),
    }
    assert sum(parameter.numel() for parameter in model.parameters()) == 448 + 262_144 + 4096 + 640
    assert model.conv1.padding == (1, 1)
    assert model.conv1.stride == (1, 1)


def test_mlp_is_the_published_one():
    model = MLP()
    assert shapes(model) == {"fc1.weight": (64, 784), "fc2.weight": (64, 64), "fc3.weight": (10, 64)}
    assert sum(parameter.numel() for parameter in model.parameters()) == 54_912


def test_cnn4_is_the_one_of_the_authors_notebook():
    model = build_model("cnn4", (3, 32, 32), 10)
    assert type(model) is CNN
    assert shapes(model) == {
        "conv1.weight": (16, 3, 3, 3),
        "conv1.bias": (16,),
        "fc1.weight": (64, 4096),
        "fc2.weight": (64, 64),
        "fc3.weight": (64, 64),
        "fc4.weight": (10, 64),
    }


def test_cnn_large_is_the_one_of_the_authors_notebook():
    model = build_model("cnn-large", (3, 32, 32), 10)
    assert type(model) is LargeCNN
    assert shapes(model) == {
        "conv1.weight": (32, 3, 3, 3),
        "conv1.bias": (32,),
        "conv2.weight": (64, 32, 3, 3),
        "conv2.bias": (64,),
        "bn1.weight": (64,),
        "bn1.bias": (64,),
        "fc1.weight": (128, 4096),
        "fc1.bias": (128,),
        "fc2.weight": (64, 128),
        "fc2.bias": (64,),
        "fc3.weight": (10, 64),
        "fc3.bias": (10,),
    }
    assert (model.conv1.padding, model.conv2.padding, model.dropout.p) == ((1, 1), (1, 1), 0.5)
    without = set(shapes(LargeCNN(bias=False)))
    assert without == set(shapes(model)) - {"fc1.bias", "fc2.bias", "fc3.bias"}


def test_cnn_computes_what_the_paper_describes():
    torch.manual_seed(0)
    model, images = CNN((3, 8, 8), 5, hidden=7), torch.randn(4, 3, 8, 8)
    layers = nn.Sequential(
        model.conv1,
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        model.fc1,
        nn.ReLU(),
        model.fc2,
        nn.ReLU(),
        model.fc3,
    )
    assert torch.equal(model(images), layers(images))
    assert (model(images) < 0).any(), "no ReLU after the last layer"


@pytest.mark.parametrize("count", [2, 3, 5])
def test_cnn_with_more_or_fewer_linear_layers(count):
    torch.manual_seed(0)
    model, images = CNN((3, 8, 8), 5, hidden=7, linear_layers=count), torch.randn(4, 3, 8, 8)
    linear = [getattr(model, f"fc{number}") for number in range(1, count + 1)]
    assert [tuple(layer.weight.shape) for layer in linear] == [(7, 256), *[(7, 7)] * (count - 2), (5, 7)]
    expected = nn.Sequential(model.conv1, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), linear[0])(images)
    for layer in linear[1:]:
        expected = layer(expected.relu())
    assert torch.equal(model(images), expected)
    assert not hasattr(model, f"fc{count + 1}")


@pytest.mark.parametrize("training", [False, True])
def test_cnn_large_computes_what_the_notebook_does(training):
    torch.manual_seed(0)
    model, images = LargeCNN((3, 9, 13), 5).train(training), torch.randn(4, 3, 9, 13)
    layers = nn.Sequential(
        model.conv1,
        nn.ReLU(),
        model.conv2,
        model.bn1,
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.MaxPool2d(2),
        nn.Flatten(),
        model.fc1,
        nn.ReLU(),
        model.fc2,
        nn.ReLU(),
        model.dropout,
        model.fc3,
    )
    outputs = []
    for run in (model, layers):
        torch.manual_seed(1)  # of the dropout
        outputs.append(run(images))
    torch.testing.assert_close(*outputs)
    assert torch.equal(model(images), model(images)) is not training, "dropout acts in training only"


def test_mlp_computes_what_the_paper_describes():
    torch.manual_seed(0)
    model, images = MLP((1, 8, 8), 5, hidden=7), torch.randn(4, 1, 8, 8)
    layers = nn.Sequential(nn.Flatten(), model.fc1, nn.ReLU(), model.fc2, nn.ReLU(), model.fc3)
    assert torch.equal(model(images), layers(images))
    assert (model(images) < 0).any(), "no ReLU after the last layer"


@pytest.mark.parametrize("image_shape", [(1, 2, 2), (3, 3, 2), (3, 31, 17), (4, 7, 64)])
def test_cnn_fits_other_sizes(image_shape):
    channels, height, width = image_shape
    model = CNN(image_shape, num_classes=3, hidden=5)
    assert shapes(model)["conv1.weight"] == (16, channels, 3, 3)
    assert shapes(model)["fc1.weight"] == (5, 16 * (height // 2) * (width // 2))
    assert model(torch.zeros(2, *image_shape)).shape == (2, 3)


@pytest.mark.parametrize("image_shape", [(1, 1, 1), (1, 8, 8), (3, 5, 7)])
def test_mlp_fits_other_sizes(image_shape):
    channels, height, width = image_shape
    model = MLP(image_shape, num_classes=3, hidden=5)
    assert shapes(model)["fc1.weight"] == (5, channels * height * width)
    assert model(torch.zeros(2, *image_shape)).shape == (2, 3)


@pytest.mark.parametrize("image_shape", [(1, 4, 4), (3, 7, 4), (2, 31, 17)])
def test_cnn_large_fits_other_sizes(image_shape):
    channels, height, width = image_shape
    model = LargeCNN(image_shape, num_classes=3)
    assert shapes(model)["conv1.weight"] == (32, channels, 3, 3)
    assert shapes(model)["fc1.weight"] == (128, 64 * (height // 4) * (width // 4))
    assert model(torch.zeros(2, *image_shape)).shape == (2, 3)


NAMES = ["cnn", "cnn4", "cnn-large", "mlp", "mlp4"]


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_trained(name):
    torch.manual_seed(0)
    model = build_model(name, (3, 6, 6), 4)
    nn.functional.cross_entropy(model(torch.rand(8, 3, 6, 6)), torch.arange(8) % 4).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_the_weights(name):
    states = []
    for _ in range(2):
        torch.manual_seed(42)
        states.append(build_model(name, (3, 8, 8), 10).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


# Read from the release before CNN had a number of linear layers, for seed 42.
FIRST_AND_LAST_WEIGHTS = {
    CNN: {
        "conv1.weight": [0.14713551104068756, -0.024329062551259995],
        "conv1.bias": [-0.07608568668365479, 0.15440309047698975],
        "fc1.weight": [0.01224396750330925, 0.004422921687364578],
        "fc2.weight": [-0.03697681427001953, 0.124381884932518],
        "fc3.weight": [0.11652055382728577, -0.01569022238254547],
    },
    MLP: {
        "fc1.weight": [0.02730494923889637, 0.013902537524700165],
        "fc2.weight": [0.046184927225112915, -0.03578941524028778],
        "fc3.weight": [0.007776141166687012, 0.057054996490478516],
    },
}


@pytest.mark.parametrize("model_class", [CNN, MLP])
def test_initial_weights_are_those_of_earlier_releases(model_class):
    torch.manual_seed(42)
    ends = {name: tensor.flatten()[[0, -1]].tolist() for name, tensor in model_class().state_dict().items()}
    assert ends == FIRST_AND_LAST_WEIGHTS[model_class]
    assert list(ends) == list(FIRST_AND_LAST_WEIGHTS[model_class])


def test_a_cnn_that_was_pickled_whole_before_it_had_a_number_of_layers():
    model, images = CNN((3, 8, 8)), torch.rand(2, 3, 8, 8)
    expected = model(images)
    del model.linear_layers
    assert torch.equal(pickle.loads(pickle.dumps(model))(images), expected)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("cnn", ["fc1", "fc2", "fc3"]),
        ("cnn4", ["fc1", "fc2", "fc3", "fc4"]),
        ("cnn-large", ["fc1", "fc2", "fc3"]),
        ("mlp", ["fc1", "fc2", "fc3"]),
        ("mlp4", ["fc1", "fc2", "fc3", "fc4"]),
    ],
)
def test_the_loss_and_circuits_reach_every_linear_layer(name, layers):
    torch.manual_seed(0)
    model = build_model(name, (1, 4, 4), 4)
    loss = EnmeshmentLoss(model, 4)
    assert list(loss.partitions) == layers
    loss().backward()
    assert all(getattr(model, layer).weight.grad.abs().sum() > 0 for layer in layers)

    images, labels = torch.rand(8, 1, 4, 4), torch.arange(8) % 2
    compiled, reference = (
        find_circuits(model, images, labels, classes=[0], layers=layers[-1:], method=method)[0]
        for method in ("compiled", "reference")
    )
    assert all(torch.equal(compiled.masks[layer], reference.masks[layer]) for layer in layers[-1:])
    (circuit,) = find_circuits(model, images, labels, classes=[1])
    assert list(circuit.masks) == layers
    assert circuit.loss_after <= circuit.loss_before
    assert model.training


def test_cnn_large_trains_and_is_evaluated_without_dropout():
    dataset = load_dataset("fake")
    torch.manual_seed(0)
    model = build_model("cnn-large", dataset.image_shape, dataset.num_classes)
    config = TrainConfig(epochs=3, layers=("fc1", "fc2", "fc3"), enmeshment_weight=20.0, threads=1)
    run = train(model, dataset, config)
    assert run.model.bn1.num_batches_tracked == 3 * 8, "only the steps of training count, not the tests"
    images = dataset.normalize(dataset.test_images)
    accuracies = []
    for training in (False, True):
        with torch.no_grad():
            predicted = run.model.train(training)(images).argmax(1)
        accuracies.append(float((predicted == dataset.test_labels).double().mean()))
    last = run.history[-1]
    assert last["test_accuracy"] == pytest.approx(accuracies[0])
    assert accuracies[0] != accuracies[1], "else the test says nothing"
    assert last["cross_entropy"] < run.history[0]["cross_entropy"]
    assert last["enmeshment"] < run.history[0]["enmeshment"]


@pytest.mark.parametrize("model_class", [CNN, MLP])
@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"image_shape": (3, 32)}, "image_shape"),
        ({"image_shape": 32}, "image_shape"),
        ({"image_shape": (3, 0, 32)}, "image_shape"),
        ({"image_shape": (3, 32.0, 32)}, "image_shape"),
        ({"image_shape": (True, 32, 32)}, "image_shape"),
        ({"num_classes": 0}, "num_classes"),
        ({"num_classes": 2.5}, "num_classes"),
        ({"hidden": -1}, "hidden"),
        ({"hidden": "64"}, "hidden"),
    ],
)
def test_bad_arguments_are_named(model_class, arguments, name):
    with pytest.raises(ValueError, match=f"^{name} must be") as info:
        model_class(**arguments)
    assert repr(arguments[name]) in str(info.value)


@pytest.mark.parametrize(
    ("model_class", "name", "value"),
    [
        (CNN, "linear_layers", 1),
        (CNN, "linear_layers", 3.0),
        (CNN, "linear_layers", None),
        (LargeCNN, "image_shape", (3, 3, 32)),
        (LargeCNN, "num_classes", 0),
        (LargeCNN, "bias", 1),
        (LargeCNN, "bias", None),
    ],
)
def test_bad_arguments_of_the_notebooks_networks_are_named(model_class, name, value):
    with pytest.raises(ValueError, match=f"^{name} must be") as info:
        model_class(**{name: value})
    assert repr(value) in str(info.value)


def test_cnn_needs_two_pixels_to_pool():
    with pytest.raises(ValueError, match="sides of at least 2, got"):
        CNN((3, 1, 32))


@pytest.mark.parametrize(
    ("name", "image_shape", "expected"),
    [
        ("auto", (1, 28, 28), MLP),
        ("auto", (3, 32, 32), CNN),
        ("cnn", (1, 28, 28), CNN),
        ("cnn4", (1, 28, 28), CNN),
        ("cnn-large", (1, 28, 28), LargeCNN),
        ("mlp", (3, 32, 32), MLP),
        ("auto", torch.Size([1, 8, 8]), MLP),
    ],
)
def test_build_model_by_name(name, image_shape, expected):
    model = build_model(name, image_shape, 7)
    assert type(model) is expected
    assert model(torch.zeros(2, *image_shape)).shape == (2, 7)


@pytest.mark.parametrize("name", ["", "CNN", "resnet", ":make", "module:", ":", ".relative:make", None, 3])
def test_unknown_model_names_what_is_allowed(name):
    allowed = r"model name must be one of auto, cnn, cnn4, cnn-large, mlp, mlp4, package\.module:callable"
    with pytest.raises(ValueError, match=allowed) as info:
        build_model(name, (1, 8, 8), 10)
    assert repr(name) in str(info.value)


def test_build_model_checks_the_sizes():
    with pytest.raises(ValueError, match="image_shape"):
        build_model("auto", (8, 8), 10)
    with pytest.raises(ValueError, match="num_classes"):
        build_model("mlp", (1, 8, 8), 0)


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module in the current folder, which is not on the search path, as for an installed command."""
    (tmp_path / "own_models_for_test.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Linear):\n"
        "    def __init__(self, image_shape, num_classes):\n"
        "        super().__init__(image_shape[-1], num_classes)\n"
        "def make(*, image_shape, num_classes):\n"
        "    return Net(image_shape, num_classes)\n"
        "def no_model(image_shape, num_classes):\n"
        "    return 'no model'\n"
        "def wrong_arguments(width):\n"
        "    return None\n"
        "def broken(image_shape, num_classes):\n"
        "    raise TypeError('a mistake inside')\n"
        "constant = 3\n"
        "silent = dict\n"
    )
    (tmp_path / "own_slip_for_test.py").write_text("import os\nos.no_such_function_for_test\n")
    (tmp_path / "own_broken_for_test.py").write_text("import no_such_library_for_test\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    yield "own_models_for_test"
    sys.modules.pop("own_models_for_test", None)


@pytest.mark.parametrize("attribute", ["make", "Net"])
def test_own_model_from_the_current_folder(attribute, own_module):
    path = list(sys.path)
    model = build_model(f"{own_module}:{attribute}", (1, 8, 9), 7)
    assert type(model).__name__ == "Net"
    assert (model.in_features, model.out_features) == (9, 7)
    assert sys.path == path


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("own_models_for_test:no_model", TypeError, "must return a torch.nn.Module, but returned 'no model'"),
        ("own_models_for_test:wrong_arguments", TypeError, "keyword arguments image_shape and num_classes"),
        ("own_models_for_test:constant", TypeError, "must name a callable, but is a int"),
        ("own_models_for_test:silent", TypeError, "keyword arguments image_shape and num_classes"),
        ("own_models_for_test:missing", ValueError, "has no 'missing'"),
        ("own_models_for_test:broken", TypeError, "^a mistake inside$"),
        ("own_slip_for_test:make", AttributeError, "no_such_function_for_test"),
        (
            "own_broken_for_test:make",
            ValueError,
            "cannot import own_broken_for_test .*no_such_library_for_test",
        ),
        ("no_such_module_for_test:make", ValueError, "cannot import no_such_module_for_test"),
    ],
)
def test_own_model_that_does_not_fit(name, error, message, own_module):
    path = list(sys.path)
    with pytest.raises(error, match=message):
        build_model(name, (1, 8, 8), 10)
    assert sys.path == path
