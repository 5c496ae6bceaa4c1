"""Every figure of the pages is that of the committed results; and the check finds what is wrong."""

import json

import pytest

from benchmarks.common.pages import outside_markers
from benchmarks.figures import check, claims, pages, renew
from benchmarks.figures.blocks import BLOCKS
from modfast.report.numbers import MINUS

with_docs = pytest.mark.skipif(not (pages.ROOT / "docs").exists(), reason="needs the documentation")

TOLD = "Some words: it takes {} to\n{} ms, and {} times as long."
VALUES = (
    {"file": "results/a.json", "at": "cases > * > ms", "take": "min", "as": ".1f"},
    {"file": "results/a.json", "at": "cases > * > ms", "take": "max", "as": ".1f"},
    {"file": "results/a.json", "at": "cases > name=b > ms", "over": "cases > name=a > ms", "as": ".0f"},
)
ENTRY = claims.Measured("page.md", "it takes {} to {} ms, and {} times as long", VALUES)


@pytest.fixture
def results(tmp_path):
    (tmp_path / "results").mkdir()

    def write(second):
        cases = [{"name": "a", "ms": 2.0}, {"name": "b", "ms": second}]
        (tmp_path / "results" / "a.json").write_text(json.dumps({"cases": cases}))

    write(8.04)
    return tmp_path, write


def found(text, folder, measured=(ENTRY,), constants=()):
    return list(check.of_page("page.md", text, measured, constants, folder))


# --- The pages


@with_docs
def test_every_figure_is_that_of_the_results():
    assert check.problems() == []


@with_docs
@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_every_block_has_a_place(name):
    texts = [page.read_text(encoding="utf-8") for page in pages.pages()]
    places = [text for text in texts if f"<!-- {name} table: begin -->" in text]
    assert places
    for text in places:
        outside_markers(text, name)


@with_docs
def test_pages_of_experiments_are_found():
    assert {page.name for page in pages.whole_pages()} >= {"findings.md", "rivals.md", "gpt.md", "resnet.md"}


# --- What the check finds


def test_right_figures_pass(results):
    assert found(TOLD.format("2.0", "8.0", "4"), results[0]) == []


def test_a_changed_figure(results):
    (problem,) = found(TOLD.format("2.0", "8.1", "4"), results[0])
    assert "page.md:1: says 8.1, but results/a.json says 8.0" in problem


def test_changed_results(results):
    folder, write = results
    write(12.0)
    problems = found(TOLD.format("2.0", "8.0", "4"), folder)
    assert [problem.split(": ")[1] for problem in problems] == [
        "says 8.0, but results/a.json says 12.0",
        "says 4, but results/a.json says 6",
    ]


def test_a_sentence_that_is_gone(results):
    (problem,) = found("Nothing is said.", results[0])
    assert "does not say once" in problem


def test_a_sentence_that_is_there_twice(results):
    assert any("does not say once" in each for each in found(2 * TOLD.format("2.0", "8.0", "4"), results[0]))


@pytest.mark.parametrize(
    "figure",
    [
        "3 ms",
        "1,534 tests",
        "12.5 %",
        "two minutes",
        "4 x faster",
        "20\n  MiB",
        "0.976",
        "3 to 5 hours",
    ],
)
def test_a_figure_without_an_entry(figure, tmp_path):
    problems = found(f"It has {figure} here.", tmp_path, measured=())
    assert len(problems) == 1
    assert "has no entry" in problems[0]


@pytest.mark.parametrize(
    "text",
    [
        "`12 ms`",
        "```\n12 ms\n```",
        "a 4096 x 4096 weight",
        "arXiv 2409.15747",
        "[page](a-1.5.md)",
        "1.2.3",
    ],
)
def test_what_is_no_figure(text, tmp_path):
    assert found(text, tmp_path, measured=()) == []


def test_a_constant_is_an_entry(tmp_path):
    constant = claims.Constant("page.md", "at 5 %", "a setting")
    assert found("Tested at 5 % here.", tmp_path, (), [constant]) == []
    assert len(found("Tested at 6 % here.", tmp_path, (), [constant])) == 2  # unknown, and the entry is stale


