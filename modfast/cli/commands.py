"""Run the command that a command line names, and print an error if that fails."""

from __future__ import annotations

import argparse
import functools
import sys
import traceback
from collections.abc import Callable, Sequence

from modfast.data.dataset import DataError
from modfast.train.checkpoint import TrainingError
from modfast.train.distributed import RankError, Ranks, launched, print_once

from . import circuits, cluster, report, reproduce, train
from .parsers import parse

_RUN: dict[str, Callable[[argparse.Namespace, Ranks], None]] = {
    "train": train.run,
    "reproduce": reproduce.run,
    "circuits": circuits.run,
    "cluster": cluster.run,
    "report": report.run,
}


def run(arguments: Sequence[str] | None, options: argparse.Namespace | None) -> int:
    """Run a command line and return its exit status, as :func:`modfast.cli.main` does.

    Args:
        arguments: the command line; None takes the program's.
        options: what it was parsed into; None in one of several processes, of which the first one parses it.
    """
    ranks = Ranks()  # until it is known whether there are others
    try:
        with launched() as ranks:
            parsed = ranks.first(lambda: _parse(arguments)) if options is None else options
            if isinstance(parsed, int):
                return parsed
            try:
                _RUN[parsed.command](parsed, ranks)
            except RankError as error:
                cause = error.__cause__
                print_once(None if cause is None else functools.partial(_print_error, cause))
                return 1
    except KeyboardInterrupt:
        if ranks.is_first:
            print("\nmodfast: interrupted; what was finished is kept, --resume continues", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        if not _is_expected(error):
            raise
        print_once(functools.partial(_print_error, error))
        return 1
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace | int:
    """Return the options, or the exit status if help or an error was shown."""
    try:
        return parse(arguments)
    except SystemExit as ended:
        return int(ended.code or 0)


def _print_error(error: BaseException) -> None:
    """Print one line for an error that users can mend; a defect of modfast keeps its traceback."""
    if _is_expected(error):
        lines = (line.strip() for line in str(error).splitlines())  # PyTorch's messages may have several
        print(f"modfast: error: {'; '.join(filter(None, lines))}", file=sys.stderr, flush=True)
    else:
        traceback.print_exception(error)


def _is_expected(error: BaseException) -> bool:
    """Whether the error is about what the user provides: files, options, data or packages."""
    return isinstance(error, (ValueError, OSError, ImportError, DataError, TrainingError))
