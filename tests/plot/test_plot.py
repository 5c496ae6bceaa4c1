"""Pictures: what is drawn is the data, bad input says what is wrong, and nothing global changes."""

import subprocess
import sys

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn

import modfast
from modfast import Circuit, EnmeshmentLoss, FaithfulnessCurve, Partition, plot
from modfast.report.statistics import mean_interval

WEIGHT = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
CLUSTERS = Partition([0, 1, 0, 1, -1, 1], [1, 0, 1, 0, 1, 0, 0, 0], 2)


@pytest.fixture(autouse=True)
def closed():
    yield
    pyplot.close("all")


@pytest.fixture
def ax():
    """Axes of a figure that pyplot does not know."""
    figure = Figure()
    FigureCanvasAgg(figure)
    return figure.subplots()


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))


def curve(sizes=(0, 1, 40), rankings=3):
    metric = torch.linspace(0, 1, len(sizes), dtype=torch.float64)
    random = (
        torch.stack([metric * (i + 1) / 4 for i in range(rankings)])
        if rankings
        else torch.zeros(0, len(sizes)).double()
    )
    return FaithfulnessCurve(
        torch.tensor(sizes), metric, 1 - metric, random, 1 - random, 1.0, 0.0, 40, "zero", 10, 4, 0
    )


def circuits():
    masks = [torch.tensor([[True, True, False]]), torch.tensor([[False, True, True]]), torch.zeros(1, 3) > 0]
    return [Circuit(c, {"fc": mask}, "loss", 0.0, 1, 0.0, 0.0, 1.0, 1.0) for c, mask in enumerate(masks)]


def network():
    return modfast.read_network(model(), torch.zeros(1, 8))


def drawn(axes):
    """The numbers behind the colours of a picture."""
    (mesh,) = axes.collections[:1] or axes.images
    return np.ma.filled(mesh.get_array(), np.nan)


ALL = {
    "weights": lambda ax: plot.weights(WEIGHT, CLUSTERS, ax),
    "eigengap": lambda ax: plot.eigengap(modfast.eigengap(WEIGHT, shuffles=2), ax=ax),
    "curves": lambda ax: plot.curves({"a": [[1.0, 2.0], [2.0, 3.0]]}, ax=ax),
    "faithfulness": lambda ax: plot.faithfulness(curve(), ax),
    "circuits": lambda ax: plot.circuits(circuits(), ax),
    "cluster_accuracy": lambda ax: plot.cluster_accuracy([[0.5, 1.0]], ax=ax),
    "matrix": lambda ax: plot.matrix(WEIGHT, ax=ax),
    "network": lambda ax: plot.network(network(), 2, ax),
}


def test_every_function_is_here():
    assert set(ALL) == set(plot.__all__)


@pytest.mark.parametrize("name", ALL)
def test_axes_in_and_axes_out(name, ax):
    before, figures = dict(matplotlib.rcParams), pyplot.get_fignums()
    assert ALL[name](ax) is ax
    assert pyplot.get_fignums() == figures
    assert dict(matplotlib.rcParams) == before
    ax.figure.canvas.draw()


@pytest.mark.parametrize("name", ALL)
def test_without_axes_it_makes_a_figure_that_is_dark_on_white(name):
    with pyplot.style.context("dark_background"):
        before = dict(matplotlib.rcParams)
        axes = ALL[name](None)
        assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == [axes.figure.number]
    assert axes.figure.get_facecolor() == axes.get_facecolor() == (1, 1, 1, 1)
    texts = [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels()]
    assert {matplotlib.colors.to_hex(text.get_color()) for text in texts} == {"#000000"}


@pytest.mark.parametrize("name", ALL)
def test_other_axes_are_refused(name):
    with pytest.raises(TypeError, match="ax must be matplotlib Axes"):
        ALL[name](Figure())


def test_defaults_of_pytorch_do_not_matter():
    given, found, units = circuits(), curve(), network()
    calls = {
        **ALL,
        "circuits": lambda ax: plot.circuits(given, ax),
        "faithfulness": lambda ax: plot.faithfulness(found, ax),
        "network": lambda ax: plot.network(units, 2, ax),
    }

    def picture(call):
        axes = call(None)
        is_map = bool(axes.images) or axes.get_title().startswith("weight")
        return [line.get_ydata() for line in axes.lines], drawn(axes) if is_map else None, axes.get_title()

    for call in calls.values():
        expected = picture(call)
        with torch.device("meta"):
            np.testing.assert_equal(picture(call), expected)


