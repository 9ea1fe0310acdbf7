"""Small models and base rules that the tests of the optimizer share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mt2o_ext import MT2OFused, WeightedFused
from mt2o_ext.base import SGD, Adam, AdamW, BaseRule, Lion
from support.plain_lion import PlainLion

Kind = type[MT2OFused] | type[WeightedFused]
Single = Callable[..., MT2OFused | WeightedFused]


@dataclass(frozen=True)
class Twin:
    """One of our base rules and the plain optimizer, of torch.optim where there is one, that it has to equal."""

    base: BaseRule
    theirs: Callable[..., torch.optim.Optimizer]
    options: dict[str, Any]
    lr: float
    kind: Kind = MT2OFused

    def torch(self, params: Any, **options: Any) -> torch.optim.Optimizer:
        return self.theirs(params, **{"lr": self.lr, **self.options, **options})

    def ours(self, params: Any, **options: Any) -> Any:
        return single(params, **{"kind": self.kind, "lr": self.lr, "base": self.base, **options})


def _twin(ours: type[BaseRule], theirs: Any, lr: float, **options: Any) -> Twin:
    return Twin(ours(**options), theirs, options, lr)


TWINS = {
    "sgd": _twin(SGD, torch.optim.SGD, 0.1),
    "sgd-decay": _twin(SGD, torch.optim.SGD, 0.1, weight_decay=0.01),
    "momentum": _twin(SGD, torch.optim.SGD, 0.1, momentum=0.9),
    "dampening": _twin(SGD, torch.optim.SGD, 0.1, momentum=0.9, dampening=0.3, weight_decay=0.01),
    "nesterov": _twin(SGD, torch.optim.SGD, 0.1, momentum=0.9, nesterov=True),
    "sgd-maximize": _twin(SGD, torch.optim.SGD, 0.1, momentum=0.9, maximize=True, weight_decay=0.01),
    "adam": _twin(Adam, torch.optim.Adam, 1e-2),
    "adam-decay": _twin(Adam, torch.optim.Adam, 1e-2, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-6),
    "amsgrad": _twin(Adam, torch.optim.Adam, 1e-2, amsgrad=True),
    "adamw": _twin(AdamW, torch.optim.AdamW, 1e-2),
    "adamw-amsgrad": _twin(AdamW, torch.optim.AdamW, 1e-2, amsgrad=True, weight_decay=0.1),
    "adamw-maximize": _twin(AdamW, torch.optim.AdamW, 1e-2, maximize=True),
    "lion": _twin(Lion, PlainLion, 1e-3),
    "lion-decay": _twin(Lion, PlainLion, 1e-3, weight_decay=0.1, betas=(0.8, 0.95)),
    "lion-maximize": _twin(Lion, PlainLion, 1e-3, maximize=True, weight_decay=0.01),
}


def make_model(dtype: torch.dtype = torch.float32, *, norm: bool = False, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Linear(7, 12), nn.Tanh(), nn.Linear(12, 2)]
    if norm:
        layers.insert(1, nn.BatchNorm1d(12))
    return nn.Sequential(*layers).to(dtype)


def task_losses(output: Tensor, target: Tensor) -> Tensor:
    """Two conflicting losses [..., 2] of outputs [..., B, 2] and targets [..., B]."""
    first = (output[..., 0] - target).square().mean(-1)
    second = (output[..., 1] + output[..., 0] + target).square().mean(-1)
    return torch.stack([first, second], -1)


class Batches:
    """An endless stream of mini-batches (x [B, 7], y [B]), the same for the same seed."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype

    def __next__(self) -> tuple[Tensor, Tensor]:
        x = torch.randn(16, 7, generator=self.generator).to(self.dtype)
        return x, x[:, 0] + x[:, 1]


def parameters(*sizes: int, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """Random vectors of these sizes."""
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(size, generator=generator).to(dtype)) for size in sizes]


def single(params: Any, kind: Kind = MT2OFused, **options: Any) -> Any:
    """One task, one model."""
    given = {"num_subproblems": 1} if kind is MT2OFused else {}
    return kind(params, **{"num_tasks": 1, "lr": 1e-2, **given, **options})


def seeded(**options: Any) -> dict[str, Any]:
    """Options of an optimizer; those of vertices get the same random points wherever these are the same options."""
    if options.get("front") == "vertices":
        options.setdefault("generator", torch.Generator().manual_seed(3))
    return options


def several(model: nn.Module, **options: Any) -> MT2OFused:
    """Two tasks, three independent subproblems, or as many points of a front on vertices."""
    given = {"num_tasks": 2, "num_subproblems": 3, "lr": 1e-2, "transfer": None}
    return MT2OFused(model.parameters(), **seeded(**{**given, **options}))


def train(optimizer: MT2OFused, model: nn.Module, batches: Batches, steps: int) -> list[Tensor]:
    """``steps`` steps with the closure; the losses [K, T] of each."""

    def losses() -> Tensor:
        x, y = next(batches)
        return task_losses(model(x), y)

    return [optimizer.step(losses) for _ in range(steps)]  # type: ignore[misc]


def rows(optimizer: MT2OFused, model: nn.Module) -> list[list[Tensor]]:
    """Copies of the parameters of every subproblem."""
    result = []
    for k in range(len(optimizer.preferences)):
        with optimizer.subproblem(k):
            result.append([p.detach().clone() for p in model.parameters()])
    return result


def set_gradients(parameters: Sequence[Tensor], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def snapshot(optimizer: MT2OFused) -> dict[str, Any]:
    """All state and the parameters, as they are now."""
    parameters = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
    return {
        "state": copy.deepcopy(optimizer.state_dict()),
        "parameters": parameters,
        "skipped": optimizer.skipped_steps,
    }


def assert_same(actual: Any, expected: Any) -> None:
    """Bitwise, through dicts, lists and tensors."""
    assert type(actual) is type(expected)
    if isinstance(expected, Tensor):
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key in expected:
            assert_same(actual[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other)
    else:
        assert actual == expected
