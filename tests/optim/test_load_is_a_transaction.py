"""A state dict is loaded whole or not at all: every entry of the dicts of nine optimizers removed or replaced."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext import MT2OFused, WeightedFused
from mt2o_ext.base import SGD, Adam
from mt2o_ext.transfer import DistanceDecrease
from mt2o_ext.weighting import CAGrad, MoCo
from support.optim import priority_model
from support.optim.problems import Batches, assert_same, make_model, seeded, task_losses
from support.optim.towers import Towers, batch_of, weighted

Made = tuple[nn.Module, Any, Callable[[int], object]]


def of_weighting(weighting: Any, dtype: torch.dtype = torch.float32, **options: Any) -> Made:
    model = Towers(dtype=dtype)
    optimizer = weighted(model, weighting(), ema=0.9, **options)
    return model, optimizer, lambda seed: optimizer.step(lambda: model.losses(batch_of(seed, dtype)))


def of_subproblems(**options: Any) -> Made:
    model = make_model(norm=True)
    optimizer = MT2OFused(model.parameters(), num_tasks=2, ema=0.9, buffers=model.buffers(), **seeded(**options))

    def step(seed: int) -> object:
        batches = Batches(seed)
        return optimizer.step(lambda: (lambda x, y: task_losses(model(x), y))(*next(batches)))

    return model, optimizer, step


def of_one_task(dtype: torch.dtype) -> Made:
    model = Towers(1, dtype)
    optimizer = WeightedFused(model.parameters(), num_tasks=1, base=SGD(momentum=0.9), lr=1e-2)
    return model, optimizer, lambda seed: optimizer.step(lambda: model.losses(batch_of(seed, dtype)))


def of_connections() -> Made:
    model = priority_model.network()
    optimizer = priority_model.optimizer_of(model, shuffle=True, schedule=lambda progress: 0.5)
    return model, optimizer, lambda seed: optimizer.step(priority_model.Batches(seed).loss(model))


OPTIMIZERS: dict[str, Callable[[], Made]] = {
    "CAGrad": lambda: of_weighting(CAGrad, base=Adam(amsgrad=True)),
    "MoCo of 16 bits": lambda: of_weighting(MoCo, torch.bfloat16),
    "one task": lambda: of_one_task(torch.float32),
    "one task of 16 bits": lambda: of_one_task(torch.bfloat16),
    "subproblems": lambda: of_subproblems(transfer=DistanceDecrease(every=2)),
    "subproblems with a weighting": lambda: of_subproblems(front="rows", weighting="PCGrad", base=SGD(momentum=0.9)),
    "points": lambda: of_subproblems(front="vertices", history=2),
    "points with a weighting": lambda: of_subproblems(front="vertices", weighting="PCGrad", base=SGD(momentum=0.9)),
    "connection strength": of_connections,
}


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of every entry of nested dicts and lists; of lists the first only, of parameters the first two."""
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = [(key, one) for key, one in value.items() if prefix != ("state",) or key in (0, 1)]
    elif isinstance(value, list):
        items = list(enumerate(value[:1]))
    for key, one in items:
        yield (*prefix, key)
        yield from paths(one, (*prefix, key))


REMOVED = object()


def faults(value: Any) -> dict[str, Any]:
    found = {"removed": REMOVED, "None": None, "text": "text", "list": [], "negative": -1, "NaN": float("nan")}
    if isinstance(value, Tensor):
        found |= {
            "shape": torch.zeros(*value.shape, 2, dtype=value.dtype),
            "meta": value.to("meta"),
            "complex": value.to(torch.complex64),
        }
        del found["negative"], found["NaN"]
        if value.numel() > 0:
            found |= {"negative": -value.float() - 1, "NaN": torch.full(value.shape, torch.nan)}
    if isinstance(value, dict):
        found |= {"more": {**value, 99: {}}}
        if value:
            found["empty"] = {}
    return found


def broken(saved: dict[str, Any], path: tuple[Any, ...], fault: Any) -> dict[str, Any]:
    result = copy.deepcopy(saved)
    at: Any = result
    for key in path[:-1]:
        at = at[key]
    if fault is REMOVED:
        del at[path[-1]]
    else:
        at[path[-1]] = fault
    return result


def picture(model: nn.Module, optimizer: Any) -> bytes:
    """All that must not change, to the bit."""
    file = io.BytesIO()
    state = {f"{key}": value for key, value in model.state_dict().items()}
    torch.save([state, optimizer.state_dict(), optimizer.skipped_steps, getattr(optimizer, "last_phase", 0)], file)
    return file.getvalue()


