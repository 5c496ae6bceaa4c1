"""From the words of a command line to the command that they name, and what is printed if it fails."""

from __future__ import annotations

import argparse
import functools
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType

from modfast.data.dataset import DataError
from modfast.train.checkpoint import TrainingError
from modfast.train.distributed import RankError, Ranks, launched, print_once
from modfast.version import __version__

from . import circuits, cluster, report, reproduce, train

_COMMANDS: tuple[ModuleType, ...] = (train, reproduce, circuits, cluster, report)


def make_parser() -> argparse.ArgumentParser:
    """The parser; ``run`` of what it gives is the command's function of options and :class:`Ranks`."""
    parser = argparse.ArgumentParser(
        prog="modfast",
        description="Train neural networks that fall apart into modules, find these, study their circuits.",
    )
    parser.add_argument("--version", action="version", version=f"modfast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(commands).set_defaults(run=command.run)
    return parser


def run(arguments: Sequence[str] | None) -> int:
    """As :func:`modfast.cli.main`."""
    ranks = Ranks()  # until it is known whether there are others
    try:
        with launched() as ranks:
            options = ranks.first(lambda: _parse(arguments, ranks))
            if isinstance(options, int):
                return options
            try:
                options.run(options, ranks)
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


def _parse(arguments: Sequence[str] | None, ranks: Ranks) -> argparse.Namespace | int:
    """The options; of several processes also the exit status, if help or what is wrong was shown instead."""
    try:
        return make_parser().parse_args(arguments)
    except SystemExit as ended:
        if ranks.size == 1:
            raise
        return int(ended.code or 0)


def _print_error(error: BaseException) -> None:
    """Print one line for what a user can mend; a defect of ours keeps its traceback."""
    if _is_expected(error):
        print(f"modfast: error: {error}", file=sys.stderr, flush=True)
    else:
        traceback.print_exception(error)


def _is_expected(error: BaseException) -> bool:
    """Whether the error is about what the user gave: its files, options, data or a missing package."""
    return isinstance(error, (ValueError, OSError, ImportError, DataError, TrainingError))
