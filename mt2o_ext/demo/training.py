"""Training of one arm: K subproblems on two-digit images."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from time import perf_counter

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from ..optim import MT2OFused
from ..pareto import ParetoFront
from ..streams import repeat
from ..transfer import TransferRule
from .digits import TASKS, DigitPairs
from .lenet import LeNet, task_losses

__all__ = ["EMA", "REFERENCE", "Arm", "Run", "Setting", "evaluate", "mini_batches", "train"]

EMA = 0.98
REFERENCE = (1.0, 1.0)
"""Of the hypervolume. Guessing has a loss of log 10 = 2.30 in both tasks: seen from there, most of the volume is what
every run gains in its first steps, and the last percent of it hides what the runs differ in."""


@dataclass(frozen=True)
class Setting:
    """The setting that both arms have in common."""

    data: DigitPairs
    num_subproblems: int
    batch_size: int
    device: torch.device


@dataclass(frozen=True)
class Arm:
    """One side of the comparison; ``rule`` makes its transfer rule, or None for independent runs."""

    label: str
    rule: Callable[[], TransferRule | None]


@dataclass
class Run:
    """One training: the model, its optimizer with all K subproblems, and what was measured."""

    arm: Arm
    lr: float
    model: LeNet
    optimizer: MT2OFused
    steps: list[int] = field(default_factory=list)
    hypervolumes: list[float] = field(default_factory=list)
    """On validation data, after so many steps, of the subproblems' running averages."""
    seconds: float = 0.0
    """Of training, evaluation left out."""
    step_seconds: float = 0.0
    """The part of them in ``optimizer.step()``."""

    def front(self, pairs: TensorDataset) -> ParetoFront:
        """The losses of the running averages on ``pairs``."""
        return self.optimizer.front(
            lambda: evaluate(self.model, pairs)[0], ema=True, reference=REFERENCE, task_names=TASKS
        )

    def accuracies(self, pairs: TensorDataset) -> Tensor:
        """[K, 2], of the running averages."""
        rows = []
        for k in range(len(self.optimizer.preferences)):
            with self.optimizer.subproblem(k, ema=True):
                rows.append(evaluate(self.model, pairs)[1])
        return torch.stack(rows)

    def steps_to(self, target: float) -> float | None:
        """Steps until the hypervolume was first ``target`` > 0 (between checkpoints: on a straight line), or None."""
        curve = zip([0, *self.steps], [0.0, *self.hypervolumes], strict=True)
        for (before, low), (after, high) in pairwise(curve):
            if high >= target > low:
                return before + (after - before) * (target - low) / (high - low)
        return None


@torch.no_grad()
def evaluate(model: LeNet, pairs: TensorDataset) -> tuple[Tensor, Tensor]:
    """Mean losses [2] and accuracies [2] on ``pairs``, float64."""
    losses, hits = torch.zeros(2, 2, dtype=torch.float64).unbind()
    for images, labels in zip(*(tensor.split(500) for tensor in pairs.tensors), strict=True):
        logits = model(images)
        losses += task_losses(logits, labels).double().cpu() * len(labels)
        hits += (logits.argmax(-1) == labels).sum(0).double().cpu()
    return losses / len(pairs), hits / len(pairs)


def mini_batches(pairs: TensorDataset, batch_size: int, seed: int) -> Iterator[list[Tensor]]:
    """Endless random mini-batches; the same ones for the same seed."""
    order = RandomSampler(pairs, generator=torch.Generator().manual_seed(seed))
    return repeat(DataLoader(pairs, batch_size=None, sampler=BatchSampler(order, batch_size, drop_last=True)))


def train(arm: Arm, lr: float, setting: Setting, steps: Iterable[int], checkpoints: Container[int], seed: int) -> Run:
    """Trains for ``steps``, which count from 1, and evaluates after those in ``checkpoints`` on validation data.

    ``seed`` gives the initial parameters, the same for all subproblems, and the mini-batches, other ones for each.
    """
    torch.manual_seed(seed)
    model = LeNet().to(setting.device)
    optimizer = MT2OFused(
        model.parameters(), num_tasks=2, num_subproblems=setting.num_subproblems, lr=lr, transfer=arm.rule(), ema=EMA
    )
    stream = mini_batches(setting.data.train, setting.batch_size, seed)
    run = Run(arm, lr, model, optimizer)
    for step in steps:
        start = perf_counter()
        for _ in optimizer.subproblems():
            images, labels = next(stream)
            optimizer.backward(task_losses(model(images), labels))
        before_step = perf_counter()
        optimizer.step()
        optimizer.zero_grad()
        end = perf_counter()
        run.seconds += end - start
        run.step_seconds += end - before_step
        if step in checkpoints:
            run.steps.append(step)
            run.hypervolumes.append(run.front(setting.data.validation).hypervolume())
    return run
