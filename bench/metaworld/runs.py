"""One run, from its key to its record, and the file of records."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mt2o_ext import WeightedFused

from .demonstrations import EVALUATION, Data, Demonstrations, drawn
from .networks import NETWORKS, WEIGHTINGS, parameters
from .robots import Policy, World, successes

BATCH = 64
"""Of each task in each step."""

STEPS = 1000


class Key(NamedTuple):
    """What a run is known by."""

    network: str
    weighting: str
    demonstrations: int
    lr: float
    seed: int
    steps: int = STEPS


@dataclass(frozen=True)
class Record:
    """A finished run.

    Attributes:
        held_out: the mean squared error of each task's actions on demonstrations that no run is trained on, [T].
        reached: how many of the episodes of each task reached the goal, [T]; empty if there were none.
        episodes: of each task.
        parameters: of the network.
        seconds: of training, and of the episodes.
    """

    key: Key
    held_out: list[float]
    reached: list[int]
    episodes: int
    parameters: int
    seconds: tuple[float, float]

    @property
    def loss(self) -> float:
        return sum(self.held_out) / len(self.held_out)

    @property
    def success(self) -> float:
        """Over all tasks and episodes."""
        return sum(self.reached) / (len(self.reached) * self.episodes)

    def line(self) -> str:
        return json.dumps({**asdict(self), "key": list(self.key)}, separators=(",", ":"))

    @classmethod
    def of(cls, line: str) -> Record:
        values: dict[str, Any] = json.loads(line)
        return cls(**{**values, "key": Key(*values["key"]), "seconds": tuple(values["seconds"])})


def train(key: Key, data: Data) -> nn.Module:
    """A policy by cloning: squared errors of actions, a mini-batch of each task in each step, a cosine of rates."""
    torch.manual_seed(key.seed)
    generator = torch.Generator().manual_seed(key.seed)
    tasks = [(data.standardised(observations), actions) for observations, actions in data.train]
    kind = NETWORKS[key.network]
    net = kind.make(tasks[0][0].shape[1], tasks[0][1].shape[1], len(tasks))
    optimizer = WeightedFused(
        kind.groups(net), num_tasks=len(tasks), weighting=WEIGHTINGS[key.weighting], lr=key.lr, generator=generator
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, key.steps)
    batches = torch.Generator().manual_seed(key.seed)  # the same for all arms, also those that draw on their own

    def losses() -> list[Tensor]:
        found = []
        for task, (observations, actions) in enumerate(tasks):
            rows = torch.randint(len(observations), (BATCH,), generator=batches)
            found.append((net(observations[rows], task) - actions[rows]).square().mean())
        return found

    for _ in range(key.steps):
        optimizer.step(losses)
        schedule.step()
    return net


def policy_of(net: nn.Module, data: Data) -> Policy:
    def policy(observations: Tensor) -> Tensor:
        actions: Tensor = net(data.standardised(observations), torch.arange(len(observations)))
        return actions

    return policy


@torch.no_grad()
def held_out_losses(net: nn.Module, data: Data) -> list[float]:
    found = []
    for task, (observations, actions) in enumerate(data.held_out):
        found.append((net(data.standardised(observations), task) - actions).square().mean().item())
    return found


def run(key: Key, demonstrations: Demonstrations, world: World | None) -> Record:
    """Trains, and makes the episodes unless there is no world."""
    begin = time.process_time()
    data = drawn(demonstrations, key.demonstrations, key.seed)
    net = train(key, data)
    trained = time.process_time()
    reached = [] if world is None else successes(world, policy_of(net, data), EVALUATION)
    seconds = (round(trained - begin, 1), round(time.process_time() - trained, 1))
    held_out = [float(f"{loss:.4g}") for loss in held_out_losses(net, data)]
    return Record(key, held_out, reached, len(EVALUATION) if reached else 0, parameters(net), seconds)


class Records:
    """Records in a file of one line each, written as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.by_key: dict[Key, Record] = {}
        for number, line in enumerate(lines, 1):
            try:
                record = Record.of(line)
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"expected a record in line {number} of {path}, got {line[:60]!r}: delete it ({error})"
                ) from error
            self.by_key[record.key] = record

    def add(self, record: Record) -> None:
        self.by_key[record.key] = record
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a") as file:
            file.write(record.line() + "\n")
