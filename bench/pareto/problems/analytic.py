"""Functions whose best front is known. The parameters are the decision vector; there is no data and no noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from mt2o_ext.scalarization import Linear, Scalarization, SmoothTchebycheff

from .base import Part, Problem


class Point(nn.Module):
    """The decision vector, [R, n], started anywhere in the middle half of its range."""

    def __init__(self, extra: int = 0, *, size: int, low: float, high: float) -> None:
        super().__init__()
        middle = torch.rand(1, size) / 2 + 0.25
        self.low, self.high = low, high
        self.theta = nn.Parameter(low + (high - low) * middle)

    def forward(self, x: Tensor, w: Tensor | None = None) -> Tensor:
        """In the range by reflection at its ends, which leaves the slope's size as it is."""
        width = self.high - self.low
        return self.low + width * (1 - (1 - ((self.theta - self.low) / width).abs().remainder(2)).abs())


def vlmop2(x: Tensor) -> list[Tensor]:
    shift = 1 / math.sqrt(x.shape[-1])
    return [1 - (-(x - sign * shift).square().sum(-1)).exp() for sign in (1, -1)]


def zdt1(x: Tensor) -> list[Tensor]:
    first, others = x[..., 0], 1 + 9 * x[..., 1:].mean(-1)
    return [first, others - (first * others).clamp_min(1e-12).sqrt()]


def zdt2(x: Tensor) -> list[Tensor]:
    first, others = x[..., 0], 1 + 9 * x[..., 1:].mean(-1)
    return [first, others - first.square() / others]


def dtlz2(x: Tensor) -> list[Tensor]:
    angle, radius = x[..., 0] * (math.pi / 2), 1 + (x[..., 1:] - 0.5).square().sum(-1)
    return [radius * angle.cos(), radius * angle.sin()]


def _losses(functions: Callable[[Tensor], list[Tensor]], outputs: Tensor, x: Tensor, labels: Tensor) -> Tensor:
    return torch.stack(functions(outputs), -1)


def _nothing() -> dict[str, Part]:
    empty = torch.zeros(1, 1)
    return dict.fromkeys(("train", "validation", "test"), (empty, empty))


def _problem(
    functions: Callable[[Tensor], list[Tensor]],
    shape: str,
    size: int,
    reference: float,
    optimum: float,
    scalarization: Scalarization,
    low: float = 0.0,
    high: float = 1.0,
) -> Problem:
    name = functions.__name__
    return Problem(
        name=name,
        title=f"{name.upper()}, n = {size}, {shape} front, no noise; {type(scalarization).__name__}",
        tasks=("f1", "f2"),
        rows=10,
        batch=1,
        steps=600,
        main=(reference, reference),
        tight=(reference, reference),
        parts=_nothing,
        net=partial(Point, size=size, low=low, high=high),
        losses=partial(_losses, functions),
        scalarization=scalarization,
        optimum=optimum,
        conditioned=False,
    )


# The best hypervolumes of ten points: from many starts, numerically.
VLMOP2 = _problem(vlmop2, "concave", 10, 1.0, 0.2998, SmoothTchebycheff(), low=-2.0, high=2.0)
ZDT1 = _problem(zdt1, "convex", 30, 1.1, 0.8274, Linear())
ZDT2 = _problem(zdt2, "concave", 30, 1.1, 0.4968, SmoothTchebycheff())
DTLZ2 = _problem(dtlz2, "concave", 11, 1.1, 0.3890, SmoothTchebycheff())
