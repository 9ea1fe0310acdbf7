"""One call or more of every operator, with random arguments: what the parts `smoke` and `bits` run."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mt2o_ext.ops import (
    EXCHANGE_BINS,
    EXCHANGE_STATE,
    Order,
    PriorityRecord,
    Rule,
    address_table,
    plan_priority,
    workspace_size,
)
from tools.gpu_check.runner import ROOT

sys.path.insert(0, str(ROOT / "tests"))
from emulator import library
from support.ops import judge_problem
from support.samplers import FLOATS, HALVES, Layout, Sampler, StepProblem

LAYOUT = Layout((5000, 1, 0, 2049, 33))


@dataclass(frozen=True)
class Backend:
    """Compiled operators, on the device whose tensors they take."""

    name: str
    device: torch.device
    operators: Any  # combine_, gram_, ...


CPU = Backend("cpu", torch.device("cpu"), torch.ops.mt2o_ext)
CUDA = Backend("cuda", torch.device("cuda"), torch.ops.mt2o_ext)


def emulated() -> Backend:
    library.load()
    return Backend("cuda-emulated", torch.device("cpu"), torch.ops.mt2o_ext_emulated)


@dataclass
class Call:
    """One operator with its arguments, on the CPU."""

    family: str
    what: str
    arguments: list[Any]
    options: dict[str, Any] = field(default_factory=dict)
    operator: str = ""  # "": that of the family
    scattered: int | None = None  # which argument are gradients that are read from memory of their own instead

    def before(self) -> list[Tensor]:
        return [a for a in self.arguments if isinstance(a, Tensor)]

    def after(self, backend: Backend) -> list[Tensor]:
        """All tensors after the call, on the CPU; those of the call stay as they are."""
        copies = [_moved(a, backend.device) for a in self.arguments]
        operator = getattr(backend.operators, self.operator or f"{self.family}_")
        if self.scattered is None:
            operator(*copies, **self.options)
        else:
            grads = copies[self.scattered]
            assert grads is not None
            tensors, addresses = scattered(grads)
            operator(*copies, addresses=addresses, **self.options)
            del tensors  # lived as long as their addresses were read
        return [copy.cpu() for copy in copies if isinstance(copy, Tensor)]


class Exchange(Call):
    """An exchange of bits, whose scratch is of each backend its own."""

    def after(self, backend: Backend) -> list[Tensor]:
        """The masks after the call, and all else as it was."""
        return [super().after(backend)[0], *self.before()[1:]]


def _moved(argument: Any, device: torch.device) -> Any:
    if isinstance(argument, list):
        return [_moved(one, device) for one in argument]
    return argument.to(device, copy=True) if isinstance(argument, Tensor) else argument


def scattered(grads: Tensor) -> tuple[list[list[list[Tensor]]], Tensor]:
    """Copies of the tensors of gradients [K, T, P], and their addresses."""
    layout = list(zip(LAYOUT.offsets, LAYOUT.numels, strict=True))
    tensors = [[[task[at : at + numel].clone() for at, numel in layout] for task in row] for row in grads]
    return tensors, address_table(tensors, LAYOUT.offsets, grads.device)


def by_address(calls: Iterator[Call], argument: int) -> Iterator[Call]:
    """Each call as it is and, but for centred and cross products, once more with its gradients scattered."""
    for call in calls:
        yield call
        if call.family == "mask":
            continue
        if call.family != "gram" or (call.arguments[3] is None and not call.options["centre"]):
            yield replace(call, what=f"{call.what} by address", scattered=argument)


def combines(sampler: Sampler, dtype: torch.dtype) -> Iterator[Call]:
    for rows, tasks in ((1, 1), (5, 3), (17, 8)):
        out, grads = sampler.poisoned(rows, dtype=dtype), sampler.rows(rows, tasks, dtype=dtype)
        yield Call("combine", f"{dtype} {rows}x{tasks}", [out, grads, sampler.weights(rows, tasks), LAYOUT.chunks])


def grams(sampler: Sampler, dtype: torch.dtype) -> Iterator[Call]:
    for rows, centre, cross, diagonal in itertools.product((2, 3, 8, 16), *3 * ((False, True),)):
        products = rows if diagonal else rows * rows if cross else rows * (rows + 1) // 2
        shape = (rows,) if diagonal else (rows, rows)
        out = torch.full((2, len(LAYOUT.numels), *shape), torch.nan, dtype=torch.float64)
        partials = torch.full((2, len(LAYOUT.chunks), products), torch.nan, dtype=torch.float64)
        matrix, others = sampler.rows(2, rows, dtype=dtype), sampler.rows(2, rows, dtype=dtype) if cross else None
        what = f"{dtype} {rows} rows{', centred' * centre}{', cross' * cross}{', diagonal' * diagonal}"
        arguments = [out, partials, matrix, others, LAYOUT.chunks]
        yield Call("gram", what, arguments, {"centre": centre, "diagonal": diagonal})


def finites(sampler: Sampler, dtype: torch.dtype) -> Iterator[Call]:
    grads = sampler.rows(5, 3, dtype=dtype)
    grads[3, 1, LAYOUT.chunks[-1, 2] - 1], grads[1, 0, 0] = torch.nan, torch.inf
    yield Call("finite", f"{dtype}", [torch.zeros(5), grads, LAYOUT.chunks])


def elements(sampler: Sampler, dtype: torch.dtype) -> Iterator[Call]:
    """Of weightings that change gradients element by element; a row is left out."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    finite, rest = torch.tensor([True, False, True]), LAYOUT.chunks
    for tasks in (2, 5):
        grads, memory = sampler.rows(3, tasks, dtype=dtype), sampler.rows(3, tasks, dtype=wide)
        keep, fresh, last = sampler.weights(3, tasks), sampler.weights(3, tasks), sampler.rows(3, dtype=wide)
        now, before, what = sampler.uniform(3), sampler.uniform(3), f"{dtype} {tasks} tasks"
        yield Call("track", what, [grads, memory, keep, fresh, finite, rest], {"shown": True})
        yield Call("feed", what, [grads, last, memory, keep, now, before, finite, rest], {"beta": 0.9})
        out = torch.full((3, len(LAYOUT.numels), tasks), torch.nan, dtype=torch.float64)
        partials = torch.full((3, len(LAYOUT.chunks), tasks), torch.nan, dtype=torch.float64)
        squares = sampler.positive_rows(3, tasks, dtype=wide)
        yield Call("excess", what, [out, partials, squares, grads, finite, rest])
        yield Call("drop_signs", what, [grads, torch.tensor(-3), finite, rest], {"stream": 1, "leak": 0.25})


