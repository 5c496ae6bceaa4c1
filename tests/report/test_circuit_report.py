"""The report on circuits: well formed, whole, readable anywhere, and its numbers those of the results."""

from __future__ import annotations

import copy
import html
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from circuit_report_helpers import write_run

from modfast.circuit import Circuit
from modfast.files import write_json
from modfast.partition import Partition
from modfast.report.circuits.drawing import draw_network
from modfast.report.circuits.layout import lay_out
from modfast.report.circuits.report import write_circuit_report
from modfast.report.numbers import Estimate
from modfast.report.svg.charts import dot_plot, heat_map
from modfast.run_folder import OutputExistsError

# Long names and sizes, one run alone, one seed, two classes, one layer, layers without clusters.
RUNS: dict[str, dict[str, Any]] = {
    "comparison": {},
    "single run": {"kinds": ("modular",), "seeds": (7,), "criteria": ("loss_and_accuracy",)},
    "several plain": {"kinds": ("plain",), "seeds": (1, 2)},
    "one seed": {"seeds": (42,), "criteria": ("balanced",)},
    "two classes": {"classes": ("x" * 60, "y y"), "shapes": {"a.b": (6, 8), "c": (2, 6)}, "clusters": 2},
    "one class": {"classes": ("all",), "shapes": {"fc": (1, 8)}, "clusters": 1, "seeds": (1,)},
    "one layer": {"shapes": {"a.very.long.name.of.a.layer.that.goes.on": (3, 300)}},
    "many classes": {"classes": [f"class {i}" for i in range(40)], "shapes": {"fc": (40, 50)}, "seeds": (1,)},
    "one clustered": {"unclustered": ("fc1", "fc3"), "seeds": (1, 2)},
    "no clusters": {"unclustered": ("fc1", "fc2", "fc3"), "seeds": (1,)},
}


