"""The options of ``modfast circuits``."""

from __future__ import annotations

import argparse

from modfast.arguments import CRITERIA, UNIT_METHODS
from modfast.experiment.settings import RUN_ABLATIONS, CircuitConfig

from .options import Parsers, given_path, machine_options


def add_parser(commands: Parsers) -> argparse.ArgumentParser:
    """Add the command and its options."""
    parser = commands.add_parser(
        "circuits",
        parents=[machine_options()],
        help="find and compare the circuits of a finished folder",
        description="Find which weights each class needs, in the model of a finished run or in every model "
        "of a comparison, compare these circuits, and say what they show of the paper's claims. With --units "
        "find which neurons, channels and heads it needs, and draw them.",
    )
    parser.add_argument("out", type=given_path, metavar="RUN", help="folder that train or reproduce wrote")
    parser.add_argument(
        "--units",
        action="store_true",
        help="circuits of units (neurons, channels, heads) instead of weights, in any model that "
        "modfast.read_network can read; what must not fall is the log-likelihood of the class",
    )
    parser.add_argument(
        "--units-method",
        choices=UNIT_METHODS,
        help="attribution: the units of highest score, fast; greedy: decides unit by unit, mostly for fewer "
        "(default: attribution)",
    )
    parser.add_argument(
        "--ablation",
        choices=RUN_ABLATIONS,
        help="what other units are replaced by: zero, or mean, their mean over the test images "
        "(default: zero)",
    )
    parser.add_argument(
        "--criterion",
        nargs="+",
        choices=CRITERIA,
        metavar="CRITERION",
        help="what must not get worse: loss, as published; loss_and_accuracy; or balanced, the loss in "
        "telling the class from as many images of others, for circuits that must recognise it "
        "(default: loss balanced)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=CircuitConfig.tolerance,
        metavar="NATS",
        help="how much the loss may rise (default: %(default)s)",
    )
    parser.add_argument(
        "--labels", type=int, nargs="+", metavar="N", help="numbers of the classes (default: all)"
    )
    parser.add_argument(
        "--images", type=int, metavar="N", help="at most this many test images of each class (default: all)"
    )
    parser.add_argument(
        "--layers",
        nargs="+",
        metavar="NAME",
        help="layers to prune, names or globs (default: the linear layers that the model ends in)",
    )
    parser.add_argument("--data", help="where the data is now (default: where it was for training)")
    parser.add_argument(
        "--seed",
        type=int,
        default=CircuitConfig.seed,
        help="seed for drawing images and random circuits (default: %(default)s)",
    )
    return parser
