"""Twenty steps of every optimizer on gradients that each device computes exactly.

Losses are linear in the parameters, with coefficients that are others at each step: a gradient is a coefficient, or a
few of them times powers of two and added, whatever the device and however it sums the losses.  What a trajectory shows
is then the optimizer's own arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mt2o_ext import ConnectionStrengthFused, HarmonyFused, MT2OFused, WeightedFused
from mt2o_ext.base import SGD, AdamW
from mt2o_ext.masks import CosineBudget, Harmony
from mt2o_ext.optim.base import FlatOptimizer
from mt2o_ext.priority import find_connections, mixed
from mt2o_ext.transfer import Hat, Mean, Moments, Spectral, TransferContext
from support.optim.priority_model import network

STEPS = 20
INFINITE = 7  # at this step one gradient is, where a scaler looks for it
SHAPES = ((33, 70), (70,), (5, 1000), (3,), ())  # more than one chunk, tails, one element
HEADS = ((70,), (2, 9))  # of each task
# Weights of which products with the coefficients have few bits: the scalarized gradient is exact too.
PREFERENCES = [[k / 8, 1 - k / 8] for k in (1, 2, 4, 6, 7)]


@dataclass
class Trajectory:
    """Parameters and scale by name, before the first step and after each; the state at the end."""

    points: list[dict[str, Tensor]] = field(default_factory=list)
    state: dict[str, Tensor] = field(default_factory=dict)


def coefficients(shape: tuple[int, ...], *key: int, few_bits: bool) -> Tensor:
    """Of one tensor; the same for the same key.  With few bits: eighths from -1 to 1, which every dtype has."""
    seed = 0
    for number in key:
        seed = 101 * seed + number
    generator = torch.Generator().manual_seed(seed)
    if few_bits:
        return torch.randint(-8, 9, shape, generator=generator) / 8
    return torch.randn(shape, generator=generator)


def loss(parameters: list[Tensor], *key: int, few_bits: bool, infinite: bool = False) -> Tensor:
    """sum of coefficients times parameters; with an infinite coefficient among them."""
    parts = []
    for index, p in enumerate(parameters):
        given = coefficients(tuple(p.shape), *key, index, few_bits=few_bits)
        if infinite and index == 0:
            given[0, 1] = torch.inf
        parts.append((p * given.to(p.device, p.dtype)).sum())
    return torch.stack(parts).sum()


def made(shapes: tuple[tuple[int, ...], ...], device: torch.device, dtype: torch.dtype, seed: int) -> nn.ParameterList:
    generator = torch.Generator().manual_seed(seed)
    return nn.ParameterList(torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)


def tensors_in(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a state dict, on the CPU."""
    if isinstance(value, Tensor):
        yield name, value.detach().cpu().clone()
    elif isinstance(value, (dict, list, tuple)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors_in(part, f"{name}/{key}")


def now(optimizer: FlatOptimizer, scaler: torch.amp.GradScaler | None = None) -> dict[str, Tensor]:
    """Parameters of all rows as they are shown and, of 16 bits, the float32 numbers behind them; the scale."""
    found = {} if scaler is None else {"scale": torch.tensor(scaler.get_scale())}
    for index, flat in enumerate(optimizer._buffers.flats):
        for segment in range(len(flat.parameters)):
            found |= tensors_in(flat.rows_of(flat.theta, segment), f"buffer {index}, tensor {segment}")
            if flat.values is not flat.theta:
                found |= tensors_in(flat.rows_of(flat.values, segment), f"buffer {index}, tensor {segment}, rounded")
    return found


def change_lr(optimizer: torch.optim.Optimizer, step: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = 2.0 ** -(6 + step // 8)


# ---------------------------------------------------------------------- MT2OFused
def subproblems(
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float32,
    scaled: bool = False,
    few_bits: bool = True,
    **options: Any,
) -> Trajectory:
    model = made(SHAPES, device, dtype, seed=1)
    parameters = list(model)
    if "front" in options:
        options["generator"] = torch.Generator().manual_seed(5)
    optimizer = MT2OFused(
        parameters, **{"num_tasks": 2, "num_subproblems": 5, "preferences": PREFERENCES, "lr": 2.0**-6, **options}
    )
    scaler = torch.amp.GradScaler(device.type, init_scale=1024.0, growth_interval=4, enabled=scaled)
    trajectory = Trajectory([now(optimizer, scaler)])
    for step in range(STEPS):
        change_lr(optimizer, step)
        for k in optimizer.subproblems():
            infinite = scaled and step == INFINITE and k == 3
            losses = [loss(parameters, step, k, task, few_bits=few_bits, infinite=infinite) for task in range(2)]
            optimizer.backward(losses, scaler=scaler)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        trajectory.points.append(now(optimizer, scaler))
    trajectory.state = dict(tensors_in(optimizer.state_dict()["state"]))
    return trajectory


def given_mix(context: TransferContext) -> Tensor:
    """A rule of the user's own, one matrix for each tensor, with rows that sum to one."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.rand(len(SHAPES), 5, 5, dtype=torch.float64, generator=generator)
    rows[:, 2] = torch.eye(5, dtype=torch.float64)[2]
    return (rows / rows.sum(2, keepdim=True)).to(context.preferences.device)


# ---------------------------------------------------------------------- WeightedFused
def weighted(
    device: torch.device,
    *,
    num_tasks: int = 3,
    dtype: torch.dtype = torch.float32,
    scaled: bool = False,
    few_bits: bool = True,
    **options: Any,
) -> Trajectory:
    trunk = made(SHAPES, device, dtype, seed=1)
    heads = [made(HEADS, device, dtype, seed=2 + task) for task in range(num_tasks)]
    groups = [{"params": list(trunk)}, *({"params": list(head), "task": task} for task, head in enumerate(heads))]
    optimizer = WeightedFused(groups, num_tasks=num_tasks, lr=2.0**-6, **options)
    scaler = torch.amp.GradScaler(device.type, init_scale=1024.0, growth_interval=4, enabled=scaled)
    trajectory = Trajectory([now(optimizer, scaler)])
    for step in range(STEPS):
        change_lr(optimizer, step)
        infinite = scaled and step == INFINITE
        losses = [
            loss([*trunk, *head], step, task, few_bits=few_bits, infinite=infinite and task == 1)
            for task, head in enumerate(heads)
        ]
        optimizer.backward(losses, scaler=scaler)
        scaler.step(optimizer)
        scaler.update()
        trajectory.points.append(now(optimizer, scaler))
    trajectory.state = dict(tensors_in(optimizer.state_dict()["state"]))
    return trajectory


# ---------------------------------------------------------------------- ConnectionStrengthFused
def connection_strength(device: torch.device, *, dtype: torch.dtype = torch.float32, **options: Any) -> Trajectory:
    """Both phases.  Products of coefficients with few bits have exact sums, so that the projection is exact too; owners
    do not hang by a rounding (strengths in float32 are good to 1e-6, and the two
    largest of a channel differ by 3e-4 and more)."""
    model = network(dtype=dtype).to(device)
    connections = find_connections(model)
    optimizer = ConnectionStrengthFused(
        model.named_parameters(),
        **{
            "connections": connections,
            "num_tasks": 3,
            "total_steps": STEPS,
            "schedule": mixed,
            "lr": 2.0**-6,
            **options,
        },
    )
    named = dict(model.named_parameters())

    def of_task(task: int) -> list[Tensor]:
        others = [f"{kind}.{other}." for kind in ("heads", "norms") for other in range(3) if other != task]
        return [p for name, p in named.items() if not any(part in name for part in others)]

    trajectory = Trajectory([now(optimizer)])
    for step in range(STEPS):
        change_lr(optimizer, step)
        optimizer.step(lambda task, step=step: loss(of_task(task), step, task, few_bits=True))  # type: ignore[misc]
        trajectory.points.append(now(optimizer))
    trajectory.state = dict(tensors_in(optimizer.state_dict()["state"]))
    return trajectory


# ---------------------------------------------------------------------- HarmonyFused
def harmony(device: torch.device, *, dtype: torch.dtype = torch.float32, **options: Any) -> Trajectory:
    """Masks that change after every second step, by scores of gradients with few bits."""
    model = network(dtype=dtype).to(device)
    optimizer = HarmonyFused(
        [(name, p) for name, p in model.named_parameters() if "norms" not in name], num_tasks=3, lr=2.0**-6,
        density=0.5, generator=torch.Generator().manual_seed(1), budget=CosineBudget(STEPS, high=40), interval=2,
        harmony=Harmony(gamma=2.0, max_norm=None), **options,
    )  # fmt: skip
    everyone = [p for _, p in optimizer._parameters()]
    trajectory = Trajectory([now(optimizer)])
    for step in range(STEPS):
        change_lr(optimizer, step)
        optimizer.step(lambda task, step=step: loss(everyone, step, task, few_bits=True))  # type: ignore[misc]
        trajectory.points.append(now(optimizer) | {"masks": optimizer.masks.bits.cpu().float()})
    trajectory.state = dict(tensors_in(optimizer.state_dict()["state"]))
    return trajectory


@dataclass(frozen=True)
class Scenario:
    """Steps of one optimizer, and the operators without which they would not be what they are meant to be."""

    run: Callable[..., Trajectory]
    options: dict[str, Any]
    operators: set[str]

    def on(self, device: torch.device) -> Trajectory:
        return self.run(device, **self.options)


HALF = {"dtype": torch.bfloat16, "scaled": True}
MOMENTUM = SGD(momentum=0.9, nesterov=True)
ELEMENT_WISE = {
    "MT2OFused": Scenario(subproblems, {"transfer": None, "base": AdamW(amsgrad=True)}, {"step_", "finite_"}),
    "MT2OFused, mean, average": Scenario(subproblems, {"transfer": Mean(0.25), "ema": 0.9}, {"step_"}),
    "MT2OFused, vertices, average": Scenario(
        subproblems, {"front": "vertices", "points": 3, "ema": 0.9}, {"step_", "finite_", "combine_"}
    ),
    "MT2OFused, vertices, momentum, bfloat16, scaler": Scenario(
        subproblems, {"front": "vertices", "base": MOMENTUM, **HALF}, {"step_", "finite_", "combine_"}
    ),
    "MT2OFused, mix of each tensor, moments": Scenario(
        subproblems,
        {"transfer": given_mix, "moments": Moments.MIX, "order": "adapt_then_combine"},
        {"step_", "combine_"},
    ),
    "MT2OFused, momentum, bfloat16, scaler": Scenario(
        subproblems, {"transfer": Mean(0.25, every=3), "base": MOMENTUM, **HALF}, {"step_", "finite_"}
    ),
    "WeightedFused": Scenario(weighted, {"accumulate": True, "heads": "weighted"}, {"step_", "finite_"}),
    "WeightedFused, bfloat16, scaler": Scenario(
        weighted, {"accumulate": True, "preferences": [0.5, 0.25, 0.25], **HALF}, {"step_", "finite_"}
    ),
    "ConnectionStrengthFused": Scenario(connection_strength, {"base": AdamW(weight_decay=0.1)}, {"step_", "priority_"}),
    "ConnectionStrengthFused, bfloat16": Scenario(
        connection_strength, {"dtype": torch.bfloat16}, {"step_", "priority_"}
    ),
    "HarmonyFused": Scenario(harmony, {"base": AdamW(weight_decay=0.1)}, {"step_", "mask_", "harmony_", "exchange_"}),
    "HarmonyFused, all tasks, bfloat16": Scenario(
        harmony,
        {"dtype": torch.bfloat16, "turns": "all", "moments": "hold", "ema": 0.75},
        {"step_", "mask_", "harmony_", "exchange_"},
    ),
}
# Up to three rows are summed in float64, and differ by nothing that a float32 weight shows.
FIVE = {"num_tasks": 5, "few_bits": False, "base": MOMENTUM}
BY_INNER_PRODUCTS = {
    "MT2OFused, spectral": Scenario(subproblems, {"transfer": Spectral(every=2)}, {"step_", "gram_"}),
    "MT2OFused, spectral, relative": Scenario(
        subproblems, {"transfer": Spectral(every=2, relative=True)}, {"step_", "gram_", "transfer_"}
    ),
    "MT2OFused, hat, upgrad, bfloat16, scaler": Scenario(
        subproblems,
        {"transfer": Hat(every=3), "weighting": "upgrad", "base": MOMENTUM, **HALF},
        {"step_", "gram_", "dual_cone_"},
    ),
    "WeightedFused, cagrad": Scenario(
        weighted, {"weighting": "cagrad", **FIVE}, {"step_", "gram_", "conflict_averse_"}
    ),
    "WeightedFused, upgrad, bfloat16, scaler": Scenario(
        weighted, {"weighting": "upgrad", **FIVE, **HALF}, {"step_", "gram_", "dual_cone_"}
    ),
    "WeightedFused, mgda": Scenario(weighted, {"weighting": "mgda", **FIVE}, {"step_", "gram_", "minimum_norm_"}),
    "WeightedFused, nashmtl": Scenario(
        weighted, {"weighting": "nashmtl", **FIVE}, {"step_", "gram_", "power_barrier_"}
    ),
}
