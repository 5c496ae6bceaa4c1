"""The options of ``modfast train``."""

from __future__ import annotations

import argparse

from modfast.settings import TrainConfig

from .options import Parsers, training_options


def add_parser(commands: Parsers) -> argparse.ArgumentParser:
    """Add the command and its options."""
    parser = commands.add_parser(
        "train",
        parents=[training_options("published-2024")],
        help="train one model",
        description="Train one model into a folder.",
    )
    parser.add_argument(
        "--seed", type=int, default=TrainConfig.seed, help="seed of random choices (default: %(default)s)"
    )
    parser.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help="passes over the data, the protocol's warm-up in proportion (default: the protocol's, with more "
        "of digits)",
    )
    return parser