class Page(HTMLParser):
    """Checks as it reads that every element is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def values(self, name: str) -> list[str]:
        return [value or "" for _, key, value in self.attributes if key == name]


def report(folder: Path, **settings: Any) -> tuple[Page, dict[str, Any]]:
    results = write_run(folder, **settings)
    path = write_circuit_report(folder)
    assert path == folder / "circuits.html"
    return Page(path.read_text(encoding="utf-8")), results


class TestReport:
    @pytest.mark.parametrize("name", RUNS)
    def test_well_formed_and_alone(self, name: str, tmp_path: Path) -> None:
        page, results = report(tmp_path, **RUNS[name])
        text = (tmp_path / "circuits.html").read_text(encoding="utf-8")
        # Nothing is asked for but places in the page itself, and each of those is there.
        places = set(page.values("id"))
        assert set(page.values("href")) == {f"#{place}" for place in places}
        assert not {"src", "srcset", "xlink:href", "data"} & {key for _, key, _ in page.attributes}
        assert not re.search(r"@import|url\(|<script|javascript:|\bon\w+=", text)
        assert "default-src 'none'; style-src 'unsafe-inline'" in page.values("content")
        # Every picture is described, or told to be an ornament.
        pictures = sum(tag == "svg" and key == "viewbox" for tag, key, _ in page.attributes)
        described = [value for tag, key, value in page.attributes if (tag, key) == ("svg", "aria-label")]
        hidden = sum(tag == "svg" and key == "aria-hidden" for tag, key, _ in page.attributes)
        assert pictures == len(described) + hidden
        assert all(described)
        drawn = [each for each in described if each.startswith("Circuit of ")]
        config = results["config"]
        labels = min(len(config["labels"]), 4)
        assert len(drawn) == labels * len(config["criteria"]) * len(config["kinds"])
        assert "NaN" not in text
        assert "None of the layers" in text or "None" not in page.text

    def test_names_are_text(self, tmp_path: Path) -> None:
        results = write_run(tmp_path, seeds=(1,))
        results["config"]["command"] = "modfast circuits 'a&b' > <img src=x>"
        results["claims"][0]["text"] = "<i>p</i> < 1 %"
        write_json(tmp_path / "circuits.json", results)
        page = Page(write_circuit_report(tmp_path).read_text(encoding="utf-8"))
        for each in ("<b>cow & calf</b>", "modfast circuits 'a&b' > <img src=x>", "<i>p</i> < 1\xa0%"):
            assert each in " ".join(page.words)
        assert "img" not in {tag for tag, _, _ in page.attributes}

    def test_order_and_numbers(self, tmp_path: Path) -> None:
        page, results = report(tmp_path)
        config = results["config"]
        headings = [
            "This report looks at 3 plain and 3 modular networks",
            "What the data say",
            "Measures",
            "Circuits by loss",
            "Circuits by balanced loss",
            "Clusters on and off",
            "How to read this",
            "Settings",
            "Environment",
            "To repeat it",
            config["command"],
        ]
        # Each is also a link at the top.
        places = [page.text.rindex(heading) for heading in headings]
        assert places == sorted(places)
        assert "seeds 42, 43 and 44" in page.text
        assert "enmeshment weight 0.7" in page.text
        for verdict, statement in (
            ("✓ supported", "Circuits of different classes differ"),
            ("✗ contradicted", "Circuits are smaller in modular models"),
            ("? undecided", "Clusters specialise in classes"),
        ):
            assert f"{verdict} {statement}" in page.text
        assert page.text.count(results["claims"][0]["text"]) == 1
        assert results["note"].startswith("Besides whether circuits are all the same, 4 claims are tested")
        assert results["note"] in page.text

        size = results["summary"]["loss"]["size"]
        row = page.text.split("Circuit size (% of weights) ")[1]
        told = re.findall("([+\N{MINUS SIGN}]?)([0-9.]+) ± ([0-9.]+)", row.replace("\xa0", " "))[:3]
        for (sign, mean, half), key in zip(told, ("plain", "modular", "difference"), strict=True):
            decimals = len(mean.partition(".")[2])
            assert mean == f"{100 * abs(size[key]['mean']):.{decimals}f}"
            assert half == f"{100 * size[key]['interval']:.{decimals}f}"
            assert (
                sign
                == {True: "\N{MINUS SIGN}", False: "+" if key == "difference" else ""}[size[key]["mean"] < 0]
            )

    def test_one_layer_is_told_behind_a_click_and_chance_beside_the_measure(self, tmp_path: Path) -> None:
        results = write_run(tmp_path, seeds=(1, 2), criteria=("loss",))
        for name, chance in (("overlap", 0.0125), ("inside:fc2", 0.25), ("inside:fc1", 0.375)):
            parts = {
                kind: {"mean": chance, "interval": 0.0, "values": [chance] * 2}
                for kind in ("plain", "modular")
            }
            results["summary"]["loss"]["random_" + name] = parts | {
                "difference": {"mean": 0.0, "interval": 0.0}
            }
        write_json(tmp_path / "circuits.json", results)
        page = Page(write_circuit_report(tmp_path).read_text(encoding="utf-8"))
        main, details = (
            page.text.split(" Measures ")[-1].split(" Circuits by loss A weight")[0].split("Layer by layer")
        )
        # fc2 is the regularised layer.
        for row in (
            "Clusterability, fc2",
            "Circuit size (",
            "Overlap of two circuits (",
            "Circuit inside clusters, fc2",
        ):
            assert row in main
            assert row not in details
        for row in ("Clusterability, fc1", "Circuit size, fc2", "Circuit inside clusters, fc3"):
            assert row in details
            assert row not in main
        assert [main.count(f"by chance {each}") for each in ("1.25", "25.0", "37.5")] == [2, 2, 0]
        assert details.count("by chance 37.5") == 2

    def test_circuits_that_need_not_look_are_counted(self, tmp_path: Path) -> None:
        results = write_run(tmp_path, seeds=(1, 2))
        for run in results["runs"]:
            # 0.6 and 0.69 are below ln 2, 0.7 is not.
            run["criteria"]["balanced"]["loss_before"] = [0.6, 0.69, 0.7]
        write_json(tmp_path / "circuits.json", results)
        page = Page(write_circuit_report(tmp_path).read_text(encoding="utf-8"))
        assert page.text.count("4 of the 12 circuits were allowed that") == 1
        results["config"]["tolerance"] = 0.01
        write_json(tmp_path / "circuits.json", results)
        page = Page(write_circuit_report(tmp_path).read_text(encoding="utf-8"))
        assert "8 of the 12 circuits were allowed that" in page.text

    def test_overlap_and_its_baseline(self, tmp_path: Path) -> None:
        page, results = report(tmp_path, criteria=("loss",))
        for kind in ("plain", "modular"):
            found = [run["criteria"]["loss"] for run in results["runs"] if run["kind"] == kind]
            pairs = [each["overlap"]["all"][i][j] for each in found for i, j in ((0, 1), (0, 2), (1, 2))]
            chances = [each["random_overlap"]["all"] for each in found]
            told = [100 * sum(values) / len(values) for values in (pairs, chances)]
            (sentence,) = [
                value for value in page.values("aria-label") if value.startswith("Overlap") and kind in value
            ]
            numbers = [float(each) for each in re.findall(r"([0-9.]+)\s%", sentence)]
            assert numbers == pytest.approx(told, rel=0.01)

    def test_one_seed_has_no_interval(self, tmp_path: Path) -> None:
        page, _ = report(tmp_path, seeds=(42,))
        assert "One seed: no intervals." in page.text
        assert "±" not in page.text
        assert "whisker" not in "".join(page.values("class"))

    def test_single_run_is_not_compared(self, tmp_path: Path) -> None:
        page, _ = report(tmp_path, kinds=("modular",), seeds=(7,))
        assert "one modular network" in page.text
        assert "What the data say" not in page.text
        assert "plain" not in {word for value in page.values("class") for word in value.split()}

    def test_nulls(self, tmp_path: Path) -> None:
        results = write_run(tmp_path, seeds=(1, 2))
        for run in results["runs"]:
            run["class_accuracy"][1] = None
            for shares in run["cluster_accuracy"].values():
                for table in shares.values():
                    for row in table:
                        row[1] = None
            for found in run["criteria"].values():
                for key in ("size", "seconds", "accuracy_before", "accuracy_after", "loss_before"):
                    found[key][0] = None
                for key in ("random_overlap", "random_information"):
                    found[key]["all"] = None
                found["overlap"]["all"][0][1] = found["overlap"]["all"][1][0] = None
                for layer in found["inside"]:
                    found["inside"][layer][0] = [None] * 3
        for measures in results["summary"].values():
            for part in next(iter(measures.values())).values():
                part["mean"] = part["interval"] = None
        results["claims"][0] |= {"difference": None, "interval": None, "effect_size": None}
        write_json(tmp_path / "circuits.json", results)
        page = Page(write_circuit_report(tmp_path).read_text(encoding="utf-8"))
        assert "\N{EN DASH}" in page.text
        assert "None" not in page.text
        assert "nan" not in page.text.lower().split()
        # A circuit without a weight in a layer has no share inside, also in all clusters together: one row
        # of each layer, kind and criterion.
        text = (tmp_path / "circuits.html").read_text(encoding="utf-8")
        assert text.count('text-anchor="end">\N{EN DASH}</text>') == 3 * 2 * 2

    def test_size_of_the_published_network(self, tmp_path: Path) -> None:
        names = [f"class {label}" for label in range(4)]
        shapes = {"fc1": (64, 4096), "fc2": (64, 64), "fc3": (4, 64)}
        # More seeds and classes are no more circuits drawn; a second criterion takes as much again.
        report(tmp_path, classes=names, shapes=shapes, clusters=4, seeds=(42,), criteria=("loss",))
        assert (tmp_path / "circuits.html").stat().st_size < 1_500_000 / 2

    def test_missing_and_damaged(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"holds no circuits\.json"):
            write_circuit_report(tmp_path)
        for content, error in (("{", "is damaged"), ("[]", "is no table"), ('{"plain": 1}', "is no table")):
            (tmp_path / "circuits.json").write_text(content)
            with pytest.raises(ValueError, match=error):
                write_circuit_report(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["circuits.json"]

    def test_missing_keys(self, tmp_path: Path) -> None:
        """Whatever the page shows, in a table or through a template, is named if it is missing."""
        results = write_run(tmp_path, seeds=(1,), criteria=("balanced",))
        write_circuit_report(tmp_path)
        old = (tmp_path / "circuits.html").read_bytes()
        for *place, key in (
            ("config", "layers"),
            ("config", "model"),
            ("config", "command"),
            ("runs", 0, "seed"),
            ("runs", 0, "class_accuracy"),
            ("runs", 0, "criteria", "balanced"),
            ("runs", 1, "criteria", "balanced", "random_overlap", "all"),
            ("summary", "balanced", "size", "difference", "mean"),
            ("claims", 0, "criterion"),
            ("claims", 0, "statement"),
            ("claims", 0, "text"),
        ):
            damaged = copy.deepcopy(results)
            part = damaged
            for name in place:
                part = part[name]
            del part[key]
            write_json(tmp_path / "circuits.json", damaged)
            with pytest.raises(ValueError, match=rf"circuits\.json is damaged: .*'{key}'"):
                write_circuit_report(tmp_path)
        damaged = copy.deepcopy(results)
        damaged["runs"][0]["criteria"]["balanced"]["size"].clear()
        write_json(tmp_path / "circuits.json", damaged)
        with pytest.raises(ValueError, match=r"circuits\.json is damaged: list index"):
            write_circuit_report(tmp_path)
        assert (tmp_path / "circuits.html").read_bytes() == old

    def test_an_older_report_stays_whole(self, tmp_path: Path) -> None:
        write_run(tmp_path, seeds=(1,))
        old = write_circuit_report(tmp_path).read_bytes()
        (tmp_path / "plain-seed1" / "circuits" / "loss" / "label-2.npz").write_bytes(b"PK")
        with pytest.raises(ValueError, match=r"label-2\.npz' is no circuits file"):
            write_circuit_report(tmp_path)
        (tmp_path / "plain-seed1" / "circuits" / "loss" / "label-2.npz").unlink()
        with pytest.raises(FileNotFoundError, match=r"label-2\.npz"):
            write_circuit_report(tmp_path)
        assert (tmp_path / "circuits.html").read_bytes() == old

    def test_a_file_of_somebody_else_stays(self, tmp_path: Path) -> None:
        write_run(tmp_path, seeds=(1,))
        (tmp_path / "circuits.html").write_text("mine")
        with pytest.raises(OutputExistsError, match=r"circuits\.html is in no manifest of modfast"):
            write_circuit_report(tmp_path)
        assert (tmp_path / "circuits.html").read_text() == "mine"


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

_FRAME = '<iframe title="{name}" width="360" height="800" style="border: 0" srcdoc="{page}"></iframe>'
_PROBE = """
<!DOCTYPE html><meta charset="utf-8"><title>probe</title>
FRAMES
<pre id="found"></pre>
<script>
function examine(frame) {
  const view = frame.contentWindow, page = view.document;
  page.querySelectorAll("details").forEach(each => each.open = true);
  const name = each => each.tagName + "." + each.getAttribute("class");
  const beyond = [...page.querySelectorAll("*")].filter(
    each => each.getBoundingClientRect().right > view.innerWidth + 0.5).map(name);
  const cut = [...page.querySelectorAll("svg text")].filter(each => {
    const box = each.getBoundingClientRect(), whole = each.ownerSVGElement.getBoundingClientRect();
    return box.left < whole.left - 1 || box.right > whole.right + 1 || box.bottom > whole.bottom + 1;
  }).map(each => each.textContent);
  return {
    title: frame.title, width: view.innerWidth, scroll: page.documentElement.scrollWidth, beyond, cut,
    loaded: view.performance.getEntriesByType("resource").map(each => each.name),
    sections: page.querySelectorAll("section").length,
  };
}
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map(examine);
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>
"""


@pytest.mark.slow
def test_in_a_browser(tmp_path: Path) -> None:
    """On a phone's width nothing reaches beyond the page or its picture, and nothing is loaded.

    Alone: ``apt-get install chromium``, then ``pytest tests/test_circuit_report.py -k browser``. For a look:
    ``chromium --headless --screenshot=page.png --window-size=1280,14000 circuits.html`` and, in print,
    ``chromium --headless --print-to-pdf=page.pdf circuits.html``.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"needs one of {', '.join(BROWSERS)}")
    frames = []
    for name, settings in RUNS.items():
        write_run(tmp_path / name, **settings)
        page = write_circuit_report(tmp_path / name).read_text(encoding="utf-8")
        frames.append(_FRAME.format(name=name, page=html.escape(page)))
    # Within a page of our own they are as wide as a phone: a browser's window cannot be as narrow.
    probe = tmp_path / "probe.html"
    probe.write_text(_PROBE.replace("FRAMES", "\n".join(frames)), encoding="utf-8")
    command = [browser, "--headless", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=10000"]
    command += ["--no-sandbox"] if os.geteuid() == 0 else []
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", probe.as_uri()]
    finished = subprocess.run(command, capture_output=True, text=True)
    found = json.loads(html.unescape(re.findall(r'<pre id="found">(.*?)</pre>', finished.stdout)[0]))
    assert [each["title"] for each in found] == list(RUNS)
    for each in found:
        assert each["sections"] >= 7
        told = {key: each[key] for key in ("width", "scroll", "beyond", "cut", "loaded")}
        assert told == {"width": 360, "scroll": 360, "beyond": [], "cut": [], "loaded": []}, each["title"]


class TestCharts:
    def test_dots_stand_at_their_values(self) -> None:
        rows = [
            ("cat", {"plain": Estimate(2.0, 1.0, [1.5, 2.5]), "modular": Estimate(4.0, None, [4.0])}),
            ("dog", {"plain": Estimate(1.0, None, [1.0])}),
        ]
        drawn = str(dot_plot(rows, "size (%)", "sizes"))
        ticks = re.findall(r'<text x="([0-9.]+)"[^>]*class="tick">([0-9.]+)<', drawn)
        (zero, _), (first, unit) = ticks[:2]
        scale = (float(first) - float(zero)) / float(unit)

        def value(x: str) -> float:
            return (float(x) - float(zero)) / scale

        circles = re.findall(r'<circle cx="([0-9.]+)" cy="([0-9.]+)" r="4" class="plain"/>', drawn)
        assert [value(x) for x, _ in circles] == pytest.approx([2.0, 1.0], abs=0.01)
        (square,) = re.findall(
            r'<rect x="([0-9.]+)" y="[0-9.]+" width="8" height="8" class="modular"/>', drawn
        )
        assert value(str(float(square) + 4)) == pytest.approx(4.0, abs=0.01)
        low, high = re.search(r'd="M([0-9.]+) [0-9.]+H([0-9.]+)m[^"]*" class="whisker plain"', drawn).groups()
        assert [value(low), value(high)] == pytest.approx([1.0, 3.0], abs=0.01)
        seeds = re.findall(r'<circle cx="([0-9.]+)" cy="[0-9.]+" r="2"/>', drawn)
        assert [value(x) for x in seeds] == pytest.approx([1.5, 2.5], abs=0.01)
        assert "modular" not in drawn.split(">dog<")[1]

    def test_cells(self) -> None:
        values = [[0.0, 50.0], [None, 100.0]]
        drawn = str(
            heat_map(values, ["a", "b"], ["c", "<d>"], "table", top=100.0, unit="share (%)", framed=[(1, 1)])
        )
        assert drawn.count('class="cell empty"') == 1
        paths = dict(
            re.findall(r'<path d="M([0-9.]+ [0-9.]+)H[^"]*" class="cell" fill="(#[0-9a-f]{6})"/>', drawn)
        )
        assert set(paths.values()) >= {"#440154", "#fde725"}
        assert re.findall(r'class="on-\w+">([0-9]+)<', drawn) == ["0", "50", "100"]
        assert "&lt;d&gt;" in drawn
        (frame,) = re.findall(r'd="M([0-9.]+) ([0-9.]+)[^"]*" class="framed"', drawn)
        (bright,) = [corner.split() for corner, colour in paths.items() if colour == "#fde725"][:1]
        assert [float(x) - float(y) for x, y in zip(frame, bright, strict=True)] == [1.5, 1.5]

    def test_crowded_cells_have_no_numbers(self) -> None:
        names = [f"n{index}" for index in range(50)]
        drawn = heat_map([[1.0] * 50] * 50, names, names, "table", top=1.0, unit="share")
        assert "on-light" not in drawn
        assert len(drawn) < 100_000


class TestNetwork:
    def circuit(self, **masks: torch.Tensor) -> Circuit:
        return Circuit(0, masks, "loss", 0.0, 10, 0.5, 0.4, 0.9, 1.0)

    def test_every_weight_is_in_one_line(self) -> None:
        generator = torch.Generator().manual_seed(0)
        masks = {
            "fc1": torch.rand(70, 1000, generator=generator) < 0.05,
            "fc2": torch.rand(9, 70, generator=generator) < 0.3,
        }
        # Interleaved, the last inputs in no cluster.
        inputs = torch.where(torch.arange(1000) < 990, torch.arange(1000) % 3, -1)
        partitions = {
            "fc1": Partition(torch.arange(70) % 3, inputs, 3),
            "fc2": Partition(torch.arange(9) % 3, torch.arange(70) % 3, 3),
        }
        network = lay_out(self.circuit(**masks), partitions)
        assert [column.size for column in network.columns] == [1000, 70, 9]
        for links, (name, mask) in zip(network.links, masks.items(), strict=True):
            partition = partitions[name]
            before, after = (network.columns[index] for index in links.columns)
            expected: dict[tuple[int, int, int], int] = {}
            inside_any = partition.mask().tolist()
            for row, col in mask.nonzero().tolist():
                cluster = int(partition.row_labels[row]) if inside_any[row][col] else -1
                key = (int(before.node_of[col]), int(after.node_of[row]), cluster)
                expected[key] = expected.get(key, 0) + 1
            drawn = zip(links.starts, links.ends, links.clusters, strict=True)
            found = dict(zip(map(tuple, drawn), links.counts.tolist(), strict=True))
            assert found == expected
            assert links.kept == int(mask.sum()) / mask.numel()
            # Lines between clusters come first, so that they cover none inside.
            assert links.clusters.tolist() == sorted(links.clusters.tolist())

    def test_nodes_hold_neighbours_of_one_cluster(self) -> None:
        labels = torch.arange(4096) // 1024
        partition = Partition(torch.arange(8) // 2, labels, 4)
        column = lay_out(self.circuit(fc=torch.ones(8, 4096, dtype=torch.bool)), {"fc": partition}).columns[0]
        assert len(column.places) == 32
        assert column.most_shared == 128
        assert torch.equal(torch.from_numpy(column.clusters[column.node_of]), labels)
        assert (column.places[1:] > column.places[:-1]).all()
        assert column.places[0] > 0
        assert column.places[-1] < 1
        for cluster, top, bottom in column.bands:
            inside = (column.places > top) & (column.places < bottom)
            assert (inside == (column.clusters == cluster)).all()

    def test_sides_that_disagree_have_no_cluster(self) -> None:
        masks = {"a": torch.ones(4, 2, dtype=torch.bool), "b": torch.ones(2, 4, dtype=torch.bool)}
        partitions = {"a": Partition([0, 0, 1, 1], [0, 1], 2), "b": Partition([0, 1], [0, 1, 1, 1], 2)}
        middle = lay_out(self.circuit(**masks), partitions).columns[1]
        assert middle.clusters.tolist() == [0, -1, 1, 1]

    def test_sizes_that_do_not_follow(self) -> None:
        masks = {"a": torch.ones(4, 2, dtype=torch.bool), "b": torch.ones(2, 8, dtype=torch.bool)}
        network = lay_out(self.circuit(**masks), {})
        assert [column.size for column in network.columns] == [2, 4, 8, 2]
        assert [links.columns for links in network.links] == [(0, 1), (2, 3)]

    def test_bad_arguments(self) -> None:
        circuit = self.circuit(fc=torch.ones(4, 2, dtype=torch.bool))
        with pytest.raises(ValueError, match=r"'fc' has the shape \(2, 2\), its mask .* \(4, 2\)"):
            lay_out(circuit, {"fc": Partition.blocks((2, 2), 2)})
        with pytest.raises(ValueError, match=r"the mask of 'c' must be \(out, in\), got \(2, 2, 3, 3\)"):
            lay_out(self.circuit(c=torch.ones(2, 2, 3, 3, dtype=torch.bool)), {})

    def test_drawing(self) -> None:
        mask = torch.tensor([[True, False, False], [True, True, False]])
        network = lay_out(self.circuit(fc=mask), {"fc": Partition([0, 1], [0, 1, 1], 2)})
        drawn = str(draw_network(network, ["cat", "a & b"], 0, "a circuit"))
        lines = re.findall(r'<path d="(M[^"]*)" class="line (\w+) w0"/>', drawn)
        assert [(path.count("M"), colour) for path, colour in lines] == [
            (1, "crossing"),
            (1, "c0"),
            (1, "c1"),
        ]
        # Of the three inputs one is not used, of the outputs none.
        assert drawn.count('class="node unused few"') == 1
        assert 'class="found">cat<' in drawn
        assert "a &amp; b" in drawn
        assert "50.0 %" in drawn