class TestWeights:
    def test_cells_are_the_magnitudes_in_the_order_of_clusters(self, ax):
        plot.weights(WEIGHT, CLUSTERS, ax)
        ordered = WEIGHT[CLUSTERS.row_order()][:, CLUSTERS.col_order()].double().abs()
        np.testing.assert_array_equal(drawn(ax).reshape(6, 8), ordered)
        share = float(modfast.clusterability(WEIGHT, CLUSTERS))
        assert ax.get_title() == f"weight (6 x 8)\nclusterability {share:.3f}"
        borders = [line.get_ydata()[0] for line in ax.lines if line.get_xdata()[0] == 0]
        assert borders == [2, 5]  # clusters of 2 and 3 rows, and one row in none

    @pytest.mark.parametrize(
        "given",
        [
            WEIGHT.clone().requires_grad_(),
            nn.Parameter(WEIGHT),
            WEIGHT.bfloat16(),
            WEIGHT.numpy(),
            WEIGHT.numpy().astype(">f8"),
            WEIGHT.T.contiguous().T,
            (WEIGHT * 10).int(),
        ],
    )
    def test_forms_of_a_weight(self, given, ax):
        plot.weights(given, CLUSTERS, ax)
        values = torch.as_tensor(
            np.asarray(given.astype(float) if isinstance(given, np.ndarray) else given.detach().double())
        )
        ordered = values.abs()[CLUSTERS.row_order()][:, CLUSTERS.col_order()]
        np.testing.assert_array_equal(drawn(ax).reshape(6, 8), ordered)

    def test_as_stored(self, ax):
        plot.weights(WEIGHT, ax=ax)
        np.testing.assert_array_equal(drawn(ax).reshape(6, 8), WEIGHT.double().abs())
        assert ax.get_title() == "weight (6 x 8)"

    def test_kernels_are_drawn_as_norms(self, ax):
        kernels = torch.randn(4, 3, 2, 2)
        plot.weights(kernels, ax=ax)
        np.testing.assert_allclose(drawn(ax).reshape(4, 3), kernels.double().flatten(2).norm(dim=2))

    def test_no_large_weight_of_a_big_one_is_lost(self, ax):
        weight = torch.zeros(500, 1100)
        weight[[3, 499], [0, 1099]] = 1.0
        plot.weights(weight, Partition.blocks((500, 1100), 3), ax)
        assert drawn(ax).size < 200 * 300
        assert (drawn(ax) == 1).sum() == 2
        assert "a cell is the maximum of up to" in ax.get_xlabel()

    def test_nan_and_infinity_are_grey(self, ax):
        weight = WEIGHT.clone()
        weight[0, 0], weight[1, 1] = torch.nan, torch.inf
        plot.weights(weight, ax=ax)
        missing = np.isnan(drawn(ax).reshape(6, 8))
        assert np.argwhere(missing).tolist() == [[0, 0], [1, 1]]
        plot.weights(torch.full((2, 2), torch.nan), Partition.blocks((2, 2), 2))

    def test_a_loss_has_axes_for_each_layer(self):
        loss = EnmeshmentLoss(model(), 2)
        all_axes = plot.weights(loss)
        assert all_axes.shape == (2,)
        shares = loss.clusterability()
        for axes, (name, share) in zip(all_axes, shares.items(), strict=True):
            assert axes.get_title().startswith(f"{name} (")
            assert f"{share:.3f}" in axes.get_title()
        one = plot.weights(loss, layer="2.weight")
        np.testing.assert_array_equal(drawn(one), drawn(all_axes[1]))
        given = Figure().subplots(1, 2)
        assert list(plot.weights(loss, ax=given)) == list(given)
        for wrong in (given[0], given[:1]):
            with pytest.raises(ValueError, match="ax"):
                plot.weights(loss, ax=wrong)

    def test_a_module_is_read_as_everywhere(self, ax):
        layer = nn.utils.parametrizations.weight_norm(nn.Linear(8, 6))
        plot.weights(layer, CLUSTERS, ax)
        ordered = layer.weight.detach()[CLUSTERS.row_order()][:, CLUSTERS.col_order()].double().abs()
        np.testing.assert_array_equal(drawn(ax).reshape(6, 8), ordered)
        assert len(plot.weights(model(), 2)) == 2
        assert (
            plot.weights(model(), Partition.blocks((4, 6), 2), layer="2").get_title().startswith("2 (4 x 6)")
        )

    def test_the_top_of_the_scale(self, ax):
        plot.weights(WEIGHT, ax=ax, top=7.5)
        assert ax.collections[0].norm.vmax == 7.5

    @pytest.mark.parametrize(
        ("call", "kind", "message"),
        [
            (lambda: plot.weights(WEIGHT, Partition.blocks((8, 8), 2)), ValueError, "partition's shape"),
            (lambda: plot.weights(WEIGHT, 2), TypeError, "partition must be"),
            (lambda: plot.weights(WEIGHT[0]), ValueError, "loss_or_weight must have the shape"),
            (lambda: plot.weights(WEIGHT[:0]), ValueError, "loss_or_weight must have the shape"),
            (lambda: plot.weights(WEIGHT.to_sparse()), TypeError, "dense"),
            (lambda: plot.weights(WEIGHT.to("meta")), ValueError, "meta"),
            (lambda: plot.weights(WEIGHT + 1j), TypeError, "real"),
            (lambda: plot.weights(None), TypeError, "loss_or_weight"),
            (lambda: plot.weights("weight"), TypeError, "loss_or_weight"),
            (lambda: plot.weights({"fc": WEIGHT}), TypeError, "loss_or_weight"),
            (lambda: plot.weights(WEIGHT, layer="fc"), TypeError, "layer must be None"),
            (lambda: plot.weights(WEIGHT, top=0), ValueError, "top must be"),
            (lambda: plot.weights(model()), ValueError, "layer must name one of"),
            (lambda: plot.weights(model(), CLUSTERS, layer="9"), ValueError, "layer"),
            (lambda: plot.weights(EnmeshmentLoss(model(), 2), CLUSTERS), TypeError, "partition must be None"),
            (lambda: plot.weights(EnmeshmentLoss(model(), 2), layer="9"), ValueError, "layer must be one of"),
        ],
    )
    def test_what_is_refused(self, call, kind, message):
        with pytest.raises(kind, match=message):
            call()
        assert not pyplot.get_fignums()


