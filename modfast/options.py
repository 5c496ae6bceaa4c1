"""The options of the command line."""

from __future__ import annotations

import argparse

from .version import __version__

# As modfast.circuit has them, which imports PyTorch: that takes seconds, which --help need not wait for.
_CRITERIA = ("loss", "loss_and_accuracy", "balanced")


def make_parser() -> argparse.ArgumentParser:
    """The parser; ``command`` of what it gives is the command's name."""
    parser = argparse.ArgumentParser(
        prog="modfast",
        description="Train neural networks that fall apart into modules, find these, study their circuits.",
    )
    parser.add_argument("--version", action="version", version=f"modfast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    machine = argparse.ArgumentParser(add_help=False)
    machine.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, ...")
    machine.add_argument(
        "--threads", type=int, metavar="N", help="threads on the CPU (default: PyTorch's choice)"
    )
    machine.add_argument("--resume", action="store_true", help="continue a run that was stopped or killed")
    machine.add_argument(
        "--overwrite", action="store_true", help="replace what this command wrote there, and nothing else"
    )

    work = argparse.ArgumentParser(add_help=False, parents=[machine])
    work.add_argument("--out", required=True, metavar="DIR", help="folder for results, pictures, checkpoints")

    common = argparse.ArgumentParser(add_help=False, parents=[work])
    common.add_argument(
        "--data",
        default="digits",
        help="digits (default), cifar10, mnist, imagefolder:PATH or fake; see modfast.data.load_dataset",
    )
    common.add_argument("--model", default="auto", help="auto (default), cnn, mlp or package.module:callable")
    common.add_argument(
        "--layers",
        nargs="+",
        metavar="NAME",
        help="layers to regularise, names or globs (default: fc2 of the paper's models, else every linear)",
    )
    common.add_argument(
        "--clusters", type=int, default=4, metavar="K", help="number of clusters (default: 4)"
    )
    common.add_argument(
        "--enmeshment-weight",
        type=float,
        default=0.7,
        metavar="LAMBDA",
        help="default: 0.7; 0 is a plain model",
    )
    common.add_argument("--batch-size", type=int, default=64, metavar="N", help="default: 64")
    common.add_argument(
        "--learning-rate", type=float, default=1e-3, metavar="RATE", help="Adam's; default: 0.001"
    )
    common.add_argument(
        "--precision", default="float32", choices=["float32", "bfloat16"], help="of the forward pass"
    )

    train = commands.add_parser(
        "train", parents=[common], help="train one model", description="Train one model into a folder."
    )
    train.add_argument("--seed", type=int, default=42, help="default: 42")
    train.add_argument("--epochs", type=int, metavar="N", help="default: 21, as published; 60 for digits")
    train.add_argument(
        "--partitions", metavar="FILE", help="clusters of each layer, from modfast.save_partitions"
    )

    reproduce = commands.add_parser(
        "reproduce",
        parents=[common],
        help="plain against modular model over seeds",
        description="Train a plain and a modular model for each seed and compare them.",
    )
    reproduce.add_argument("--seed", type=int, default=42, help="the first seed (default: 42)")
    reproduce.add_argument("--seeds", type=int, default=3, metavar="N", help="how many seeds (default: 3)")
    reproduce.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help="for both models (default: 10 plain and 21 modular, as published; 60 for digits)",
    )

    reproduce.add_argument(
        "--circuits",
        nargs="*",
        choices=_CRITERIA,
        metavar="CRITERION",
        help="find the circuits, too, by these criteria of `modfast circuits` (default: loss balanced)",
    )

    circuits = commands.add_parser(
        "circuits",
        parents=[machine],
        help="find and compare the circuits of a finished folder",
        description="Find which weights each class needs, in the model of a finished run or in every model "
        "of a comparison, compare these circuits, and say what they show of the paper's claims.",
    )
    circuits.add_argument("out", metavar="RUN", help="what train or reproduce wrote")
    circuits.add_argument(
        "--criterion",
        nargs="+",
        choices=_CRITERIA,
        metavar="CRITERION",
        help="what must not get worse: loss, loss_and_accuracy, or balanced, the loss of telling the class "
        "from as many images of others (default: loss balanced)",
    )
    circuits.add_argument(
        "--tolerance", type=float, default=0.0, metavar="NATS", help="how much the loss may rise; default: 0"
    )
    circuits.add_argument(
        "--labels", type=int, nargs="+", metavar="N", help="numbers of the classes (default: all)"
    )
    circuits.add_argument(
        "--images", type=int, metavar="N", help="at most so many test images of each class (default: all)"
    )
    circuits.add_argument(
        "--layers",
        nargs="+",
        metavar="NAME",
        help="layers to prune, names or globs (default: the linear layers that the model ends in)",
    )
    circuits.add_argument("--data", help="where the data is now (default: where it was for training)")
    circuits.add_argument(
        "--seed", type=int, default=0, help="of what is drawn at random, images and weights; default: 0"
    )

    cluster = commands.add_parser(
        "cluster",
        parents=[work],
        help="find the clusters of a network's layers",
        description="Cluster each layer's weights spectrally, for many numbers of clusters k. The k with the "
        "largest gap between singular values is chosen; its clusters are saved for train --partitions.",
    )
    cluster.add_argument(
        "model",
        metavar="MODEL",
        help="what train wrote (folder or checkpoint), a file with a state_dict (.pt, .pth, .safetensors), "
        "or package.module:callable",
    )
    cluster.add_argument(
        "-k", "--clusters", default="2..20", metavar="K", help="as 4, 2..20 (default) or 2,4,8"
    )
    cluster.add_argument(
        "--layers", nargs="+", metavar="NAME", help="names or globs (default: every weight matrix)"
    )
    cluster.add_argument(
        "--affinity",
        default="abs",
        choices=["abs", "square"],
        help="similarity: |weight| (default), weight^2",
    )
    cluster.add_argument("--seed", type=int, default=0, help="default: 0")
    cluster.add_argument(
        "--n-init", type=int, default=10, metavar="N", help="starts of k-means, the best is kept; default: 10"
    )
    cluster.add_argument(
        "--shuffles",
        type=int,
        default=19,
        metavar="N",
        help="random orders of the weights whose gaps the chosen one must exceed; default: 19",
    )
    cluster.add_argument(
        "--tol",
        type=float,
        default=1e-3,
        metavar="T",
        help="of the singular vectors' residuals; default: 0.001",
    )
    cluster.add_argument(
        "--data", help="call MODEL, a callable, with the image shape and number of classes of this data set"
    )

    report = commands.add_parser(
        "report",
        help="show a finished folder again",
        description="Print the table of a finished folder and draw its pictures again.",
    )
    report.add_argument("out", metavar="DIR", help="what train, reproduce, circuits or cluster wrote")
    return parser


def parse_counts(text: str) -> tuple[int, ...]:
    """The numbers of clusters that ``4``, ``2..20`` or ``2,4,8..10`` stands for, ascending, each once.

    Raises:
        ValueError: it has another form, names none, or one below 1.

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
