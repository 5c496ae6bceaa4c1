"""Parse a command line, run the command that it names, and print an error if that fails."""

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
    """Return the parser; its options hold as ``run`` the command's function of options and :class:`Ranks`."""
    parser = argparse.ArgumentParser(
        prog="modfast",
        description="Train neural networks that fall apart into modules, find these modules, study circuits.",
    )
    parser.add_argument("--version", action="version", version=f"modfast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(commands).set_defaults(run=command.run)
    return parser


def run(arguments: Sequence[str] | None) -> int:
    """Run a command line and return its exit status, as :func:`modfast.cli.main` does."""
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
    """Return the options; in several processes the exit status instead, if help or an error was shown."""
    try:
        return make_parser().parse_args(arguments)
    except SystemExit as ended:
        if ranks.size == 1:
            raise
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