class TestEigengap:
    def test_values_and_the_band_of_shuffles(self, ax):
        found = modfast.eigengap(WEIGHT, shuffles=4)
        plot.eigengap(found, ax=ax)
        np.testing.assert_array_equal(ax.lines[0].get_xdata(), range(2, 7))
        np.testing.assert_array_equal(ax.lines[0].get_ydata(), found.values[1:])
        corners = ax.collections[0].get_paths()[0].vertices
        assert corners[:, 1].max() == found.shuffled_values[:, 1].max()
        assert corners[:, 1].min() == found.shuffled_values[:, -1].min()
        assert f"{found.gap:.3f}" in ax.get_title()
        assert ax.lines[1].get_xdata()[0] == found.num_clusters + 0.5

    def test_a_weight_is_measured(self, ax):
        plot.eigengap(WEIGHT.bfloat16().requires_grad_(), ax=ax)
        np.testing.assert_array_equal(ax.lines[0].get_ydata(), modfast.eigengap(WEIGHT.bfloat16()).values[1:])

    def test_values_alone(self, ax):
        plot.eigengap([1.0, 0.9, 0.2], 1, ax)
        np.testing.assert_array_equal(ax.lines[0].get_ydata(), [1.0, 0.9, 0.2])
        assert "shuffles" not in ax.get_title()

    @pytest.mark.parametrize(
        ("given", "count", "message"),
        [
            ([1.0, 0.9], None, "at least 3"),
            ([0.1, 0.2, 0.3], None, "descend"),
            ([1.0, float("nan"), 0.3], None, "finite"),
            ([1.0, 0.5, 0.3], 3, "num_clusters"),
            (WEIGHT, 0, "num_clusters"),
        ],
    )
    def test_what_is_refused(self, given, count, message):
        with pytest.raises(ValueError, match=message):
            plot.eigengap(given, count)

    def test_a_model_is_no_network(self):
        with pytest.raises(TypeError, match="read_network"):
            plot.eigengap(model())


