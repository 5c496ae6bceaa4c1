"""Pictures leave matplotlib as the backend of a notebook has set it."""

import matplotlib
import pytest

pyplot = pytest.importorskip("matplotlib.pyplot")

from modfast.plot.own_axes import new_grid  # noqa: E402


def test_interactive_mode_that_the_first_figure_turns_on_stays_on(monkeypatch):
    """As matplotlib's backend for notebooks does: without this mode later figures are not shown."""
    make = pyplot.figure
    before = matplotlib.is_interactive()

    def figure(**options):
        matplotlib.interactive(True)
        return make(**options)

    monkeypatch.setattr(pyplot, "figure", figure)
    matplotlib.interactive(False)
    try:
        new_grid(2, (2.0, 2.0))
        assert matplotlib.is_interactive()
    finally:
        matplotlib.interactive(before)
        pyplot.close("all")
