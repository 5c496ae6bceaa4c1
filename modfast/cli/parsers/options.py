"""The options that several commands have. The defaults are those of a protocol, or of the dataclasses."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, TypeAlias

from modfast.arguments import MODELS
from modfast.experiment.protocols import PROTOCOLS
from modfast.settings import AFFINITIES, CLUSTERS_FROM, OPTIMIZERS, PRECISIONS, TrainConfig

Parsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What ``add_subparsers`` returns, to which each command adds its parser."""


def given_path(text: str) -> str:
    """Return a path that is not empty, as that of a variable which a shell does not know would be.

    An empty path stands for the current folder, where the command would write.

    Example:
        >>> given_path("out")
        'out'
    """
    if not text:
        raise argparse.ArgumentTypeError("must be a path, got an empty text")
    return text


def machine_options() -> argparse.ArgumentParser:
    """Return options for where to compute, and for what happens to existing results."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        "--device",
        default=TrainConfig.device,
        help="%(default)s (default), cpu, cuda, cuda:1, mps, xpu and so on",
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
    options.add_argument(
        "--out", type=given_path, required=True, metavar="DIR", help="folder for results and pictures"
    )
    return options


def training_options(protocol: str) -> argparse.ArgumentParser:
    """Return the output options, and which model to train, on which data, and how.

    Args:
        protocol: the name of the protocol that holds without ``--protocol``; its settings hold where no other
            option says otherwise.
    """
    options = argparse.ArgumentParser(add_help=False, parents=[out_options()])
    options.add_argument(
        "--data",
        default="digits",
        help="%(default)s (default), cifar10, mnist, imagefolder:PATH or fake; see modfast.data.load_dataset",
    )
    options.add_argument(
        "--protocol",
        choices=list(PROTOCOLS),
        default=protocol,
        metavar="NAME",
        help="settings that other options change one by one: "
        + "; ".join(f"{each.name} ({each.source})" for each in PROTOCOLS.values())
        + " (default: %(default)s)",
    )
    options.add_argument(
        "--model",
        help=f"{MODELS} (default: the protocol's; auto: mlp for images of one channel, cnn for others)",
    )
    options.add_argument(
        "--layers",
        nargs="+",
        metavar="NAME",
        help="layers to regularise, names or globs (default: all in --partitions; else the protocol's, but "
        "every linear layer of cnn-large and of a model of your own)",
    )

    def setting(flag: str, kind: Callable[[str], Any], metavar: str, text: str) -> None:
        options.add_argument(flag, type=kind, metavar=metavar, help=f"{text} (default: the protocol's)")

    setting("--clusters", int, "K", "number of clusters")
    options.add_argument(
        "--clusters-from",
        choices=CLUSTERS_FROM,
        help="blocks: equal contiguous blocks; file: --partitions; spectral: found in the network after "
        "the warm-up (default: file with --partitions, else the protocol's)",
    )
    options.add_argument(
        "--partitions",
        type=given_path,
        metavar="FILE",
        help="clusters of each layer, from modfast.save_partitions",
    )
    options.add_argument(
        "--warmup-epochs",
        type=int,
        metavar="N",
        help="epochs at the beginning without the enmeshment loss (default: the protocol's, in proportion to "
        "--epochs)",
    )
    options.add_argument(
        "--affinity",
        choices=AFFINITIES,
        help="what spectral clusters are found in (default: the protocol's)",
    )
    options.add_argument(
        "--chained",
        action=argparse.BooleanOptionalAction,
        help="spectral clusters that consecutive layers share (default: the protocol's)",
    )
    setting("--recluster-every", int, "N", "find spectral clusters anew after each so many epochs")
    setting(
        "--enmeshment-weight",
        float,
        "LAMBDA",
        "weight of the enmeshment loss; with 0, train makes a plain model",
    )
    setting(
        "--ramp-epochs",
        int,
        "N",
        "epochs after the warm-up in which that weight rises from 0, and --keep falls from 1",
    )
    setting("--l1-weight", float, "WEIGHT", "weight of the sum of all magnitudes of linear layers' weights")
    options.add_argument(
        "--optimizer",
        default=TrainConfig.optimizer,
        choices=OPTIMIZERS,
        help="Adam with the loss inside its own pass over the weights (fused), or PyTorch's (adam); auto: "
        "fused where it has kernels for the model (default: %(default)s)",
    )
    setting(
        "--keep", float, "SHARE", "share of each regularised layer's weights that stays non-zero after a step"
    )
    setting("--batch-size", int, "N", "images per step")
    setting("--learning-rate", float, "RATE", "learning rate of Adam")
    options.add_argument(
        "--precision",
        default=TrainConfig.precision,
        choices=PRECISIONS,
        help="number format of the forward pass (default: %(default)s)",
    )
    return options


def as_tuple(values: list[Any] | None) -> tuple[Any, ...] | None:
    """Return the values of an option as configurations take them."""
    return None if values is None else tuple(values)


_MOST_COUNTS = 100_000


def parse_counts(text: str) -> tuple[int, ...]:
    """Return the numbers of clusters that ``4``, ``2..20`` or ``2,4,8..10`` stands for, ascending, each once.

    Raises:
        ValueError: ``text`` has another form, or names no number, one below 1, or more than 100,000.

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
        # Before they are made: the largest range would take over 100 GB.
        if high - low >= _MOST_COUNTS - len(counts):
            raise ValueError(f"clusters must be at most {_MOST_COUNTS} numbers, got {text!r}")
        counts.update(range(low, high + 1))
    return tuple(sorted(counts))