class TestCurves:
    def test_mean_and_interval(self, ax):
        seeds = np.array([[1.0, 2.0, 4.0], [2.0, 3.0, 3.0], [3.0, 7.0, 5.0]])
        plot.curves({"a": seeds, "b": torch.tensor([1.0, 2.0, 3.0])}, [0, 10, 20], ax, ylabel="loss")
        np.testing.assert_allclose(ax.lines[0].get_ydata(), seeds.mean(0))
        np.testing.assert_array_equal(ax.lines[0].get_xdata(), [0, 10, 20])
        np.testing.assert_array_equal(ax.lines[1].get_ydata(), [1, 2, 3])
        corners = ax.collections[0].get_paths()[0].vertices
        for place, of_step in zip([0, 10, 20], seeds.T, strict=True):
            mean, half = mean_interval(of_step)
            edge = corners[corners[:, 0] == place, 1]
            np.testing.assert_allclose([edge.min(), edge.max()], [mean - half, mean + half])
        assert ax.get_ylabel() == "loss"

    def test_every_seed(self, ax):
        plot.curves({"a": [[1.0, 2.0], [3.0, 4.0]]}, ax=ax, every_seed=True)
        assert [list(line.get_ydata()) for line in ax.lines] == [[1, 2], [3, 4], [2, 3]]

    def test_nan_leaves_a_seed_out(self, ax):
        plot.curves({"a": [[1.0, np.nan, np.nan], [3.0, 4.0, np.nan]]}, ax=ax)
        np.testing.assert_array_equal(ax.lines[0].get_ydata(), [2, 4, np.nan])

    def test_a_list_of_losses_as_training_leaves_them(self, ax):
        losses = [torch.tensor(float(i)).requires_grad_() for i in range(3)]
        plot.curves({"a": losses}, ax=ax)
        np.testing.assert_array_equal(ax.lines[0].get_ydata(), [0, 1, 2])

    @pytest.mark.parametrize(
        ("given", "steps", "kind", "message"),
        [
            ({}, None, ValueError, "mapping must hold"),
            ([1.0], None, TypeError, "mapping must map"),
            ({1: [1.0]}, None, TypeError, "names as keys"),
            ({"a": []}, None, ValueError, "mapping\\['a'\\] must have shape"),
            ({"a": [[[1.0]]]}, None, ValueError, "mapping\\['a'\\] must have shape"),
            ({"a": [1.0, float("inf")]}, None, ValueError, "no infinite"),
            ({"a": [1.0], "b": [1.0, 2.0]}, None, ValueError, "mapping\\['b'\\] must have 1 steps"),
            ({"a": [1.0]}, [1, 2], ValueError, "must have 2 steps"),
            ({"a": [1.0]}, [float("nan")], ValueError, "steps must be finite"),
            ({"a": ["x"]}, None, TypeError, "real numbers"),
        ],
    )
    def test_what_is_refused(self, given, steps, kind, message):
        with pytest.raises(kind, match=message):
            plot.curves(given, steps)
        assert not pyplot.get_fignums()


class TestFaithfulness:
    def test_both_lines_and_the_random_bands(self, ax):
        given = curve()
        plot.faithfulness(given, ax)
        lines = [list(line.get_ydata()) for line in ax.lines]
        assert lines[0] == given.sufficiency.tolist()
        assert lines[1] == given.random_sufficiency.mean(0).tolist()
        assert lines[2] == given.necessity.tolist()
        corners = ax.collections[0].get_paths()[0].vertices
        last = corners[corners[:, 0] == 40, 1]
        assert [last.min(), last.max()] == [0.25, 0.75]
        assert ax.get_xscale() == "symlog"
        ax.figure.canvas.draw()

    def test_without_random_rankings_and_with_near_sizes(self, ax):
        plot.faithfulness(curve((2, 3, 4), rankings=0), ax)
        assert ax.get_xscale() == "linear"
        assert len(ax.lines) == 2 + 2  # and the metric of the whole model, and without all units

    def test_what_is_refused(self):
        with pytest.raises(TypeError, match="FaithfulnessCurve"):
            plot.faithfulness([0.1, 0.2])


