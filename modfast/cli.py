"""The command line: ``modfast train``, ``reproduce``, ``cluster`` and ``report``."""

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
        description="Train neural networks that fall apart into modules, find the modules, and show them.",
    )
    parser.add_argument("--version", action="version", version=f"modfast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    work = argparse.ArgumentParser(add_help=False)
    work.add_argument("--out", required=True, metavar="DIR", help="folder for results, pictures, checkpoints")
    work.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, ...")
    work.add_argument(
        "--threads", type=int, metavar="N", help="threads on the CPU (default: PyTorch's choice)"
    )
    work.add_argument("--resume", action="store_true", help="continue a run that was stopped or killed")
    work.add_argument("--overwrite", action="store_true", help="replace the results that DIR holds")

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
    cluster.set_defaults(run=_cluster)

    report = commands.add_parser(
        "report",
        help="show a finished folder again",
        description="Print the table of a finished folder and draw its pictures again.",
    )
    report.add_argument("out", metavar="DIR", help="what train, reproduce or cluster wrote")
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
            print("\nmodfast: interrupted; what was finished is kept, --resume continues", file=sys.stderr)
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


def _cluster(options: argparse.Namespace, ranks: Ranks) -> None:
    from .cluster import ClusterConfig, check_out, check_weights, cluster_model, parse_counts
    from .display import Display
    from .experiment import prepare_folder
    from .report import cluster_table
    from .train import choose_device
    from .weights import read_weights

    sizes = None
    if options.data is not None:
        dataset = _load(options, ranks)
        sizes = (dataset.image_shape, dataset.num_classes)
    if not ranks.is_first:  # there is nothing to share
        return
    config = ClusterConfig(
        num_clusters=parse_counts(options.clusters),
        layers=None if options.layers is None else tuple(options.layers),
        affinity=options.affinity,
        n_init=options.n_init,
        shuffles=options.shuffles,
        tol=options.tol,
        seed=options.seed,
        device=options.device,
        threads=options.threads,
    )
    # What is wrong with the model or the options is said before a folder is made or an old one emptied.
    choose_device(config.device)
    weights = read_weights(options.model, config.layers, sizes=sizes, seed=config.seed)
    check_weights(weights, config.num_clusters)
    check_out(options.model, options.out)
    folder = prepare_folder(options.out, resume=options.resume, overwrite=options.overwrite)
    with Display() as display:
        results = cluster_model(
            weights,
            config,
            folder,
            model=options.model,
            sizes=sizes,
            resume=options.resume,
            on_step=display.on_clustering,
            on_layer=display.on_layer,
        )
        display.table(cluster_table(results), folder)


def _report(options: argparse.Namespace, ranks: Ranks) -> None:
    if ranks.is_first:  # there is nothing to share
        _show(Path(options.out))


def _show(folder: Path) -> None:
    from .cluster import redraw_clustering
    from .display import Display
    from .experiment import KINDS, draw_reproduction, draw_run, read_results
    from .report import cluster_table, results_table, run_table

    results = read_results(folder)
    with Display() as display:
        if "clustering" in results:
            reason = redraw_clustering(folder)
            if reason is not None:
                display.note(reason)
            display.table(cluster_table(results), folder)
        elif all(kind in results for kind in KINDS):
            draw_reproduction(folder)
            display.table(results_table(results), folder)
        else:
            draw_run(folder)
            display.table(run_table(results), folder)
