"""``step``: combination, base rule, masks, transfer and running average in one pass over the columns."""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

from . import reference
from ._registry import changed, check_addresses, check_masks, compiled, register_fake
from .rules import Rule

__all__ = ["Order", "step_"]


class Order(IntEnum):
    """CONSENSUS: theta <- M theta - u.  ADAPT_THEN_COMBINE: theta <- M (theta - u)."""

    CONSENSUS = 0
    ADAPT_THEN_COMBINE = 1


def step_(
    theta: Tensor,
    exp_avg: Tensor | None,
    exp_avg_sq: Tensor | None,
    max_exp_avg_sq: Tensor | None,
    ema: Tensor | None,
    low_precision: Tensor | None,
    step: Tensor,
    constants: Tensor,
    grads: Tensor,
    weights: Tensor | None,
    mix: Tensor | None,
    segments: Tensor,
    chunks: Tensor,
    active: Tensor | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    addresses: Tensor | None = None,
    masks: Tensor | None = None,
    whole: Tensor | None = None,
    *,
    rule: Rule,
    order: Order = Order.CONSENSUS,
    hold: bool = False,
) -> None:
    """One optimizer step of all K subproblems; each column is read once and written once.

    Args:
        theta: [K, P], float32 or float64: the parameters (of 16-bit models: their float32 masters).
        exp_avg: like ``theta``; the momentum buffer or the first moment, if ``rule`` has one.
        exp_avg_sq: like ``theta``; the second moment, if ``rule`` has one.
        max_exp_avg_sq: like ``theta``; the largest second moment, if ``rule`` has one.
        ema: like ``theta``: running average of the rows, or None.
        low_precision: bfloat16 or float16 [K, P]: receives theta rounded to nearest, or None.
        step: float32 [K, S]: number of steps taken; counted up here.
        constants: float64 [K, S, NUM_CONSTANTS]: scratch for derived constants.
        grads: [K, T, P]; float64 with a float64 theta, else float32, bfloat16 or float16.
        weights: float64 [K, T], or None (T = 1: gradients that are combined already).
        mix: None (no transfer), float64 [K, K], or [S, K, K]; rows sum to one.
        segments: float64 [S, len(FIELDS)]: hyper-parameters of each segment (tensor).
        chunks: int64 [C, 3].
        active: bool [K, S], or None (all).  Where False, nothing is touched: no parameter, moment or counter.
        grad_scale: float32 [1]: gradients are divided by it.
        found_inf: float32 [K] or [1]: where nonzero, the row is skipped as if inactive.
        addresses: int64 [K, T, S] from :func:`address_table`: where the gradients lie, instead of in ``grads``, of
            which only the shape, the dtype and the device count then; or None.
        masks: uint8 [T, ceil(P / 8)], one bit for each task and column (bit p mod 8 of byte p // 8), for all rows; or
            None (all).  Of a task's gradient only what its mask has counts, and a column that no mask has keeps
            parameter, master, rounded copy and running average bit for bit.  Not with a mix.
        whole: bool [S], tensors whose gradients are not masked, so that their masks only say what moves; or None.
        rule: the base rule.
        order: of transfer and update.
        hold: moments stay, too, where no mask has the column; else they go on with a gradient of zero.
    """
    function = torch.ops.mt2o_ext.step_ if compiled(theta) else reference.step_
    function(
        theta, exp_avg, exp_avg_sq, max_exp_avg_sq, ema, low_precision, step, constants, grads, weights, mix, segments,
        chunks, active, grad_scale, found_inf, addresses, masks, whole, rule=int(rule), order=int(order), hold=hold,
    )  # fmt: skip
    changed([theta, exp_avg, exp_avg_sq, max_exp_avg_sq, ema, low_precision, step])


@register_fake("step_")
def _(
    theta: Tensor,
    exp_avg: Tensor | None,
    exp_avg_sq: Tensor | None,
    max_exp_avg_sq: Tensor | None,
    ema: Tensor | None,
    low_precision: Tensor | None,
    step: Tensor,
    constants: Tensor,
    grads: Tensor,
    weights: Tensor | None,
    mix: Tensor | None,
    segments: Tensor,
    chunks: Tensor,
    active: Tensor | None,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    addresses: Tensor | None = None,
    masks: Tensor | None = None,
    whole: Tensor | None = None,
    *,
    rule: int,
    order: int,
    hold: bool = False,
) -> None:
    rows, columns = theta.shape
    num_segments = segments.shape[0]
    check_addresses(addresses, grads, "grads", num_segments)
    if masks is not None:
        torch._check(mix is None, lambda: "rows with masks are not blended: leave out mix or masks")
        check_masks(masks, grads.shape[1], columns)
    for name, tensor in (
        ("exp_avg", exp_avg),
        ("exp_avg_sq", exp_avg_sq),
        ("max_exp_avg_sq", max_exp_avg_sq),
        ("ema", ema),
    ):
        if tensor is not None:
            torch._check(
                tensor.shape == theta.shape, lambda name=name, tensor=tensor: f"{name} is {list(tensor.shape)}"
            )
    torch._check(step.shape == (rows, num_segments), lambda: f"step must be [{rows}, {num_segments}]")
    torch._check(
        grads.dim() == 3 and grads.shape[0] == rows and grads.shape[2] == columns,
        lambda: f"grads must be [{rows}, T, {columns}], not {list(grads.shape)}",
    )
