"""The page of unit circuits in a browser, if there is one: mouse, finger and keys reach every unit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser
from test_circuit_templates import HOSTILE
from unit_circuit_helpers import clusters, many_circuits, three_circuits, unit_circuit

from modfast.report.numbers import MINUS
from modfast.report.unit_circuits.page import write_unit_page

pytestmark = pytest.mark.slow

NAMES = [f"fc1, unit {unit}" for unit in range(8)] + [f"fc2, unit {unit}" for unit in range(4)]
# Sorted by cluster within each column: the even ones of fc1, then the odd ones; fc2's last is in none.
IN_ORDER = [NAMES[unit] for unit in (0, 2, 4, 6, 1, 3, 5, 7, 8, 9, 10, 11)]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "units.html"
    write_unit_page(path, three_circuits(), clusters(), title="Three circuits")
    return path


def marks(browser: Browser, look: str) -> list[tuple[float, float, float]]:
    """Where marks of this look are in the window, and their radius, from the paths that are drawn."""
    box = browser.run(
        """(() => {
            const picture = document.querySelector("#picture");
            picture.scrollIntoView({block: "center"});
            const box = picture.getBoundingClientRect();
            return [box.left, box.top, box.width / picture.viewBox.baseVal.width];
        })()"""
    )
    drawn: list[str] = browser.run(
        f'[...document.querySelectorAll("#picture path{look}")].map(e => e.getAttribute("d"))'
    )
    found = []
    for x, y, r in re.findall(r"M([\d.-]+) ([\d.-]+)a([\d.]+)", "".join(drawn)):
        found.append((float(x) + float(r), float(y), float(r)))
    for x, y, d in re.findall(r"M([\d.-]+) ([\d.-]+)l([\d.]+)", "".join(drawn)):
        found.append((float(x), float(y) + float(d), float(d)))
    left, top, scale = box
    return [(left + scale * x, top + scale * y, r) for x, y, r in found]


def what(browser: Browser) -> str:
    """The name of the unit that is told."""
    return browser.text("#facts").split(" (")[0]


def focus_picture(browser: Browser) -> None:
    """Tab into the picture from what is before it."""
    browser.run('document.querySelector("[name=beside]").focus()')
    browser.press("Tab")
    assert browser.run("document.activeElement.id") == "stage"


def test_the_mouse(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.text("#facts") == "No unit chosen yet."
    # The largest score of the circuit of a is that of fc1's first unit.
    kept = sorted(marks(browser, ".kept"), key=lambda mark: -mark[2])
    assert len(kept) == 2
    assert len(marks(browser, ".out")) == 10
    first, second = kept[0][:2], kept[1][:2]
    browser.point(*first)
    told = browser.text("#facts").split("\n")
    assert told[0] == "fc1, unit 0 (6 in the network)"
    assert "score 4 · kept · cluster 0 · kept in 2 of 3 circuits" in told
    assert [line for line in told if line[:2] in ("a:", "b:", "c:")] == ["a: 4 ✓", "b: 2 ✓", f"c: {MINUS}1.5"]
    browser.point(*second)
    assert what(browser) == "fc2, unit 0"
    browser.point(5, 5)
    assert browser.text("#facts") == "No unit chosen yet."
    # A click pins: then the mouse changes nothing, until the unit is clicked again.
    browser.click(first)
    browser.point(*second)
    assert what(browser) == "fc1, unit 0"
    assert browser.run('document.querySelector("#pin").getAttribute("aria-pressed")') == "true"
    browser.click(first)
    browser.point(*second)
    assert what(browser) == "fc2, unit 0"
    browser.click("#close")
    assert browser.text("#facts") == "No unit chosen yet."
    assert browser.errors == []


def test_the_sign_is_a_shape(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.click("[name=circuit][value='2']")
    ((x, y, _),) = marks(browser, ".below")
    browser.point(x, y)
    assert what(browser) == "fc1, unit 0"
    assert f"score {MINUS}1.5 · not kept" in browser.text("#facts")
    # Area says the size: that of 1.5 is larger than that of 0.8.
    assert f"Largest score: {MINUS}1.5, fc1, unit 0." in browser.text("#shown")


def test_keys_reach_every_unit(browser: Browser, page: Path) -> None:
    browser.open(page)
    focus_picture(browser)
    reached = [what(browser)]
    for _ in NAMES[1:]:
        browser.press("ArrowDown")
        reached.append(what(browser))
    assert reached == IN_ORDER
    browser.press("ArrowDown")  # there is none after the last
    assert what(browser) == IN_ORDER[-1]
    spoken = browser.run('document.querySelector("#spoken").textContent')
    assert (
        spoken == "fc2, unit 3 (17 in the network): score 0, not kept, in no cluster, kept in 0 of 3 circuits"
    )
    browser.press("ArrowUp")
    assert what(browser) == IN_ORDER[-2]
    browser.press("Home")
    assert what(browser) == "fc2, unit 0"
    browser.press("ArrowLeft")  # at the same height in the column before
    assert what(browser) == "fc1, unit 0"
    browser.press("End", "ArrowRight")
    assert what(browser) == "fc2, unit 3"
    # The ring is drawn around the unit.
    assert browser.run('document.querySelector(".unit-ring").getAttribute("visibility")') == "visible"
    browser.press("Enter")
    assert browser.run('document.querySelector(".unit-ring").classList.contains("pinned")')
    x, y, _ = max(marks(browser, ".kept"), key=lambda mark: mark[2])
    browser.point(x, y)
    assert what(browser) == "fc2, unit 3"
    browser.press("Escape")
    assert not browser.run('document.querySelector(".unit-ring").classList.contains("pinned")')
    browser.press("Tab")
    assert browser.run("document.activeElement.id") == "previous"
    assert browser.errors == []


def test_choosing(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.text("#shown").startswith(
        "Circuit of a: 12 of 12 units shown, 2 kept. Largest score: 4, fc1, unit 0."
    )
    browser.click("[name=circuit][value='1']")
    assert browser.text("#shown").startswith(
        "Circuit of b: 12 of 12 units shown, 3 kept. Largest score: 3, fc1, unit 1."
    )
    assert len(marks(browser, ".kept")) == 3
    browser.click("[name=kept]")
    assert browser.text("#shown").startswith("Circuit of b: 3 of 12 units shown, 3 kept.")
    assert marks(browser, ".out") == []
    # Keys pass over what is not shown.
    focus_picture(browser)
    reached = [what(browser)]
    for _ in range(2):
        browser.press("ArrowDown")
        reached.append(what(browser))
    assert reached == ["fc1, unit 0", "fc1, unit 1", "fc2, unit 2"]
    browser.click("[name=cluster][value='1']")
    assert browser.text("#shown").startswith("Circuit of b: 1 of 12 units shown, 1 kept.")
    assert browser.text("#facts") == "No unit chosen yet."  # the one that was told is gone
    browser.click("[name=kept]")
    assert browser.text("#shown").startswith("Circuit of b: 7 of 12 units shown, 1 kept.")
    browser.click("[data-clusters=none]")
    assert browser.text("#shown").startswith("Circuit of b: 0 of 12 units shown, 0 kept.")
    browser.click("[data-clusters=all]")
    browser.click("[name=circuit][value=all]")
    assert browser.text("#shown").startswith("All circuits together: 12 of 12 units shown, 6 kept.")
    assert len(marks(browser, ".kept")) == 6
    assert browser.errors == []


def test_sizes_among_units_of_one_column(browser: Browser, page: Path) -> None:
    browser.open(page)
    before = sorted(r for _, _, r in marks(browser, ".kept"))
    assert before[1] == pytest.approx(2 * before[0], rel=0.01)  # scores of 4 and 1: area, not width
    browser.run('document.querySelector("[name=beside]").focus()')
    browser.press("ArrowDown")
    assert browser.run('document.querySelector("[name=beside]").value') == "column"
    after = sorted(r for _, _, r in marks(browser, ".kept"))
    assert after == [before[1]] * 2


def test_buttons(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.click("#next")
    browser.click("#next")
    assert what(browser) == IN_ORDER[1]
    browser.click("#pin")
    browser.click("#previous")
    assert what(browser) == IN_ORDER[0]
    assert browser.run('document.querySelector("#pin").getAttribute("aria-pressed")') == "true"


def test_a_phone(browser: Browser, page: Path) -> None:
    browser.open(page, width=360, height=740, touch=True)
    assert browser.run("[innerWidth, document.documentElement.scrollWidth]") == [360, 360]
    # Columns are below each other.
    assert set(
        browser.run('[...document.querySelectorAll("#picture .name")].map(e => e.getAttribute("x"))')
    ) == {"0"}
    x, y, _ = max(marks(browser, ".kept"), key=lambda mark: mark[2])
    browser.tap((x, y))
    assert what(browser) == "fc1, unit 0"
    low = browser.run('document.querySelector("#told").getBoundingClientRect().bottom')
    assert low <= 740
    browser.tap("[name=circuit][value='2']")
    assert browser.text("#shown").startswith("Circuit of c")
    browser.tap("#next")
    assert what(browser) == IN_ORDER[1]
    browser.tap("#close")
    assert browser.text("#facts") == "No unit chosen yet."
    assert browser.errors == []


def test_right_is_next_where_columns_are_bands(browser: Browser, page: Path) -> None:
    browser.open(page, width=360, height=740)
    focus_picture(browser)
    browser.press("ArrowRight")
    assert what(browser) == IN_ORDER[1]
    browser.press("ArrowDown")
    assert what(browser) == IN_ORDER[9]


def test_turning_a_phone_lays_out_anew(browser: Browser, page: Path) -> None:
    browser.open(page, width=360, height=740)
    browser.send(
        "Emulation.setDeviceMetricsOverride", width=740, height=360, deviceScaleFactor=1, mobile=False
    )
    browser.settle()
    lefts = browser.run(
        '[...document.querySelectorAll("#picture .name")].map(e => Number(e.getAttribute("x")))'
    )
    assert lefts[0] == 0
    assert lefts[1] > 50
    x, y, _ = max(marks(browser, ".kept"), key=lambda mark: mark[2])
    browser.point(x, y)
    assert what(browser) == "fc1, unit 0"


def test_a_dark_scheme(browser: Browser, page: Path) -> None:
    colours = []
    for dark in (False, True):
        browser.open(page, dark=dark)
        colours.append(
            browser.run(
                """[getComputedStyle(document.body).backgroundColor,
                    getComputedStyle(document.querySelector("#picture .kept.c0")).fill]"""
            )
        )
    assert colours[0][0] == "rgb(255, 255, 255)"
    assert colours[1][0] == "rgb(20, 23, 27)"
    assert colours[0][1] != colours[1][1]


def test_ten_thousand_units(browser: Browser, tmp_path: Path) -> None:
    write_unit_page(tmp_path / "units.html", many_circuits(10_000, 3))
    for width in (1280, 360):
        browser.open(tmp_path / "units.html", width=width)
        assert browser.text("#shown").startswith("Circuit of task 0: 10,000 of 10,000 units shown")
        assert browser.run("document.documentElement.scrollWidth") <= width
        # Few elements, but all marks.
        assert browser.run('document.querySelectorAll("#picture *").length') < 100
        assert len(marks(browser, ".unit")) == 10_000
        focus_picture(browser)
        browser.press("End", "ArrowDown" if width > 1000 else "ArrowRight")
        assert what(browser) == "model.layers.1.mlp.up_proj, unit 0"
        browser.click("[name=circuit][value='2']")
        assert browser.text("#shown").startswith("Circuit of task 2")
        assert browser.errors == []


def test_names_from_right_to_left_do_not_turn_the_sentence_round(browser: Browser, tmp_path: Path) -> None:
    names = ["\N{HEBREW LETTER ALEF}\N{HEBREW LETTER BET}", "\N{RIGHT-TO-LEFT OVERRIDE}abc"]
    circuits = [unit_circuit(name, {"fc1": [1.0] * 8}) for name in names]
    write_unit_page(tmp_path / "units.html", circuits)
    browser.open(tmp_path / "units.html", width=1800)
    for place, name in enumerate(names):
        browser.click(f"[name=circuit][value='{place}']")
        # Where "Circuit", the count after the name, and the rest are drawn.
        lefts = browser.run(
            """(() => {
                const text = document.querySelector("#shown").firstChild;
                return ["Circuit", "8 of", "units", "Largest"].map(part => {
                    const range = document.createRange(), start = text.data.indexOf(part);
                    range.setStart(text, start);
                    range.setEnd(text, start + 1);
                    return range.getBoundingClientRect().left;
                });
            })()"""
        )
        assert lefts == sorted(lefts), name
    browser.click("#next")
    assert [line.count("\N{FIRST STRONG ISOLATE}") for line in browser.text("#facts").split("\n")][-2:] == [
        1,
        1,
    ]


def test_hollow_marks_are_seen(browser: Browser, page: Path) -> None:
    browser.open(page)
    look = browser.run(
        """(() => {
            const look = getComputedStyle(document.querySelector("#picture .out"));
            return [look.strokeOpacity, look.fill];
        })()"""
    )
    assert look == ["1", "none"]


def test_paper_tells_what_the_colours_are(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.send("Emulation.setEmulatedMedia", media="print")
    try:
        assert browser.text("#controls").replace("\n", " ").split() == (
            ["Clusters", "0", "(6", "units)", "1", "(5", "units)", "none", "(1", "unit)"]
        )
        assert browser.run('getComputedStyle(document.querySelector("#told")).display') == "none"
    finally:
        browser.send("Emulation.setEmulatedMedia", media="")


def test_hostile_names_run_nothing(browser: Browser, tmp_path: Path) -> None:
    names = (
        *HOSTILE,
        "</script><script>document.title = 'run'</script>",
        "<img src=x onerror=\"document.title='run'\">",
    )
    sizes = dict.fromkeys(names, 2)
    circuits = [unit_circuit(name, {space: [1.0, 0.0] for space in names}, sizes=sizes) for name in names]
    write_unit_page(tmp_path / "units.html", circuits, title="Hostile")
    browser.open(tmp_path / "units.html")
    browser.click("[name=circuit][value='5']")
    focus_picture(browser)
    told = []
    for _ in names:
        told.append(what(browser))
        browser.press("ArrowRight")
    assert told == [f"{name}, unit 0".split(" (")[0] for name in names]
    assert browser.run("document.title") == "Hostile"
    assert browser.run("document.querySelectorAll('script').length") == 2
    assert browser.run("performance.getEntriesByType('resource').length") == 0
    assert browser.errors == []
