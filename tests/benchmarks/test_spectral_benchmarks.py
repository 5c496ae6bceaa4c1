"""The spectral benchmarks measure what they say: peers find clusters, scripts run. No time is judged."""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from benchmarks.common import pages, rounds
from benchmarks.spectral import cases, peak_memory, peers, scaling, solvers, table

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WEIGHT_PEERS = ["randomized", "arpack", "svd_lowrank", "published"]
GRAPH_PEERS = ["expert", "arpack", "lobpcg"]
BEGIN, END = "<!-- spectral table: begin -->\n", "<!-- spectral table: end -->\n"


@pytest.fixture
def one_thread(set_threads: Any) -> None:
    set_threads(1)  # and undoes afterwards what the scripts set


class TestCases:
    def test_planted_weight(self) -> None:
        weight, partition, _ = cases.plant(cases.WeightCase(420, 350, 3, unequal=True))
        inside = partition.mask()
        # Standard deviations of over 20,000 numbers are good to about 1 %.
        assert weight[inside].std().item() == pytest.approx(1.0, rel=0.05)
        assert weight[~inside].std().item() == pytest.approx(0.25, rel=0.05)
        assert partition.row_labels.bincount().tolist() == [60, 120, 240]
        assert partition.col_labels.bincount().tolist() == [50, 100, 200]

    def test_heavy_tails(self) -> None:
        heavy = cases.plant(cases.WeightCase(200, 100, 2, spread=1.0, heavy=True)).weight
        # The variance is 3; of 20,000 normal numbers with that variance none is 15 away.
        assert heavy.abs().max() > 15

    @pytest.mark.parametrize("pruned", ["smallest", "random"])
    def test_pruned_weight(self, pruned: str) -> None:
        case = cases.WeightCase(80, 50, 2, pruned=pruned)
        weight, _, rows = cases.plant(case)
        full = cases.plant(case._replace(pruned="")).weight
        kept = weight != 0
        assert rows.nnz == kept.sum() == 400
        np.testing.assert_array_equal(rows.toarray(), weight.numpy())
        torch.testing.assert_close(weight[kept], full[kept], rtol=0, atol=0)
        smallest_kept = bool(full[kept].abs().min() >= full[~kept].abs().max())
        assert smallest_kept == (pruned == "smallest")

    def test_block_model(self) -> None:
        adjacency, labels = cases.block_model(cases.GraphCase(3000, 4))
        assert (adjacency != adjacency.T).nnz == 0
        assert adjacency.diagonal().sum() == 0
        assert set(adjacency.data) == {1.0}
        assert np.bincount(labels).tolist() == [750] * 4
        # Less the few edges that were drawn twice or onto their own node.
        assert 19 < adjacency.nnz / 3000 <= 20
        rows, cols = adjacency.nonzero()
        # Of 60,000 entries: four standard deviations are 0.007.
        assert (labels[rows] == labels[cols]).mean() == pytest.approx(0.8, abs=0.02)
        assert cases.bytes_of(adjacency) == 8 * adjacency.nnz + 4 * 3001

    def test_from_the_command_line(self) -> None:
        assert cases.as_cases("weights") == cases.WEIGHTS
        assert cases.as_cases("graphs") == cases.GRAPHS
        assert cases.as_cases("20x10x3") == [cases.WeightCase(20, 10, 3)]
        assert cases.as_cases("20x3") == [cases.GraphCase(20, 3)]


