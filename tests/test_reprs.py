"""Every public object says what it is in at most ten lines, and in a notebook as HTML that is well formed."""

import importlib
import inspect
import pkgutil
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

import modfast
from modfast import Circuit, EnmeshmentLoss, FaithfulnessCurve, Network, NetworkLayer, Partition, UnitCircuit
from modfast.data import Dataset
from modfast.display import html_table, listed
from modfast.experiment.eigengap import ClusterConfig
from modfast.integrations.schedules import CosineSchedule, LinearSchedule
from modfast.tasks import modular_addition, next_token
from modfast.train import Run, TrainConfig
from modfast.weights import Weights
from modfast.weights.file_weights import FoundWeight

estimators = pytest.importorskip("modfast.estimators")

LAYERS, UNITS = 48, 20_000
ODD = "<script>alert('&')</script>"
NUMBERS = torch.rand(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def deep():
    """A model of as many layers as a large GPT has blocks, each with two."""
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(2 * LAYERS)))


def network():
    layers = {
        f"blocks.{i}.mlp.{ODD}": NetworkLayer(
            f"blocks.{i}.mlp.{ODD}", "mlp_input", (9, 9), torch.arange(9), torch.arange(9)
        )
        for i in range(LAYERS)
    }
    return Network(nn.Identity(), layers, {f"space {i} {ODD}": slice(i, i + 1) for i in range(99)}, 99)


def circuit():
    return Circuit(3, {f"h.{i}.{ODD}": torch.ones(9, 9) > 0 for i in range(LAYERS)}, "loss", 0, 1, 0, 0, 1, 1)


