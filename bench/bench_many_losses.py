"""The losses of single samples: Gram matrix layer by layer, against TorchJD's autogram engine and our own stored rows.

python bench/bench_many_losses.py [--quick]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchjd.aggregation import UPGradWeighting
from torchjd.autogram import Engine

from bench.measure import interleaved, milliseconds, peak_bytes, ratio, table, write
from mt2o_ext import WeightedBackward
from mt2o_ext.gradients.layers import LayerEngine
from mt2o_ext.weighting import Needs, UPGrad, Weighting, WeightingContext

NOTES = (
    "One thread, float32. T losses, one for each sample of a batch of T; ms of forward pass, Gram matrix and "
    "combined gradient in `.grad`: medians, all ways in turn. even: weights of 1 / T, so that the time is that of the "
    "Gram matrix and the gradient; upgrad: with the solver, each package's own. Ours: LayerEngine(batch_dim=0); x sum: "
    "to one backward of the sum of the losses. TorchJD / ours: autogram.Engine(batch_dim=0) of TorchJD 0.18; stored / "
    "ours: WeightedBackward without engine; medians of per-round ratios. MiB: largest allocation of two calls beyond "
    "the model and the batch. small mlp: 10, 5, 10 wide; mlp: 784, 512, 512, 10; cnn: 32 and 64 filters of 3 x 3 on "
    "3 x 32 x 32, pooling, two linear layers; seq: 32 positions, embedding, two linear layers of 256, a norm."
)
Step = Callable[[], object]


class Even(Weighting):
    """Weights of 1 / T that ask for the Gram matrix nevertheless."""

    needs = Needs.GRAM

    def _weights(self, context: WeightingContext) -> Tensor:
        return torch.full_like(context.preferences, 1 / context.preferences.shape[1])


class Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(1000, 256)
        self.body = nn.Sequential(nn.Linear(256, 256), nn.GELU(), nn.LayerNorm(256), nn.Linear(256, 256), nn.GELU())
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.table(x)).mean(1))


def small_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 5), nn.ReLU(), nn.Linear(5, 10))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(64 * 6 * 6, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "small mlp": (small_mlp, lambda batch: torch.randn(batch, 10)),
    "mlp": (mlp, lambda batch: torch.randn(batch, 784)),
    "cnn": (cnn, lambda batch: torch.randn(batch, 3, 32, 32)),
    "seq": (Sequence, lambda batch: torch.randint(1000, (batch, 32), dtype=torch.int64)),
}


class Problem:
    def __init__(self, name: str, tasks: int) -> None:
        torch.manual_seed(0)
        make, inputs = MODELS[name]
        self.model, self.tasks = make(), tasks
        self.x, self.y = inputs(tasks), torch.randint(10, (tasks,), dtype=torch.int64)

    def losses(self) -> Tensor:
        return cross_entropy(self.model(self.x), self.y, reduction="none")


def summed(problem: Problem, upgrad: bool) -> Step:
    def step() -> None:
        problem.model.zero_grad()
        problem.losses().sum().backward()

    return step


def ours(problem: Problem, upgrad: bool, **options: Any) -> Step:
    weighting = UPGrad() if upgrad else Even()
    backward = WeightedBackward(problem.model.parameters(), num_tasks=problem.tasks, weighting=weighting, **options)

    def step() -> None:
        problem.model.zero_grad()
        backward(problem.losses())

    return step


def by_layers(problem: Problem, upgrad: bool) -> Step:
    return ours(problem, upgrad, engine=LayerEngine(problem.model, batch_dim=0))


def torchjd(problem: Problem, upgrad: bool) -> Step:
    engine = Engine(problem.model, batch_dim=0)
    weighting = UPGradWeighting() if upgrad else lambda gram: torch.full((len(gram),), 1 / len(gram))

    def step() -> None:
        problem.model.zero_grad()
        losses = problem.losses()
        losses.backward(weighting(engine.compute_gramian(losses)))

    return step


WAYS: Mapping[str, Callable[[Problem, bool], Step]] = {
    "sum": summed,
    "ours": by_layers,
    "TorchJD": torchjd,
    "stored": ours,
}


def memory(way: str, name: str, tasks: int) -> float:
    def begin() -> None:
        step = WAYS[way](Problem(name, tasks), False)
        step()
        step()

    return round((peak_bytes(begin) - peak_bytes(lambda: Problem(name, tasks))) / 2**20, 2)


def measure(name: str, tasks: int, upgrad: bool, rounds: int) -> dict[str, Any]:
    ways = [way for way in WAYS if way != "stored" or tasks <= 32]
    steps = {way: WAYS[way](Problem(name, tasks), upgrad) for way in ways}
    seconds = interleaved(steps, rounds)
    row: dict[str, Any] = {"model": name, "T": tasks, "weights": "upgrad" if upgrad else "even"}
    row |= {"ms": milliseconds(seconds["ours"]), "x sum": ratio(seconds["ours"], seconds["sum"])}
    row["TorchJD / ours"] = ratio(seconds["TorchJD"], seconds["ours"])
    row["stored / ours"] = ratio(seconds["stored"], seconds["ours"]) if "stored" in seconds else ""
    if not upgrad:
        row |= {f"MiB, {way}": memory(way, name, tasks) for way in ways}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="T = 16 only, two rounds, nothing is written")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)  # else the threads of the one spin while the other is timed
    sizes, rounds = ((16,), 2) if quick else ((32, 64, 128, 256), 5)
    rows = []
    for name in MODELS:
        for tasks in sizes:
            for upgrad in (False, True) if tasks <= 64 else (False,):
                rows.append(measure(name, tasks, upgrad, rounds * 6 if name == "small mlp" else rounds))
                print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(table(rows))
    if not quick:
        print(write("many_losses", rows, NOTES))


if __name__ == "__main__":
    main()
