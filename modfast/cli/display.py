"""The display of a command at work: a bar with the time left, and a line for each epoch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from modfast.circuit import Circuit
from modfast.circuits.units.unit_circuit import UnitCircuit
from modfast.experiment.runs import Progress
from modfast.progress import rich_progress
from modfast.report.numbers import ranges
from modfast.train.config import Record


class Display:
    """A live bar for a command, as a context manager.

    On a terminal the bar moves. A file or pipe gets lines, at least one for each tenth of the epochs, and the
    table.

    Args:
        shown: False shows nothing, as in all but one of the processes that work together.
    """

    def __init__(self, shown: bool = True) -> None:
        self._bar = rich_progress(shown)
        self._task: Any = None
        self._epochs = 0
        self._name = ""
        self.progress = Progress(on_run=self._on_run, on_step=self._on_step, on_epoch=self._on_epoch)

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def _on_run(self, name: str, epochs: int) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._name, self._epochs = name, epochs
        self._task = None

    def _on_step(self, epoch: int, step: int, steps: int) -> None:
        if self._task is None:
            # A resumed run starts where it stopped, so that the speed shown is that of the present steps.
            done = (epoch - 1) * steps + step - 1
            self._task = self._bar.add_task(
                self._name, total=self._epochs * steps, completed=done, unit="steps"
            )
        self._bar.advance(self._task)

    def _on_epoch(self, record: Record) -> None:
        # With many epochs, a line for each tenth of them is enough; the bar shows the others.
        every = max(1, self._epochs // 10)
        if self._task is not None:
            state = f"loss {record['loss']:.4f}, accuracy {100 * record['test_accuracy']:.1f} %"
            self._bar.update(self._task, description=f"{self._name}, {state}")
        if record["epoch"] % every and record["epoch"] != self._epochs:
            return
        shares = "  ".join(f"{layer} {share:.3f}" for layer, share in record["clusterability"].items())
        self._bar.console.print(
            f"{self._name}  epoch {record['epoch']}/{self._epochs}  "
            f"cross-entropy {record['cross_entropy']:.4f}  "
            f"test accuracy {100 * record['test_accuracy']:.2f} %  "
            f"clusterability {shares}  {record['seconds']:.2f} s",
            highlight=False,
            soft_wrap=True,
        )

    def on_clustering(self, layer: str, num_clusters: int, done: int, total: int) -> None:
        """Show which of a network's layers is being clustered, and into how many clusters."""
        if self._task is None:
            self._task = self._bar.add_task("", total=total, completed=done, unit="clusterings")
        self._bar.update(self._task, description=f"{layer}, k {num_clusters}", completed=done)

    def on_layer(self, layer: str, record: Record) -> None:
        """Print a line for a layer that has been clustered."""
        shape = " x ".join(str(size) for size in record["shape"])
        parts = [f"{layer} ({shape})"]
        if record["chosen"] is not None:
            (best,) = [made for made in record["clusters"] if made["num_clusters"] == record["chosen"]]
            seconds = sum(made["seconds"] for made in record["clusters"])
            parts += [f"k {record['chosen']}", f"clusterability {best['clusterability']:.3f}"]
            parts += [f"normalised cut {best['normalized_cut']:.3f}", f"{seconds:.2f} s"]
        too_many = [k for k in record["left_out"] if k > min(record["shape"][:2])]
        if too_many:
            parts.append(f"left out: k {ranges(too_many)}, more than its smaller side")
        if len(too_many) < len(record["left_out"]):
            parts.append("left out: all its weights are zero")
        self.note("  ".join(parts))

    def on_walk(self, run: str, criterion: str, done: int, total: int) -> None:
        """Show how many weights have been decided, of all circuits."""
        if self._task is None:
            self._task = self._bar.add_task("", total=total, completed=done, unit="weights")
        self._bar.update(self._task, description=f"circuits of {run}, {criterion}", completed=done)

    def on_circuits(self, run: str, criterion: str, circuits: Sequence[Circuit], seconds: float) -> None:
        """Print a line for a model whose circuits have been found."""
        labels = ranges(sorted(circuit.label for circuit in circuits))
        size = sum(circuit.size for circuit in circuits) / len(circuits)
        accuracy = sum(circuit.accuracy_after for circuit in circuits) / len(circuits)
        self.note(
            f"{run}  circuits of labels {labels} by {criterion}  {100 * size:.2f} % of the weights  "
            f"accuracy {100 * accuracy:.1f} %  {seconds:.2f} s"
        )

    def on_unit_search(self, run: str, done: float, total: int) -> None:
        """Show how many unit circuits have been found, a part of the present one included."""
        if self._task is None:
            self._task = self._bar.add_task("", total=total, completed=done, unit="circuits")
        self._bar.update(self._task, description=f"unit circuits of {run}", completed=done)

    def on_unit_circuits(self, run: str, circuits: Sequence[UnitCircuit], seconds: float) -> None:
        """Print a line for a model whose unit circuits have been found."""
        size = sum(circuit.size for circuit in circuits) / len(circuits)
        passes = sum(circuit.num_passes for circuit in circuits) / len(circuits)
        self.note(
            f"{run}  {len(circuits)} unit circuits  {100 * size:.2f} % of the units  "
            f"{passes:.0f} passes each  {seconds:.2f} s"
        )

    def note(self, text: str) -> None:
        """Print a line."""
        self._bar.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def table(self, table: Any, folder: Path) -> None:
        """Print a results table and where the files are."""
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
        self._bar.console.print(table)
        self._bar.console.print(f"Results and pictures: {folder}", highlight=False, soft_wrap=True)
