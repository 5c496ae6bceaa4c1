"""The options of all commands. Nothing here imports PyTorch: help, and a mistake, are told at once."""

from __future__ import annotations

import argparse
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
