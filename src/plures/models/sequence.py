"""Networks that predict the next character of a text."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plures.errors import PluresError
from plures.models.parts import Features, Tokens, split, tokens


class States(nn.Module):
    """An LSTM's output at every position, ``(batch, length, channels) -> (batch, length, hidden)``."""

    def __init__(self, channels: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, hidden, layers, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]  # type: ignore[no-any-return]


class LastState(States):
    """An LSTM's output at the last position, ``(batch, length, channels) -> (batch, hidden)``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, -1]


class Positions(nn.Module):
    """Adds a learned vector for each position."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(length, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table.weight


class CausalAttention(nn.Module):
    """Multi-head attention of each position to itself and those before (Vaswani et al. 2017, section 3.2).

    Written out explicitly, so clients can be stacked and differentiated twice on every device.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(-3, -2) for part in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
        later = torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool, device=x.device).triu(1)
        mixed = scores.masked_fill(later, float("-inf")).softmax(-1) @ value
        return self.out(mixed.transpose(-3, -2).flatten(-2))  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    """Attention and a two-layer perceptron, each on normalised inputs and added (pre-norm; Xiong et al. 2020)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = CausalAttention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first(x))
        return x + self.mlp(self.second(x))  # type: ignore[no-any-return]


class LastPosition(nn.Module):
    """``(batch, length, channels) -> (batch, channels)``."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, -1]


def char_lstm(
    features: Features,
    outputs: int,
    vocabulary: int | None = None,
    embedding: int = 8,
    hidden: int = 256,
    layers: int = 2,
    every_position: bool = False,
) -> nn.Module:
    """The character LSTM of FedAvg (McMahan et al. 2017, section 3) and LEAF's Shakespeare: the next character.

    With 90 characters 822,570 parameters: the 820,522 of Reddi et al. 2021 plus PyTorch's second bias.

    Args:
        features: ``(length,)`` integers, 0 to ``vocabulary - 1``.
        outputs: number of characters to choose from.
        vocabulary: number of input characters; ``outputs`` if not given.
        embedding: size of a character's vector.
        hidden: units of each LSTM layer.
        layers: number of LSTM layers.
        every_position: the character after every position, ``(length, outputs)``, for ``next_token``; otherwise
            the one after the last.
    """
    vocabulary = outputs if vocabulary is None else vocabulary
    sizes = {"vocabulary": vocabulary, "embedding": embedding, "hidden": hidden, "layers": layers}
    tokens("char_lstm", features, outputs, **sizes)
    states = (States if every_position else LastState)(embedding, hidden, layers)
    return split([Tokens(vocabulary, embedding), states], hidden, outputs)


def char_transformer(
    features: Features,
    outputs: int,
    vocabulary: int | None = None,
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
    every_position: bool = False,
) -> nn.Module:
    """A small causal transformer with learned positions: the next character.

    Its attention layers have the role ``attention``.

    Args:
        features: ``(length,)`` integers, 0 to ``vocabulary - 1``.
        outputs: number of characters to choose from.
        vocabulary: number of input characters; ``outputs`` if not given.
        width: size of the vectors, a multiple of ``heads``.
        layers: number of blocks.
        heads: attention heads of each block.
        every_position: the character after every position, ``(length, outputs)``, for ``next_token``; otherwise
            the one after the last.
    """
    vocabulary = outputs if vocabulary is None else vocabulary
    sizes = {"vocabulary": vocabulary, "width": width, "layers": layers, "heads": heads}
    length = tokens("char_transformer", features, outputs, **sizes)
    if width % heads:
        raise PluresError(f"char_transformer: width={width} is not a multiple of heads={heads}")
    start = [Tokens(vocabulary, width), Positions(length, width)]
    blocks = [TransformerBlock(width, heads) for _ in range(layers)]
    places = tuple(f"body.{place}.attention" for place in range(len(start), len(start) + layers))
    end = [nn.LayerNorm(width)] if every_position else [LastPosition(), nn.LayerNorm(width)]
    return split([*start, *blocks, *end], width, outputs, attention=places)