class TestPeers:
    @pytest.mark.parametrize("pruned", ["", "smallest"])
    @pytest.mark.parametrize("name", ["modfast", *WEIGHT_PEERS])
    def test_weights(self, one_thread: None, name: str, pruned: str) -> None:
        # Easy: scikit-learn has fewer vectors than clusters, with ARPACK not even the best ones.
        planted = cases.plant(cases.WeightCase(300, 240, 3, spread=0.1, pruned=pruned))
        contestants = peers.weight_contestants(planted)
        assert list(contestants) == ["modfast", "floor", *WEIGHT_PEERS]
        found = contestants[name]()
        row_labels, col_labels = found.labels
        # Apart: the published pipeline numbers the clusters of rows and of columns on their own.
        assert adjusted_rand_score(planted.partition.row_labels, row_labels) == 1.0
        assert adjusted_rand_score(planted.partition.col_labels, col_labels) == 1.0
        assert (found.passes is not None) == (name == "modfast")

    @pytest.mark.parametrize("name", ["modfast", *GRAPH_PEERS])
    def test_graphs(self, one_thread: None, name: str) -> None:
        adjacency, labels = cases.block_model(cases.GraphCase(400, 2, mean_degree=30))
        contestants = peers.graph_contestants(adjacency, 2)
        assert list(contestants) == ["modfast", *GRAPH_PEERS]
        assert adjusted_rand_score(labels, contestants[name]().labels[0]) == 1.0

    def test_scikit_learn_is_left_out_of_large_graphs(self) -> None:
        adjacency, _ = cases.block_model(cases.GraphCase(60, 2))
        assert list(peers.graph_contestants(adjacency, 2, scikit_learn_nodes=59)) == ["modfast", "expert"]

    def test_floor_reads_the_weight(self) -> None:
        floor = peers.weight_contestants(cases.plant(cases.WeightCase(30, 20, 2)))["floor"]
        with torch.profiler.profile(record_shapes=True) as profile:
            assert floor() is None
        (sum_,) = [event for event in profile.events() if event.name == "aten::sum"]
        assert sum_.input_shapes[0] == [30, 20]


class TestRounds:
    def test_who_is_slow_is_called_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now, called = [0.0], []
        monkeypatch.setattr(rounds.time, "perf_counter", lambda: now[0])

        def taking(name: str, seconds: float) -> Any:
            def call() -> None:
                called.append(name)
                now[0] += seconds

            return call

        calls = {"slow": taking("slow", 6.0), "long": taking("long", 2.0), "short": taking("short", 0.01)}
        seconds = rounds.in_rounds(calls, 2, lambda: called.append("|"), once_above=5.0)
        assert seconds["slow"] == pytest.approx([6.0])
        assert seconds["long"] == pytest.approx([2.0, 2.0])
        assert seconds["short"] == pytest.approx([0.01] * 6)
        # Three to begin with; each round one call that takes long, or one to warm up and three that count.
        assert called.count("slow") == 1
        assert called.count("long") == 3
        assert called.count("short") == 9
        assert called.count("|") == 2

    def test_quartiles(self) -> None:
        quartiles = rounds.quartiles
        assert quartiles([0.25]) == [250.0, 250.0, 250.0]
        assert quartiles([0.001, 0.002, 0.003]) == pytest.approx([1.0, 2.0, 3.0])


