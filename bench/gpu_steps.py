"""Whole optimizers on one device: does a step wait for the device, and how many kernels does it launch?

python -m bench.gpu_steps [--device cuda] [--json FILE]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.measure import table
from mt2o_ext import MT2OFused, WeightedFused
from mt2o_ext.transfer import Hat, Spectral
from mt2o_ext.weighting import CAGrad
from tools.gpu_check.runner import write_json

FEW, MANY = 10, 200  # tensors of a model
STEPS = 10  # of which one transfers, where the rule does so every tenth step

Optimizer = MT2OFused | WeightedFused
OPTIMIZERS: dict[str, Callable[[list[Tensor]], Optimizer]] = {
    "MT2OFused, vertices": lambda p: MT2OFused(p, num_tasks=2, num_subproblems=5, front="vertices"),
    "MT2OFused, Hat": lambda p: MT2OFused(p, num_tasks=2, num_subproblems=5, transfer=Hat()),
    "MT2OFused, Spectral": lambda p: MT2OFused(p, num_tasks=2, num_subproblems=5, transfer=Spectral()),
    "WeightedFused, CAGrad": lambda p: WeightedFused(p, num_tasks=2, weighting=CAGrad()),
}


class Training:
    """An optimizer after two steps, with gradients for the next one."""

    def __init__(self, make: Callable[[list[Tensor]], Optimizer], num_tensors: int, device: torch.device) -> None:
        self.parameters: list[Tensor] = [
            torch.nn.Parameter(torch.full((1000,), 0.5, device=device)) for _ in range(num_tensors)
        ]
        self.optimizer = make(self.parameters)
        for _ in range(2):
            self.gradients()
            self.optimizer.step()

    def gradients(self) -> None:
        self.optimizer.zero_grad()
        subproblems = self.optimizer.subproblems() if isinstance(self.optimizer, MT2OFused) else range(1, 2)
        for k in subproblems:
            total = torch.stack([p.square().sum() for p in self.parameters]).sum()
            self.optimizer.backward(torch.stack([total, (total - k).square()]))  # not the same for all subproblems


def waits(training: Training, device: torch.device) -> str:
    """Where one of ten steps waits for the device, or "none"; a CPU has nothing to wait for."""
    for _ in range(STEPS):
        training.gradients()
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            training.optimizer.step()
        except RuntimeError as error:
            return str(error)[:300]
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    return "none"


def launches(training: Training, device: torch.device) -> int:
    """Kernels of the second of two steps, copies and fills left out; on a CPU, calls of the package's operators."""
    training.gradients()
    training.optimizer.step()
    training.gradients()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as recorded:
        training.optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    events = recorded.events() or []
    if device.type == "cuda":
        kernels = [event for event in events if event.device_type == DeviceType.CUDA]
        return sum(not event.name.startswith(("Memcpy", "Memset")) for event in kernels)
    return sum(event.name.startswith("mt2o_ext::") for event in events)


def steps(device: torch.device) -> Iterator[dict[str, Any]]:
    """A row for each optimizer; right: it never waits, and launches do not grow with the number of tensors."""
    for name, make in OPTIMIZERS.items():
        few, many = (Training(make, number, device) for number in (FEW, MANY))
        waited, count, count_of_many = waits(many, device), launches(few, device), launches(many, device)
        entry: dict[str, Any] = {"optimizer": name, "waits": waited}
        entry |= {f"launches, {FEW} tensors": count, f"launches, {MANY} tensors": count_of_many}
        yield entry | {"right": waited == "none" and 0 < count == count_of_many}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    entries: list[dict[str, Any]] = []
    for entry in steps(torch.device(chosen.device)):
        entries.append(entry)
        if chosen.json:
            write_json(chosen.json, entries)
    print(table(entries))
    return 0 if all(entry["right"] for entry in entries) else 1


if __name__ == "__main__":
    raise SystemExit(main())
