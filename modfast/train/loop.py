"""Training a modular network: cross-entropy plus lambda times enmeshment, in one loop."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from modfast.data.dataset import Dataset
from modfast.devices import widest_float
from modfast.energy.loss import EnmeshmentLoss
from modfast.layers.layer import Layer, linear_layers
from modfast.layers.running import evaluating, logits_of
from modfast.machine import choose_device, using_threads
from modfast.partition import Partition
from modfast.results import RESULTS
from modfast.run_folder import Claim, Planned, RunFolder, claim

from .batches import Call, check_batches, check_evaluation
from .checkpoint import (
    CHECKPOINT,
    TrainingError,
    check_continued,
    identity,
    load_checkpoint,
    measured_weights,
    read_checkpoint,
    save_checkpoint,
    seed_generators,
)
from .clusters import check_clusters, find_clusters
from .config import PRECISIONS, Record, Run, TrainConfig
from .distributed import Ranks
from .optimizers import add_loss, make_optimizer, set_keep, set_loss

_EVALUATION_BATCH = 1000
# What must be finite in a record, and what messages call it.
_LOSSES = {"loss": "loss", "enmeshment": "enmeshment", "test_cross_entropy": "loss on the test images"}


def train(
    model: nn.Module,
    dataset: Dataset,
    config: TrainConfig,
    *,
    partitions: Mapping[str, Partition] | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_step: Callable[[int, int, int], None] | None = None,
    on_epoch: Callable[[Record], None] | None = None,
    group: dist.ProcessGroup | None = None,
) -> Run:
    """Train a classifier with cross-entropy plus ``enmeshment_weight`` times enmeshment.

    Seeds the global generators of PyTorch, NumPy and Python's ``random``. On the CPU, the same model, data,
    configuration and number of threads give the same weights bit for bit, whether or not the run was killed
    and resumed.

    Args:
        model: maps images ``(n, channels, height, width)`` to logits ``(n, classes)``; it is moved to the
            device and trained in place.
        dataset: the images.
        config: the settings of the training.
        partitions: layer name to clusters; by default those of ``config.clusters_from``.
        out: the folder that gets a checkpoint after each epoch, written whole or not at all, and loadable
            with ``torch.load(..., weights_only=True)``. None writes none.
        resume: continue from the checkpoint in ``out``, if there is one. The ``results.json`` of a run that
            is trained further is removed, since it describes a model of fewer epochs.
        overwrite: remove what this function or ``modfast train`` wrote to ``out`` before.
        on_step: called as ``on_step(epoch, step, steps)`` after each step, all counted from 1.
        on_epoch: called with each finished epoch's record.
        group: processes that train this model together, such as ``torch.distributed.group.WORLD``; see below.
            By default this process trains alone, even where a process group exists.

    Returns:
        The finished run. Each record of its ``history`` holds ``epoch`` (from 1), ``loss`` and
        ``cross_entropy`` (means over the epoch's steps, in nats), ``enmeshment`` (of the regularised
        layers, at the end), ``train_accuracy`` (while training), ``test_accuracy``, ``test_cross_entropy``,
        ``clusterability`` (of each linear layer, at the end) and ``seconds`` (training and testing). In a
        warm-up to spectral clusters, ``enmeshment`` is None and ``clusterability`` lacks the regularised
        layers. The record of an epoch before which clusters were found has them as ``found``: the
        clusterability of each layer at that moment.

    Raises:
        ValueError: the configuration does not fit the model, the data or the machine.
        TrainingError: the loss is not finite, in training or on the test images; a layer has no spectral
            clusters, as all its weights (or gradients) are zero; or the checkpoint belongs to another run or
            to one of more epochs.
        OutputExistsError: ``out`` holds a checkpoint, and neither ``resume`` nor ``overwrite`` is given; or
            one that this function did not write.
        RankError: raised on every process instead of the errors above, if the group has several.

    With a ``group``, every process calls this function with the same arguments, and computes on its share of
    each batch. All end with the same weights and, but for ``seconds``, the same records: up to rounding,
    those of a single process. Exceptions are layers that look across the batch, such as BatchNorm, which see
    one share of it and keep the first process's statistics, and dropout, which draws other numbers. Only the
    first process writes the checkpoint and calls ``on_step`` and ``on_epoch``. All processes read the
    checkpoint to resume; their number may have changed since.

    Example:
        >>> from modfast.data import load_dataset
        >>> from modfast.models import MLP
        >>> digits = load_dataset("digits")
        >>> run = train(MLP(digits.image_shape), digits, TrainConfig(epochs=1))
        >>> len(run.history)
        1
    """
    folder = None if out is None else RunFolder(out, "train")

    def claimed(_: Run) -> Claim:
        plans = [] if folder is None else [(folder, {CHECKPOINT: Planned(read_checkpoint)})]
        return claim(plans, resume=resume, overwrite=overwrite)

    return train_in_folder(
        model,
        dataset,
        config,
        folder,
        claimed,
        partitions=partitions,
        resume=resume,
        on_step=on_step,
        on_epoch=on_epoch,
        group=group,
    )


def train_in_folder(
    model: nn.Module,
    dataset: Dataset,
    config: TrainConfig,
    folder: RunFolder | None,
    claimed: Callable[[Run], Claim],
    *,
    comparison: RunFolder | None = None,
    partitions: Mapping[str, Partition] | None,
    resume: bool,
    on_step: Callable[[int, int, int], None] | None,
    on_epoch: Callable[[Record], None] | None,
    group: dist.ProcessGroup | None,
) -> Run:
    """Train as :func:`train` does, into a folder that other functions write to as well.

    Args:
        model: as for :func:`train`.
        dataset: as for :func:`train`.
        config: as for :func:`train`.
        folder: gets the checkpoint; None writes none.
        claimed: called by the first process once the run is known to be able to start; returns the claim to
            the folder's files, which is taken after the checkpoint to continue has been read and before
            anything is written.
        comparison: the folder of a comparison whose results also describe this model; None without one.
        partitions: as for :func:`train`.
        resume: as for :func:`train`.
        on_step: as for :func:`train`.
        on_epoch: as for :func:`train`.
        group: as for :func:`train`.
    """
    ranks = Ranks(group)
    with using_threads(config.threads):
        run = ranks.every(lambda: _start(model, dataset, config, partitions))
        if ranks.size > 1:
            _check_alike(ranks, run, dataset, out=folder is not None, resume=resume)
            # Each rank may have initialised its model with other weights.
            ranks.copy_first_(run.model)
        ranks.every(lambda: _check_batches(run, dataset, ranks))
        claims: list[Claim] = []  # filled on the first process only

        def check_folder() -> None:
            claims.append(claimed(run))
            if folder is not None and resume:
                check_continued(run, dataset, folder)

        def take() -> None:
            for made in claims:
                made.take()

        ranks.first(check_folder)
        run.initial = {name: weight.cpu().clone() for name, weight in measured_weights(run).items()}

        def keep() -> None:
            """Write the checkpoint, after removing the results of an older one."""
            if folder is None:
                return
            if comparison is not None and (folder.path / RESULTS).exists():
                comparison.remove(RESULTS)
            folder.remove(RESULTS)
            save_checkpoint(run, dataset, folder.file(CHECKPOINT))

        checkpoint = None if folder is None else folder.path / CHECKPOINT
        if checkpoint is not None and resume and ranks.first(checkpoint.exists):
            ranks.every(lambda: load_checkpoint(run, dataset, checkpoint))
            ranks.first(take)
        else:
            ranks.first(take)
            ranks.first(keep)
        loss = EnmeshmentLoss(run.model, run.partitions)
        set_loss(run.optimizer, loss)
        penalised = linear_layers(run.model)
        steps = math.ceil(len(dataset.train_images) / config.batch_size)

        for epoch in range(len(run.history) + 1, config.epochs + 1):
            began = time.perf_counter()
            found = {}
            if config.finds_clusters(epoch):
                find_clusters(run, dataset, ranks)
                loss = EnmeshmentLoss(run.model, run.partitions)
                set_loss(run.optimizer, loss)
                found = {"found": loss.clusterability()}
            run.model.train()
            if ranks.size > 1:
                # Dropout differs between ranks, and a resumed epoch repeats that of an uninterrupted run.
                seed_generators(_seed(config.seed, epoch, ranks.rank))
            # The sum of the cross-entropy, and the number of images classified correctly.
            totals = torch.zeros(2, dtype=widest_float(run.device), device=run.device)
            extra = torch.zeros_like(totals[0])  # the sum over steps of what is added to the cross-entropy
            for step, batch in enumerate(
                _order(dataset, config.seed, epoch).split(config.batch_size), start=1
            ):
                run.optimizer.zero_grad()
                if len(share := ranks.share(batch)):
                    totals += _backward(run, dataset, share, len(batch))
                ranks.sum_gradients_(run.model.parameters())
                # After the sum: these depend on the weights alone, which all ranks have in common.
                extra += add_loss(run.optimizer, loss, config.weight_at(epoch, step / steps))
                set_keep(run.optimizer, config.keep_at(epoch, step / steps))
                if config.l1_weight:
                    extra += _penalise(penalised, config.l1_weight)
                run.optimizer.step()
                if on_step is not None and ranks.is_first:
                    on_step(epoch, step, steps)

            # Buffers differ between ranks by now; the first rank's are measured and saved.
            ranks.copy_first_(run.model)
            count = len(dataset.train_images)
            entropy, correct = (ranks.sum(totals) / count).tolist()
            record = _measure(run, dataset, loss, ranks) | found
            record |= {
                "epoch": epoch,
                "cross_entropy": entropy,
                "loss": entropy + float(extra) / steps,
                "train_accuracy": correct,
                "seconds": time.perf_counter() - began,
            }
            run.history.append(record)
            ranks.first(lambda: _finish_epoch(run, keep, on_epoch))
    return run


def _penalise(layers: Sequence[Layer], weight: float) -> Tensor:
    """Accumulate the gradient of ``weight`` times the sum of all magnitudes, and return that product."""
    penalty = weight * torch.stack([layer.weight().abs().sum() for layer in layers]).sum()
    penalty.backward()
    return penalty.detach()


def _check_batches(run: Run, dataset: Dataset, ranks: Ranks) -> None:
    """Raise if the model cannot be trained or tested on some rank's share of a batch."""

    def attempt(call: Call, count: int) -> None:
        _, _, entropy = _forward(run, dataset, torch.zeros(count, dtype=torch.int64, device="cpu"), call)
        # Not backward(), which would leave gradients behind.
        learning = [parameter for parameter in run.model.parameters() if parameter.requires_grad]
        torch.autograd.grad(entropy, learning, allow_unused=True)

    count = len(dataset.train_images)
    check_batches(run.model, count, run.config.batch_size, ranks.size, attempt)

    def test(call: Call) -> None:
        images = ranks.share(dataset.test_images).split(_EVALUATION_BATCH)[-1]
        if len(images):
            logits_of(call(dataset.normalize(images.to(run.device))))

    check_evaluation(run.model, test)