class TestTables:
    def test_overlaps_and_sizes(self, ax):
        plot.circuits(circuits(), ax, layer="fc")
        np.testing.assert_allclose(drawn(ax), modfast.circuit_overlap(circuits()))
        assert [text.get_text() for text in ax.get_yticklabels()] == [
            "class 0 (2)",
            "class 1 (2)",
            "class 2 (0)",
        ]
        named = plot.circuits(dict(zip("abc", circuits(), strict=True)))
        assert [text.get_text() for text in named.get_xticklabels()] == ["a", "b", "c"]

    def test_one_circuit_alone_is_refused(self):
        with pytest.raises(TypeError, match="must be a sequence or a mapping of circuits, got Circuit"):
            plot.circuits(circuits()[0])

    def test_unit_circuits(self, ax):
        kept = torch.tensor([[True, True, False, False], [True, False, True, True]])
        scores = torch.tensor([torch.nan, 1, 2, 3]).double()
        each = [
            modfast.UnitCircuit(of, scores, {"s": slice(0, 4)}, "greedy", "zero", 0, 1, 1, 0, 0, name=name)
            for of, name in zip(kept, ("first", ""), strict=True)
        ]
        plot.circuits(each, ax)
        assert [text.get_text() for text in ax.get_yticklabels()] == ["first (1)", "1 (2)"]
        np.testing.assert_allclose(drawn(ax), modfast.circuit_overlap(each))

    def test_accuracy_in_percent_beside_the_whole_network(self, ax):
        alone = torch.tensor([[0.25, torch.nan], [0.0, 1.0]])
        plot.cluster_accuracy(alone, ["cat", "dog"], ax, whole=torch.tensor([0.5, 0.75]), mode="without")
        np.testing.assert_array_equal(drawn(ax), [[50, 75], [25, np.nan], [0, 100]])
        assert [text.get_text() for text in ax.texts] == ["50", "75", "25", "n/a", "0", "100"]
        names = [text.get_text() for text in ax.get_yticklabels()]
        assert names == ["whole network", "without cluster 0", "without cluster 1"]

    def test_many_columns_have_no_numbers(self, ax):
        plot.matrix(torch.rand(3, 40), ax=ax)
        assert not ax.texts
        assert len(ax.get_xticklabels()) == 20

    def test_edges_of_clusters(self, ax):
        units, labels = network(), torch.tensor([0, 1, -1] * 6)
        plot.network(units, labels, ax)
        graph = units.graph().to_dense().double()
        joined = torch.where(labels < 0, 2, labels)
        one_hot = nn.functional.one_hot(joined, 3).double()
        sums = one_hot.T @ graph @ one_hot
        np.testing.assert_allclose(drawn(ax), sums / sums.sum(1, keepdim=True))
        assert f"{modfast.normalized_cut(units.graph(), labels):.2f}" in ax.get_title()
        assert [text.get_text() for text in ax.get_yticklabels()] == ["0 (6)", "1 (6)", "none (6)"]

    @pytest.mark.parametrize(
        ("call", "kind", "message"),
        [
            (lambda: plot.matrix([1.0, 2.0]), ValueError, "values must have shape"),
            (lambda: plot.matrix([[float("inf")]]), ValueError, "values must have no infinite"),
            (lambda: plot.matrix([["a"]]), TypeError, "values must hold real numbers"),
            (lambda: plot.matrix([[1.0]], ["a", "b"]), ValueError, "row_names must be 1"),
            (lambda: plot.matrix([[1.0]], None, "a"), TypeError, "col_names must be a sequence"),
            (lambda: plot.matrix([[1.0]], bounds=(1, 1)), ValueError, "bounds"),
            (lambda: plot.matrix([[1.0]], bounds=3), ValueError, "bounds"),
            (lambda: plot.matrix([[1.0]], digits=-1), ValueError, "digits"),
            (lambda: plot.cluster_accuracy([[1.5]]), ValueError, "accuracy must be in"),
            (lambda: plot.cluster_accuracy([[0.5]], mode="off"), ValueError, "mode"),
            (lambda: plot.cluster_accuracy([[0.5]], whole=[0.5, 0.5]), ValueError, "whole must have 1"),
            (lambda: plot.circuits([]), ValueError, "circuit"),
            (lambda: plot.circuits(circuits(), layer="fc9"), ValueError, "layer"),
            (lambda: plot.network(model(), 2), TypeError, "network must be a Network"),
            (lambda: plot.network(network(), [0, 1]), ValueError, "labels must be"),
            (lambda: plot.network(network(), 501), ValueError, "at most 500"),
        ],
    )
    def test_what_is_refused(self, call, kind, message):
        with pytest.raises(kind, match=message):
            call()
        assert not pyplot.get_fignums()


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_without_matplotlib_it_says_what_to_install():
    done = run("import sys; sys.modules['matplotlib'] = None; import modfast; modfast.plot")
    assert 'pip install "modfast[experiments]"' in done.stderr.splitlines()[-1]
    assert "ImportError" in done.stderr


def test_importing_the_package_does_not_import_matplotlib():
    done = run("import sys, modfast; print('matplotlib' in sys.modules, 'weights' in dir(modfast.plot))")
    assert done.stdout.split() == ["False", "True"], done.stderr
