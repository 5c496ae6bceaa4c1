"""Time spectral clustering beside its peers and its floor, and print two tables. See benchmarks/README.md."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import scipy
import sklearn
import torch
from rich.console import Console
from rich.progress import Progress
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_limits

from benchmarks.common.pages import (
    add_options,
    add_page_option,
    as_markdown,
    at_least,
    check_page,
    put_into_page,
    show,
    versions,
    what_times_depend_on,
)
from benchmarks.common.rounds import in_rounds, quartiles
from benchmarks.spectral import peak_memory
from benchmarks.spectral.cases import (
    GRAPHS,
    WEIGHTS,
    Case,
    GraphCase,
    WeightCase,
    as_cases,
    block_model,
    bytes_of,
    plant,
)
from benchmarks.spectral.peers import (
    EXPERT,
    FLOOR,
    GRAPH_PEERS,
    OURS,
    SCIKIT_LEARN_NODES,
    WEIGHT_PEERS,
    Contestant,
    Found,
    graph_contestants,
    weight_contestants,
)
from modfast import Partition, clusterability
from modfast.files import write_json

# A contestant that takes longer is timed once.
SLOW_SECONDS = 5.0

PEERS_CAPTION = (
    "Medians, with the quartiles of modfast's. Under a peer's name: how many times as long as modfast it "
    "took, and in brackets its adjusted Rand index{which}."
)
WEIGHTS_CAPTION = PEERS_CAPTION.format(which=", the lower of rows' and columns'") + (
    " Time / floor: modfast's, by the time that its passes would take if each only read the weight."
)
GRAPHS_CAPTION = PEERS_CAPTION.format(which="") + (
    " Peak: memory in use at most, the graph included, as a multiple of the graph's own."
)
WEIGHTS_HEADINGS = [
    "weights",
    f"{OURS}, ms",
    "quartiles, ms",
    "C found / planted",
    "ARI rows, columns",
    "passes",
    "floor, ms",
    "time / floor",
    *WEIGHT_PEERS,
]
GRAPHS_HEADINGS = [
    "graph",
    f"{OURS}, ms",
    "quartiles, ms",
    "ARI",
    "passes",
    *GRAPH_PEERS,
    "graph, MB",
    f"peak, {OURS}",
    f"peak, {EXPERT}",
]


def measure(
    case: Case,
    contestants: dict[str, Contestant],
    truth: Sequence[Any],
    repeats: int,
    advance: Callable[[], None],
) -> tuple[dict[str, Any], dict[str, Found]]:
    """Return the results that both tables hold, and what each contestant found."""
    clusterings: dict[str, Found] = {}

    def recording(name: str, call: Contestant) -> Callable[[], None]:
        def recorded() -> None:
            if clustering := call():
                clusterings[name] = clustering

        return recorded

    calls = {name: recording(name, call) for name, call in contestants.items()}
    seconds = in_rounds(calls, repeats, advance, once_above=SLOW_SECONDS)
    by_name = {name: quartiles(values) for name, values in seconds.items()}
    median = {name: values[1] for name, values in by_name.items()}
    result = {
        "case": str(case),
        **case._asdict(),
        "milliseconds": median,
        "quartiles": by_name,
        "calls": {name: len(values) for name, values in seconds.items()},
        "passes": clusterings[OURS].passes,
        "ratios": {name: median[name] / median[OURS] for name in clusterings if name != OURS},
        "adjusted_rand": {
            name: [
                float(adjusted_rand_score(expected, labels))
                for expected, labels in zip(truth, clustering.labels, strict=True)
            ]
            for name, clustering in clusterings.items()
        },
    }
    return result, clusterings


def measure_weight(case: WeightCase, repeats: int, advance: Callable[[], None]) -> dict[str, Any]:
    planted = plant(case)
    truth = (planted.partition.row_labels.numpy(), planted.partition.col_labels.numpy())
    result, clusterings = measure(case, weight_contestants(planted), truth, repeats, advance)
    ours = Partition(*map(torch.from_numpy, clusterings[OURS].labels), case.clusters)
    floor = result["passes"] * result["milliseconds"][FLOOR]
    return result | {
        "clusterability": float(clusterability(planted.weight, ours)),
        "planted_clusterability": float(clusterability(planted.weight, planted.partition)),
        "time_by_floor": result["milliseconds"][OURS] / floor,
    }


def measure_graph(
    case: GraphCase, repeats: int, advance: Callable[[], None], threads: int, scikit_learn_nodes: int
) -> dict[str, Any]:
    adjacency, labels = block_model(case)
    contestants = graph_contestants(adjacency, case.clusters, scikit_learn_nodes)
    result, _ = measure(case, contestants, (labels,), repeats, advance)
    result |= {"entries": adjacency.nnz, "graph_bytes": bytes_of(adjacency)}
    del adjacency, contestants
    measured = (OURS, EXPERT) if peak_memory.available() else ()
    peaks = {name: peak_memory.peak_of(case, name, threads)["peak"] for name in measured}
    return result | {"peak_bytes": peaks}


# --- The tables


def peer_cells(result: dict[str, Any], names: Sequence[str]) -> list[str]:
    ratios, index = result["ratios"], result["adjusted_rand"]
    return [f"{ratios[name]:.1f} x ({min(index[name]):.3f})" if name in ratios else "-" for name in names]


def time_cells(result: dict[str, Any]) -> list[str]:
    low, ours, high = result["quartiles"][OURS]
    return [result["case"], f"{ours:.1f}", f"{low:.1f} - {high:.1f}"]


def weight_cells(result: dict[str, Any]) -> list[str]:
    """Return one row of the table of weights, under its headings."""
    return [
        *time_cells(result),
        f"{result['clusterability']:.3f} / {result['planted_clusterability']:.3f}",
        ", ".join(f"{index:.3f}" for index in result["adjusted_rand"][OURS]),
        str(result["passes"]),
        f"{result['milliseconds'][FLOOR]:.3f}",
        f"{result['time_by_floor']:.1f}",
        *peer_cells(result, WEIGHT_PEERS),
    ]


def graph_cells(result: dict[str, Any]) -> list[str]:
    """Return one row of the table of graphs, under its headings."""
    peaks, own = result["peak_bytes"], result["graph_bytes"]
    return [
        *time_cells(result),
        f"{result['adjusted_rand'][OURS][0]:.3f}",
        str(result["passes"]),
        *peer_cells(result, GRAPH_PEERS),
        f"{own / 1e6:.1f}",
        *(f"{peaks[name] / own:.2f}" if name in peaks else "-" for name in (OURS, EXPERT)),
    ]


def tables(report: dict[str, Any]) -> list[tuple[list[str], list[list[str]], str]]:
    """Return headings, rows and caption of each table that has rows."""
    both = [
        (WEIGHTS_HEADINGS, [weight_cells(result) for result in report["weights"]], WEIGHTS_CAPTION),
        (GRAPHS_HEADINGS, [graph_cells(result) for result in report["graphs"]], GRAPHS_CAPTION),
    ]
    return [table for table in both if table[1]]


def setting(report: dict[str, Any]) -> str:
    """Return what the times depend on, in one line."""
    machine = report["environment"]
    return (
        f"{report['date']}: {machine['processor']}, threads {machine['threads']}; {versions(report)}, "
        f"SciPy {report['scipy']}, scikit-learn {report['scikit_learn']}"
    )


def markdown(report: dict[str, Any]) -> str:
    parts = [f"{as_markdown(headings, rows)}\n\n{caption}\n" for headings, rows, caption in tables(report)]
    return "\n".join([f"{setting(report)}\n", *parts])


# --- From the command line


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--cases",
        nargs="+",
        type=as_cases,
        default=[WEIGHTS, GRAPHS],
        metavar="CASE",
        help="weights, graphs (by default both), for example 2048x512x4 for a weight, 2000x8 for a graph",
    )
    parser.add_argument(
        "--scikit-learn-nodes",
        type=at_least(0),
        default=SCIKIT_LEARN_NODES,
        metavar="N",
        help=f"time scikit-learn on graphs of up to this many nodes; default {SCIKIT_LEARN_NODES}",
    )
    add_options(parser, repeats=7)
    add_page_option(parser)
    options = parser.parse_args(arguments)
    check_page(parser, options.markdown, "spectral")
    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {
        **what_times_depend_on(),
        "scipy": scipy.__version__,
        "scikit_learn": sklearn.__version__,
        "repeats": options.repeats,
        "weights": [],
        "graphs": [],
    }
    # The display is drawn between rounds: a thread that draws in the background would be timed as well.
    progress = Progress(console=Console(stderr=True), auto_refresh=False)
    # NumPy's and scikit-learn's threads are not PyTorch's.
    with threadpool_limits(options.threads), progress:
        for case in (case for cases in options.cases for case in cases):
            task = progress.add_task(str(case), total=options.repeats)

            def advance(task: Any = task) -> None:
                progress.update(task, advance=1, refresh=True)

            progress.refresh()
            if isinstance(case, WeightCase):
                report["weights"].append(measure_weight(case, options.repeats, advance))
            else:
                nodes = options.scikit_learn_nodes
                result = measure_graph(case, options.repeats, advance, options.threads, nodes)
                report["graphs"].append(result)

    for headings, rows, caption in tables(report):
        show(setting(report), caption, headings, rows)
    if options.json:
        write_json(options.json, report)
    if options.markdown:
        put_into_page(options.markdown, "spectral", markdown(report))


if __name__ == "__main__":
    main()
