"""What the authors trained, and how, as far as papers and public code say; every number can be overridden.

Where we differ on purpose: text is Wikitext-2 as it stands, cut into consecutive windows without padding and
without a token at their beginnings (theirs for Pythia are lines of the tokenised Wikitext, padded); GPT-2 is
transformers' (theirs is TransformerLens's, with the layer norms folded into the weights). Dropout is off, as
there. The batch size for Pythia is the default of their first script.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """How a model is made modular.

    Attributes:
        roles: which of a network's weights the loss is of; the mean over these weights counts.
        weight: of the loss in the modular arm.
        found_at: the optimiser step at which clusters are found in the weights, layer by layer, and the loss
            sets in; None means contiguous blocks that layers share, from the first step.
        clusters: how many.
        learning_rate: of Adam; constant.
        epochs: over the training split.
        batch_size: windows in a step.
        length: tokens in a window.
    """

    roles: tuple[str, ...]
    weight: float
    found_at: int | None
    learning_rate: float
    epochs: int
    length: int
    batch_size: int = 8
    clusters: int = 4


RECIPES = {
    "gpt2": Recipe(("mlp_input", "mlp_output"), 20.0, None, 1e-4, epochs=10, length=1024),
    "gpt2-input": Recipe(("mlp_input",), 40.0, None, 1e-4, epochs=10, length=1024),
    "pythia-70m": Recipe(("mlp_input",), 40.0, 150, 5e-5, epochs=2, length=256),
    "pythia-1.4b": Recipe(("mlp_input",), 40.0, 150, 1e-4, epochs=2, length=256),
}

MODELS = {
    "gpt2": "openai-community/gpt2",
    "pythia-70m": "EleutherAI/pythia-70m",
    "pythia-1.4b": "EleutherAI/pythia-1.4b",
}
"""Names on the hub. Each of these names is also that of a recipe."""
