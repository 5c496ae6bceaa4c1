"""Write the tables and pictures of docs/findings/minilm.md from the committed results.

    python -m benchmarks.minilm.page [--out out/minilm]

The pictures that show weights are those of the folder that ``benchmarks.minilm.findings`` wrote.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

from PIL import Image

from benchmarks.common.pages import as_markdown, put_into_page
from modfast.files import atomic_write
from modfast.report.numbers import MINUS

from . import findings
from .pictures import draw_members

PAGE = Path(__file__).parents[2] / "docs" / "findings" / "minilm.md"
COUNTS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("out/minilm"), metavar="DIR")
    options = parser.parse_args()
    results = findings.read()
    for family, table in tables(results).items():
        put_into_page(PAGE, family, table)
    draw_members(PAGE.with_name("minilm-members.png"), results["members"])
    for name in ("curve", "layers"):
        _copy(options.out / "encoder" / f"{name}.png", PAGE.with_name(f"minilm-{name}.png"))


def _copy(picture: Path, place: Path) -> None:
    """Copy a picture in 64 colours, a quarter of the bytes."""
    with Image.open(picture) as image:
        few = image.convert("RGB").quantize(64, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    with atomic_write(place) as temporary:
        few.save(temporary, format="png", optimize=True)


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Return the tables of the page by the names of their places."""
    return {
        "minilm curve": _curve(results),
        "minilm enmeshment": _enmeshment(results),
        "minilm agreement": _agreement(results),
        "minilm layers": _layers(results),
    }


def _number(value: float | None, digits: int) -> str:
    if value is None:
        return ""
    return f"{value:.{digits}f}".replace("-", MINUS)


def _curve(results: dict[str, Any]) -> str:
    rows = []
    nulls = results["nulls"]
    for each in results["encoder"]["clusters"]:
        k = each["num_clusters"]
        if k in COUNTS:
            kept = [_number(nulls[name].get(str(k)), 3) for name in ("rows", "columns")]
            cuts = [_number(each[name], 3) for name in ("normalized_cut", "shuffled")]
            share = nulls["rows"].get(str(k))
            if share is not None:
                share = (each["shuffled"] - share) / (each["shuffled"] - each["normalized_cut"])
            rows.append(
                [
                    str(k),
                    *cuts,
                    *kept,
                    _number(share, 2),
                    _number(each["z_score"], 0),
                    _number(each["gap"], 4),
                ]
            )
    headings = [
        "k",
        "normalised cut",
        "shuffled",
        "shuffled in rows",
        "shuffled in columns",
        "share in rows",
        "z-score",
        "gap",
    ]
    return f"{as_markdown(headings, rows)}\n\n"


def _enmeshment(results: dict[str, Any]) -> str:
    rows = []
    for k, each in results["enmeshment"].items():
        random = f"{_number(each['random'], 3)} ± {_number(each['random_deviation'], 3)}"
        shared, own = (
            f"{_number(each[name], 3)} ({_number(each[f'{name}_by_chance'], 3)})"
            for name in ("shared", "own")
        )
        rows.append([k, shared, random, own, _number(each["blocks_of_equal_size"], 3)])
    headings = ["k", "shared clusters", "random, same sizes", "each layer's own", "contiguous blocks"]
    return f"{as_markdown(headings, rows)}\n\n"


def _agreement(results: dict[str, Any]) -> str:
    rows = []
    for k, each in results["sides"].items():
        blocks = results["blocks"][k]
        rows.append(
            [
                k,
                f"{_number(min(each['hidden']), 2)} to {_number(max(each['hidden']), 2)}",
                f"{_number(each['stream_mean'], 2)} (at most {_number(each['stream_largest'], 2)})",
                _number(blocks["hidden"], 2),
                _number(blocks["heads"], 2),
            ]
        )
    headings = [
        "k",
        "the two sides of hidden neurons, six MLPs",
        "the residual stream, pairs of blocks",
        "shared clusters and blocks: neurons",
        "heads",
    ]
    return f"{as_markdown(headings, rows)}\n\n"


def _layers(results: dict[str, Any]) -> str:
    groups: dict[str, list[dict[str, Any]]] = {}
    for name, each in results["single_layers"].items():
        groups.setdefault(name.split(".", 3)[3], []).append(each)
    rows = []
    for kind, members in groups.items():
        clear = [each for each in members if each["gap"] > each["largest_shuffled_gap"]]
        chosen = sorted({each["chosen"] for each in members})
        smallest = sorted(each["smallest_cluster"] for each in members)
        rows.append(
            [
                f"`{kind}`",
                f"{len(clear)} of {len(members)}",
                ", ".join(map(str, chosen)),
                f"{smallest[0]} to {smallest[-1]}",
                _number(mean(each["clusterability"] for each in members), 3),
            ]
        )
    headings = ["matrix", "gap above shuffled", "chosen k", "smallest cluster", "clusterability, mean"]
    return f"{as_markdown(headings, rows)}\n\n"


if __name__ == "__main__":
    main()
