"""A whole training step with T tasks: time and memory of every way to its gradients, on an MLP of 1.05M parameters.

python bench/bench_training.py [--quick]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.measure import interleaved, milliseconds, peak_bytes, ratio, table, write
from mt2o_ext import WeightedBackward, WeightedFused, weighting

NOTES = (
    "MLP of 4 layers of 512, a head for each task, batch 256; forward, backward, AdamW, UPGrad where there is a "
    "weighting. ms: medians; x sum: median per-round ratio to 'sum', one backward of the summed losses and "
    "torch.optim.AdamW(fused=True); x T grads: to 'T grads', torch.autograd.grad of each loss and their sum. +J: "
    "largest allocation from making the model to the end of the second step, beyond that of 'sum', in units of "
    "J = 4 T P bytes. WeightedFused (losses): uncertainty weighting, one backward. TorchJD: mtl_backward, jac_to_grad."
)
WIDTH, DEPTH, BATCH = 512, 4, 256


class Model(nn.Module):
    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [layer for _ in range(DEPTH) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
        self.trunk = nn.Sequential(*layers)
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(num_tasks))
        self.x = torch.randn(BATCH, WIDTH)
        self.y = torch.randn(num_tasks, BATCH)

    def features(self) -> Tensor:
        return self.trunk(self.x)

    def losses(self, z: Tensor) -> list[Tensor]:
        return [(head(z)[:, 0] - y).square().mean() for head, y in zip(self.heads, self.y, strict=True)]

    def groups(self) -> list[dict[str, Any]]:
        heads = [{"params": list(head.parameters()), "task": task} for task, head in enumerate(self.heads)]
        return [{"params": list(self.trunk.parameters())}, *heads]


Step = Callable[[], object]


def adamw(model: Model) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), fused=True)


def summed(model: Model) -> Step:
    optimizer = adamw(model)

    def step() -> None:
        optimizer.zero_grad()
        torch.stack(model.losses(model.features())).sum().backward()
        optimizer.step()

    return step


def every_gradient(model: Model) -> Step:
    optimizer, shared = adamw(model), list(model.trunk.parameters())

    def step() -> None:
        optimizer.zero_grad()
        losses = model.losses(model.features())
        rows = []
        for loss, head in zip(losses, model.heads, strict=True):
            own = list(head.parameters())
            grads = torch.autograd.grad(loss, [*shared, *own], retain_graph=True)
            rows.append(grads[: len(shared)])
            for p, grad in zip(own, grads[len(shared) :], strict=True):
                p.grad = grad
        for p, grads in zip(shared, zip(*rows, strict=True), strict=True):
            p.grad = torch.stack(grads).sum(0)
        optimizer.step()

    return step


def fused(collect: str, method: Callable[[], weighting.Weighting]) -> Callable[[Model], Step]:
    def make(model: Model) -> Step:
        optimizer = WeightedFused(model.groups(), num_tasks=len(model.heads), weighting=method(), collect=collect)

        def step() -> None:
            optimizer.backward(model.losses(model.features()))
            optimizer.step()

        return step

    return make


def into_grad(model: Model) -> Step:
    optimizer = adamw(model)
    backward = WeightedBackward(model.groups(), num_tasks=len(model.heads), weighting=weighting.UPGrad())

    def step() -> None:
        optimizer.zero_grad()
        backward(model.losses(model.features()))
        optimizer.step()

    return step


def torchjd(model: Model) -> Step:
    from torchjd.aggregation import UPGrad
    from torchjd.autojac import jac_to_grad, mtl_backward

    optimizer, aggregator = adamw(model), UPGrad()

    def step() -> None:
        optimizer.zero_grad()
        z = model.features()
        mtl_backward(model.losses(z), features=z)
        jac_to_grad(model.trunk.parameters(), aggregator)
        optimizer.step()

    return step


WAYS: dict[str, Callable[[Model], Step]] = {
    "sum": summed,
    "T grads": every_gradient,
    "WeightedFused": fused("sequential", weighting.UPGrad),
    "WeightedFused, batched": fused("batched", weighting.UPGrad),
    "WeightedFused (losses)": fused("sequential", weighting.UncertaintyWeighting),
    "weighted_backward": into_grad,
    "TorchJD": torchjd,
}


def memory(make: Callable[[Model], Step], num_tasks: int) -> int:
    def begin() -> None:  # with the model: what is freed of earlier memory is not seen
        step = make(Model(num_tasks))
        step()
        step()

    return peak_bytes(begin)


def measure(num_tasks: int, rounds: int) -> list[dict[str, Any]]:
    steps = {name: make(Model(num_tasks)) for name, make in WAYS.items()}
    seconds = interleaved(steps, rounds)
    rows = []
    model = Model(num_tasks)
    all_rows = 4 * num_tasks * sum(p.numel() for p in model.trunk.parameters())
    plain = memory(WAYS["sum"], num_tasks)
    for name, make in WAYS.items():
        row: dict[str, Any] = {"T": num_tasks, "way": name, "ms": milliseconds(seconds[name])}
        row |= {f"x {other}": ratio(seconds[name], seconds[other]) for other in ("sum", "T grads")}
        rows.append(row | {"+J": round((memory(make, num_tasks) - plain) / all_rows, 2)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="T = 2 only, few rounds")
    quick = parser.parse_args().quick
    counts, rounds = ((2,), 3) if quick else ((2, 8, 16), 11)
    rows = [row for num_tasks in counts for row in measure(num_tasks, rounds)]
    print(table(rows))
    if not quick:
        print(write("training", rows, NOTES))


if __name__ == "__main__":
    main()