def draws() -> Iterator[Call]:
    ids = [torch.arange(40)[:, None].expand(40, 50), torch.arange(50).expand(40, 50)]
    for dtype in (torch.int64, torch.float64):
        yield Call("draw", f"{dtype}", [torch.zeros(40, 50, dtype=dtype), torch.tensor(9), ids], {"stream": 2})


def transfers(sampler: Sampler, dtype: torch.dtype) -> Iterator[Call]:
    for shape in ((2, 2), (5, 5), (17, 17), (len(LAYOUT.numels), 6, 6)):
        mix = sampler.mix(*shape, density=0.7, identity_rows=(1,))
        yield Call("transfer", f"{dtype} {list(shape)}", [sampler.rows(shape[-1], dtype=dtype), mix, LAYOUT.chunks])


def steps(sampler: Sampler, theta: torch.dtype, grads: torch.dtype) -> Iterator[Call]:
    for rule in Rule:
        for order in Order:
            for rows, tasks in ((1, 1), (5, 2), (17, 3)):
                problem = StepProblem.sample(
                    sampler, rows, tasks, rule, theta_dtype=theta, grads_dtype=grads,
                    mix=sampler.mix(rows, rows) if rows > 1 else None, ema=sampler.rows(rows, dtype=theta),
                    low_precision=sampler.poisoned(rows, dtype=grads) if grads in HALVES else None,
                    grad_scale=torch.tensor([8.0]), found_inf=torch.zeros(rows),
                )  # fmt: skip
                what = f"{theta} {grads} {rule.name} {order.name} {rows}x{tasks}"
                arguments = problem.arguments()[:16]  # up to found_inf, without addresses
                yield Call("step", what, arguments, {"rule": int(rule), "order": int(order)})


def masked_steps(sampler: Sampler, theta: torch.dtype, grads: torch.dtype) -> Iterator[Call]:
    for rule in Rule:
        for rows, tasks, hold in ((1, 1, False), (2, 3, True)):
            problem = StepProblem.sample(
                sampler, rows, tasks, rule, theta_dtype=theta, grads_dtype=grads, ema=sampler.rows(rows, dtype=theta),
                low_precision=sampler.rows(rows, dtype=grads) if grads in HALVES else None,
                masks=sampler.masks(tasks), whole=torch.arange(len(LAYOUT.numels)) == 3,
            )  # fmt: skip
            what = f"{theta} {grads} {rule.name} {rows}x{tasks} with masks"
            yield Call("step", what, problem.arguments(), {"rule": int(rule), "order": 0, "hold": hold})


def masks(sampler: Sampler, dtype: torch.dtype) -> Iterator[Call]:
    whole = torch.arange(len(LAYOUT.numels)) == 3
    out, values = sampler.poisoned(1, dtype=dtype), sampler.rows(1, dtype=dtype)
    yield Call("mask", f"{dtype}", [out, values, sampler.masks(1), whole, LAYOUT.chunks])
    for tasks, magnitude in ((1, False), (5, True)):
        scores, factors = sampler.poisoned(tasks), sampler.uniform(tasks)
        grads, values = sampler.rows(1, tasks, dtype=dtype), sampler.rows(1, dtype=dtype)
        arguments = [scores, grads, values, factors, sampler.masks(tasks), whole, LAYOUT.chunks]
        options = {"gamma": 3.0, "magnitude": magnitude, "dense": not magnitude}
        yield Call("harmony", f"{dtype} {tasks} tasks", arguments, options)


