"""A garment's class against its reconstruction, both from a code of a few numbers."""

from __future__ import annotations

from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import Linear
from .base import Part, Problem, mean_cross_entropy, with_preferences
from .garments import garment_pools

SIZES = {"train": 50_000, "validation": 1_500, "test": 3_000}
PIXELS = 14 * 14


class Bottleneck(nn.Module):
    """x [R, B, 196] -> logits [R, B, 10] and images [R, B, 196]; about 27,000 parameters."""

    def __init__(self, extra: int = 0, *, code: int) -> None:
        super().__init__()
        self.encode = nn.Sequential(Linear(PIXELS + extra, 64), nn.ReLU(), Linear(64, code))
        self.classify = nn.Sequential(Linear(code, 32), nn.ReLU(), Linear(32, 10))
        self.decode = nn.Sequential(Linear(code, 64), nn.ReLU(), Linear(64, PIXELS))

    def forward(self, x: Tensor, w: Tensor | None = None) -> tuple[Tensor, Tensor]:
        code = self.encode(with_preferences(x, w))
        return self.classify(code), self.decode(code)


@lru_cache(maxsize=1)
def _garments() -> dict[str, Part]:
    """Pixels less their means, over a deviation common to all that makes the constant predictor's squared error 1."""
    parts = {}
    for part, (images, labels) in garment_pools(torch.Generator().manual_seed(12345)).items():
        size = SIZES[part]
        parts[part] = F.avg_pool2d(images[:size, None] / 255, 2).flatten(1), labels[:size]
    centre = parts["train"][0].mean(0)
    deviation = (parts["train"][0] - centre).square().mean().sqrt()
    return {part: ((images - centre) / deviation, labels) for part, (images, labels) in parts.items()}


def _losses(outputs: tuple[Tensor, Tensor], x: Tensor, labels: Tensor) -> Tensor:
    logits, image = outputs
    return torch.stack([mean_cross_entropy(logits, labels), (image - x).square().mean((1, 2))], 1)


def _problem(name: str, code: int, conflict: str, main: tuple[float, float], tight: tuple[float, float]) -> Problem:
    return Problem(
        name=name,
        title=f"Fashion-MNIST 14 x 14, class against reconstruction, a code of {code} numbers ({conflict}); MLP",
        tasks=("class", "reconstruction"),
        rows=10,
        batch=32,
        steps=1500,
        main=main,
        tight=tight,
        parts=_garments,
        net=partial(Bottleneck, code=code),
        losses=_losses,
    )


BN8 = _problem("bn8", 8, "mild conflict", (1.13, 0.44), (0.56, 0.19))
BN = _problem("bn", 2, "real conflict", (1.25, 0.67), (0.7, 0.45))