def _forward(run: Run, dataset: Dataset, share: Tensor, call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logits of training images, their labels, and the mean cross-entropy."""
    images = dataset.normalize(dataset.train_images[share].to(run.device))
    labels = dataset.train_labels[share].to(run.device)
    precision = PRECISIONS[run.config.precision]
    with torch.autocast(run.device.type, precision, enabled=precision != torch.float32):
        logits = logits_of(call(images))
        return logits, labels, cross_entropy(logits, labels)


def _backward(run: Run, dataset: Dataset, share: Tensor, batch_size: int) -> Tensor:
    """Accumulate the gradient of a share of a batch; return its summed cross-entropy and correct answers.

    The share's mean is weighted by its part of the batch, so that the gradients of shares of any sizes sum to
    the gradient of the batch's mean. An average would favour the images of smaller shares.
    """
    logits, labels, entropy = _forward(run, dataset, share, run.model)
    (entropy * (len(share) / batch_size)).backward()
    correct = (logits.detach().argmax(dim=1) == labels).sum()
    return torch.stack([entropy.detach() * len(share), correct])


def _finish_epoch(run: Run, keep: Callable[[], None], on_epoch: Callable[[Record], None] | None) -> None:
    """Save the checkpoint and report the epoch's record.

    Raises:
        TrainingError: a loss is not finite. In a warm-up to spectral clusters, weights that the last step
            made NaN show in the test loss alone.
    """
    record = run.history[-1]
    for name, words in _LOSSES.items():
        if record[name] is not None and not math.isfinite(record[name]):
            raise TrainingError(
                f"the {words} is {record[name]} in epoch {record['epoch']}: a smaller learning_rate "
                f"(now {run.config.learning_rate}) may help"
            )
    keep()
    if on_epoch is not None:
        on_epoch(record)


def _order(dataset: Dataset, seed: int, epoch: int) -> Tensor:
    """Return the order of the images, which seed and epoch decide: a resumed epoch repeats it."""
    generator = torch.Generator("cpu").manual_seed(_seed(seed, epoch))
    return torch.randperm(len(dataset.train_images), generator=generator, device="cpu")


def _seed(*numbers: int) -> int:
    """Combine numbers into one seed, different for different numbers."""
    return functools.reduce(lambda seed, number: seed * 1_000_003 + number, numbers) % 2**63


def _start(
    model: nn.Module, dataset: Dataset, config: TrainConfig, partitions: Mapping[str, Partition] | None
) -> Run:
    if partitions is None and config.clusters_from == "file":
        raise ValueError("partitions must be given, as clusters_from is 'file', got None")
    if partitions is not None and config.clusters_from == "spectral":
        raise ValueError("partitions must be None, as clusters_from is 'spectral'")
    if partitions is not None:
        config = replace(config, clusters_from="file")
    device = choose_device(config.device)
    model.to(device)
    seed_generators(config.seed)
    chosen = EnmeshmentLoss(model, config.num_clusters if partitions is None else partitions, config.layers)
    measured = dict(chosen.partitions)
    for layer in linear_layers(model):
        shape = layer.shape
        if layer.name not in measured and min(shape) >= config.num_clusters:
            measured[layer.name] = Partition.blocks(shape, config.num_clusters)
    if config.l1_weight and not any(layer.weight().requires_grad for layer in linear_layers(model)):
        raise ValueError(
            f"l1_weight must be 0 for a model without linear layers that learn, got {config.l1_weight}"
        )
    run = Run(
        model=model,
        optimizer=make_optimizer(model, chosen, config),
        config=config,
        partitions=chosen.partitions,
        measured=EnmeshmentLoss(model, measured).partitions,
        initial={},  # set once all ranks have the same weights
        clustered=config.clusters_from != "spectral",
    )
    if not run.clustered:
        check_clusters(run, dataset)
    return run


def _check_alike(ranks: Ranks, run: Run, dataset: Dataset, **more: bool) -> None:
    """Raise on every rank unless all train the same; else they would wait for each other, or diverge."""
    parts = identity(run, dataset) | {"epochs": run.config.epochs} | more
    digests = ranks.gather(
        {part: hashlib.sha256(json.dumps(value).encode()).hexdigest() for part, value in parts.items()}
    )
    differing = [part for part in parts if len({digest[part] for digest in digests}) > 1]

    def check() -> None:
        if differing:
            raise ValueError(f"all processes must train the same, but differ in: {', '.join(differing)}")

    ranks.every(check)


def _measure(run: Run, dataset: Dataset, loss: EnmeshmentLoss, ranks: Ranks) -> Record:
    """Return the measures that are recorded at the end of an epoch."""
    with evaluating(run.model):
        wide = widest_float(run.device)
        right, entropy = 0, torch.zeros((), dtype=wide, device=run.device)
        for images, labels in zip(
            ranks.share(dataset.test_images).split(_EVALUATION_BATCH),
            ranks.share(dataset.test_labels).split(_EVALUATION_BATCH),
            strict=True,
        ):
            if len(labels):  # a rank has none where there are fewer images than ranks
                logits = logits_of(run.model(dataset.normalize(images.to(run.device))))
                right += int((logits.argmax(dim=1).cpu() == labels).sum())
                entropy += cross_entropy(logits.to(wide), labels.to(run.device), reduction="sum")
        enmeshment = float(loss()) if run.clustered else None
    measured = {
        name: partition
        for name, partition in run.measured.items()
        if run.clustered or name not in run.partitions
    }
    return {
        "enmeshment": enmeshment,
        "test_cross_entropy": float(ranks.sum(entropy)) / len(dataset.test_labels),
        "test_accuracy": int(ranks.sum(torch.tensor(right, device=run.device))) / len(dataset.test_labels),
        "clusterability": EnmeshmentLoss(run.model, measured).clusterability() if measured else {},
    }
