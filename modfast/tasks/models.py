"""The networks of the tasks: a small transformer, and a network of one hidden layer for modular addition."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from modfast.arguments import Flag, Integer, check


class AdditionMLP(nn.Module):
    """One hidden layer for modular addition: ``fc1``, ReLU, ``fc2``, without biases.

    It reads both numbers as one-hot vectors side by side, as in "Grokking modular arithmetic"
    (arXiv 2301.02679), which squares where we take ReLU.

    Args:
        p: The modulus: inputs and classes are 0 to p - 1.
        hidden: Number of hidden neurons.

    Raises:
        ValueError: An argument is not a whole number in its range.

    Example:
        >>> model = AdditionMLP(7, hidden=32)
        >>> model(torch.tensor([[3, 6], [0, 1]])).shape
        torch.Size([2, 7])
        >>> tuple(model.fc1.weight.shape), tuple(model.fc2.weight.shape)
        ((32, 14), (7, 32))
    """

    def __init__(self, p: int, hidden: int = 256) -> None:
        super().__init__()
        check("p", p, Integer(2))
        check("hidden", hidden, Integer(1))
        self.p = p
        self.fc1 = nn.Linear(2 * p, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, p, bias=False)
        self.numbers: Tensor
        self.register_buffer("numbers", torch.arange(p, device=self.fc1.weight.device), persistent=False)

    def forward(self, pairs: Tensor) -> Tensor:
        """Logits ``(n, p)`` of pairs of numbers, int64 ``(n, 2)``."""
        one_hot = torch.eq(pairs[:, :, None], self.numbers).flatten(1).to(self.fc1.weight.dtype)
        logits: Tensor = self.fc2(functional.relu(self.fc1(one_hot)))
        return logits


class Attention(nn.Module):
    """Causal attention with weights of its own for query, key, value and output, without biases.

    Args:
        width: Of the residual stream; a multiple of ``heads``.
        heads: Number of heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, stream: Tensor) -> Tensor:
        """What the heads add to the stream, ``(n, length, width)``."""
        count, length, width = stream.shape
        shape = (count, length, self.heads, width // self.heads)
        query, key, value = (
            layer(stream).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        written: Tensor = self.output(mixed.transpose(1, 2).reshape(count, length, width))
        return written


class Block(nn.Module):
    """Attention, then an MLP with one hidden layer; each adds to the residual stream.

    Args:
        width: Of the residual stream.
        heads: Number of heads.
        hidden: Number of hidden neurons of the MLP.
        norm: Whether each reads the stream through a layer norm.
    """

    def __init__(self, width: int, heads: int, hidden: int, *, norm: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width) if norm else nn.Identity()
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width) if norm else nn.Identity()
        self.mlp_in = nn.Linear(width, hidden)
        self.mlp_out = nn.Linear(hidden, width)

    def forward(self, stream: Tensor) -> Tensor:
        """The stream after this block, ``(n, length, width)``."""
        stream = stream + self.attention(self.norm1(stream))
        written: Tensor = stream + self.mlp_out(functional.relu(self.mlp_in(self.norm2(stream))))
        return written


class Transformer(nn.Module):
    """A small decoder: embeddings of tokens and positions, blocks, and a linear layer that gives the logits.

    Args:
        tokens: Number of tokens that it reads.
        length: Largest number of tokens of an input.
        outputs: Number of logits at each place; by default ``tokens``.
        width: Of the residual stream; a multiple of ``heads``.
        heads: Number of heads of each block.
        hidden: Number of hidden neurons of each block; by default four times ``width``.
        layers: Number of blocks.
        norm: Whether there are layer norms: before each part of a block, and before the logits.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> model = Transformer(tokens=50, length=16, width=32)
        >>> model(torch.zeros(3, 10, dtype=torch.int64)).shape
        torch.Size([3, 10, 50])
    """

    def __init__(
        self,
        tokens: int,
        length: int,
        *,
        outputs: int | None = None,
        width: int = 64,
        heads: int = 4,
        hidden: int | None = None,
        layers: int = 2,
        norm: bool = True,
    ) -> None:
        super().__init__()
        outputs, hidden = tokens if outputs is None else outputs, 4 * width if hidden is None else hidden
        sizes = {"tokens": tokens, "length": length, "outputs": outputs, "width": width, "heads": heads}
        for name, value in (sizes | {"hidden": hidden, "layers": layers}).items():
            check(name, value, Integer(1))
        check("norm", norm, Flag())
        if width % heads:
            raise ValueError(f"width must be a multiple of heads ({heads}), got {width}")
        self.length = length
        self.tokens = nn.Embedding(tokens, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, norm=norm) for _ in range(layers))
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.unembed = nn.Linear(width, outputs, bias=False)
        # PyTorch's embeddings, N(0, 1), would drown what blocks write into the stream.
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=1 / math.sqrt(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``(n, length, outputs)`` of tokens, int64 ``(n, length)``.

        Raises:
            ValueError: there are more tokens than the model has positions.
        """
        if tokens.shape[1] > self.length:
            raise ValueError(f"tokens must be at most {self.length} of each example, got {tokens.shape[1]}")
        places = torch.arange(tokens.shape[1], device=tokens.device)
        stream = self.tokens(tokens) + self.positions(places)
        for block in self.blocks:
            stream = block(stream)
        logits: Tensor = self.unembed(self.norm(stream))
        return logits


class AdditionTransformer(nn.Module):
    """A one-layer transformer without layer norms for modular addition.

    It reads the tokens a, b and "=", and answers at the last place; as in "Progress measures for grokking via
    mechanistic interpretability" (arXiv 2301.05217), whose sizes are the defaults but for ``hidden``, 512
    there.

    Args:
        p: The modulus: inputs and classes are 0 to p - 1.
        width: Of the residual stream; a multiple of ``heads``.
        heads: Number of heads.
        hidden: Number of hidden neurons.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> model = AdditionTransformer(7, width=16, hidden=32)
        >>> model(torch.tensor([[3, 6], [0, 1]])).shape
        torch.Size([2, 7])
    """

    def __init__(self, p: int, width: int = 128, heads: int = 4, hidden: int = 512) -> None:
        super().__init__()
        check("p", p, Integer(2))
        self.p = p
        self.transformer = Transformer(
            p + 1, 3, outputs=p, width=width, heads=heads, hidden=hidden, layers=1, norm=False
        )

    def forward(self, pairs: Tensor) -> Tensor:
        """Logits ``(n, p)`` of pairs of numbers, int64 ``(n, 2)``."""
        logits: Tensor = self.transformer(functional.pad(pairs, (0, 1), value=self.p))[:, -1]
        return logits
