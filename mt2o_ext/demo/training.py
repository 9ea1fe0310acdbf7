"""Training of one arm: K models for two-digit images, each with another trade-off."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from ..optim import MT2OFused
from ..pareto import ParetoFront
from ..streams import repeat
from .digits import TASKS, DigitPairs
from .lenet import LeNet, task_losses

__all__ = ["EMA", "REFERENCE", "Arm", "Run", "Setting", "evaluate", "mini_batches", "train"]

EMA = 0.98
SIZE = 18  # of the images
REFERENCE = (1.0, 1.0)
"""Of the hypervolume. Guessing has a loss of log 10 = 2.30 in both tasks: seen from there, most of the volume is what
every run gains in its first steps, and the last percent of it hides what the runs differ in."""


@dataclass(frozen=True)
class Setting:
    """The setting that all arms have in common."""

    data: DigitPairs
    num_subproblems: int
    batch_size: int
    device: torch.device
    num_steps: int
    """Steps of an arm that trains all its models side by side from the start."""

    @property
    def budget(self) -> int:
        """Gradient evaluations of every arm: mini-batches that went through one net, forward and backward."""
        return self.num_steps * self.num_subproblems


@dataclass(frozen=True)
class Arm:
    """One side of the comparison."""

    name: str
    label: str
    options: Callable[[], dict[str, Any]]
    """Makes the options of :class:`MT2OFused` that this arm has for itself."""
    trunk: float = 0.0
    """The share of all gradient evaluations that one net with equal weights gets first; then K copies of it go on."""

    def trunk_evaluations(self, setting: Setting) -> int:
        """Gradient evaluations of the one net; what is left is a multiple of K."""
        return int(self.trunk * setting.num_steps) * setting.num_subproblems


@dataclass
class Run:
    """One training: the model, its optimizer with all K subproblems, and what was measured."""

    arm: Arm
    lr: float
    model: LeNet
    optimizer: MT2OFused
    evaluations: list[int] = field(default_factory=list)
    """Gradient evaluations until each measurement."""
    steps: list[int] = field(default_factory=list)
    """Steps, one after the other, until each measurement."""
    hypervolumes: list[float] = field(default_factory=list)
    """Of the running averages, on validation data."""
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

    def reached(self, target: float, clock: Sequence[int]) -> float | None:
        """The count of ``clock``, ``evaluations`` or ``steps``, when the hypervolume was first ``target`` > 0.

        Between two measurements it rises on a straight line.  None: never.
        """
        curve = zip([0, *clock], [0.0, *self.hypervolumes], strict=True)
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


def train(
    arm: Arm, lr: float, setting: Setting, checkpoints: Sequence[int], seed: int, progress: Callable[[int], object]
) -> Run:
    """Trains until the budget is spent.

    Args:
        arm: the kind of training.
        lr: learning rate of all its optimizers.
        setting: data, models and budget.
        checkpoints: gradient evaluations, ascending, after which the front is evaluated on validation data.
        seed: of the initial parameters, the same for all models, and the mini-batches, other ones for each.
        progress: called after each step with the gradient evaluations that it took.
    """
    torch.manual_seed(seed)
    trunk = arm.trunk_evaluations(setting)
    model = LeNet(SIZE).to(setting.device)
    run = Run(arm, lr, model, _optimizer(model, lr, setting, {"num_subproblems": 1} if trunk else arm.options()))
    stream = mini_batches(setting.data.train, setting.batch_size, seed)
    due, spent, steps = list(checkpoints), 0, 0
    while spent < setting.budget:
        if trunk and spent == trunk:
            with run.optimizer.subproblem(0, ema=True):
                run.model = copy.deepcopy(run.model)
            run.optimizer = _optimizer(run.model, lr, setting, arm.options())
        taken = _step(run, stream)
        spent, steps = spent + taken, steps + 1
        progress(taken)
        if due and spent >= due[0]:
            due = [checkpoint for checkpoint in due if checkpoint > spent]
            run.evaluations.append(spent)
            run.steps.append(steps)
            run.hypervolumes.append(run.front(setting.data.validation).hypervolume())
    return run


def _optimizer(model: LeNet, lr: float, setting: Setting, options: dict[str, Any]) -> MT2OFused:
    options = {"num_subproblems": setting.num_subproblems, **options}
    return MT2OFused(model.parameters(), num_tasks=2, lr=lr, ema=EMA, **options)


def _step(run: Run, stream: Iterator[list[Tensor]]) -> int:
    """One step of all models; returns the gradient evaluations in it."""
    model, optimizer = run.model, run.optimizer
    start, taken = perf_counter(), 0
    for _ in optimizer.subproblems():
        images, labels = next(stream)
        optimizer.backward(task_losses(model(images), labels))
        taken += 1
    before_step = perf_counter()
    optimizer.step()
    optimizer.zero_grad()
    end = perf_counter()
    run.seconds += end - start
    run.step_seconds += end - before_step
    return taken
