"""The options that several commands have. The defaults are those of the dataclasses that they fill."""

from __future__ import annotations

import argparse
from typing import Any, TypeAlias

from modfast.train.config import PRECISIONS, TrainConfig

Parsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What ``add_subparsers`` returns, to which each command adds its parser."""


def machine_options() -> argparse.ArgumentParser:
    """Return options for where to compute, and for what happens to existing results."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        "--device", default=TrainConfig.device, help="%(default)s (default), cpu, cuda, cuda:1"
    )
    options.add_argument(
        "--threads", type=int, metavar="N", help="threads on the CPU (default: PyTorch's choice)"
    )
    options.add_argument("--resume", action="store_true", help="continue a run that was stopped or killed")
    options.add_argument(
        "--overwrite", action="store_true", help="replace what this command wrote there, and nothing else"
    )
    return options


def out_options() -> argparse.ArgumentParser:
    """Return the machine options, and where to write."""
    options = argparse.ArgumentParser(add_help=False, parents=[machine_options()])
    options.add_argument("--out", required=True, metavar="DIR", help="folder for results and pictures")
    return options


def training_options() -> argparse.ArgumentParser:
    """Return the output options, and which model to train, on which data, and how."""
    options = argparse.ArgumentParser(add_help=False, parents=[out_options()])
    options.add_argument(
        "--data",
        default="digits",
        help="%(default)s (default), cifar10, mnist, imagefolder:PATH or fake; see modfast.data.load_dataset",
    )
    options.add_argument(
        "--model",
        default="auto",
        help="%(default)s (default), cnn, cnn4, cnn-large, mlp or package.module:callable; "
        "see modfast.models.build_model",
    )
    options.add_argument(
        "--layers",
        nargs="+",
        metavar="NAME",
        help="layers to regularise, names or globs (default: fc2 of auto, cnn, cnn4, mlp; else every linear)",
    )

    def number(flag: str, default: Any, metavar: str, text: str) -> None:
        options.add_argument(
            flag, type=type(default), default=default, metavar=metavar, help=f"{text} (default: %(default)s)"
        )

    options.add_argument(
        "--clusters",
        type=int,
        metavar="K",
        help=f"number of clusters, equal blocks of neurons (default: {TrainConfig.num_clusters})",
    )
    number(
        "--enmeshment-weight",
        TrainConfig.enmeshment_weight,
        "LAMBDA",
        "weight of the enmeshment loss; 0 trains a plain model",
    )
    number("--batch-size", TrainConfig.batch_size, "N", "images per step")
    number("--learning-rate", TrainConfig.learning_rate, "RATE", "learning rate of Adam")
    options.add_argument(
        "--precision",
        default=TrainConfig.precision,
        choices=list(PRECISIONS),
        help="number format of the forward pass (default: %(default)s)",
    )
    return options


def as_tuple(values: list[Any] | None) -> tuple[Any, ...] | None:
    """Return the values of an option as configurations take them."""
    return None if values is None else tuple(values)


def parse_counts(text: str) -> tuple[int, ...]:
    """Return the numbers of clusters that ``4``, ``2..20`` or ``2,4,8..10`` stands for, ascending, each once.

    Raises:
        ValueError: ``text`` has another form, or names no number or one below 1.

    Example:
        >>> parse_counts("8,2..4")
        (2, 3, 4, 8)
    """
    counts: set[int] = set()
    for part in text.split(","):
        first, dots, last = part.partition("..")
        try:
            low = int(first)
            high = int(last) if dots else low
        except ValueError:
            low, high = 0, 0
        if not 1 <= low <= high < 2**31 - 1:
            raise ValueError(f"clusters must be like 4, 2..20 or 2,4,8, each at least 1, got {text!r}")
        counts.update(range(low, high + 1))
    return tuple(sorted(counts))
