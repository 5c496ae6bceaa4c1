"""The report on circuits: well formed, whole, readable anywhere, and its numbers those of the results."""

from __future__ import annotations

import copy
import inspect
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from circuit_report_helpers import write_run

from modfast.experiment.measures import _TOP
from modfast.files import write_json
from modfast.neurons import live_units
from modfast.report.circuits.answer import answer_lines
from modfast.report.circuits.report import write_circuit_report
from modfast.report.numbers import MINUS
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
        if tag not in ("meta", "input", "wbr"):
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

    def test_the_answer_in_five_lines_comes_first(self, tmp_path: Path) -> None:
        page, results = report(tmp_path)
        lines = answer_lines(results)
        assert len(lines) == 5
        text = re.sub("[\xa0\n]+", " ", page.text)
        places = [text.index(re.sub(r"-(?=\d)", MINUS, line)) for line in lines]
        assert places == sorted(places)
        assert places[-1] < text.index(re.sub(r"-(?=\d)", MINUS, results["claims"][0]["text"]))

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
            ("✓ supported", "Circuits of different classes overlap less"),
            ("✗ contradicted", "Circuits are smaller in modular models"),
            ("? undecided", "Clusters specialise in classes"),
        ):
            assert f"{verdict} {statement}" in page.text
        assert page.text.count(results["claims"][0]["text"]) == 1
        assert results["note"].startswith("6 claims are tested")
        assert results["note"] in page.text

        # Undecided is not sold as support of a version that denies the claim.
        assert page.text.count("Claimed by arXiv 1, 2 v1 and v2.") == 4
        denied = "Claimed by arXiv 1, 2 v1 and v2; denied by arXiv 2 v3, which this does not support either."
        assert page.text.count(denied) == 2

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

    def test_sizes_are_compared_class_by_class(self, tmp_path: Path) -> None:
        page, results = report(tmp_path, criteria=("loss",))
        mean = 100 * results["summary"]["loss"]["by_class"]["mean_size_change"]["mean"]
        (described,) = [each for each in page.values("aria-label") if each.startswith("Relative difference")]
        (told,) = re.findall(r"([+\N{MINUS SIGN}][0-9.]+) ±", described)
        assert float(told.replace("\N{MINUS SIGN}", "-")) == pytest.approx(mean, rel=0.05)
        assert "How their sizes differ, class by class" in page.text
        assert page.text.count("not corrected for the number of classes") == 1
        # A class whose plain circuit is empty has a name and no marker.
        text = (tmp_path / "circuits.html").read_text(encoding="utf-8")
        markers = text.count('z" class="difference"')
        assert markers == len(results["config"]["labels"]) + 1
        for run in results["runs"]:
            run["criteria"]["loss"]["size"][0] = None
        results["summary"]["loss"]["by_class"]["size_change"][0] |= {"mean": None, "values": [None] * 3}
        write_json(tmp_path / "circuits.json", results)
        text = write_circuit_report(tmp_path).read_text(encoding="utf-8")
        assert text.count('z" class="difference"') == markers - 1
        # Without any plain circuit there is no mean either.
        results["summary"]["loss"]["by_class"]["mean_size_change"] |= {"mean": None, "interval": None}
        write_json(tmp_path / "circuits.json", results)
        page = Page(write_circuit_report(tmp_path).read_text(encoding="utf-8"))
        assert "Mean of the classes: nothing to measure." in page.text
        assert "\N{EN DASH} %" not in page.text

    def test_measures_that_earlier_releases_lack_are_explained_where_they_are(self, tmp_path: Path) -> None:
        page, results = report(tmp_path, seeds=(1,), criteria=("loss",))
        titles = ("Classes among a neuron's top images", "Search-space reduction", "Live rows", "Test loss")
        assert not any(title in page.text for title in titles)
        for name in ("label_semanticity:fc2", "search_space_reduction", "live_rows:fc2", "test_loss"):
            results["summary"]["model"][name] = results["summary"]["model"]["accuracy"]
        write_json(tmp_path / "circuits.json", results)
        page = Page(write_circuit_report(tmp_path).read_text(encoding="utf-8"))
        assert [page.text.count(title) for title in titles] == [2, 2, 2, 1]
        assert "Test loss (nats)" in page.text
        told = " ".join(page.text.split())
        assert f"among the {_TOP} test images" in told
        threshold = inspect.signature(live_units).parameters["threshold"].default
        assert f"at least {100 * threshold:g} % of that of the mean row or column" in told

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
        assert "a model's accuracy is missing" in page.text
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
            ("claims", 0, "source"),
            ("claims", 0, "denied_by"),
            ("summary", "balanced", "by_class"),
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
