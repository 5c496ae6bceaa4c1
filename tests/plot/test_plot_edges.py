"""Pictures at their edges: axes of other kinds, names that are no formulas, numbers that cannot be drawn."""

import warnings

import matplotlib.pyplot as pyplot
import pytest
import torch

import modfast
from modfast import plot
from modfast.spectral.eigengap import choose_count


@pytest.fixture(autouse=True)
def closed():
    yield
    pyplot.close("all")


WEIGHT = torch.arange(12.0).view(3, 4) + 1


class TestRounding:
    def test_equal_values_support_no_number(self):
        # 150 clusters without edges between them: the first 21 values are all 1.
        found = modfast.eigengap(torch.eye(150))
        assert (found.num_clusters, found.supported, found.p_value) == (2, False, 1)
        assert (found.gaps >= 0).all()
        assert "-0" not in repr(found)
        assert "-0" not in repr(modfast.eigengap(torch.eye(3)))

    @pytest.mark.parametrize(
        ("values", "shuffled", "kind", "message"),
        [
            ([1.0, 0.5], torch.zeros(0, 2).double(), TypeError, "values must be a tensor"),
            (torch.zeros(0).double(), torch.zeros(0, 0).double(), ValueError, "values must have shape"),
            (
                torch.ones(3).double(),
                torch.ones(1, 2).double(),
                ValueError,
                "shuffled_values must have shape",
            ),
            (torch.full((3,), torch.nan).double(), torch.ones(1, 3).double(), ValueError, "must be finite"),
        ],
    )
    def test_what_is_no_spectrum(self, values, shuffled, kind, message):
        with pytest.raises(kind, match=message):
            modfast.Eigengap(values, shuffled)

    def test_of_equal_gaps_the_first(self):
        assert choose_count({2: 0.1, 3: 0.1 + 1e-7, 4: None}) == 2
        assert choose_count({4: None, 5: None}) == 4

    def test_real_gaps_still_count(self):
        found = modfast.eigengap(torch.block_diag(*[torch.ones(5, 4)] * 3) + 0.1, shuffles=1)
        assert (found.num_clusters, found.supported, found.p_value) == (3, True, 0.5)
        assert "1 shuffle has a gap of" in repr(found)


class TestAxes:
    @pytest.mark.parametrize("projection", ["3d", "polar"])
    def test_other_projections_are_refused(self, projection):
        with pytest.raises(TypeError, match=f"rectangular axes, got {projection} ones"):
            plot.weights(WEIGHT, ax=pyplot.figure().add_subplot(projection=projection))

    def test_removed_axes_are_refused(self):
        _, ax = pyplot.subplots()
        ax.remove()
        with pytest.raises(ValueError, match="removed"):
            plot.weights(WEIGHT, ax=ax)

    def test_one_layer_takes_a_list_of_one(self):
        _, ax = pyplot.subplots()
        assert plot.weights(WEIGHT, ax=[ax]) is ax
        with pytest.raises(ValueError, match="ax must be 1 axes, one for each layer, got 2"):
            plot.weights(WEIGHT, ax=[ax, ax])

    def test_the_first_row_is_above_on_shared_axes_and_the_second_time(self):
        _, both = pyplot.subplots(1, 2, sharey=True)
        for ax in (*both, both[0]):
            plot.weights(WEIGHT, ax=ax)
            assert ax.yaxis_inverted()


class TestText:
    def test_names_are_no_formulas(self):
        axes = plot.matrix([[1, 2]], [r"$\foo$"], ["$$", "a_$b$"])
        axes.figure.canvas.draw()
        labels = [*axes.get_yticklabels(), *axes.get_xticklabels()]
        assert [label.get_text() for label in labels] == [r"$\foo$", "$$", "a_$b$"]
        assert not any(label.get_parse_math() for label in labels)

    def test_large_numbers_fit_their_cells(self):
        axes = plot.matrix([[1e300, 2.5, float("nan")]])
        assert [text.get_text() for text in axes.texts] == ["1e+300", "2.50", "n/a"]

    def test_a_name_with_an_underscore_is_in_the_legend(self):
        axes = plot.curves({"_orig_mod.fc": [1, 2]})
        assert [text.get_text().strip() for text in axes.get_legend().get_texts()] == ["_orig_mod.fc"]

    @pytest.mark.parametrize("digits", [2.0, True, 10, [1]])
    def test_digits(self, digits):
        with pytest.raises(ValueError, match="digits must be an integer in"):
            plot.matrix([[1.0]], digits=digits)

    def test_weights_of_eight_bits(self):
        weight = torch.full((4, 4), 2.0).to(torch.float8_e4m3fn)
        axes = plot.weights(weight, modfast.Partition([0, 0, 1, 1], [0, 0, 1, 1], 2))
        assert axes.get_title().endswith("clusterability 0.500")

    def test_a_shuffle_is_no_shuffles(self):
        assert plot.eigengap(modfast.eigengap(WEIGHT, shuffles=1)).get_title().count("1 shuffle:") == 1

    def test_a_legend_takes_formulas_and_names_with_dollars(self):
        axes = plot.curves({"$x^2$": [1, 2], r"$\foo$": [2, 3], "cost in $": [3, 4]})
        axes.figure.canvas.draw()
        texts = axes.get_legend().get_texts()
        assert [text.get_text() for text in texts] == ["$x^2$", r"$\foo$", "cost in $"]
        assert [text.get_parse_math() for text in texts[:2]] == [True, False]

    def test_a_layers_name_is_no_formula(self):
        model = torch.nn.ModuleDict({r"$\foo$": torch.nn.Linear(4, 3)})
        plot.weights(model).figure.canvas.draw()

    def test_characters_without_a_picture_are_written_out(self):
        axes = plot.matrix([[1.0, 2.0]], ["\n\n\n\n"], ["a\0", "\ud800"])
        axes.figure.canvas.draw()
        labels = [*axes.get_yticklabels(), *axes.get_xticklabels()]
        assert [label.get_text() for label in labels] == [r"\n\n\n\n", r"a\x00", r"\ud800"]
        plot.curves({"a\0\n": [1, 2]}).figure.canvas.draw()

    @pytest.mark.parametrize(
        ("names", "shown"),
        [
            (["a" * 3000], ["a" * 24 + "…" + "a" * 23]),
            ([""], [" "]),
            ([f"curve {i}" for i in range(300)], [*(f"curve {i}" for i in range(16)), "... and 284 more"]),
        ],
    )
    def test_a_legend_leaves_room_for_the_curves(self, names, shown):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            axes = plot.curves({name: [1, 2] for name in names})
            axes.figure.canvas.draw()
        assert [text.get_text() for text in axes.get_legend().get_texts()] == shown


