"""``judge``: the small tables of a step, a launch each: what is finite, which weights are used, what is skipped."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference_judge
from ._registry import changed, compiled, register_fake
from .reference_judge import DOMAIN as DOMAIN
from .reference_judge import NONFINITE as NONFINITE
from .reference_judge import OF_WEIGHTED_SUM as OF_WEIGHTED_SUM
from .reference_judge import OVERFLOW as OVERFLOW


def judge_(
    found: Tensor,
    flags: Tensor,
    losses: Tensor | None,
    sums: Tensor | None,
    filled: Tensor | None,
    usable_losses: Tensor | None,
    largest: Tensor | None,
    scalars: Sequence[Tensor] = (),
    grams: Tensor | None = None,
    factor: Tensor | None = None,
    before: Tensor | None = None,
    outside: Tensor | None = None,
    *,
    limit: float = 0.0,
    together: bool = False,
) -> None:
    """Looks which rows are finite, adds up Gram matrices, and puts harmless numbers where a row is not usable.

    The sums of Gram matrices are added in one order everywhere: segment s in lane s mod 32, then the lanes.

    Args:
        found: float32 [K], written: 1 where the losses or sums of a row are not finite, else what ``before`` says.
        flags: bool [2, K], written: where nothing was found (in any row, if ``together``), and where besides no loss
            is ``outside``: usable.
        losses: float64 [K, T], or None; written if there are ``scalars``.
        sums: float64 [K, T, T], or [K, T] of squares, written: of grams over the segments.
        filled: float64 [K, T, T], written: the sums, and the identity in rows that are not usable; or None.
        usable_losses: float64 [K, T], written: the losses, and 1 in rows that are not usable; or None.
        largest: float64 [K, T], written: with weights up to these no sum of w_t g_t is greater than ``limit``; or None.
        scalars: K T losses, row after row, one number each: float32, float64, bfloat16 or float16.
        grams: float64 [K, S, T, T], or squares [K, S, T]; or None.
        factor: float32 [1], what the gradients of these grams have still to be divided by; or None.
        before: float32 [K], not zero in rows where something was found before; or None.
        outside: bool [K, T], losses that no weights exist for; or None.
        limit: the largest number of the type that gradients are added up in.
        together: what is found in one row counts for all.
    """
    function = torch.ops.mt2o_ext.judge_ if compiled(found) else reference_judge.judge_
    function(
        found, flags, losses, sums, filled, usable_losses, largest, list(scalars), grams, factor, before, outside,
        limit=limit, together=together,
    )  # fmt: skip
    changed([found, flags, losses if scalars else None, sums, filled, usable_losses, largest])


@register_fake("judge_")
def _(
    found: Tensor,
    flags: Tensor,
    losses: Tensor | None,
    sums: Tensor | None,
    filled: Tensor | None,
    usable_losses: Tensor | None,
    largest: Tensor | None,
    scalars: Sequence[Tensor],
    grams: Tensor | None,
    factor: Tensor | None,
    before: Tensor | None,
    outside: Tensor | None,
    *,
    limit: float,
    together: bool,
) -> None:
    rows = found.shape[0]
    _check("flags", flags, 2, rows)
    given = losses if grams is None else grams
    torch._check(given is not None, lambda: "without grams there must be losses [K, T]")
    assert given is not None
    tasks = given.shape[1 if grams is None else 2]
    if grams is not None:
        _check("grams", grams, rows, grams.shape[1], *[tasks] * (grams.dim() - 2))
        _check("sums", sums, rows, *[tasks] * (grams.dim() - 2))
    for name, table in (("losses", losses), ("usable_losses", usable_losses), ("largest", largest)):
        _check(name, table, rows, tasks)
    _check("filled", filled, rows, tasks, tasks)
    _check("before", before, rows)
    _check("outside", outside, rows, tasks)
    torch._check(len(scalars) in (0, rows * tasks), lambda: f"scalars must be {rows * tasks}, not {len(scalars)}")


def settle_(
    weights: Tensor,
    applied: Tensor,
    flags: Tensor,
    refusals: Tensor,
    found: Tensor,
    losses: Tensor | None,
    raw: Tensor,
    scalars: Sequence[Tensor] = (),
    judged: Tensor | None = None,
    before: Tensor | None = None,
    outside: Tensor | None = None,
    largest: Tensor | None = None,
    *,
    tasks: int,
    limit: float,
    offset: int,
    divisor: float = 1.0,
) -> None:
    """Refuses weights that are too large or no numbers, and says which rows take part in the step.

    Args:
        weights: float64 [K, N], written: the raw ones, NaN in rows that do not take part.
        applied: float32 or float64 [K, N], written: the same, and 0 in rows that are refused.
        flags: bool [2, K], written: the rows that take part, and those that are refused: finite, but without weights.
        refusals: float64 [K, 3], written: why, as 0 (it is not), 1 (a loss outside of the domain) or 2 (a weight), and
            the task and the value of the first of them.
        found: float32 [K], written: what ``before`` says, 1 where else losses are not finite, the number of the reason
            plus ``offset`` where a row is refused.
        losses: float64 [K, T], or None; written if there are ``scalars``.
        raw: float64 [K, N]; N is T, or a multiple of it.
        scalars: as of `judge_`.
        judged: the flags that `judge_` has written; None: all losses have to be finite, and nothing found before.
        before: as of `judge_`; its ``found``, if that came before.
        outside: as of `judge_`.
        largest: float64 [K, T]; None: ``limit`` for all.
        tasks: T.
        limit: of the absolute values of weights.
        offset: of the numbers of reasons.
        divisor: of the raw weights.
    """
    function = torch.ops.mt2o_ext.settle_ if compiled(raw) else reference_judge.settle_
    function(
        weights, applied, flags, refusals, found, losses, raw, list(scalars), judged, before, outside, largest,
        tasks=tasks, limit=limit, offset=offset, divisor=divisor,
    )  # fmt: skip
    changed([weights, applied, flags, refusals, found, losses if scalars else None])


@register_fake("settle_")
def _(
    weights: Tensor,
    applied: Tensor,
    flags: Tensor,
    refusals: Tensor,
    found: Tensor,
    losses: Tensor | None,
    raw: Tensor,
    scalars: Sequence[Tensor],
    judged: Tensor | None,
    before: Tensor | None,
    outside: Tensor | None,
    largest: Tensor | None,
    *,
    tasks: int,
    limit: float,
    offset: int,
    divisor: float = 1.0,
) -> None:
    rows, count = raw.shape
    torch._check(count % tasks == 0, lambda: f"raw must be [K, a multiple of {tasks}], not {list(raw.shape)}")
    _check("weights", weights, rows, count)
    _check("applied", applied, rows, count)
    _check("flags", flags, 2, rows)
    _check("refusals", refusals, rows, 3)
    _check("found", found, rows)
    _check("judged", judged, 2, rows)
    _check("before", before, rows)
    for name, table in (("losses", losses), ("outside", outside), ("largest", largest)):
        _check(name, table, rows, tasks)
    torch._check(len(scalars) in (0, rows * tasks), lambda: f"scalars must be {rows * tasks}, not {len(scalars)}")


def count_(
    counts: Tensor,
    table: Tensor | None,
    found: Tensor,
    refusals: Tensor | None = None,
    weights: Tensor | None = None,
    finite: Tensor | None = None,
    *,
    offset: int = 0,
    together: bool = False,
    expected: bool = False,
) -> None:
    """Counts the rows that skip a step, and notes why.

    Args:
        counts: int64 [K], changed: one more where a row skips the step.
        table: float64 [K, 4], changed: in rows that skip it the reason, the task and the value that it is about; how
            many steps were skipped one after the other; or None.
        found: float32 [K], not zero where a row skips the step: the number of the reason.
        refusals: float64 [K, 3], of `settle_`, of which those come first that are not 0; or None.
        weights: float64 [K, T], with which losses were added up before their backward: then 1 becomes 2, and tells of
            the largest, in rows whose losses were ``finite``; or None.
        finite: bool [K], with weights.
        offset: of the numbers of refusals.
        together: what is found in one row counts for all.
        expected: what is not finite is no reason (0).
    """
    function = torch.ops.mt2o_ext.count_ if compiled(counts) else reference_judge.count_
    function(
        counts, table, found, refusals, weights, finite, offset=offset, together=together, expected=expected
    )  # fmt: skip
    changed([counts, table])


@register_fake("count_")
def _(
    counts: Tensor,
    table: Tensor | None,
    found: Tensor,
    refusals: Tensor | None,
    weights: Tensor | None,
    finite: Tensor | None,
    *,
    offset: int,
    together: bool,
    expected: bool,
) -> None:
    rows = counts.shape[0]
    _check("table", table, rows, 4)
    _check("found", found, rows)
    _check("refusals", refusals, rows, 3)
    _check("finite", finite, rows)
    torch._check((weights is None) == (finite is None), lambda: "weights [K, T] and finite [K] go together")


def _check(name: str, tensor: Tensor | None, *shape: int) -> None:
    if tensor is not None:
        torch._check(tensor.shape == shape, lambda: f"{name} must be {list(shape)}, not {list(tensor.shape)}")
