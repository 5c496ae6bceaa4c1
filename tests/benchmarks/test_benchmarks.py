"""The benchmarks measure what they say: every peer computes the loss, the scripts run. No time is judged."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.common import pages
from benchmarks.energy import peers, table
from modfast import Partition, reference

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = ["compiled", "one-hot", "eager", "published"]
BEGIN, END = "<!-- energy table: begin -->\n", "<!-- energy table: end -->\n"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=BENCHMARKS.parent,
    )


@pytest.mark.parametrize("name", NAMES)
def test_peer_agrees_with_reference(name: str) -> None:
    assert list(peers.PEERS) == NAMES
    # Cluster 3 has rows and no columns, so that an empty block is among them.
    rows, cols, k = torch.tensor([2, 0, 3, 1, 0, 2, 1]), torch.tensor([1, 1, 0, 2, 0]), 4
    weight = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected_weight = weight.clone().requires_grad_()
    expected = reference.enmeshment(expected_weight, Partition(rows, cols, k))
    expected.backward()

    weight.requires_grad_()
    loss = peers.PEERS[name](weight, rows, cols, k)
    loss.backward()
    # In float64 only the order of 35 sums differs: far below 1e-12.
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(weight.grad, expected_weight.grad, rtol=0, atol=1e-12)


def test_contestants_add_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = torch.nn.Linear(9, 12, bias=False)
    monkeypatch.setattr(torch.nn, "Linear", lambda *_, **__: layer)
    calls = peers.contestants(peers.matrix(12, 9, 3), rotated_bytes=0)
    del calls["compiled"]
    gradients = {}
    for name, call in calls.items():
        layer.weight.grad = torch.ones_like(layer.weight)
        call()
        gradients[name] = layer.weight.grad
    torch.testing.assert_close(gradients.pop("floor"), 1.0 + layer.weight.detach())
    assert list(gradients) == ["modfast", "modfast, autograd", "one-hot", "eager", "published"]
    for gradient in gradients.values():
        # float32: the peers sum 108 squares in another order than ours.
        torch.testing.assert_close(gradient, gradients["modfast"])


def test_peers_go_through_a_model() -> None:
    case = peers.Case("two", ((6, 5), (7, 4)), 3)
    assert (case.bytes_of_weights, case.bytes_moved) == (232, 928)
    calls = peers.contestants(case, rotated_bytes=0)
    for name in ("modfast", "modfast, autograd", "one-hot", "eager", "published", "floor"):
        calls[name]()


def test_table_from_end_to_end(tmp_path: Path) -> None:
    page, kept = tmp_path / "page.md", tmp_path / "table.json"
    page.write_text(f"before\n{BEGIN}old\n{END}after\n")
    options = ["--sizes", "12x9x3", "--repeats", 2, "--threads", 1, "--rotate", 1]
    done = run("-m", "benchmarks.energy.table", *options, "--json", kept, "--markdown", page)
    assert done.returncode == 0, done.stderr
    assert "12 x 9, k 3" in done.stdout
    assert "threads 1" in done.stdout

    report = json.loads(kept.read_text())
    assert report["environment"]["threads"] == 1
    (result,) = report["results"]
    assert set(result["milliseconds"]) == {"modfast", "modfast, autograd", "floor", *NAMES}
    assert list(result["ratios"]) == ["modfast, autograd", *NAMES]

    before, rest = page.read_text().split(BEGIN)
    table, after = rest.split(END)
    assert (before, after) == ("before\n", "after\n")
    assert "| 12 x 9, k 3 |" in table
    assert "old" not in table


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sizes", "12x9"], "must be ROWSxCOLUMNSxCLUSTERS, got '12x9'"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--threads", "0"], "must be a whole number of at least 1, got '0'"),
        (["--markdown", "missing.md"], "missing.md"),
        (["--markdown", "empty.md"], "empty.md: needs a line <!-- energy table: begin -->"),
    ],
)
def test_table_refuses(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.md").touch()
    with pytest.raises(SystemExit, match="2"):
        table.main(options)
    assert said in capsys.readouterr().err


def test_page_has_a_place_for_the_table() -> None:
    page = BENCHMARKS.parent / "docs" / "speed" / "energy.md"
    pages.outside_markers(page.read_text(), "energy")


def test_pytest_collects_the_cases() -> None:
    done = run("-m", "pytest", "benchmarks", "--benchmark-disable", "-q", "-k", "energy and floor and 2048")
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
