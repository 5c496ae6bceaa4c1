"""The options of ``modfast report``."""

from __future__ import annotations

import argparse

from .options import Parsers, given_path


def add_parser(commands: Parsers) -> argparse.ArgumentParser:
    """Add the command and its options."""
    parser = commands.add_parser(
        "report",
        help="show a finished folder again",
        description="Print the table of a finished folder and draw its pictures again.",
    )
    parser.add_argument(
        "out",
        type=given_path,
        metavar="DIR",
        help="folder that train, reproduce, circuits or cluster wrote",
    )
    return parser