class TestTable:
    @pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's count of a process's memory")
    def test_from_end_to_end(
        self, one_thread: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        page, kept = tmp_path / "page.md", tmp_path / "table.json"
        page.write_text(f"before\n{BEGIN}old\n{END}after\n")
        options = ["--cases", "300x200x2", "400x2", "--scikit-learn-nodes", "399", "--repeats", "1"]
        options += ["--threads", "1", "--json", str(kept), "--markdown", str(page)]
        table.main(options)
        printed = capsys.readouterr()
        assert "300 x 200, k 2" in printed.out
        assert "threads 1" in printed.out
        assert "400 nodes, k 2" in printed.err

        report = json.loads(kept.read_text())
        (weight,), (graph,) = report["weights"], report["graphs"]
        assert list(weight["milliseconds"]) == ["modfast", "floor", *WEIGHT_PEERS]
        assert list(weight["ratios"]) == WEIGHT_PEERS
        assert list(weight["adjusted_rand"]) == ["modfast", *WEIGHT_PEERS]
        assert weight["adjusted_rand"]["modfast"] == [1.0, 1.0]
        assert weight["clusterability"] == weight["planted_clusterability"]
        assert list(graph["milliseconds"]) == ["modfast", "expert"]
        assert list(graph["adjusted_rand"]) == list(graph["peak_bytes"]) == ["modfast", "expert"]
        assert min(graph["peak_bytes"].values()) > graph["graph_bytes"]

        before, rest = page.read_text().split(BEGIN)
        inside, after = rest.split(END)
        assert (before, after) == ("before\n", "after\n")
        assert "| weights | modfast, ms |" in inside
        assert "| graph | modfast, ms |" in inside
        assert "old" not in inside

    def test_cells(self) -> None:
        common = {
            "case": "name",
            "milliseconds": {"modfast": 8.0, "floor": 0.5},
            "quartiles": {"modfast": [7.0, 8.0, 9.04]},
            "passes": 4,
        }
        weight = common | {
            "clusterability": 0.6,
            "planted_clusterability": 0.7,
            "time_by_floor": 4.0,
            "ratios": dict(zip(WEIGHT_PEERS, [2.0, 3.0, 4.0, 50.04], strict=True)),
            "adjusted_rand": {name: [1.0, 0.75] for name in ["modfast", *WEIGHT_PEERS]},
        }
        shown = dict(zip(table.WEIGHTS_HEADINGS, table.weight_cells(weight), strict=True))
        assert shown == {
            "weights": "name",
            "modfast, ms": "8.0",
            "quartiles, ms": "7.0 - 9.0",
            "C found / planted": "0.600 / 0.700",
            "ARI rows, columns": "1.000, 0.750",
            "passes": "4",
            "floor, ms": "0.500",
            "time / floor": "4.0",
            "randomized": "2.0 x (0.750)",
            "arpack": "3.0 x (0.750)",
            "svd_lowrank": "4.0 x (0.750)",
            "published": "50.0 x (0.750)",
        }
        graph = common | {
            "ratios": {"expert": 3.0},
            "adjusted_rand": {"modfast": [1.0], "expert": [0.5]},
            "graph_bytes": 2_000_000,
            "peak_bytes": {"modfast": 3_000_000},
        }
        shown = dict(zip(table.GRAPHS_HEADINGS, table.graph_cells(graph), strict=True))
        assert shown == {
            "graph": "name",
            "modfast, ms": "8.0",
            "quartiles, ms": "7.0 - 9.0",
            "ARI": "1.000",
            "passes": "4",
            "expert": "3.0 x (0.500)",
            "arpack": "-",
            "lobpcg": "-",
            "graph, MB": "2.0",
            "peak, modfast": "1.50",
            "peak, expert": "-",
        }

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--cases", "12x9x5"], "room for the clusters, got '12x9x5'"),
            (["--cases", "some"], "got 'some'"),
            (["--repeats", "0"], "must be a whole number of at least 1, got '0'"),
            (["--markdown", "empty.md"], "empty.md: needs a line <!-- spectral table: begin -->"),
        ],
    )
    def test_refuses(
        self,
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

    @pytest.mark.parametrize("family", ["spectral", "solvers"])
    def test_page_has_a_place_for_the_tables(self, family: str) -> None:
        page = BENCHMARKS.parent / "docs" / "speed" / "spectral.md"
        pages.outside_markers(page.read_text(), family)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's count of a process's memory")
class TestPeakMemory:
    def test_counts_what_is_allocated_and_freed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        memory = peak_memory
        case = memory.GraphCase(1000, 2)
        adjacency, _ = memory.block_model(case)
        # The same call as in the fresh process, with a contestant whose need is known.
        monkeypatch.setattr(
            memory, "graph_contestants", lambda *_, **__: {"writes 64 MiB": lambda: torch.ones(2**24)}
        )
        found = memory._measure(case, "writes 64 MiB")
        assert found["graph"] == memory.bytes_of(adjacency)
        # Pages, and what other threads of the process do meanwhile.
        assert found["peak"] - found["graph"] == pytest.approx(2**26, rel=0.1)

    def test_tells_what_went_wrong(self, monkeypatch: pytest.MonkeyPatch) -> None:
        memory = peak_memory
        monkeypatch.setattr(sys, "executable", "ls")  # to which the options mean nothing
        with pytest.raises(
            RuntimeError, match=r"the peak of nobody with 100 nodes, k 2 was not measured:\n."
        ):
            memory.peak_of(memory.GraphCase(100, 2), "nobody", 1)


class TestScaling:
    def test_from_end_to_end(self, one_thread: None, tmp_path: Path) -> None:
        kept, picture = tmp_path / "scaling.json", tmp_path / "scaling.png"
        options = ["--decades", "1", "--repeats", "1", "--threads", "1"]
        scaling.main([*options, "--json", str(kept), "--picture", str(picture)])
        report = json.loads(kept.read_text())
        assert [each["name"] for each in report["series"]] == [
            "dense weight",
            "sparse weight",
            "graph",
            "graph, expert's eigsh and k-means",
        ]
        for series in report["series"]:
            sizes = [each["entries"] for each in series["points"]]
            # Random places and edges coincide in the small ones, which makes these smaller still.
            assert len(sizes) == 3
            assert 9 < sizes[2] / sizes[0] < 20
        assert matplotlib.image.imread(picture).shape[1] == 1440

    def test_exponents(self) -> None:
        # A constant of 5 ms beside a nanosecond for each entry: linear in the end.
        points = [{"entries": 10**p, "milliseconds": 5 + 1e-6 * 10**p} for p in range(2, 13)]
        assert scaling.exponent(
            [{"entries": e, "milliseconds": 3 * e**1.5} for e in (1, 7, 20)]
        ) == pytest.approx(1.5)
        upper = scaling.upper_half(points)
        assert [each["entries"] for each in upper] == [10**p for p in range(7, 13)]
        assert scaling.exponent(points) < scaling.exponent(upper) < 1.0

    def test_sparse_weight(self) -> None:
        weight = scaling.sparse_weight(40_000)
        assert weight.shape == (400, 400)
        assert weight.has_canonical_format
        # A place is drawn 1/4 times on the average: 1 - exp(-1/4) of them at least once.
        assert weight.nnz / 160_000 == pytest.approx(0.2212, abs=0.01)


class TestSolvers:
    @pytest.mark.parametrize("sizes", [(300, 200, 2), (400, 2)], ids=["weight", "graph"])
    def test_all_find_the_same(self, one_thread: None, sizes: tuple[int, ...]) -> None:
        make = solvers.WeightCase if len(sizes) == 3 else solvers.GraphCase
        problem = solvers.Problem(make(*sizes))
        dense = problem.product(torch.eye(problem.size)).double()
        torch.testing.assert_close(dense, dense.T, rtol=0, atol=1e-6)
        exact = torch.linalg.eigvalsh(dense).flip(0)[:2]
        for name, solve in solvers.SOLVERS.items():
            problem = solvers.Problem(make(*sizes))
            outcome = solve(problem)
            assert outcome.converged, name
            assert 1 <= outcome.passes <= problem.passes
            # A Ritz value is as near an eigenvalue as its residual is short.
            assert ((outcome.values - exact).abs() <= problem.tolerance(exact) + 1e-6).all(), name

    def test_table(self, one_thread: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        page = tmp_path / "page.md"
        page.write_text("<!-- solvers table: begin -->\n<!-- solvers table: end -->\n")
        solvers.main(["--cases", "300x200x2", "--markdown", str(page)])
        assert "block power" in capsys.readouterr().out
        assert "| 300 x 200, k 2, outside 0.25 |" in page.read_text()

    def test_says_who_did_not_converge(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(solvers, "MAX_PASSES", 2)
        problem = solvers.Problem(solvers.GraphCase(400, 2))
        assert solvers.cell(solvers.told(problem, solvers.subspace(problem))) == "not in 2"
