"""Whole fronts in one network, COSMOS and PHN-LS: the settings of COSMOS' published code on Multi-Fashion."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mt2o_ext.demo.lenet import LeNet, task_losses
from mt2o_ext.pareto.learned import PreferenceInput, PreferenceNetwork
from mt2o_ext.pareto.learned.base import LearnedFront
from mt2o_ext.scalarization import COSMOS

from .pairs import Pairs
from .records import Record

BATCH, RAYS, REFERENCE = 256, 25, (2.0, 2.0)
LOOK_EVERY = 20
"""Epochs between two looks at the front, each of which costs as much as two epochs and a half."""


def with_preference_channels() -> LeNet:
    """The network of 31,910 parameters, with two more channels at its input: 33,530."""
    net = LeNet(36)
    net.trunk[0] = nn.Conv2d(3, 10, 9)
    return net


@dataclass(frozen=True)
class Method:
    """A network of a front, and the published settings: rate, epochs, epochs at which the rate is divided by 10."""

    make: Callable[[], LearnedFront]
    rate: float
    epochs: int
    milestones: tuple[int, ...] = ()


METHODS = {
    "COSMOS": Method(
        lambda: PreferenceInput(with_preference_channels(), 2, concentration=1.2, scalarization=COSMOS(lam=2.0)),
        *(1e-3, 100, (20, 40, 80, 90)),
    ),
    "PHN-LS": Method(lambda: PreferenceNetwork(LeNet(36), 2, concentration=0.2, start="random"), 1e-4, 150),
}


def hypervolume(network: LearnedFront, pairs: Pairs) -> tuple[float, list[list[float]]]:
    """From (2, 2), of 25 rays; and the losses [25, 2]."""

    def evaluate(model: nn.Module) -> Tensor:
        parts = zip(pairs.images.split(2000), pairs.labels.split(2000), strict=True)
        losses = [task_losses(model(images), labels) * len(labels) for images, labels in parts]
        return torch.stack(losses).sum(0) / len(pairs.labels)

    front = network.front(evaluate, rays=RAYS, reference=REFERENCE)
    return round(front.hypervolume(), 4), [[round(loss, 4) for loss in row] for row in front.losses.tolist()]


class Training:
    """A run that can be stopped after each epoch: all that it needs is in one file."""

    def __init__(self, method: str, seed: int, train: Pairs) -> None:
        torch.manual_seed(seed)
        self.method, self.seed, self.train = method, seed, train
        settings = METHODS[method]
        self.network = settings.make().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=settings.rate)
        self.schedule = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, list(settings.milestones), gamma=0.1)
        self.generator = torch.Generator().manual_seed(seed)
        self.epochs, self.seconds = 0, 0.0

    def epoch(self) -> None:
        begin = time.process_time()
        for rows in torch.randperm(len(self.train.labels), generator=self.generator).split(BATCH):
            preference = self.network.sample(self.generator)
            losses = task_losses(self.network(self.train.images[rows], preference=preference), self.train.labels[rows])
            self.optimizer.zero_grad()
            self.network.loss(losses, preference).backward()
            self.optimizer.step()
        self.schedule.step()
        self.epochs += 1
        self.seconds += time.process_time() - begin

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = {name: getattr(self, name).state_dict() for name in ("network", "optimizer", "schedule")}
        rest = {"generator": self.generator.get_state(), "epochs": self.epochs, "seconds": self.seconds}
        temporary = path.with_suffix(".new")
        torch.save({**parts, **rest}, temporary)
        temporary.replace(path)

    def load(self, path: Path) -> None:
        kept = torch.load(path, weights_only=True)
        for name in ("network", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(kept[name])
        self.generator.set_state(kept["generator"])
        self.epochs, self.seconds = kept["epochs"], kept["seconds"]


def looks(
    training: Training, path: Path, parts: tuple[Pairs, Pairs], epochs: int, late: Callable[[], bool] = lambda: False
) -> Iterator[Record]:
    """Train to `epochs`, or until it is `late`, and yield a record of the front at every twentieth and at the last.

    Each epoch is kept in `path`, from where a later call goes on.
    """
    if path.exists():
        training.load(path)
    while training.epochs < epochs and not late():
        training.epoch()
        if training.epochs % LOOK_EVERY == 0 or training.epochs == epochs:
            (validation, _), (test, losses) = (hypervolume(training.network, pairs) for pairs in parts)
            yield {
                "data": "garments",
                "method": training.method,
                "seed": training.seed,
                "epochs": training.epochs,
                "validation": validation,
                "test": test,
                "losses": losses,
                "seconds": round(training.seconds, 1),
            }
        training.save(path)
