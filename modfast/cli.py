"""The command line: ``modfast train``, ``reproduce``, ``circuits``, ``cluster`` and ``report``."""

from __future__ import annotations

import argparse
import functools
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import make_parser

if TYPE_CHECKING:  # PyTorch takes seconds, which --help need not wait for
    from .train.distributed import Ranks

# As published (arXiv 2409.15747), for the modular and for the plain model. The digits are 1,437 images, so
# that 60 epochs of them are as many steps as two of CIFAR-10.
_EPOCHS = (21, 10)
_DIGITS_EPOCHS = (60, 60)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 for an error, 130 when interrupted.

    Under torchrun all its processes work together, and the first one shows and writes.
    """
    from .train.distributed import RankError, Ranks, launched, print_once

    ranks = Ranks()  # until it is known whether there are others
    try:
        with launched() as ranks:
            options = ranks.first(lambda: _parse(arguments, ranks))
            if isinstance(options, int):
                return options
            try:
                _COMMANDS[options.command](options, ranks)
            except RankError as error:
                cause = error.__cause__
                print_once(None if cause is None else functools.partial(_tell, cause))
                return 1
    except KeyboardInterrupt:
        if ranks.is_first:
            print("\nmodfast: interrupted; what was finished is kept, --resume continues", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        if not _is_expected(error):
            raise
        print_once(functools.partial(_tell, error))
        return 1
    return 0


def _parse(arguments: Sequence[str] | None, ranks: Ranks) -> argparse.Namespace | int:
    """The options; of several processes also the exit status, if help or what is wrong was shown instead."""
    try:
        return make_parser().parse_args(arguments)
    except SystemExit as ended:
        if ranks.size == 1:
            raise
        return int(ended.code or 0)


def _tell(error: BaseException) -> None:
    """Print an error: what a user can mend is one line; a defect of ours keeps its traceback."""
    if _is_expected(error):
        print(f"modfast: error: {error}", file=sys.stderr, flush=True)
    else:
        traceback.print_exception(error)


def _is_expected(error: BaseException) -> bool:
    """Whether the error is about what the user gave: its files, options, data or a missing package."""
    from .data.dataset import DataError
    from .train.checkpoint import TrainingError

    return isinstance(error, (ValueError, OSError, ImportError, DataError, TrainingError))


def _epochs(options: argparse.Namespace) -> tuple[int, int]:
    """The epochs of a modular and of a plain model."""
    if options.epochs is not None:
        return options.epochs, options.epochs
    return _DIGITS_EPOCHS if options.data == "digits" else _EPOCHS


def _load(data: str, ranks: Ranks) -> Any:
    from .data.load import load_dataset
    from .progress import progress_bar

    with progress_bar("decoding", "images", shown=ranks.is_first) as show:
        # One process downloads or decodes; the others of its machine read what it kept.
        return ranks.first_of_each_machine(lambda: load_dataset(data, progress=show))


def _config(
    options: argparse.Namespace, ranks: Ranks, dataset: Any, epochs: int, partitions: Any = None
) -> Any:
    """The configuration that the options ask for, tried on the model."""
    from .energy.loss import EnmeshmentLoss
    from .models import build_model
    from .train.config import TrainConfig

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
    _take_device(config.device, ranks)
    model = build_model(options.model, dataset.image_shape, dataset.num_classes)
    EnmeshmentLoss(model, config.num_clusters if partitions is None else partitions, config.layers)
    return config


def _take_device(name: str, ranks: Ranks) -> None:
    """Raise unless there is that device; of several processes each takes its own GPU."""
    from .machine import choose_device
    from .train.distributed import take_gpu

    kind = choose_device("auto").type if name == "auto" else name
    if ranks.size > 1 and kind.startswith("cuda"):
        take_gpu(kind)  # before anything is put on one
    choose_device(name)


def _train(options: argparse.Namespace, ranks: Ranks) -> None:
    from .display import Display
    from .experiment.runs import train_run
    from .partition import load_partitions
    from .report.tables import run_table

    dataset = _load(options.data, ranks)
    epochs, _ = _epochs(options)
    partitions = None
    if options.partitions is not None:
        partitions = ranks.every(lambda: load_partitions(options.partitions))
    config = ranks.every(lambda: _config(options, ranks, dataset, epochs, partitions))
    with Display(shown=ranks.is_first) as display:
        results = train_run(
            dataset,
            options.model,
            config,
            options.out,
            partitions=partitions,
            resume=options.resume,
            overwrite=options.overwrite,
            progress=display.progress,
            group=ranks.group,
        )
        display.table(run_table(results), Path(options.out))


def _reproduce(options: argparse.Namespace, ranks: Ranks) -> None:
    from .display import Display
    from .experiment.circuits import check_circuit_files
    from .experiment.runs import reproduce
    from .report.tables import results_table

    dataset = _load(options.data, ranks)
    epochs, plain_epochs = _epochs(options)
    config = ranks.every(lambda: _config(options, ranks, dataset, epochs))
    seeds = range(options.seed, options.seed + options.seeds)
    flags = {"resume": options.resume, "overwrite": options.overwrite}
    circuits = None
    if options.circuits is not None:
        circuits = ranks.every(lambda: _circuit_config(options, dataset))
        # What is in the way of them is said before hours of training.
        ranks.first(lambda: check_circuit_files(options.out, seeds, dataset, circuits, **flags))
    folder = Path(options.out)
    with Display(shown=ranks.is_first) as display:
        results = reproduce(
            dataset,
            options.model,
            config,
            folder,
            seeds=seeds,
            plain_epochs=plain_epochs,
            progress=display.progress,
            group=ranks.group,
            **flags,
        )
        display.table(results_table(results), folder)
        if circuits is not None:
            _find_circuits(folder, dataset, circuits, display, ranks, **flags)


def _circuit_config(options: argparse.Namespace, dataset: Any) -> Any:
    """How `reproduce --circuits` finds circuits, tried on the model."""
    from .experiment.trained_models import CircuitConfig, check_circuits
    from .models import build_model

    config = CircuitConfig(
        criteria=tuple(options.circuits or CircuitConfig.criteria),
        device=options.device,
        threads=options.threads,
    )
    check_circuits(build_model(options.model, dataset.image_shape, dataset.num_classes), dataset, config)
    return config


def _circuits(options: argparse.Namespace, ranks: Ranks) -> None:
    from .display import Display
    from .experiment.trained_models import CircuitConfig, trained_on

    config = ranks.every(
        lambda: CircuitConfig(
            criteria=tuple(options.criterion or CircuitConfig.criteria),
            tolerance=options.tolerance,
            labels=None if options.labels is None else tuple(options.labels),
            images=options.images,
            layers=None if options.layers is None else tuple(options.layers),
            seed=options.seed,
            device=options.device,
            threads=options.threads,
        )
    )
    ranks.every(lambda: _take_device(config.device, ranks))
    data = ranks.every(lambda: trained_on(options.out))
    dataset = _load(data if options.data is None else options.data, ranks)
    folder = Path(options.out)
    with Display(shown=ranks.is_first) as display:
        _find_circuits(
            folder, dataset, config, display, ranks, resume=options.resume, overwrite=options.overwrite
        )


def _find_circuits(
    folder: Path, dataset: Any, config: Any, display: Any, ranks: Ranks, *, resume: bool, overwrite: bool
) -> None:
    from .experiment.circuits import find_run_circuits

    results = find_run_circuits(
        folder,
        dataset,
        config,
        resume=resume,
        overwrite=overwrite,
        on_step=display.on_walk,
        on_circuits=display.on_circuits,
        group=ranks.group,
    )
    _show_circuits(results, folder, display)


def _show_circuits(results: Mapping[str, Any], folder: Path, display: Any) -> None:
    from .report.circuits.table import circuits_table, claim_lines

    display.table(circuits_table(results), folder)
    for line in claim_lines(results):
        display.note(line)


def _cluster(options: argparse.Namespace, ranks: Ranks) -> None:
    from .display import Display
    from .experiment.clusters import check_out, check_weights, cluster_model
    from .experiment.eigengap import ClusterConfig
    from .machine import choose_device
    from .options import parse_counts
    from .report.tables import cluster_table
    from .weights.read import read_weights

    sizes = None
    if options.data is not None:
        dataset = _load(options.data, ranks)
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
    choose_device(config.device)
    weights = read_weights(options.model, config.layers, sizes=sizes, seed=config.seed)
    check_weights(weights, config.num_clusters)
    check_out(options.model, options.out)
    with Display() as display:
        if weights.left_out:
            names = ", ".join(weights.left_out[:5]) + (", ..." if len(weights.left_out) > 5 else "")
            display.note(
                f"Not clustered unless --layers names them: {names} ({len(weights.left_out)} matrices)"
            )
        results = cluster_model(
            weights,
            config,
            options.out,
            model=options.model,
            sizes=sizes,
            resume=options.resume,
            overwrite=options.overwrite,
            on_step=display.on_clustering,
            on_layer=display.on_layer,
        )
        display.table(cluster_table(results), Path(options.out))


def _report(options: argparse.Namespace, ranks: Ranks) -> None:
    if ranks.is_first:  # there is nothing to share
        _show(Path(options.out))


def _show(folder: Path) -> None:
    from .circuits.folder import CIRCUITS
    from .display import Display
    from .experiment.cluster_files import redraw_clustering
    from .experiment.runs import draw_reproduction, draw_run
    from .report.tables import cluster_table, results_table, run_table
    from .results import KINDS, read_results
    from .run_folder import RunFolder

    results, drawing = read_results(folder), RunFolder(folder, "report")
    with Display() as display:
        if "clustering" in results:
            reason = redraw_clustering(drawing)
            if reason is not None:
                display.note(reason)
            table = cluster_table(results)
        elif all(kind in results for kind in KINDS):
            draw_reproduction(drawing)
            table = results_table(results)
        else:
            draw_run(drawing)
            table = run_table(results)
        for reason in drawing.left:
            display.note(reason)
        display.table(table, folder)
        if (folder / CIRCUITS).exists():
            _report_circuits(folder, display)


def _report_circuits(folder: Path, display: Any) -> None:
    from .circuits.folder import REPORT, read_circuits
    from .experiment.circuits import draw_circuits, trained_since
    from .run_folder import RunFolder

    circuits = read_circuits(folder)
    changed, refusal = trained_since(folder, circuits), RunFolder(folder, "report").refusal(REPORT)
    if refusal is not None:
        display.note(f"{refusal}: it is left as it is")
    elif not changed:  # the clusters of other models would be taken for those of these circuits
        draw_circuits(folder)
    _show_circuits(circuits, folder, display)
    if changed:
        display.note(
            f"These circuits are not of {', '.join(changed)} as trained since: "
            f"`modfast circuits {folder} --overwrite` finds them anew"
        )


_COMMANDS = {
    "train": _train,
    "reproduce": _reproduce,
    "circuits": _circuits,
    "cluster": _cluster,
    "report": _report,
}
