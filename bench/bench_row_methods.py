"""Methods that change the gradients themselves, against the loops that users write in torch, and against a copy.

python bench/bench_row_methods.py [--quick]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.measure import interleaved, milliseconds, power, ratio, table, write
from mt2o_ext.ops import plan_layout
from mt2o_ext.weighting import DBMTL, ExcessMTL, GradDrop, MoCo, MomentumConFIG, Weighting
from mt2o_ext.weighting.context import Columns, WeightingContext
from mt2o_ext.weighting.draw import Draw

NOTES = (
    "The change of T gradients of P numbers in place, with what the method remembers; the weights and the combination, "
    "which all methods have, are not in it. 'torch': the formula in float32, a few calls of torch on [T, P] at a time, "
    "as published code has it. Both begin with a copy of the gradients, which x copies counts too. torch draws "
    "GradDrop's random numbers by torch.rand."
)
Change = Callable[[Tensor], object]


class Moving:
    """Running averages of gradients: MoCo's and DB-MTL's."""

    def __init__(self, like: Tensor, losses: Tensor, *, unit: bool) -> None:
        self.average, self.losses, self.unit = torch.zeros_like(like), losses[:, None], unit

    def __call__(self, grads: Tensor) -> object:
        fresh = grads * self.losses / (grads.norm(dim=1, keepdim=True) + 1e-8) if self.unit else grads / self.losses
        self.average = 0.5 * self.average + 0.5 * fresh
        return grads.copy_(self.average)


class Squares:
    """ExcessMTL's sums of squares."""

    def __init__(self, like: Tensor, losses: Tensor) -> None:
        self.squares = torch.zeros_like(like)

    def __call__(self, grads: Tensor) -> object:
        self.squares += grads**2
        return (grads**2 / (torch.sqrt(self.squares) + 1e-7)).sum(1)


class Moments:
    """M-ConFIG's moments and the gradient that Adam is given."""

    def __init__(self, like: Tensor, losses: Tensor) -> None:
        self.moment, self.last = torch.zeros_like(like), torch.zeros_like(like[0])

    def __call__(self, grads: Tensor) -> object:
        self.moment = 0.9 * self.moment + 0.1 * grads
        unit = self.moment / (self.moment.norm(dim=1, keepdim=True) + 1e-8)
        best = torch.linalg.pinv(unit @ unit.T) @ torch.ones(len(grads))
        direction = best @ unit
        direction = (self.moment @ direction).sum() / direction.square().sum() * direction
        fed, self.last = (direction - 0.9 * self.last) / 0.1, direction
        return fed


def drop_signs(grads: Tensor) -> object:
    purity = 0.5 * (1 + grads.sum(0) / (grads.abs().sum(0) + 1e-8))
    drawn = torch.rand_like(purity)
    return grads.mul_((purity > drawn) * (grads > 0) + (purity < drawn) * (grads < 0))


METHODS: dict[str, tuple[Callable[[], Weighting], Callable[[Tensor, Tensor], Change]]] = {
    "GradDrop": (GradDrop, lambda like, losses: drop_signs),
    "MoCo": (MoCo, lambda like, losses: Moving(like, losses, unit=True)),
    "DB-MTL": (DBMTL, lambda like, losses: Moving(like, losses, unit=False)),
    "ExcessMTL": (ExcessMTL, Squares),
    "M-ConFIG": (MomentumConFIG, Moments),
}


def measure(method: str, tasks: int, columns: int, rounds: int) -> dict[str, Any]:
    _, row, chunks = plan_layout([columns])
    rows, plain, other = torch.randn(1, tasks, row), torch.randn(tasks, columns), torch.empty(tasks, columns)
    losses = torch.rand(1, tasks, dtype=torch.float64) + 0.5
    make, loop = METHODS[method]
    weighting, change = make(), loop(plain, losses[0].float())
    weighting.bind(1, tasks, 1, "cpu")
    context = WeightingContext(
        preferences=torch.full((1, tasks), 1 / tasks, dtype=torch.float64),
        losses=losses,
        draw=Draw(torch.tensor(7)),
        columns=[Columns(torch.tensor(chunks), 1)],
    )
    source = plain.clone(), rows.clone()

    def ours() -> None:  # from gradients that no step before has changed
        rows.copy_(source[1])
        weighting.transform_([rows], context)

    def torchs() -> None:
        plain.copy_(source[0])
        change(plain)

    seconds = interleaved({"ours": ours, "torch": torchs, "copy": lambda: other.copy_(source[0])}, rounds)
    result: dict[str, Any] = {"method": method, "T": tasks, "P": power(columns), "ms": milliseconds(seconds["ours"])}
    result["x copies"] = ratio(seconds["ours"], seconds["copy"])
    return result | {"torch / ours": ratio(seconds["torch"], seconds["ours"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the smallest size only, few rounds")
    quick = parser.parse_args().quick
    sizes, rounds = ([1_000_000], 5) if quick else ([1_000_000, 10_000_000], 11)
    rows = [measure(method, t, p, rounds) for p in sizes for t in (2, 8) if t * p <= 4e7 for method in METHODS]
    print(table(rows))
    if not quick:
        print(write("row_methods", rows, NOTES))


if __name__ == "__main__":
    main()
