"""The page of unit circuits: it holds every unit, name and score, shows names as text, and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from markupsafe import escape
from test_circuit_report import Page
from test_circuit_templates import HOSTILE
from unit_circuit_helpers import NETWORK, clusters, many_circuits, three_circuits, unit_circuit

from modfast.circuits.units.unit_circuit import UnitCircuit
from modfast.report.numbers import MINUS
from modfast.report.unit_circuits.page import write_unit_page


class UnitPage(Page):
    """A page whose script and data are no words."""

    def handle_data(self, data: str) -> None:
        if "script" not in self.open:
            super().handle_data(data)


def written(folder: Path, *arguments: Any, **settings: Any) -> tuple[str, UnitPage]:
    path = folder / "units.html"
    write_unit_page(path, *arguments, **settings)
    text = path.read_text(encoding="utf-8")
    return text, UnitPage(text)


def embedded(text: str) -> Any:
    (data,) = re.findall(r'<script type="application/json" id="unit-data">(.*?)</script>', text, re.DOTALL)
    return json.loads(data)


def test_every_unit_with_its_score_is_there(tmp_path: Path) -> None:
    circuits = three_circuits()
    data = embedded(written(tmp_path, circuits, clusters())[0])
    assert data["spaces"] == [{"name": "fc1", "start": 6, "size": 8}, {"name": "fc2", "start": 14, "size": 4}]
    assert [each["name"] for each in data["circuits"]] == ["a", "b", "c"]
    for shown, circuit in zip(data["circuits"], circuits, strict=True):
        assert shown["scores"] == circuit.scores[6:18].tolist()
        assert [bool(int(kept)) for kept in shown["kept"]] == circuit.kept[6:18].tolist()
    assert data["clusters"] == clusters()[6:18].tolist()


def test_ten_thousand_units(tmp_path: Path) -> None:
    circuits = many_circuits(10_000, 3)
    data = embedded(written(tmp_path, circuits)[0])
    assert data["clusters"] is None
    assert sum(space["size"] for space in data["spaces"]) == 10_000
    for shown, circuit in zip(data["circuits"], circuits, strict=True):
        assert torch.tensor(shown["scores"], dtype=torch.float64) == pytest.approx(circuit.scores, rel=5e-4)
        assert shown["kept"].count("1") == circuit.num_units


def test_units_that_were_not_asked_for(tmp_path: Path) -> None:
    circuit = unit_circuit("a", {"fc2": [1.0, math.nan, 0.1, 0.2]})
    text, page = written(tmp_path, [circuit], clusters())
    assert embedded(text)["circuits"][0]["scores"] == [1.0, None, 0.1, 0.2]
    # Whole spaces are left out, and told.
    assert [space["name"] for space in embedded(text)["spaces"]] == ["fc2"]
    assert "Left out, since their units were not asked for: .input (6), fc1 (8), fc3 (3)." in page.text
    assert "1 33.3 %" in page.text  # of three that were


def test_a_circuit_that_scored_the_input_shows_it(tmp_path: Path) -> None:
    circuit = unit_circuit("a", {name: [1.0] * size for name, size in NETWORK.items()})
    text, page = written(tmp_path, [circuit])
    assert [space["name"] for space in embedded(text)["spaces"]] == list(NETWORK)
    assert "Left out" not in page.text


def test_the_tables(tmp_path: Path) -> None:
    text, page = written(tmp_path, three_circuits(), clusters(), settings={"data": "digits", "model": "mlp"})
    rows = [
        " ".join(re.sub("<[^>]*>", " ", row).split())
        for row in re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)
    ]
    assert rows[0] == "circuit metric, whole metric, circuit all units fc1 8 units fc2 4 units"
    assert rows[1:4] == [
        f"a {MINUS}0.25 {MINUS}0.3 2 16.7 % 1 12.5 % 1 25.0 %",
        f"b {MINUS}0.25 {MINUS}0.3 3 25.0 % 2 25.0 % 1 25.0 %",
        f"c {MINUS}0.25 {MINUS}0.3 2 16.7 % 2 25.0 % 0 0 %",
    ]
    told = ["method attribution", "ablation mean", "tolerance 0.05", "examples 20", "forward passes 7"]
    assert rows[4:] == [*told, "data digits", "model mlp"]
    # Of a and b one unit of four, of the others none.
    assert "8.33 % on average" in page.text
    assert [value for value in page.values("aria-label") if value.startswith("Overlap of the units")]
    assert [value for value in page.values("aria-label") if value.startswith("Share of each circuit")]


def test_what_can_be_chosen(tmp_path: Path) -> None:
    _, page = written(tmp_path, three_circuits(), clusters())
    named = [(tag, value) for tag, name, value in page.attributes if name == "name" and tag != "meta"]
    assert named.count(("input", "circuit")) == 4  # each, and all together
    assert named.count(("input", "cluster")) == 3  # 0, 1 and none
    assert named.count(("input", "kept")) == 1
    assert "0 (6 units)" in page.text
    assert "none (1 unit)" in page.text


@pytest.mark.parametrize(("labels", "repeated"), [([-1, *range(6)], False), ([0, 6], True)])
def test_colours_that_are_repeated(tmp_path: Path, labels: list[int], repeated: bool) -> None:
    given = torch.zeros(21, dtype=torch.int64)
    given[6 : 6 + len(labels)] = torch.tensor(labels)
    text, _ = written(tmp_path, three_circuits(), given)
    assert ("colour: cluster, repeated after six" in text) == repeated


def test_what_there_is_no_choice_of(tmp_path: Path) -> None:
    """One circuit, one column, no clusters: no buttons for them, and no figures that compare."""
    text, page = written(tmp_path, [unit_circuit("", {"fc2": [1.0, 0.0, 0.0, 0.0]})])
    named = [(tag, value) for tag, name, value in page.attributes if name == "name" and tag != "meta"]
    assert named == [("input", "kept")]
    assert embedded(text)["circuits"][0]["name"] == "circuit 1"
    assert {"overlap", "clusters"}.isdisjoint(page.values("id"))


def test_many_circuits_are_a_list(tmp_path: Path) -> None:
    circuits = [unit_circuit(f"class {number}", {"fc2": [1.0, 0.0, 0.0, number]}) for number in range(40)]
    _, page = written(tmp_path, circuits)
    assert sum(tag == "option" and name == "value" for tag, name, _ in page.attributes) == 41
    assert "radio" not in page.values("type")


def test_it_loads_nothing_and_runs_its_own_script_alone(tmp_path: Path) -> None:
    text, page = written(tmp_path, three_circuits(), clusters())
    (policy,) = [value for value in page.values("content") if value.startswith("default-src")]
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    places = set(page.values("id"))
    assert {target.removeprefix("#") for target in page.values("href")} <= places
    assert not {"src", "srcset", "xlink:href", "data"} & {key for _, key, _ in page.attributes}
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert not re.search(
        r"@import|url\(|javascript:|innerHTML|insertAdjacent|document\.write|\beval\b|fetch\(", text
    )
    # The script asks for elements that are there.
    asked = set(re.findall(r'find\("([\w-]+)"\)', scripts[0]))
    assert asked
    assert asked <= places


def test_hostile_names_are_text(tmp_path: Path) -> None:
    sizes = dict.fromkeys(HOSTILE, 2) | {"not asked <b>": 1}
    circuits = [
        unit_circuit(name, {space: [1.0, place] for space in HOSTILE}, sizes=sizes)
        for place, name in enumerate((*HOSTILE, "</script><script>alert(1)</script>", "<!--<script>"))
    ]
    text, page = written(tmp_path, circuits, title=HOSTILE[0], settings={HOSTILE[1]: HOSTILE[0]})
    assert [each["name"] for each in embedded(text)["circuits"]] == [circuit.name for circuit in circuits]
    assert [each["name"] for each in embedded(text)["spaces"]] == list(HOSTILE)
    for name in HOSTILE:
        assert str(escape(name)) in text
        assert name in page.text
    assert text.count("<script") == text.count("</script>") == 2
    assert "<!--" not in text
    assert str(7777 * 7777) not in text
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]


def scored(circuit: UnitCircuit, unit: int, score: float) -> UnitCircuit:
    scores = circuit.scores.clone()
    scores[unit] = score
    return UnitCircuit(
        circuit.kept, scores, circuit.spaces, "greedy", "zero", 0.0, 1, 1, 0.0, 0.0, name=circuit.name
    )


def test_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "units.html"
    first, second, _ = three_circuits()
    other = unit_circuit("d", {"fc1": [1.0, 0.0]}, sizes={"fc1": 2})
    twice = unit_circuit("a", {"fc1": [1.0, 0.0]}, sizes={"fc1": 2})
    apart = UnitCircuit(twice.kept, twice.scores, {"fc1": slice(0, 1)}, "greedy", "zero", 0, 1, 1, 0, 0)
    both = UnitCircuit(
        twice.kept, twice.scores, {"x": slice(0, 2), "y": slice(1, 2)}, "greedy", "zero", 0, 1, 1, 0, 0
    )
    for circuits, labels, message in (
        ([], None, "circuits must be at least one unit circuit, got none"),
        ([first, other], None, "circuits must be of one network: 'd' has 2 units"),
        ([first, second, first], None, "names of their own, 'a' is there 2 times"),
        ([scored(first, 7, math.inf)], None, "the scores of 'a' must be finite"),
        ([apart], None, "once, unit 1 is in 0"),
        ([both], None, "once, unit 1 is in 2"),
        ([first], [0, 1], "clusters must be 21, one for each unit, got 2"),
        ([first], [-2] * 21, r"clusters must lie in \[-1"),
        ([first], [10**6] * 21, r"clusters must lie in \[-1, 20\], got 1000000"),
    ):
        with pytest.raises(ValueError, match=message):
            write_unit_page(path, circuits, labels)
    with pytest.raises(TypeError, match="circuits must hold UnitCircuit, got str"):
        write_unit_page(path, ["a"])  # type: ignore[list-item]
    assert not path.exists()


def test_labels_of_no_cluster_are_no_clusters(tmp_path: Path) -> None:
    text, page = written(tmp_path, three_circuits(), [-1] * 21)
    assert embedded(text)["clusters"] is None
    assert "clusters" not in page.values("id")