def exchanges(sampler: Sampler) -> Iterator[Call]:
    for tasks, amount in ((1, 1), (3, 500)):
        scores = sampler.rows(tasks)
        scores[-1] = (scores[-1] * 2).round()  # many are equal
        counts = torch.zeros(tasks, len(LAYOUT.chunks), EXCHANGE_BINS, dtype=torch.int32)
        state = torch.zeros(tasks, EXCHANGE_STATE, dtype=torch.int64)
        yield Exchange("exchange", f"{tasks} tasks", [sampler.masks(tasks), counts, state, scores, LAYOUT.chunks],
                       {"amount": amount})  # fmt: skip


def priorities(sampler: Sampler, dtype: torch.dtype) -> Iterator[Call]:
    """Layers of two channels, and of channels of one column; the last tensor belongs to none."""
    records, num_channels = [], 0
    for layer, (offset, numel) in enumerate(zip(LAYOUT.offsets, LAYOUT.numels, strict=True)):
        if numel == 0:
            continue
        channels = 2 if numel % 2 == 0 else numel
        records.append(PriorityRecord(layer, num_channels, channels, offset, numel // channels, 1))
        num_channels += channels
    records[-1] = records[-1]._replace(layer=-1)
    tables = plan_priority(records)
    for tasks in (2, 6):
        owners = torch.arange(num_channels) % (tasks + 1) - 1
        out, grads = sampler.poisoned(dtype=dtype), sampler.rows(tasks, dtype=dtype)
        dots = torch.zeros(len(tables[1]), tasks, tasks, dtype=torch.float64)
        coefficients = torch.full((len(LAYOUT.numels), tasks), torch.nan, dtype=torch.float64)
        yield Call("priority", f"{dtype} {tasks} tasks", [out, dots, coefficients, grads, owners, *tables])


def solves(sampler: Sampler, tasks: int, batch: int) -> Iterator[Call]:
    """Every solver on so many problems at once."""
    rows = sampler.normal(batch, tasks, tasks + 2)
    rows[..., 0] -= 1.0  # conflicts
    gram, ones = rows @ rows.mT, torch.ones(batch, tasks, dtype=torch.float64)
    gram = gram.tril() + gram.tril(-1).mT
    losses = torch.arange(1.0, tasks + 1, dtype=torch.float64).repeat(batch, 1)
    order = sampler.uniform(batch, tasks, tasks).argsort(-1)
    weights, many = torch.full_like(ones, torch.nan), torch.full_like(gram, torch.nan)
    residual, decayed = torch.zeros(batch, dtype=torch.float64), torch.full_like(gram, 0.3)
    problems = [torch.zeros(batch, workspace_size(tasks), dtype=torch.float64), gram]
    given: dict[str, tuple[list[Any], dict[str, Any]]] = {
        "minimum_norm_": ([weights, *problems, None], {}),
        "conflict_averse_": ([weights, *problems, ones / tasks], {"radius": 0.5, "rtol": 1e-12}),
        "power_barrier_": ([weights, residual, *problems, ones], {"power": 0.3, "rtol": 1e-12}),
        "dual_cone_": ([many, *problems, torch.diag_embed(ones)], {"rtol": 1e-12}),
        "eigen_": ([weights, many, *problems], {}),
        "project_": ([weights, decayed, *problems, order], {"decay": 0.1, "rtol": 1e-12}),
        "descent_": ([weights, *problems, losses, ones], {"tolerance": 1e-4, "relax": False}),
    }
    for operator, (arguments, options) in given.items():
        yield Call("solve", f"{operator} {tasks} tasks", arguments, options, operator)


def small_tables() -> Iterator[Call]:
    """Every operator of the file `judge`."""
    for call in judge_problem.all_calls():
        yield Call(call.operator.removesuffix("_"), call.what, call.arguments, call.options)


def calls() -> Iterator[Call]:
    """All of them."""
    yield from small_tables()
    yield from draws()
    sampler = Sampler(LAYOUT, seed=11)
    for dtype in FLOATS + HALVES:
        yield from by_address(combines(sampler, dtype), 1)
        yield from by_address(grams(sampler, dtype), 2)
        yield from by_address(finites(sampler, dtype), 1)
        yield from by_address(steps(sampler, torch.float64 if dtype == torch.float64 else torch.float32, dtype), 8)
    for dtype in FLOATS:
        yield from transfers(sampler, dtype)
    for dtype in FLOATS + HALVES:
        yield from priorities(sampler, dtype)
        yield from elements(sampler, dtype)
    for tasks in (2, 3, 8):
        yield from solves(sampler, tasks, batch=4)
    for dtype in FLOATS + HALVES:
        yield from masked_steps(sampler, torch.float64 if dtype == torch.float64 else torch.float32, dtype)
        yield from by_address(masks(sampler, dtype), 1)
    yield from exchanges(sampler)
