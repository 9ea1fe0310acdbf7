"""A call of every operator, with arguments that its schema allows, by the name of the case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from mt2o_ext import ops
from mt2o_ext.ops import Order, PriorityRecord, Rule, plan_priority
from support.ops.scattered import Scattered, scattered
from support.samplers import Layout, Sampler, StepProblem

Arguments = tuple[list[Any], dict[str, Any]]

LAYOUTS = {"contiguous": (40, 2100), "empty": (), "one element": (1,), "padded rows": (40, 17)}


def strided(tensor: Tensor) -> Tensor:
    """The same values in rows that lie 32 elements further apart."""
    wide = torch.zeros(*tensor.shape[:-1], tensor.shape[-1] + 32, dtype=tensor.dtype)[..., : tensor.shape[-1]]
    return wide.copy_(tensor)


def clean(tensor: Tensor) -> Tensor:
    return tensor.nan_to_num(0.0)  # opcheck compares tensors, and NaN equals nothing


def combine_arguments(sampler: Sampler) -> Arguments:
    return [clean(sampler.poisoned(3)), clean(sampler.rows(3, 2)), sampler.weights(3, 2), sampler.layout.chunks], {}


def gram_arguments(sampler: Sampler, *, cross: bool = False, centre: bool = False, diagonal: bool = False) -> Arguments:
    segments, chunks = len(sampler.layout.numels), sampler.layout.chunks
    out = torch.zeros(2, segments, *((3,) if diagonal else (3, 3)), dtype=torch.float64)
    partials = torch.zeros(2, len(chunks), 3 if diagonal else 9 if cross else 6, dtype=torch.float64)
    rows, others = clean(sampler.rows(2, 3)), clean(sampler.rows(2, 3)) if cross else None
    return [out, partials, rows, others, chunks], {"centre": centre, "diagonal": diagonal}


@cache  # the same memory for every call
def addressed(numels: tuple[int, ...], rows: int, tasks: int) -> Scattered:
    layout = Layout(numels)
    return scattered(Sampler(layout).rows(rows, tasks), layout)


def by_address(operator: str, arguments: Callable[[Sampler], Arguments], sampler: Sampler) -> Arguments:
    """The same arguments, but that the gradients lie somewhere else."""
    names = list(signature(getattr(ops, operator)).parameters)
    at, last = names.index("rows" if operator == "gram_" else "grads"), names.index("addresses")
    positional, named = arguments(sampler)
    rows, tasks, _ = positional[at].shape
    apart = addressed(sampler.layout.numels, rows, tasks)
    positional[at] = apart.like
    return [*positional[:last], apart.addresses, *positional[last + 1 :]], named


def transfer_arguments(sampler: Sampler) -> Arguments:
    return [clean(sampler.rows(3)), sampler.mix(3, 3), sampler.layout.chunks], {}


def finite_arguments(sampler: Sampler) -> Arguments:
    return [torch.zeros(3), clean(sampler.rows(3, 2)), sampler.layout.chunks], {}


FINITE = (True, False, True)


def track_arguments(sampler: Sampler, *, shown: bool = True) -> Arguments:
    grads, memory = clean(sampler.rows(3, 2)), clean(sampler.rows(3, 2))
    tables = [sampler.weights(3, 2), sampler.weights(3, 2), torch.tensor(FINITE), sampler.layout.chunks]
    return [grads, memory, *tables], {"shown": shown}


def feed_arguments(sampler: Sampler) -> Arguments:
    grads, last, memory = clean(sampler.rows(3, 2)), clean(sampler.rows(3)), clean(sampler.rows(3, 2))
    tables = [sampler.weights(3, 2), sampler.uniform(3), sampler.uniform(3), torch.tensor(FINITE)]
    return [grads, last, memory, *tables, sampler.layout.chunks], {"beta": 0.9}


def excess_arguments(sampler: Sampler) -> Arguments:
    out = torch.zeros(3, len(sampler.layout.numels), 2, dtype=torch.float64)
    partials = torch.zeros(3, len(sampler.layout.chunks), 2, dtype=torch.float64)
    squares, grads = clean(sampler.positive_rows(3, 2)), clean(sampler.rows(3, 2))
    return [out, partials, squares, grads, torch.tensor(FINITE), sampler.layout.chunks], {}


def drop_signs_arguments(sampler: Sampler) -> Arguments:
    grads, key = clean(sampler.rows(3, 2)), torch.tensor(-(2**62) + 12345)
    return [grads, key, torch.tensor(FINITE), sampler.layout.chunks], {"stream": 1, "leak": 0.25}


def priority_arguments(sampler: Sampler) -> Arguments:
    layout = sampler.layout
    records = [
        PriorityRecord(index, 0, 1, offset, numel, 1)
        for index, (offset, numel) in enumerate(zip(layout.offsets, layout.numels, strict=True))
    ]
    tables = plan_priority(records)
    dots = torch.zeros(len(tables[1]), 3, 3, dtype=torch.float64)
    coefficients = torch.zeros(len(records), 3, dtype=torch.float64)
    grads, out = clean(sampler.rows(3)), clean(sampler.poisoned(1))[0]
    return [out, dots, coefficients, grads, torch.tensor([1]), *tables], {}


def step_arguments(sampler: Sampler, rule: Rule = Rule.AMSGRAD, *, everything: bool = True) -> Arguments:
    problem = StepProblem.sample(sampler, 3, 2 if everything else 1, rule)
    if everything:
        problem = replace(
            problem,
            ema=sampler.rows(3),
            low_precision=sampler.rows(3, dtype=torch.bfloat16),
            mix=sampler.mix(3, 3),
            active=torch.ones(3, len(sampler.layout.numels), dtype=torch.bool),
            grad_scale=torch.tensor([2.0]),
            found_inf=torch.zeros(3),
        )
    arguments = [clean(a) if isinstance(a, Tensor) and a.is_floating_point() else a for a in problem.arguments()]
    return arguments, {"rule": int(rule), "order": int(Order.CONSENSUS)}


def masked_step_arguments(sampler: Sampler) -> Arguments:
    positional, named = step_arguments(sampler)
    names = list(signature(ops.step_).parameters)
    positional[names.index("mix")] = None
    positional[names.index("masks")] = sampler.masks(2)
    positional[names.index("whole")] = torch.arange(len(sampler.layout.numels)) == 1
    return positional, {**named, "hold": True}


def mask_arguments(sampler: Sampler) -> Arguments:
    whole = torch.arange(len(sampler.layout.numels)) == 1
    values, out = clean(sampler.rows(1)), clean(sampler.poisoned(1))
    return [out, values, sampler.masks(1), whole, sampler.layout.chunks], {}


def harmony_arguments(sampler: Sampler) -> Arguments:
    whole = torch.arange(len(sampler.layout.numels)) == 1
    factors = torch.tensor([0.5, 2.0], dtype=torch.float64)
    scores, grads, values = clean(sampler.poisoned(2)), clean(sampler.rows(1, 2)), clean(sampler.rows(1))
    positional = [scores, grads, values, factors, sampler.masks(2), whole, sampler.layout.chunks, None]
    return positional, {"gamma": 10.0, "magnitude": False, "dense": True}


def exchange_arguments(sampler: Sampler) -> Arguments:
    chunks = sampler.layout.chunks
    counts = torch.zeros(2, len(chunks), ops.EXCHANGE_BINS, dtype=torch.int32)
    state = torch.zeros(2, ops.EXCHANGE_STATE, dtype=torch.int64)
    return [sampler.masks(2), counts, state, clean(sampler.rows(2)), chunks], {"amount": 7}


def plain_step_arguments(sampler: Sampler) -> Arguments:
    return step_arguments(sampler, Rule.SGD, everything=False)


CASES: dict[str, tuple[str, Callable[[Sampler], Arguments]]] = {
    "combine": ("combine_", combine_arguments),
    "gram": ("gram_", gram_arguments),
    "centred gram": ("gram_", partial(gram_arguments, centre=True)),
    "cross gram": ("gram_", partial(gram_arguments, cross=True)),
    "diagonal": ("gram_", partial(gram_arguments, diagonal=True)),
    "transfer": ("transfer_", transfer_arguments),
    "finite": ("finite_", finite_arguments),
    "priority": ("priority_", priority_arguments),
    "track": ("track_", track_arguments),
    "feed": ("feed_", feed_arguments),
    "excess": ("excess_", excess_arguments),
    "drop signs": ("drop_signs_", drop_signs_arguments),
    "step": ("step_", step_arguments),
    "plain step": ("step_", plain_step_arguments),
    "masked step": ("step_", masked_step_arguments),
    "mask": ("mask_", mask_arguments),
    "harmony": ("harmony_", harmony_arguments),
    "exchange": ("exchange_", exchange_arguments),
    "combine by address": ("combine_", partial(by_address, "combine_", combine_arguments)),
    "gram by address": ("gram_", partial(by_address, "gram_", gram_arguments)),
    "diagonal by address": ("gram_", partial(by_address, "gram_", partial(gram_arguments, diagonal=True))),
    "finite by address": ("finite_", partial(by_address, "finite_", finite_arguments)),
    "step by address": ("step_", partial(by_address, "step_", step_arguments)),
    "masked step by address": ("step_", partial(by_address, "step_", masked_step_arguments)),
    "harmony by address": ("harmony_", partial(by_address, "harmony_", harmony_arguments)),
}


def arguments_of(case: str, layout: str = "contiguous") -> Arguments:
    positional, named = CASES[case][1](Sampler(Layout(LAYOUTS[layout])))
    if layout == "padded rows":
        row = Layout(LAYOUTS[layout]).row
        positional = [strided(a) if isinstance(a, Tensor) and a.shape[-1:] == (row,) else a for a in positional]
    return positional, named
