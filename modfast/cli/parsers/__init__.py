"""The options of all commands. Nothing here imports PyTorch: help, and a mistake, are told at once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from types import ModuleType

from modfast.version import __version__

from . import circuits, cluster, report, reproduce, train

_COMMANDS: tuple[ModuleType, ...] = (train, reproduce, circuits, cluster, report)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; its options hold the command's name as ``command``."""
    parser = argparse.ArgumentParser(
        prog="modfast",
        description="Train neural networks that fall apart into modules, find these modules, study circuits.",
    )
    parser.add_argument("--version", action="version", version=f"modfast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(commands)
    return parser


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of a command line; None takes the program's.

    Raises:
        SystemExit: help was asked for and shown, or the command line is wrong, which it has said.
    """
    parser = make_parser()
    options = parser.parse_args(arguments)
    for name, value in vars(options).items():
        # Of `--epochs=--` some versions of Python make no value. Only --circuits may have none.
        if value == [] and name != "circuits":
            parser.error(f"argument --{name.replace('_', '-')}: expected a value")
    return options
