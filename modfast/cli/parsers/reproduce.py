"""The options of ``modfast reproduce``."""

from __future__ import annotations

import argparse

from modfast.arguments import CRITERIA
from modfast.experiment.protocols import RECOMMENDED
from modfast.settings import TrainConfig

from .options import Parsers, training_options


def add_parser(commands: Parsers) -> argparse.ArgumentParser:
    """Add the command and its options."""
    parser = commands.add_parser(
        "reproduce",
        parents=[training_options(RECOMMENDED)],
        help="plain against modular model over seeds",
        description="Train a plain and a modular model for each seed and compare them.",
    )
    parser.add_argument(
        "--seed", type=int, default=TrainConfig.seed, help="the first seed (default: %(default)s)"
    )
    parser.add_argument(
        "--seeds", type=int, default=10, metavar="N", help="how many seeds (default: %(default)s)"
    )
    parser.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help="for both models, the warm-up in proportion (default: the protocol's, with more of digits)",
    )
    parser.add_argument(
        "--circuits",
        nargs="*",
        choices=CRITERIA,
        metavar="CRITERION",
        help="also find circuits, by these criteria of `modfast circuits` (default: loss balanced)",
    )
    return parser