def unit_circuit():
    spaces = {f"{ODD} {i}": slice(i * 100, i * 100 + 100) for i in range(UNITS // 100)}
    scores = torch.arange(UNITS).double()
    return UnitCircuit(scores > 9, scores, spaces, "greedy", "zero", 0.1, 5, 6, -1.0, -1.1, name=ODD)


def optimiser():
    model = deep()
    loss = EnmeshmentLoss(model, 2)
    groups = [{"params": list(layer.parameters()), "lr": 0.1 / (i + 1)} for i, layer in enumerate(model)]
    return modfast.optim.AdamW(groups, enmeshment=loss, enmeshment_weight=0.7, keep=lambda step: 0.5)


def text(folder):
    paths = []
    for i in range(40):
        paths.append(folder / f"{i}.txt")
        paths[-1].write_text("to be or not to be, that is the question. " * 5)
    return next_token(paths, 8, level="character")


def data():
    images, labels = torch.zeros(2000, 1, 2, 2, dtype=torch.uint8), torch.arange(2000)
    return Dataset(
        "odd", images, labels, images, labels, tuple(f"a class of number {i}" for i in range(2000))
    )


def callback(module, **more):
    kind = pytest.importorskip(f"modfast.integrations.{module}").EnmeshmentCallback
    given = {f"layer {i}": Partition.blocks((4, 4), 2) for i in range(LAYERS)}
    return kind(given, 0.7, schedule=LinearSchedule(100), recluster_at=range(1000), **more)


def curve():
    random = torch.stack([NUMBERS] * 9)
    return FaithfulnessCurve(
        torch.arange(30), NUMBERS, NUMBERS, random, random, 1.0, 0.0, 99, "zero", 9, 9, 0
    )


def lesions():
    drops = torch.rand(500, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return modfast.ClusterLesions(
        torch.arange(500), (ODD,) * 500, torch.full((500,), 9), torch.ones(500) > 0, torch.arange(8),
        drops, torch.stack([drops] * 3), 0.9, 1e-9, "zero", 10, 10, 0,
    )  # fmt: skip


def dependence():
    needed = torch.rand(700, 300, generator=torch.Generator().manual_seed(0)) > 0.9
    shares = torch.full((3, 301), 1 / 301, dtype=torch.float64)
    return modfast.ClusterDependence(torch.ones(700) > 0, needed, shares, "zero", 9, 0)


# The class's name to an object that is as large as they come.
BIG = {
    "AdamW": lambda _: optimiser(),
    "Circuit": lambda _: circuit(),
    "ClusterConfig": lambda _: ClusterConfig(tuple(range(1, 200))),
    "ClusterDependence": lambda _: dependence(),
    "ClusterLesions": lambda _: lesions(),
    "CosineSchedule": lambda _: CosineSchedule(100),
    "Dataset": lambda _: data(),
    "Eigengap": lambda _: modfast.Eigengap(NUMBERS.sort(descending=True)[0], torch.stack([NUMBERS] * 99)),
    "EnmeshmentLoss": lambda _: EnmeshmentLoss(deep(), 2),
    "FaithfulnessCurve": lambda _: curve(),
    "LayerTable": lambda _: modfast.describe_layers(deep()),
    "LinearSchedule": lambda _: LinearSchedule(100),
    "LiveUnits": lambda _: modfast.live_units(torch.ones(999, 999), Partition.blocks((999, 999), 333)),
    "ModularAddition": lambda _: modular_addition(97),
    "Network": lambda _: network(),
    "NetworkLayer": lambda _: network().layers[f"blocks.0.mlp.{ODD}"],
    "NextToken": text,
    "Partition": lambda _: Partition.blocks((UNITS, UNITS), UNITS),
    "Run": lambda _: Run(
        deep(), torch.optim.Adam(deep().parameters()), TrainConfig(),
        {f"h.{i}": Partition.blocks((999, 999), 3) for i in range(LAYERS)}, {}, {"0": torch.zeros(999, 999)},
    ),
    "SpectralClustering": lambda _: estimators.SpectralClustering(8),
    "SpectralCoclustering": lambda _: estimators.SpectralCoclustering(8),
    "ShuffleTest": lambda _: modfast.ShuffleTest(0.5, NUMBERS, 0.6, 0.1, -1.0, 0.1),
    "TrainConfig": lambda _: TrainConfig(),
    "UnitCircuit": lambda _: unit_circuit(),
    "Weights": lambda _: Weights(
        [FoundWeight(f"{ODD}.{i}", "w", (4, 4), True, lambda: torch.zeros(4, 4)) for i in range(LAYERS)], []
    ),
    "lightning.EnmeshmentCallback": lambda _: callback("lightning"),
    "transformers.EnmeshmentCallback": lambda _: callback("transformers"),
}  # fmt: skip


# scikit-learn's own HTML has colours and a style of its own.
OTHERS_HTML = {"SpectralClustering", "SpectralCoclustering"}


def public_classes():
    """The classes in ``__all__`` of every module, but exceptions and PyTorch's modules, and some more."""
    found = {"ClusterConfig", "CosineSchedule", "LayerTable", "LinearSchedule"}
    for module in pkgutil.walk_packages(modfast.__path__, "modfast."):
        if module.name.endswith("__main__") or module.name.startswith("modfast._"):
            continue
        imported = importlib.import_module(module.name)
        for name in (*getattr(imported, "__all__", ()), *(modfast.__all__ if module.ispkg else ())):
            each = getattr(imported, name, None) or getattr(modfast, name)
            if not inspect.isclass(each) or not each.__module__.startswith("modfast."):
                continue
            if issubclass(each, BaseException) or (
                issubclass(each, nn.Module) and each is not EnmeshmentLoss
            ):
                continue
            same = name == "EnmeshmentCallback"
            found.add(f"{each.__module__.split('.')[-1]}.{name}" if same else name)
    return found


def test_no_public_class_is_forgotten():
    assert public_classes() == set(BIG)


@pytest.mark.parametrize("name", BIG)
def test_a_repr_has_at_most_ten_lines(name, tmp_path):
    lines = repr(BIG[name](tmp_path)).splitlines()
    assert 1 <= len(lines) <= 10
    assert max(map(len, lines)) <= (1600 if name.endswith("Config") else 400)
    assert name.split(".")[-1] in lines[0] or name == "LayerTable"
    assert "tensor(" not in "".join(lines)
    assert " object at 0x" not in "".join(lines)


@pytest.mark.parametrize("make", [circuit, unit_circuit, lambda: network().layers[f"blocks.0.mlp.{ODD}"]])
def test_what_comes_in_lists_has_one_line(make):
    assert "\n" not in repr([make()] * 3)


class Tags(HTMLParser):
    """Checks that each tag is closed, and collects the text."""

    def __init__(self, page):
        super().__init__()
        self.open, self.text, self.seen = [], "", set()
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.seen.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("name", sorted(set(BIG) - OTHERS_HTML))
def test_html_is_well_formed_short_and_escaped(name, tmp_path):
    shown = BIG[name](tmp_path)
    if not hasattr(shown, "_repr_html_"):
        pytest.skip("a notebook shows its repr")
    page = shown._repr_html_()
    tags = Tags(page)
    assert "script" not in tags.seen
    assert tags.seen <= {"table", "caption", "thead", "tbody", "tr", "th", "td", "pre"}
    assert page.count("<tr>") <= 2 + (2 * LAYERS if name == "LayerTable" else 31)
    # A page is light or dark: no colour is set but the text's own.
    assert "color: " not in page
    assert "#" not in page.replace("&#", "")


def test_what_it_says():
    assert repr(modfast.live_units(torch.eye(4))) == (
        "LiveUnits(4 of 4 rows (effectively 4.0), 4 of 4 columns (effectively 4.0))"
    )
    one = Circuit(3, {"fc": torch.tensor([[True, False]])}, "loss", 0, 1, 0.5, 0.25, 1, 1)
    assert repr(one) == "Circuit(class 3: 1 of 2 weights in 1 layer, loss 0.5 -> 0.25, accuracy 1 -> 1)"
    cells = Tags(Partition([0, 0, 1, -1], [0, 1], 2)._repr_html_()).text.split()
    assert cells[-9:] == ["0", "2", "1", "1", "1", "1", "none", "1", "0"] or cells[-1] == "none10"
    assert "meta" not in Partition([0, 1], [0, 1], 2).to("meta")._repr_html_()


def test_a_long_table_says_what_is_left_out():
    page = html_table("t", ["n"], [[i] for i in range(100)], most=10)
    assert page.count("<tr>") == 11 + 1
    assert "... and 90 more" in page
    both = html_table("t", ["n"], [[f"row {i}"] for i in range(100)], most=10, last=3, hint=": <ask>")
    assert [i for i in range(100) if f">row {i}<" in both] == [*range(7), 97, 98, 99]
    assert both.index("row 6") < both.index("... and 90 more: &lt;ask&gt;") < both.index("row 97")
    assert listed(range(2000)) == "0, 1, 2, 3, 4, ... (2,000)"


def test_a_notebook_shows_part_of_many_layers_and_breaks_no_shape():
    hostile = "<script>alert('x')</script>"
    layers = {hostile: torch.nn.Conv2d(2, 2, 3), **{f"l{i}": torch.nn.Linear(2, 2) for i in range(2000)}}
    table = modfast.describe_layers(torch.nn.ModuleDict(layers))
    page = table._repr_html_()
    assert len(page) < 40_000
    assert "<script" not in page
    assert "... and 1,941 more: print() shows all" in page
    assert ">l1999<" in page
    assert 'nowrap">2 x 2 x 3 x 3<' in page
    assert str(table).count("\n") == 2002
