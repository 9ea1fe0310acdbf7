"""Diamonds: cut, color and clarity from price and measures, all from a code of a few numbers."""

from __future__ import annotations

from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from ..layers import Linear
from .base import Part, Problem, mean_cross_entropy, with_preferences
from .sources import BrokenDataError, diamonds

CLASSES = {
    "cut": ["Fair", "Good", "Very Good", "Premium", "Ideal"],
    "color": list("DEFGHIJ"),
    "clarity": ["I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF"],
}


class Diamonds(nn.Module):
    """x [R, B, 8] -> logits of three tasks; about 840 parameters."""

    def __init__(self, extra: int = 0, *, code: int) -> None:
        super().__init__()
        self.encode = nn.Sequential(Linear(8 + extra, 32), nn.ReLU(), Linear(32, code))
        self.heads = nn.ModuleList(
            nn.Sequential(Linear(code, 16), nn.ReLU(), Linear(16, len(names))) for names in CLASSES.values()
        )

    def forward(self, x: Tensor, w: Tensor | None = None) -> list[Tensor]:
        code = self.encode(with_preferences(x, w))
        return [head(code) for head in self.heads]


@lru_cache(maxsize=1)
def _parts() -> dict[str, Part]:
    table = diamonds()
    labels = []
    for column, names in CLASSES.items():
        numbers = {name: number for number, name in enumerate(names)}
        if unknown := set(table[column]) - set(names):
            raise BrokenDataError(f"expected {column} among {names}, got {sorted(unknown)}")
        labels.append(torch.tensor([numbers[name] for name in table[column]]))
    plain = torch.tensor(table[["carat", "depth", "table", "x", "y", "z"]].to_numpy(), dtype=torch.float32)
    logs = torch.tensor(table[["carat", "price"]].to_numpy(), dtype=torch.float32).log()
    x, y = torch.cat([plain, logs], 1), torch.stack(labels, 1)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(12345))
    rows = {"train": order[:42_000], "validation": order[42_000:45_000], "test": order[45_000:51_000]}
    mean, deviation = x[rows["train"]].mean(0), x[rows["train"]].std(0)
    return {part: (((x[some] - mean) / deviation).clamp(-5, 5), y[some]) for part, some in rows.items()}


@lru_cache(maxsize=1)
def _entropies() -> list[float]:
    """The losses of the constant predictor."""
    _, labels = _parts()["train"]
    shares = [labels[:, task].bincount() / len(labels) for task in range(3)]
    return [float(Categorical(probs=share).entropy()) for share in shares]


def _losses(outputs: list[Tensor], x: Tensor, labels: Tensor) -> Tensor:
    each = zip(outputs, _entropies(), strict=True)
    return torch.stack([mean_cross_entropy(logits, labels[:, :, t]) / e for t, (logits, e) in enumerate(each)], 1)


def _problem(name: str, code: int) -> Problem:
    return Problem(
        name=name,
        title=f"Diamonds, cut, color and clarity from a code of {code} numbers, over the constant predictor's losses; "
        "MLP",
        tasks=("cut", "color", "clarity"),
        rows=10,
        batch=32,
        steps=1500,
        main=(1.0, 1.0, 1.0),
        tight=(0.8, 0.95, 0.9),
        parts=_parts,
        net=partial(Diamonds, code=code),
        losses=_losses,
    )


DI = _problem("di", 2)
DI4 = _problem("di4", 4)
