"""Wall time of whole steps on a GPU: the three optimizers and torch.optim.AdamW, on the parameters of a network."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bench.gpu_timing import on_the_clock, release, wait
from bench.network_shapes import Shape
from mt2o_ext import ConnectionStrengthFused, MT2OFused, WeightedFused
from mt2o_ext.priority import TaskBatchNorm, find_connections, phase_two
from mt2o_ext.transfer import Spectral
from mt2o_ext.weighting import CAGrad, UPGrad

WARM_UP, STEPS = 3, 20
SUBPROBLEMS = 5

Run = Callable[[], object]


class Network(nn.Module):
    """Convolutions with their norms and a linear layer, of these shapes; never run, only its parameters are used."""

    def __init__(self, shapes: Sequence[Shape]) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        for outputs, inputs, *kernel in (shape for shape in shapes if len(shape) > 1):
            if kernel:
                self.layers.append(nn.Conv2d(inputs, outputs, kernel[0], bias=False))
                self.layers.append(nn.BatchNorm2d(outputs))
            else:
                self.layers.append(nn.Linear(inputs, outputs))


class Losses:
    """T losses whose gradients are random numbers, so that they conflict and are cheap to have."""

    def __init__(self, parameters: list[Tensor], num_tasks: int) -> None:
        self.parameters = parameters
        self.directions = [[torch.randn_like(p) for p in parameters] for _ in range(num_tasks)]

    def of_task(self, task: int) -> Tensor:
        pairs = zip(self.parameters, self.directions[task], strict=True)
        return torch.stack([(p * direction).sum() for p, direction in pairs]).sum()

    def all(self) -> list[Tensor]:
        return [self.of_task(task) for task in range(len(self.directions))]


def model_of(shapes: Sequence[Shape], device: torch.device) -> tuple[nn.Module, list[Tensor]]:
    model = Network(shapes).to(device)
    return model, list(model.parameters())


# Each gives what is done before a step, which is not timed, and the step.
def adamw(shapes: Sequence[Shape], device: torch.device) -> tuple[Run, Run]:
    _, parameters = model_of(shapes, device)
    optimizer, losses = torch.optim.AdamW(parameters, fused=True), Losses(parameters, 1)

    def prepare() -> None:
        optimizer.zero_grad()
        losses.of_task(0).backward()

    return prepare, optimizer.step


def weighted(weighting: Any, num_tasks: int, shapes: Sequence[Shape], device: torch.device) -> tuple[Run, Run]:
    _, parameters = model_of(shapes, device)
    optimizer = WeightedFused(parameters, num_tasks=num_tasks, weighting=weighting)
    losses = Losses(parameters, num_tasks)

    def prepare() -> None:
        optimizer.zero_grad()
        optimizer.backward(losses.all())

    return prepare, optimizer.step


def mt2o(options: dict[str, Any], shapes: Sequence[Shape], device: torch.device) -> tuple[Run, Run]:
    _, parameters = model_of(shapes, device)
    optimizer = MT2OFused(parameters, num_tasks=2, num_subproblems=SUBPROBLEMS, **options)
    losses = Losses(parameters, 2)

    def prepare() -> None:
        optimizer.zero_grad()
        for _ in optimizer.subproblems():
            optimizer.backward(torch.stack(losses.all()))

    return prepare, optimizer.step


def connection_strength(num_tasks: int, shapes: Sequence[Shape], device: torch.device) -> tuple[Run, Run]:
    """Its step does the backward passes itself."""
    model = TaskBatchNorm.convert(Network(shapes), num_tasks).to(device)
    losses = Losses([layer.weight for layer in model.layers if isinstance(layer, nn.Conv2d | nn.Linear)], num_tasks)
    optimizer = ConnectionStrengthFused(
        model.named_parameters(), connections=find_connections(model), num_tasks=num_tasks,
        total_steps=10 * STEPS, schedule=phase_two,
    )  # fmt: skip
    return lambda: None, lambda: optimizer.step(losses.of_task)


def backward_alone(num_tasks: int, shapes: Sequence[Shape], device: torch.device) -> tuple[Run, Run]:
    """What ConnectionStrengthFused's step contains besides its own work."""
    _, parameters = model_of(shapes, device)
    losses = Losses([p for p in parameters if p.dim() > 1], num_tasks)

    def prepare() -> None:
        for p in parameters:
            p.grad = None

    def run() -> None:
        for task in range(num_tasks):
            losses.of_task(task).backward()

    return prepare, run


OPTIMIZERS: dict[str, Callable[[Sequence[Shape], torch.device], tuple[Run, Run]]] = {
    "torch AdamW(fused=True)": adamw,
    "WeightedFused, CAGrad, T=2": lambda *where: weighted(CAGrad(), 2, *where),
    "WeightedFused, UPGrad, T=3": lambda *where: weighted(UPGrad(), 3, *where),
    "MT2OFused, vertices, K=5, T=2": lambda *where: mt2o({"front": "vertices"}, *where),
    "MT2OFused, Spectral, K=5, T=2": lambda *where: mt2o({"transfer": Spectral()}, *where),
    "ConnectionStrengthFused, T=3, with its backward passes": lambda *where: connection_strength(3, *where),
    "the backward passes alone, T=3": lambda *where: backward_alone(3, *where),
}


def whole_step(name: str, shapes: Sequence[Shape], device: torch.device, steps: int = STEPS) -> dict[str, Any]:
    """ms until the device is done, and host ms until the call returns: medians; largest ms: of a step with a transfer,
    say."""
    gc.collect()  # optimizers and their parameters hold each other
    release(device)
    prepare, step = OPTIMIZERS[name](shapes, device)
    host: list[float] = []

    def timed() -> None:
        begin = time.perf_counter()
        step()
        host.append(time.perf_counter() - begin)

    whole = []
    for _ in range(WARM_UP + steps):
        prepare()
        wait(device)
        whole.append(on_the_clock(timed, device))
    whole, host = whole[WARM_UP:], host[WARM_UP:]
    row: dict[str, Any] = {"optimizer": name, "ms": milliseconds(statistics.median(whole))}
    return row | {"host ms": milliseconds(statistics.median(host)), "largest ms": milliseconds(max(whole))}


def milliseconds(seconds: float) -> float:
    return round(seconds * 1e3, 4)
