"""The templates of the report on circuits: they are installed, and show names as they are."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest
from circuit_report_helpers import write_run
from jinja2 import UndefinedError
from markupsafe import escape
from test_circuit_report import Page

from modfast.files import write_json
from modfast.report.circuits.findings import read_findings
from modfast.report.circuits.page import Section, page
from modfast.report.circuits.report import write_circuit_report
from modfast.report.svg.picture import path, picture, text

HOSTILE = (
    "<script>alert(1)</script>",
    '"\' onload="alert(1)',
    "{{ 7777*7777 }}",
    "{% include 'style.css' %}",
    "{0.__class__} %s &amp; </style>",
)


def test_the_package_holds_them() -> None:
    rooms = [files(f"modfast.report.{room}") / "templates" for room in ("circuits", "pages")]
    templates = [each for room in rooms for each in room.iterdir()]
    names = {each.name for each in templates}
    assert len(names) == len(templates)
    assert {"page.html", "style.css"} <= names
    # Whatever a template asks for is there.
    asked = {
        name
        for each in templates
        for name in re.findall(r'{% (?:include|import) "([^"]+)"', each.read_text(encoding="utf-8"))
    }
    source = (files("modfast.report.circuits") / "report.py").read_text(encoding="utf-8")
    asked |= set(re.findall(r'"(\w+\.html)"', source))
    assert asked <= names
    assert names == asked | {"page.html"}


def test_the_style_sheet_is_in_the_page(tmp_path: Path) -> None:
    write_run(tmp_path, seeds=(1,))
    written = write_circuit_report(tmp_path).read_text(encoding="utf-8")
    style = (files("modfast.report.pages") / "templates" / "style.css").read_text(encoding="utf-8")
    (inlined,) = re.findall(r"<style>(.*?)</style>", written, flags=re.DOTALL)
    assert inlined.strip() == style.strip()


def test_hostile_names_are_text(tmp_path: Path) -> None:
    """As classes, as layers and as all that is told: escaped, and not evaluated."""
    layers = [name.replace("/", "|") for name in HOSTILE[:3]]
    sizes = (5, 8, 8, 12)
    shapes = {layer: sizes[2 - index : 4 - index] for index, layer in enumerate(layers)}
    results = write_run(tmp_path, classes=HOSTILE, shapes=shapes, seeds=(1, 2), criteria=("loss",))
    everywhere = " and ".join(HOSTILE)
    results["config"] |= {"command": everywhere, "data": everywhere, "model": everywhere}
    results["environment"][everywhere] = everywhere
    results["note"] = everywhere
    for claim in results["claims"]:
        claim["statement"] = claim["text"] = everywhere
    write_json(tmp_path / "circuits.json", results)
    written = write_circuit_report(tmp_path).read_text(encoding="utf-8")
    shown = Page(written)
    assert shown.text.count(everywhere) >= 6
    for name in (*HOSTILE, *layers):
        assert str(escape(name)) in written
        assert name in shown.text
    # Pictures of four classes are drawn, and described by their names.
    described = " ".join(shown.values("aria-label"))
    assert all(name in described for name in (*HOSTILE[:4], *layers))
    assert "script" not in {tag for tag, _, _ in shown.attributes}
    assert "<script" not in written
    assert not [name for _, name, _ in shown.attributes if name.startswith("on")]
    assert written.count("<style>") == written.count("</style>") == 1
    assert str(7777 * 7777) not in written


def test_a_command_can_be_copied(tmp_path: Path) -> None:
    results = write_run(tmp_path, seeds=(1,))
    results["config"]["command"] = "modfast circuits 'the best 5 % ± 1'"
    write_json(tmp_path / "circuits.json", results)
    assert f"<code>{escape(results['config']['command'])}</code>" in write_circuit_report(tmp_path).read_text(
        encoding="utf-8"
    )


def test_what_a_template_does_not_know_is_an_error(tmp_path: Path) -> None:
    write_run(tmp_path, seeds=(1,))
    findings = read_findings(tmp_path)
    with pytest.raises(UndefinedError, match="has no attribute 'note'"):
        page("title", [Section("claims", "Claims", "claims.html", {"answer": [], "groups": {}})], findings)


def test_pictures_escape_what_they_are_given() -> None:
    name = "<b>\"'&"
    for drawn in (
        path(name, name, fill=name),
        text(0, 0, name, class_=name),
        picture(1, name, [], name),
    ):
        assert str(escape(name)) in drawn
        assert "<b>" not in drawn
        assert "\"'" not in drawn
