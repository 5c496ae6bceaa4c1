"""Pictures at their edges: axes of other kinds, names that are no formulas, gaps that are only rounding."""

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