class TestNumbers:
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: plot.curves({"a": [1e308, -1e308]}), r"mapping\['a'\] must lie within ±1e\+300"),
            (lambda: plot.curves({"a": [1, 2]}, steps=[-1e308, 1e308]), "steps must lie within"),
            (lambda: plot.matrix([[1e308, -1e308]]), "values must lie within"),
            (lambda: plot.matrix([[1, 2]], bounds=(0, 10**400)), "bounds must be two ascending"),
            (lambda: plot.matrix([[1, 2]], bounds=(-1e308, 1e308)), "bounds must be two ascending"),
            (lambda: plot.matrix([[1, 2]], bounds="12"), "bounds must be two ascending"),
            (lambda: plot.weights(WEIGHT.double() * 1e200), "loss_or_weight must lie within ±1e\\+150"),
            (lambda: plot.weights(WEIGHT, top=1e308), "top must be None or a number between"),
            (lambda: plot.eigengap([1e308, 0.0, -1e308]), "values_or_weight must lie within"),
            (lambda: plot.cluster_accuracy([[0.5]], whole=[50.0]), r"whole must be in \[0, 1\], got 50"),
            (lambda: plot.cluster_accuracy([[0.5]], mode=["only"]), "mode must be None or one of"),
            (lambda: plot.curves({"a": torch.zeros(3, device="meta")}), r"mapping\['a'\] must hold numbers"),
            (lambda: plot.eigengap(torch.zeros(3, device="meta")), "values_or_weight must hold numbers"),
        ],
    )
    def test_what_cannot_be_drawn_is_refused_before_a_figure(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()
        assert not pyplot.get_fignums()

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: plot.curves({"a": torch.ones(3).to_sparse()}), r"mapping\['a'\] must be dense"),
            (lambda: plot.matrix(torch.eye(3).to_sparse()), "values must be dense"),
            (lambda: plot.matrix(torch.eye(3).to_sparse_csr()), "values must be dense"),
            (lambda: plot.eigengap(torch.ones(3).to_sparse()), "values_or_weight must be dense"),
            (lambda: plot.matrix([[1, 2]], col_names={"a", "b"}), "col_names must be a sequence of 2 names"),
            (lambda: plot.matrix([[1, 2]], col_names=b"ab"), "col_names must be a sequence of 2 names"),
            (lambda: plot.matrix([[1, 2]], col_names=torch.tensor(3)), "col_names must be a sequence"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:Sparse CSR")
    def test_what_has_another_form_is_refused_before_a_figure(self, call, message):
        with pytest.raises(TypeError, match=message):
            call()
        assert not pyplot.get_fignums()

    def test_the_largest_numbers(self):
        for axes in (
            plot.curves({"a": [[1e300, 1.0], [-1e300, 2.0]]}, steps=[-1e300, 1e300]),
            plot.matrix([[1e300, -1e300]]),
            plot.eigengap([1e300, 0.0, -1e300]),
            plot.weights(
                torch.full((4, 4, 3), 1e150, dtype=torch.float64), modfast.Partition.blocks((4, 4), 2)
            ),
        ):
            axes.figure.canvas.draw()
            assert len(axes.get_title()) < 100

    def test_rows_that_want_gradients(self):
        axes = plot.matrix([torch.ones(2, requires_grad=True), [torch.tensor(2.0, requires_grad=True), 3.0]])
        assert axes.images[0].get_array().tolist() == [[1, 1], [2, 3]]

    def test_names_of_a_tensor(self):
        axes = plot.matrix([[1, 2]], col_names=torch.tensor([7, 9]))
        assert [label.get_text() for label in axes.get_xticklabels()] == ["7", "9"]

    def test_a_network_without_edges_is_grey(self):
        model = torch.nn.Sequential(torch.nn.Linear(4, 3))
        torch.nn.init.zeros_(model[0].weight)
        axes = plot.network(modfast.read_network(model, torch.zeros(1, 4)), 2)
        assert axes.images[0].get_array().mask.all()
