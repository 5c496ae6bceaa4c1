"""The command line: ``modfast train``, ``modfast reproduce`` and ``modfast report``."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:  # PyTorch takes seconds, which --help need not wait for
    from .distributed import Ranks

# As published (arXiv 2409.15747), for the modular and for the plain model. The digits are 1,437 images, so
# that 60 epochs of them are as many steps as two of CIFAR-10.
_EPOCHS = (21, 10)
_DIGITS_EPOCHS = (60, 60)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="modfast",
        description="Train neural networks that fall apart into modules, and show what came of it.",
    )
    parser.add_argument("--version", action="version", version=f"modfast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--data",
        default="digits",
        help="digits (default), cifar10, mnist, imagefolder:PATH or fake; see modfast.data.load_dataset",
    )
    common.add_argument(
        "--out", required=True, metavar="DIR", help="folder for results, pictures, checkpoints"
    )
    common.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, ...")
    common.add_argument(
        "--threads", type=int, metavar="N", help="threads on the CPU (default: PyTorch's choice)"
    )
    common.add_argument("--resume", action="store_true", help="continue a run that was stopped or killed")
    common.add_argument("--overwrite", action="store_true", help="replace the results that DIR holds")
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
    train.set_defaults(run=_train)

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
    reproduce.set_defaults(run=_reproduce)

    report = commands.add_parser(
        "report",
        help="show a finished folder again",
        description="Print the table of a finished folder and draw its pictures again.",
    )
    report.add_argument("out", metavar="DIR", help="what train or reproduce wrote")
    report.set_defaults(run=_report)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 for an error, 130 when interrupted.

    Under torchrun all its processes work together, and the first one shows and writes.
    """
    options = _parser().parse_args(arguments)
    from .distributed import RankError, Ranks, launched

    ranks = Ranks()  # until it is known whether there are others
    try:
        with launched() as ranks:
            try:
                options.run(options, ranks)
            except RankError as error:
                if error.__cause__ is not None:
                    _tell(error.__cause__)
                # All fail here together, but only once the message is out: when one process has ended with an
                # error, torchrun ends the others.
                ranks.gather(None)
                return 1
    except KeyboardInterrupt:
        if ranks.is_first:
            print("\nmodfast: interrupted; the finished epochs are kept, --resume continues", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        if not _is_expected(error):
            raise
        _tell(error)
        return 1
    return 0


def _tell(error: BaseException) -> None:
    """Print an error: what a user can mend is one line; a defect of ours keeps its traceback."""
    if _is_expected(error):
        print(f"modfast: error: {error}", file=sys.stderr, flush=True)
    else:
        traceback.print_exception(error)


def _is_expected(error: BaseException) -> bool:
    """Whether the error is about what the user gave: its files, options, data or a missing package."""
    from .data import DataError
    from .train import TrainingError

    return isinstance(error, (ValueError, OSError, ImportError, DataError, TrainingError))


def _epochs(options: argparse.Namespace) -> tuple[int, int]:
    """The epochs of a modular and of a plain model."""
    if options.epochs is not None:
        return options.epochs, options.epochs
    return _DIGITS_EPOCHS if options.data == "digits" else _EPOCHS


def _load(options: argparse.Namespace, ranks: Ranks) -> Any:
    from .data import load_dataset
    from .display import decoding

    with decoding(shown=ranks.is_first) as show:
        # One process downloads or decodes; the others of its machine read what it kept.
        return ranks.first_of_each_machine(lambda: load_dataset(options.data, progress=show))


def _config(
    options: argparse.Namespace, ranks: Ranks, dataset: Any, epochs: int, partitions: Any = None
) -> Any:
    """The configuration that the options ask for, tried on the model."""
    from .distributed import take_gpu
    from .energy_loss import EnmeshmentLoss
    from .models import build_model
    from .train import TrainConfig, choose_device

    layers = options.layers
    if layers is None and partitions is None and options.model in ("auto", "cnn", "mlp"):
        layers = ["fc2"]
    config = TrainConfig(
        enmeshment_weight=options.enmeshment_weight,
        layers=None if layers is None else tuple(layers),
        num_clusters=options.clusters,
        epochs=epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
        device=options.device,
        threads=options.threads,
        precision=options.precision,
    )
    # A wrong device, model or layer is said before a folder is made or an old one emptied.
    kind = choose_device("auto").type if config.device == "auto" else config.device
    if ranks.size > 1 and kind.startswith("cuda"):
        take_gpu(kind)  # before anything is put on one
    choose_device(config.device)
    model = build_model(options.model, dataset.image_shape, dataset.num_classes)
    EnmeshmentLoss(model, config.num_clusters if partitions is None else partitions, config.layers)
    return config


def _train(options: argparse.Namespace, ranks: Ranks) -> None:
    from .display import Display
    from .experiment import prepare_folder, train_run
    from .partition import load_partitions
    from .report import run_table

    dataset = _load(options, ranks)
    epochs, _ = _epochs(options)
    partitions = None
    if options.partitions is not None:
        partitions = ranks.every(lambda: load_partitions(options.partitions))
    config = ranks.every(lambda: _config(options, ranks, dataset, epochs, partitions))
    folder = ranks.first(
        lambda: prepare_folder(options.out, resume=options.resume, overwrite=options.overwrite)
    )
    with Display(shown=ranks.is_first) as display:
        results = train_run(
            dataset,
            options.model,
            config,
            folder,
            partitions=partitions,
            resume=options.resume,
            progress=display.progress,
            group=ranks.group,
        )
        display.table(run_table(results), folder)


def _reproduce(options: argparse.Namespace, ranks: Ranks) -> None:
    from .display import Display
    from .experiment import prepare_folder, reproduce
    from .report import results_table

    dataset = _load(options, ranks)
    epochs, plain_epochs = _epochs(options)
    config = ranks.every(lambda: _config(options, ranks, dataset, epochs))
    folder = ranks.first(
        lambda: prepare_folder(options.out, resume=options.resume, overwrite=options.overwrite)
    )
    with Display(shown=ranks.is_first) as display:
        results = reproduce(
            dataset,
            options.model,
            config,
            folder,
            seeds=range(options.seed, options.seed + options.seeds),
            plain_epochs=plain_epochs,
            resume=options.resume,
            progress=display.progress,
            group=ranks.group,
        )
        display.table(results_table(results), folder)


def _report(options: argparse.Namespace, ranks: Ranks) -> None:
    if ranks.is_first:  # there is nothing to share
        _show(Path(options.out))


def _show(folder: Path) -> None:
    from .display import Display
    from .experiment import KINDS, draw_reproduction, draw_run, read_results
    from .report import results_table, run_table

    results = read_results(folder)
    with Display() as display:
        if all(kind in results for kind in KINDS):
            draw_reproduction(folder)
            display.table(results_table(results), folder)
        else:
            draw_run(folder)
            display.table(run_table(results), folder)
