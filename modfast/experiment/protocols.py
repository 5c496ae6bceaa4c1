"""Named settings of whole comparisons: those that were published, and the one that we recommend."""

from __future__ import annotations

from dataclasses import dataclass, replace

from modfast.settings import TrainConfig

# The digits are 1,437 images: 60 epochs of them are as many steps as two of CIFAR-10.
_DIGITS_EPOCHS = 60


@dataclass(frozen=True)
class Protocol:
    """How a plain and a modular network are trained to be compared.

    Attributes:
        name: what ``modfast reproduce --protocol`` calls it.
        source: where it is from, in words.
        config: how the modular network is trained.
        plain_epochs: epochs of the plain network, which has no enmeshment loss but is else trained alike.
        model: a name for :func:`modfast.models.build_model`.

    Example:
        >>> PROTOCOLS["published-2024"].config.enmeshment_weight
        0.7
    """

    name: str
    source: str
    config: TrainConfig
    plain_epochs: int
    model: str = "auto"

    def for_data(self, data: str) -> Protocol:
        """Return the protocol for a data set: the digits, of which there are few, get more epochs.

        Args:
            data: as :func:`modfast.data.load_dataset` takes it.

        Example:
            >>> PROTOCOLS["published-2025"].for_data("digits").config.warmup_epochs
            15
        """
        return self.with_epochs(_DIGITS_EPOCHS) if data == "digits" else self

    def with_epochs(self, epochs: int) -> Protocol:
        """Return the protocol with so many epochs for both networks, and a warm-up in proportion.

        Raises:
            ValueError: ``epochs`` is too small for a warm-up and an epoch after it.

        Example:
            >>> protocol = PROTOCOLS["published-2025"].with_epochs(6)
            >>> protocol.config.epochs, protocol.config.warmup_epochs, protocol.plain_epochs
            (6, 2, 6)
        """
        warmup, whole = self.config.warmup_epochs, self.config.epochs
        if warmup and epochs < 2:
            raise ValueError(
                f"epochs must be at least 2 for the protocol {self.name!r}, which begins with plain ones, "
                f"got {epochs}"
            )
        # At least one, where there is a warm-up at all.
        scaled = max(round(epochs * warmup / whole), 1) if warmup else 0
        config = replace(self.config, epochs=epochs, warmup_epochs=min(scaled, epochs - 1))
        return replace(self, config=config, plain_epochs=epochs)


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "published-2024",
            "arXiv 2409.15747: weight 0.7 on fc2, contiguous blocks",
            TrainConfig(),
            plain_epochs=10,
        ),
        Protocol(
            "published-2025",
            "the public code of arXiv 2502.02470: 5 plain epochs, spectral clusters of fc2, then 15 epochs "
            "with weight 20; four linear layers",
            TrainConfig(enmeshment_weight=20.0, epochs=20, warmup_epochs=5, clusters_from="spectral"),
            plain_epochs=10,
            model="cnn4",
        ),
        Protocol(
            "published-2025-large",
            "the public code of arXiv 2502.02470: the larger CNN, blocks, weight 20 on three layers",
            TrainConfig(enmeshment_weight=20.0, layers=("fc1", "fc2", "fc3"), epochs=10),
            plain_epochs=10,
            model="cnn-large",
        ),
        Protocol(
            "recommended",
            "weight 20 on fc2 and fc3, contiguous blocks that both share, 10 epochs like the plain network",
            TrainConfig(enmeshment_weight=20.0, layers=("fc2", "fc3"), epochs=10),
            plain_epochs=10,
        ),
    )
}
"""The protocols by name."""

RECOMMENDED = "recommended"