# What may be missing: torch.optim's own dicts lack it, or it starts anew.
FREE = {"momentum_buffer", "max_exp_avg_sq", "master"}
SIGNED = {"exp_avg", "momentum_buffer", "ema", "transfer_base", "master", "subproblems", "vertices"}


def meaningful(path: tuple[Any, ...], kind: str, family: str) -> bool:
    """Whether such a dict may be accepted: another value of an option, state that starts anew, entries of others."""
    if kind == "more":
        return path != ("state",)
    if kind == "negative" and (
        path[-1] in SIGNED or {"buffers", "transfer", "rings"} & {*path} or "memory" in str(path)
    ):
        return True  # numbers of any sign
    if "param_names" in path or (kind == "removed" and ("memory" in str(path[-1]) or path[-1] == "history")):
        return True
    if path[0] == "state":
        anew = len(path) < 3 or path[-1] in FREE
        return anew and kind in ("removed", "None", "empty")
    if path[2:] == (family,):
        return kind == "removed"
    return len(path) == 3 and path[2] != "params"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_refused_and_unchanged_or_accepted_and_meaningful(name: str) -> None:
    model, optimizer, step = OPTIMIZERS[name]()
    for seed in range(3):
        step(seed)
    saved = optimizer.state_dict()
    step(3)  # so that a load which is half applied would be seen
    before = picture(model, optimizer)
    refused, accepted = 0, 0
    wrong: list[Any] = []
    for path in list(paths(saved)):
        value: Any = saved
        for key in path:
            value = value[key]
        for kind, fault in faults(value).items():
            if fault == [] and isinstance(value, list) and not value:
                continue  # as it was
            tampered = broken(saved, path, fault)
            try:
                optimizer.load_state_dict(tampered)
            except (TypeError, ValueError) as error:
                if picture(model, optimizer) != before or not ("expected" in str(error) or "must" in str(error)):
                    wrong.append((path, kind, error))
                refused += 1
                continue
            accepted += 1
            if not meaningful(path, kind, optimizer._family):
                wrong.append((path, kind))
            model, optimizer, step = OPTIMIZERS[name]()
            for seed in range(4):
                step(seed)
            before = picture(model, optimizer)
    assert wrong == [], wrong
    assert refused > 50 and accepted < refused


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_was_saved_is_accepted(name: str) -> None:
    model, optimizer, step = OPTIMIZERS[name]()
    for seed in range(3):
        step(seed)
    saved = optimizer.state_dict()
    weights = copy.deepcopy(model.state_dict())
    step(3)
    model.load_state_dict(weights)
    optimizer.load_state_dict(saved)
    assert_same(optimizer.state_dict(), saved)


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        (("param_groups", 0, "betas"), (2, 3), "betas"),
        (("param_groups", 0, "lr"), "a", "expected lr as a number"),
        (("param_groups", 0, "lr"), -1.0, "expected lr finite and >= 0"),
        (("state", 0, "step"), -1, "`step`"),
        (("state", 0, "exp_avg"), torch.zeros(12, 7, dtype=torch.complex64), "`exp_avg`"),
        (("state", 17), {"step": 1}, r"\[17\]"),
        (("param_groups", 0, "weighted", "weighting", "memory.tracked.0"), torch.zeros(1, 3, 5), "memory|tracked"),
        (("param_groups", 0, "weighted", "generator"), torch.zeros(3, dtype=torch.uint8), "generator"),
    ],
    ids=["betas", "lr text", "lr", "step", "complex", "id", "memory", "generator"],
)
def test_refusals_say_what_was_expected(path: tuple[Any, ...], value: Any, text: str) -> None:
    model, optimizer, step = of_weighting(MoCo)
    step(0)
    before = picture(model, optimizer)
    with pytest.raises((TypeError, ValueError), match=text):
        optimizer.load_state_dict(broken(optimizer.state_dict(), path, value))
    assert picture(model, optimizer) == before


@pytest.mark.parametrize("value", [None, "text", [], {}, {"state": {}}, {"state": None, "param_groups": []}], ids=str)
def test_what_is_no_state_dict(value: Any) -> None:
    _, optimizer, _ = of_weighting(CAGrad)
    with pytest.raises((TypeError, ValueError), match="expected"):
        optimizer.load_state_dict(value)