def test_a_table_that_is_not_what_results_give(tmp_path):
    markers = "<!-- solvers table: begin -->\n{}<!-- solvers table: end -->\n"
    assert found(pages.with_blocks(markers.format("")), tmp_path, ()) == []
    (problem,) = found(markers.format("\n| 12 ms |\n"), tmp_path, ())
    assert "'solvers' is not what its results give" in problem
    (problem,) = found(markers.replace("solvers", "solvent").format(""), tmp_path, ())
    assert "nothing makes the block 'solvent'" in problem


# --- Entries


def test_figures_are_written_into_a_sentence(results):
    values = [claims.value(of, results[0]) for of in VALUES]
    assert claims.told(ENTRY, values, TOLD.format("1", "nine", "77,000.5")) == TOLD.format("2.0", "8.0", "4")
    with pytest.raises(ValueError, match="does not have once"):
        claims.told(ENTRY, values, "Nothing is said.")


def test_forms_of_values(results):
    folder, _ = results
    (folder / "results" / "b.json").write_text('{"cases": [{"name": "c", "ms": -3.0}]}')
    of = {"file": "results/*.json", "at": "* > cases > * > ms"}
    assert claims.value({**of, "take": "sum", "as": ".2f"}, folder) == "7.04"
    assert claims.value({**of, "take": "min", "as": ".0f"}, folder) == f"{MINUS}3"
    of = {"file": "results/a.json", "at": "cases > 0 > ms"}
    assert claims.value({**of, "as": "word"}, folder) == "two"
    assert claims.value({**of, "times": 100, "as": ".0f"}, folder) == "200"
    assert claims.value({**of, "minus": "cases > 1 > ms", "as": ".2f"}, folder) == f"{MINUS}6.04"


@pytest.mark.parametrize(
    ("at", "error"),
    [
        ("cases > 0 > seconds", KeyError),
        ("cases > 7", IndexError),
        ("cases > name=z", KeyError),
        ("cases > * > ms", ValueError),
    ],
)
def test_a_value_that_is_not_there(at, error, results):
    with pytest.raises(error):
        claims.value({"file": "results/a.json", "at": at, "as": ".1f"}, results[0])


def test_malformed_entries(tmp_path):
    file = tmp_path / "figures.toml"
    file.write_text('[[measured]]\npage = "a"\ntext = "{} ms"\nvalues = []\n')
    with pytest.raises(ValueError, match="1 places, 0 values"):
        claims.load(file)
    with pytest.raises(ValueError, match="unknown in a value: form"):
        claims.value({"file": "a", "at": "b", "as": "", "form": ""}, tmp_path)


# --- Measuring again


@pytest.fixture
def commands(monkeypatch, tmp_path):
    """Take the place of all measurements; return the modules that ran."""
    ran = []

    def run(module, *options):
        ran.append(module)
        if "--json" in options:
            if module == "benchmarks.energy.busy":
                raise renew.subprocess.CalledProcessError(1, module)
            (tmp_path / options[-1]).write_text("{}")

    monkeypatch.setattr(renew, "run", run)
    monkeypatch.setattr(renew, "ROOT", tmp_path)
    monkeypatch.setattr(renew, "MEASURED", tmp_path / "measured")
    (tmp_path / "measured").mkdir()
    (tmp_path / "benchmarks" / "optim" / "results").mkdir(parents=True)
    return ran


def test_what_is_there_is_not_measured_again(commands, tmp_path):
    assert renew.main(["--only", "optim/cpu"]) == 0
    assert commands == ["benchmarks.optim.table", "benchmarks.figures"]
    assert (tmp_path / "benchmarks" / "optim" / "results" / "cpu.json").read_text() == "{}"
    assert renew.main(["--only", "optim/cpu"]) == 0
    assert commands[2:] == ["benchmarks.figures"]
    assert renew.main(["--only", "optim/cpu", "--again"]) == 0
    assert commands[3:] == ["benchmarks.optim.table", "benchmarks.figures"]


def test_a_failure_leaves_pages_and_results_alone(commands, tmp_path, capsys):
    assert renew.main(["--only", "energy/busy", "optim/cpu"]) == 1
    assert commands == ["benchmarks.energy.busy", "benchmarks.optim.table"]
    assert "not measured, so no page is changed: energy/busy" in capsys.readouterr().err
    assert not list((tmp_path / "benchmarks").rglob("*.json"))


def test_circuits_need_the_images(capsys):
    with pytest.raises(SystemExit):
        renew.main(["--only", "circuits/cpu"])
    assert "--cifar10 is needed for circuits/cpu" in capsys.readouterr().err
