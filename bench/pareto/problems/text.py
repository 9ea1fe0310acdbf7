"""A small transformer on Python's own documentation: the next character against one that it read before."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn import functional as F

from ..layers import LayerNorm, Linear
from .base import Part, Problem, mean_cross_entropy
from .sources import BrokenDataError

CONTEXT, LAG = 32, 6
SYMBOLS = 64  # the most frequent characters; the last number stands for all others
WIDTH, HEADS, LAYERS = 16, 2, 2


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(LayerNorm(WIDTH) for _ in range(2))
        self.mix = Linear(WIDTH, 3 * WIDTH)
        self.out = Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(Linear(WIDTH, 4 * WIDTH), nn.GELU(), Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        rows, batch, length, _ = x.shape
        mixed = self.mix(self.norms[0](x)).view(rows * batch, length, 3, HEADS, WIDTH // HEADS)
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(x.shape))
        return x + self.mlp(self.norms[1](x))


class Transformer(nn.Module):
    """Characters [R, B, 32] -> for each place logits of the next one, and of that six places before."""

    def __init__(self, extra: int = 0) -> None:
        super().__init__()
        self.symbols = nn.Parameter(torch.randn(1, SYMBOLS, WIDTH) * 0.3)
        self.places = nn.Parameter(torch.randn(1, CONTEXT, WIDTH) * 0.3)
        self.preference = Linear(extra, WIDTH) if extra else None
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = LayerNorm(WIDTH)
        self.heads = nn.ModuleList(Linear(WIDTH, SYMBOLS) for _ in range(2))

    def forward(self, x: Tensor, w: Tensor | None = None) -> list[Tensor]:
        inputs = x[:, :, LAG : LAG + CONTEXT]
        one_hot = F.one_hot(inputs, SYMBOLS).to(self.symbols.dtype)
        hidden = torch.bmm(one_hot.flatten(1, 2), self.symbols).view(*inputs.shape, WIDTH) + self.places[:, None]
        if self.preference is not None and w is not None:
            hidden = hidden + self.preference(w)[:, :, None]
        hidden = self.norm(self.blocks(hidden))
        return [head(hidden) for head in self.heads]


def encode(topics: dict[str, str]) -> tuple[dict[str, Tensor], float]:
    """The characters of three disjoint parts of the text as numbers, and the entropy of single characters."""
    total = sum(map(len, topics.values()))
    if total < 300_000:
        raise BrokenDataError(
            f"expected at least 300000 characters in pydoc_data.topics, got {total}: install Python's documentation "
            "topics (they are a part of CPython, which some distributions leave out)"
        )
    frequent = [c for c, _ in Counter("".join(topics.values())).most_common(SYMBOLS - 1)]
    number = {character: index for index, character in enumerate(frequent)}
    text = torch.tensor([number.get(c, SYMBOLS - 1) for name in sorted(topics) for c in topics[name]])
    blocks = text.tensor_split(50)
    kinds = {"train": range(8), "validation": [8], "test": [9]}
    parts = {
        part: torch.cat([block for index, block in enumerate(blocks) if index % 10 in digits])
        for part, digits in kinds.items()
    }
    return parts, float(Categorical(probs=parts["train"].bincount() / len(parts["train"])).entropy())


@lru_cache(maxsize=1)
def _texts() -> tuple[dict[str, Tensor], float]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ImportError("expected Python's pydoc_data.topics, got none: take a Python that ships it") from error
    return encode(topics)


def _parts() -> dict[str, Part]:
    texts, _ = _texts()
    window = LAG + CONTEXT + 1
    windows = {part: text.unfold(0, window, 1 if part == "train" else len(text) // 400) for part, text in texts.items()}
    return {part: (each, each) for part, each in windows.items()}


def _losses(outputs: list[Tensor], x: Tensor, labels: Tensor) -> Tensor:
    targets = labels[:, :, LAG + 1 :], labels[:, :, :CONTEXT]
    _, entropy = _texts()
    each = zip(outputs, targets, strict=True)
    return torch.stack([mean_cross_entropy(logits, target) / entropy for logits, target in each], 1)


TEXT = Problem(
    name="text",
    title="Python's documentation: the next character against the one six places before, from 16 numbers; transformer",
    tasks=("next character", "sixth before"),
    rows=5,
    batch=8,
    steps=1200,
    main=(1.0, 1.0),
    tight=(0.9, 0.8),
    parts=_parts,
    net=Transformer,
    losses=_losses,
)
