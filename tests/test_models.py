import sys

import pytest
import torch
from torch import nn

from modfast.models import CNN, MLP, build_model


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


@pytest.mark.parametrize("model_class", [CNN, MLP])
def test_every_parameter_is_trained(model_class):
    torch.manual_seed(0)
    model = model_class((3, 6, 6), 4)
    nn.functional.cross_entropy(model(torch.rand(8, 3, 6, 6)), torch.arange(8) % 4).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


@pytest.mark.parametrize("model_class", [CNN, MLP])
def test_the_seed_decides_the_weights(model_class):
    states = []
    for _ in range(2):
        torch.manual_seed(42)
        states.append(model_class().state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


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


def test_cnn_needs_two_pixels_to_pool():
    with pytest.raises(ValueError, match="sides of at least 2, got"):
        CNN((3, 1, 32))


@pytest.mark.parametrize(
    ("name", "image_shape", "expected"),
    [
        ("auto", (1, 28, 28), MLP),
        ("auto", (3, 32, 32), CNN),
        ("cnn", (1, 28, 28), CNN),
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
    with pytest.raises(
        ValueError, match=r"model name must be one of auto, cnn, mlp, package\.module:callable"
    ) as info:
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
    )
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
        ("own_models_for_test:missing", ValueError, "has no 'missing'"),
        ("own_models_for_test:broken", TypeError, "^a mistake inside$"),
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
