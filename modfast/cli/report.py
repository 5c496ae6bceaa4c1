"""``modfast report``: a finished folder, shown again."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modfast.circuits.folder import CIRCUITS, REPORT, read_circuits
from modfast.circuits.units.folder import UNIT_CIRCUITS, read_unit_circuits
from modfast.experiment.circuits import draw_circuits, trained_since
from modfast.experiment.cluster_files import redraw_clustering
from modfast.experiment.network_files import redraw_network
from modfast.experiment.runs import draw_reproduction, draw_run
from modfast.experiment.unit_circuits import draw_unit_circuits, units_trained_since
from modfast.manifest import COMMANDS, holds_any, read_manifest
from modfast.report.network_table import network_table
from modfast.report.tables import cluster_table, results_table, run_table
from modfast.results import KINDS, RESULTS, read_results
from modfast.run_folder import RunFolder
from modfast.train.distributed import Ranks

from .circuits import show_circuits, show_unit_circuits
from .display import Display


def run(options: argparse.Namespace, ranks: Ranks) -> None:
    """Print the table of the folder and draw its pictures."""
    if ranks.is_first:  # there is nothing to share
        with _reading(Path(options.out)):
            _show(Path(options.out))


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Turn what altered files of results cause into a ValueError that names them; leave defects as they are.

    A file that is as a command wrote it, by that command's manifest, lacks nothing.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        altered = [path for path in _results_in(folder) if not _is_as_written(path)]
        if not altered:
            raise
        raise ValueError(
            f"{', '.join(map(str, altered))}: damaged, or of another version: a part is missing, or of "
            f"another kind ({error!r})"
        ) from error


def _results_in(folder: Path) -> list[Path]:
    """The files of results of a folder and of the runs directly in it."""
    own = [folder / name for name in (RESULTS, CIRCUITS, UNIT_CIRCUITS)]
    return [path for path in [*own, *sorted(folder.glob(f"*/{RESULTS}"))] if path.exists()]


def _is_as_written(path: Path) -> bool:
    manifests = [read_manifest(path.parent, command) for command in COMMANDS]
    return any(holds_any(path, each.files.get(path.name, ())) for each in manifests if each is not None)


def _show(folder: Path) -> None:
    results, drawing = read_results(folder), RunFolder(folder, "report")
    with Display() as display:
        if "clustering" in results:
            reason = redraw_clustering(drawing)
            if reason is not None:
                display.note(reason)
            table = cluster_table(results)
        elif "network_clustering" in results:
            reason = redraw_network(drawing)
            if reason is not None:
                display.note(reason)
            table = network_table(results)
        elif all(kind in results for kind in KINDS):
            draw_reproduction(drawing)
            table = results_table(results)
        else:
            draw_run(drawing)
            table = run_table(results)
        for reason in drawing.left:
            display.note(reason)
        display.table(table, folder)
        if (folder / CIRCUITS).exists():
            _report_circuits(folder, display)
        if (folder / UNIT_CIRCUITS).exists():
            _report_unit_circuits(folder, display)


def _report_circuits(folder: Path, display: Display) -> None:
    circuits = read_circuits(folder)
    changed, refusal = trained_since(folder, circuits), RunFolder(folder, "report").refusal(REPORT)
    if refusal is not None:
        display.note(f"{refusal}: it is left as it is")
    elif not changed:  # else the drawing would combine circuits with the clusters of other models
        try:
            draw_circuits(folder)
        except (ValueError, OSError) as error:  # the table does not need what is missing or another now
            display.note(f"{REPORT} is left as it is: {error}")
    show_circuits(circuits, folder, display)
    if changed:
        display.note(
            f"{', '.join(changed)} was trained further after its circuits were found: "
            f"`modfast circuits {shlex.quote(str(folder))} --overwrite` finds the circuits again"
        )


def _report_unit_circuits(folder: Path, display: Display) -> None:
    circuits = read_unit_circuits(folder)
    changed = units_trained_since(folder, circuits)
    if not changed:
        try:
            draw_unit_circuits(folder, "report")
        except (ValueError, OSError) as error:  # the table does not need what is missing or another now
            display.note(f"pages of units are left as they are: {error}")
    show_unit_circuits(circuits, folder, display)
    if changed:
        display.note(
            f"{', '.join(changed)} was trained further after its unit circuits were found: "
            f"`modfast circuits {shlex.quote(str(folder))} --units --overwrite` finds them again"
        )
