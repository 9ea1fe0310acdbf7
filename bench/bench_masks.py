"""Masks of tasks: a step of HarmonyFused against TaskMasks around torch's fused AdamW, and an exchange of elements.

python bench/bench_masks.py [--quick]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.measure import interleaved, milliseconds, power, ratio, table, write
from mt2o_ext import HarmonyFused
from mt2o_ext.masks import Harmony, TaskMasks

TASKS = 5
NOTES = (
    "float32, five tasks, one in each step, masks of 0.8 of the elements in four square layers; the loss is a product "
    "with the parameters, so that forward and backward cost little. ms: medians, all in turn. step: "
    "view, gradients and update. plain: torch.optim.AdamW(fused=True) without any mask. exchange: 100 elements of each "
    "mask, with five backward passes. Others: their time over ours in the same round."
)


class Product(nn.Module):
    """A loss whose gradients are the same numbers at every step."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        side = int((elements / 4) ** 0.5)
        self.layers = nn.ParameterList(torch.randn(side, side) for _ in range(4))
        self.slopes = [torch.randn(side, side) for _ in range(4)]

    def forward(self, task: int) -> Tensor:
        return sum((p * slope).sum() for p, slope in zip(self.layers, self.slopes, strict=True)) * (task + 1)


def variants(elements: int) -> tuple[dict[str, Callable[[], object]], dict[str, Callable[[], object]]]:
    """Steps, and exchanges."""
    ours, twin, plain = (Product(elements) for _ in range(3))
    optimizer = HarmonyFused(ours.named_parameters(), num_tasks=TASKS, lr=1e-4)
    masks = TaskMasks(twin.named_parameters(), TASKS)
    peer = torch.optim.AdamW(twin.parameters(), lr=1e-4, fused=True)
    unmasked = torch.optim.AdamW(plain.parameters(), lr=1e-4, fused=True)
    harmony = Harmony()

    def around() -> None:
        with masks.shown(0):
            twin(0).backward()
        with masks.held(0, peer):
            peer.step()
        peer.zero_grad()

    def without() -> None:
        plain(0).backward()
        unmasked.step()
        unmasked.zero_grad()

    steps = {"ours": lambda: optimizer.step(ours), "TaskMasks": around, "plain": without}
    exchanges = {"ours": lambda: optimizer.exchange(ours, 100), "TaskMasks": lambda: harmony.update(masks, twin, 100)}
    return steps, exchanges


def rows(elements: int, rounds: int) -> list[dict[str, Any]]:
    found = []
    for what, several in zip(("step", "exchange"), variants(elements), strict=True):
        seconds = interleaved(several, rounds)
        row = {"P": power(elements), "of": what, "ms": milliseconds(seconds["ours"])}
        others = {f"{name} / ours": ratio(times, seconds["ours"]) for name, times in seconds.items() if name != "ours"}
        found.append(row | others)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds, small")
    quick = parser.parse_args().quick
    found = [row for elements in ([10**5] if quick else [10**6, 10**7]) for row in rows(elements, 3 if quick else 9)]
    print(table(found))
    if not quick:
        write("masks", found, NOTES)


if __name__ == "__main__":
    main()
