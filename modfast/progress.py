"""A progress bar for long work, with the time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def rich_progress(shown: bool) -> Any:
    """Rich's live display with our columns."""
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
    except ImportError as error:
        raise ImportError('a progress bar needs rich: pip install "modfast[experiments]"') from error
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=None if shown else Console(quiet=True),
    )


@contextmanager
def progress_bar(
    description: str, unit: str = "", *, shown: bool = True
) -> Iterator[Callable[[int, int], None]]:
    """Yield a function to give as ``progress``: it shows a bar on the terminal from its first call on.

    Args:
        description: what is being done.
        unit: what is counted.
        shown: False shows nothing.

    Raises:
        ImportError: rich is missing.

    Example:
        >>> with progress_bar("walking", "weights", shown=False) as progress:
        ...     progress(1, 2)
    """
    bar = rich_progress(shown)
    task: Any = None

    def show(done: int, total: int) -> None:
        nonlocal task
        if task is None:
            bar.start()
            task = bar.add_task(description, total=total, unit=unit)
        bar.update(task, completed=done)

    try:
        yield show
    finally:
        if task is not None:
            bar.stop()
