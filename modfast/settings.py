"""The settings of a training run, without PyTorch, for the command line's options."""

from __future__ import annotations

from dataclasses import dataclass

from .arguments import SEED, SIZE, THREADS, Flag, Integer, NoneOr, Number, OneOf, Share, check_fields

CLUSTERS_FROM = ("blocks", "file", "spectral")
AFFINITIES = ("weights", "gradients")
OPTIMIZERS = ("auto", "fused", "adam")
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a training run. The defaults are the paper's (arXiv 2409.15747).

    Attributes:
        enmeshment_weight: lambda; 0 trains a plain model.
        layers: names or globs of the layers to regularise. The default is the hidden layer that the paper
            regularises; name the layers of your own model that are to become modular, or give None for every
            ``nn.Linear``.
        num_clusters: the number of clusters in each layer for which no partition is given.
        epochs: passes over the training images, the plain ones at the beginning included.
        warmup_epochs: how many epochs at the beginning train without the enmeshment loss.
        clusters_from: where the clusters come from: "blocks", equal contiguous blocks, which need no warm-up;
            "file", the partitions that are given to :func:`train`; "spectral", found in the trained
            network after the warm-up, so that the loss deepens what is there already.
        affinity: what spectral clusters are found in: "weights", the magnitudes ``|W|``, or "gradients",
            ``|sum of dL/dW|`` over the training images (:func:`modfast.gradient_affinity`), each of which
            counts once. A row or column in which all of these are zero (with gradients: that of a dead
            neuron) is in no cluster, so that the loss drives all its weights to zero.
        chained: for spectral clusters: find them in the network that the layers form together
            (:func:`modfast.network_graph`), so that the neurons which one layer writes and the next one reads
            have the same clusters. False finds them layer by layer. The layers must follow each other in a
            model that runs all its layers one after the other, and none may be a convolution in groups.
        recluster_every: find spectral clusters again after each so many epochs; None finds them once.
        ramp_epochs: over how many epochs after the warm-up the weight of the loss rises, step by step, from 0
            to ``enmeshment_weight``, and what is kept falls from all weights to the share ``keep``; 0 has it
            all at once. With more of them than epochs after the warm-up, training ends before the weight is
            reached; a resumed run with more epochs goes on from there.
        l1_weight: the weight of the sum of the magnitudes of all linear layers' weights in the loss, in
            every epoch; a rival to enmeshment that makes weights few rather than modular.
        keep: the share of each regularised layer's weights that stays non-zero after each step, those of the
            largest magnitudes (weight-sparse training); None keeps all. Without ``ramp_epochs`` it holds from
            the first step on. A small share costs less accuracy if it is reached step by step.
        optimizer: Adam by :class:`modfast.optim.AdamW`, which adds the gradient of the loss in its own pass
            over the weights ("fused"), or by PyTorch's ("adam"); with the same steps up to rounding. "auto"
            takes the first where it has kernels for the model's device and dtypes.
        batch_size: images for each step; the last step of an epoch may have fewer.
        learning_rate: Adam's learning rate.
        seed: the seed of the image order and of all random numbers that training draws. (The caller seeds
            the model's initial weights.)
        device: "auto" takes a CUDA device that this build has kernels for, if there is one, else the CPU.
        threads: PyTorch's number of threads on the CPU; None leaves it unchanged; at most 4096. A run with
            the same number repeats bit for bit.
        precision: the dtype of the forward pass: "float32", or "bfloat16" by autocast, in which the weights
            stay float32.

    Raises:
        ValueError: a value is out of range; the message names it.

    Example:
        >>> TrainConfig(epochs=3).enmeshment_weight
        0.7
    """

    enmeshment_weight: float = 0.7
    layers: tuple[str, ...] | None = ("fc2",)
    num_clusters: int = 4
    epochs: int = 21
    warmup_epochs: int = 0
    clusters_from: str = "blocks"
    affinity: str = "weights"
    chained: bool = False
    recluster_every: int | None = None
    ramp_epochs: int = 0
    l1_weight: float = 0.0
    keep: float | None = None
    optimizer: str = "auto"
    batch_size: int = 64
    learning_rate: float = 1e-3
    seed: int = 42
    device: str = "auto"
    threads: int | None = None
    precision: str = "float32"

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "num_clusters": Integer(1),
                "epochs": Integer(1),
                "warmup_epochs": Integer(0),
                "clusters_from": OneOf(CLUSTERS_FROM),
                "affinity": OneOf(AFFINITIES),
                "chained": Flag(),
                "recluster_every": NoneOr(Integer(1)),
                "ramp_epochs": Integer(0),
                "l1_weight": Number(0, included=True),
                "keep": NoneOr(Share()),
                "optimizer": OneOf(OPTIMIZERS),
                "batch_size": SIZE,
                "seed": SEED,
                "threads": THREADS,
                "enmeshment_weight": Number(0, included=True),
                "learning_rate": Number(0),
                "precision": OneOf(PRECISIONS),
            },
        )
        if self.keep is not None and self.optimizer == "adam":
            raise ValueError(f"keep must be None with optimizer 'adam', got {self.keep}")
        if self.layers is not None and not self.layers:
            raise ValueError(f"layers must be None or at least one name, got {self.layers!r}")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs must be below epochs ({self.epochs}), got {self.warmup_epochs}")
        if self.clusters_from == "spectral":
            if self.warmup_epochs == 0:
                raise ValueError(
                    "warmup_epochs must be at least 1 for spectral clusters, which are found after it, got 0"
                )
            return
        for name, plain in (("affinity", "weights"), ("chained", False), ("recluster_every", None)):
            if getattr(self, name) != plain:
                got = getattr(self, name)
                raise ValueError(f"{name} must be {plain!r} unless clusters_from is 'spectral', got {got!r}")

    def weight_at(self, epoch: int, progress: float) -> float:
        """The weight of the enmeshment loss.

        Args:
            epoch: counted from 1.
            progress: the share of this epoch's steps that are done, the present one included.

        Example:
            >>> config = TrainConfig(enmeshment_weight=20.0, epochs=9, warmup_epochs=2, ramp_epochs=4)
            >>> [config.weight_at(epoch, 1.0) for epoch in (2, 3, 4, 6, 9)]
            [0.0, 5.0, 10.0, 20.0, 20.0]
        """
        since = epoch - self.warmup_epochs - 1
        if since < 0:
            return 0.0
        if since >= self.ramp_epochs:
            return self.enmeshment_weight
        return self.enmeshment_weight * (since + progress) / self.ramp_epochs

    def keep_at(self, epoch: int, progress: float) -> float | None:
        """The share of weights that stays non-zero after a step; None if all do, whatever the step.

        Args:
            epoch: counted from 1.
            progress: as for :meth:`weight_at`.

        Example:
            >>> config = TrainConfig(keep=0.2, epochs=9, warmup_epochs=2, ramp_epochs=4)
            >>> [config.keep_at(epoch, 1.0) for epoch in (2, 3, 5, 6, 9)]
            [1.0, 0.8, 0.4, 0.2, 0.2]
            >>> TrainConfig(keep=0.2, epochs=9, warmup_epochs=2).keep_at(1, 0.5)
            0.2
        """
        since = epoch - self.warmup_epochs - 1
        if self.keep is None or self.ramp_epochs == 0 or since >= self.ramp_epochs:
            return self.keep
        done = 0.0 if since < 0 else (since + progress) / self.ramp_epochs
        # Exactly `keep` at the end: `1 - done * (1 - keep)` ends one bit above 0.3: one weight too many.
        return self.keep + (1.0 - done) * (1.0 - self.keep)

    def finds_clusters(self, epoch: int) -> bool:
        """Whether clusters are found before this epoch, counted from 1.

        Example:
            >>> config = TrainConfig(epochs=9, warmup_epochs=3, clusters_from="spectral", recluster_every=2)
            >>> [epoch for epoch in range(1, 10) if config.finds_clusters(epoch)]
            [4, 6, 8]
        """
        since = epoch - self.warmup_epochs - 1
        if self.clusters_from != "spectral" or since < 0:
            return False
        return since == 0 or (self.recluster_every is not None and since % self.recluster_every == 0)
