"""``python -m mt2o_ext.demo connection-strength``: its phases, one by one and mixed, against the sum of gradients.

The control that the paper lacks is here: phase 1 makes a step for each task, so the plain sum is also given as many.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from ..optim import ConnectionStrengthFused, WeightedFused
from ..priority import find_connections, mixed, phase_one, phase_two, sequential
from ..weighting import PCGrad
from .three_tasks import METRICS, TASKS, ThreeTaskNet, TurnedDigits, evaluate, make_turned_digits, task_loss
from .training import mini_batches

__all__ = ["ARMS", "Arm", "Outcome", "delta", "main", "train"]

BATCH_SIZE = 64


@dataclass(frozen=True)
class Arm:
    """One way to train; ``schedule`` of connection strength, PCGrad, or neither: the plain sum of the gradients."""

    label: str
    schedule: Callable[[float], float] | None = None
    step_factor: int = 1
    pcgrad: bool = False


ARMS = (
    Arm("plain sum"),
    Arm(f"plain sum, {len(TASKS)} times the steps", step_factor=len(TASKS)),
    Arm("PCGrad", pcgrad=True),
    Arm("phase 1 only", phase_one),
    Arm("phase 2 only", phase_two),
    Arm("sequential", sequential),
    Arm("mixed", mixed),
)


@dataclass
class Outcome:
    """The results of an arm, by seed."""

    label: str
    metrics: list[list[float]] = field(default_factory=list)
    deltas: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def delta(metrics: Sequence[float], single: Sequence[float]) -> float:
    """Delta_m: the mean relative improvement over single-task runs, negative where they are better."""
    gains = [
        (value - alone) / alone * (1 if metric.higher_is_better else -1)
        for value, alone, metric in zip(metrics, single, METRICS, strict=True)
    ]
    return statistics.mean(gains)


def train(
    arm: Arm, data: TurnedDigits, tasks: Sequence[int], steps: int, lr: float, seed: int
) -> tuple[ThreeTaskNet, Any]:
    """Trains on the sum of these tasks' losses, or with connection strength on all; the rate decays to zero linearly.

    ``seed`` gives initial parameters, mini-batches and phases.
    """
    torch.manual_seed(seed)
    model = ThreeTaskNet()
    steps *= arm.step_factor
    stream = mini_batches(data.train, BATCH_SIZE, seed)
    optimizer: torch.optim.Optimizer
    if arm.pcgrad:
        weighted = WeightedFused(_groups(model), num_tasks=len(TASKS), weighting=PCGrad(), lr=lr)
        optimizer, take = weighted, _weighted(model, weighted, stream)
    elif arm.schedule is None:
        optimizer = torch.optim.AdamW(model.parameters(), lr)
        take = _summed(model, optimizer, stream, tasks)
    else:
        ours = ConnectionStrengthFused(
            model.named_parameters(),
            connections=find_connections(model.trunk),
            num_tasks=len(TASKS),
            total_steps=steps,
            lr=lr,
            schedule=arm.schedule,
            seed=seed,
        )
        optimizer, take = ours, _phased(model, ours, stream)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        take()
        scheduler.step()
    return model, optimizer


def _summed(
    model: ThreeTaskNet, optimizer: torch.optim.Optimizer, stream: Iterator[list[Tensor]], tasks: Sequence[int]
) -> Callable[[], None]:
    def take() -> None:
        batch = next(stream)
        optimizer.zero_grad()
        for task in tasks:
            task_loss(model, batch, task).backward()
        optimizer.step()

    return take


def _groups(model: ThreeTaskNet) -> list[dict[str, Any]]:
    """Shared parameters, and those of one task: its head and its norms."""
    of_task: dict[int | None, list[Tensor]] = {None: []}
    for name, p in model.named_parameters():
        own = re.search(r"(?:norms|heads)\.(\d+)\.", name)
        of_task.setdefault(int(own[1]) if own else None, []).append(p)
    return [{"params": params, "task": task} for task, params in of_task.items()]


def _weighted(model: ThreeTaskNet, optimizer: WeightedFused, stream: Iterator[list[Tensor]]) -> Callable[[], None]:
    def take() -> None:
        batch = next(stream)
        optimizer.step(lambda: [task_loss(model, batch, task) for task in range(len(TASKS))])

    return take


def _phased(
    model: ThreeTaskNet, optimizer: ConnectionStrengthFused, stream: Iterator[list[Tensor]]
) -> Callable[[], None]:
    def take() -> None:
        batch = next(stream)
        optimizer.step(lambda task: task_loss(model, batch, task))

    return take


def run_seed(seed: int, steps: int, lr: float, outcomes: dict[str, Outcome]) -> Any:
    """All arms and the single-task runs of one seed, added to ``outcomes``; returns the optimizer of the last arm."""
    data = make_turned_digits(seed)
    single = []
    for task in range(len(TASKS)):
        model, _ = train(Arm("single task"), data, [task], steps, lr, seed)
        single.append(evaluate(model, data.test, task))
    _add(outcomes, "single tasks", single, 0.0, 0.0)
    optimizer = None
    for arm in ARMS:
        begin = perf_counter()
        model, optimizer = train(arm, data, range(len(TASKS)), steps, lr, seed)
        seconds = perf_counter() - begin
        metrics = [evaluate(model, data.test, task) for task in range(len(TASKS))]
        _add(outcomes, arm.label, metrics, delta(metrics, single), seconds)
        print(f"seed {seed}  {arm.label:<28} delta {delta(metrics, single):+7.2%}   {seconds:5.1f} s", flush=True)
    return optimizer


def _add(outcomes: dict[str, Outcome], label: str, metrics: list[float], gain: float, seconds: float) -> None:
    outcome = outcomes.setdefault(label, Outcome(label))
    outcome.metrics.append(metrics)
    outcome.deltas.append(gain)
    outcome.seconds.append(seconds)


def spread(values: Sequence[float], form: str) -> str:
    """Mean and standard deviation over seeds, if there is more than one."""
    mean = f"{statistics.mean(values):{form}}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):{form.lstrip('+')}}"


def table_rows(outcomes: Sequence[Outcome]) -> list[dict[str, str]]:
    """One row for each arm."""
    rows = []
    for outcome in outcomes:
        row = {"": outcome.label}
        for index, metric in enumerate(METRICS):
            values = [metrics[index] for metrics in outcome.metrics]
            row[f"{TASKS[index]}: {metric.name}"] = spread(values, (".1%", ".2f", ".4f")[index])
        row["Delta_m"] = "" if outcome.label == "single tasks" else spread(outcome.deltas, "+.1%")
        rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains all arms on every seed, prints the table, writes ``connection_strength.json`` and ``priority.png``."""
    options = _parser().parse_args(arguments)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    outcomes: dict[str, Outcome] = {}
    optimizer = None
    for seed in range(options.seeds):
        optimizer = run_seed(seed, options.steps, options.lr, outcomes)
    assert isinstance(optimizer, ConnectionStrengthFused)
    rows = table_rows(list(outcomes.values()))
    print()
    for row in rows:
        print("  ".join(f"{value:<20}" if name else f"{value:<28}" for name, value in row.items()))
    print(f"\n{optimizer.history()}")
    given = {name: value for name, value in vars(options).items() if name != "out"}
    given["threads"] = torch.get_num_threads()
    report = {"options": given, "table": rows, "arms": [vars(outcome) for outcome in outcomes.values()]}
    (out / "connection_strength.json").write_text(json.dumps(report, indent=1) + "\n")
    if len(optimizer.history().shares):
        optimizer.history().plot().savefig(out / "priority.png", dpi=120)
    print(f"\n{out}: connection_strength.json, priority.png (the owners of channels, {ARMS[-1].label}, last seed)")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mt2o_ext.demo connection-strength",
        description="Class, angle and upright image of turned digits: connection strength, its phases, and controls.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of every arm")
    parser.add_argument("--steps", type=int, default=450, help="mini-batches of every arm (9.6 epochs)")
    parser.add_argument("--lr", type=float, default=2e-3, help="AdamW's learning rate, of all arms")
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="folder for what is saved")
    return parser
