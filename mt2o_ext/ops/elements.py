"""``elements``: weightings that change the task gradients element by element, in one visit to each number.

Running averages of gradients (``track_``, ``feed_``), sums of their squares (``excess_``), signs that are dropped at
random (``drop_signs_``).  What is kept of the gradients is float32, or float64 for gradients of float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference_elements as reference
from ._registry import changed, compiled, register_fake


def track_(
    grads: Tensor, memory: Tensor, keep: Tensor, fresh: Tensor, finite: Tensor, chunks: Tensor, *, shown: bool
) -> None:
    """memory[k, t] <- keep[k, t] memory[k, t] + fresh[k, t] grads[k, t], for rows k that are finite.

    Args:
        grads: [K, T, P]; float32, float64, bfloat16 or float16.  Where ``shown``, they become the new memory.
        memory: [K, T, P], changed.
        keep: float64 [K, T].
        fresh: float64 [K, T].
        finite: bool [K]; other rows stay as they are.
        chunks: int64 [C, 3]; columns outside of them stay as they are.
        shown: whether the gradients are written to.
    """
    function = torch.ops.mt2o_ext.track_ if compiled(grads) else reference.track_
    function(grads, memory, keep, fresh, finite, chunks, shown=shown)
    changed([grads, memory])


def feed_(
    grads: Tensor,
    last: Tensor,
    memory: Tensor,
    weights: Tensor,
    now: Tensor,
    before: Tensor,
    finite: Tensor,
    chunks: Tensor,
    *,
    beta: float,
) -> None:
    """Makes the gradient whose running average is a combination of memories.

    With d = sum_t weights[t] memory[t], the first gradient becomes (now d - before beta last) / (1 - beta), the others
    zero, and ``last`` becomes d, for rows that are finite.

    Args:
        grads: [K, T, P], written.
        last: [K, P], changed.
        memory: [K, T, P].
        weights: float64 [K, T].
        now: float64 [K].
        before: float64 [K].
        finite: bool [K].
        chunks: int64 [C, 3].
        beta: in [0, 1).
    """
    function = torch.ops.mt2o_ext.feed_ if compiled(grads) else reference.feed_
    function(grads, last, memory, weights, now, before, finite, chunks, beta=beta)
    changed([grads, last])


def excess_(out: Tensor, partials: Tensor, squares: Tensor, grads: Tensor, finite: Tensor, chunks: Tensor) -> None:
    """squares <- squares + grads^2, and out[k, s, t] = sum over the columns of segment s of grads^2 / sqrt(squares).

    A term 0 / 0 counts as 0.  Sums are taken in float64.

    Args:
        out: float64 [K, S, T], written; of rows that are not finite, whatever comes out.
        partials: float64 [K, C, T], scratch.
        squares: [K, T, P], changed in the rows that are finite.
        grads: [K, T, P].
        finite: bool [K].
        chunks: int64 [C, 3].
    """
    function = torch.ops.mt2o_ext.excess_ if compiled(grads) else reference.excess_
    function(out, partials, squares, grads, finite, chunks)
    changed([out, partials, squares])


def drop_signs_(grads: Tensor, key: Tensor, finite: Tensor, chunks: Tensor, *, stream: int, leak: float) -> None:
    """Leaves one sign in each column of the T gradients, with the chance of its share in them.

    With p = (1 + sum_t g_t / sum_t |g_t|) / 2 the positive ones stay where p > u, the negative ones where p < u, and
    others are multiplied by ``leak``; u is `Draw(key).uniform(stream, k, column)`.

    Args:
        grads: [K, T, P], changed in the rows that are finite.
        key: int64 [].
        finite: bool [K].
        chunks: int64 [C, 3].
        stream: of the random numbers.
        leak: in [0, 1].
    """
    function = torch.ops.mt2o_ext.drop_signs_ if compiled(grads) else reference.drop_signs_
    function(grads, key, finite, chunks, stream=stream, leak=leak)
    changed([grads])


def _check(name: str, tensor: Tensor, *shape: int) -> None:
    torch._check(tensor.shape == shape, lambda: f"{name} must be {list(shape)}, not {list(tensor.shape)}")


@register_fake("track_")
def _(
    grads: Tensor, memory: Tensor, keep: Tensor, fresh: Tensor, finite: Tensor, chunks: Tensor, *, shown: bool
) -> None:
    rows, tasks, columns = grads.shape
    _check("memory", memory, rows, tasks, columns)
    _check("keep", keep, rows, tasks)
    _check("fresh", fresh, rows, tasks)
    _check("finite", finite, rows)


@register_fake("feed_")
def _(
    grads: Tensor,
    last: Tensor,
    memory: Tensor,
    weights: Tensor,
    now: Tensor,
    before: Tensor,
    finite: Tensor,
    chunks: Tensor,
    *,
    beta: float,
) -> None:
    rows, tasks, columns = grads.shape
    _check("memory", memory, rows, tasks, columns)
    _check("last", last, rows, columns)
    _check("weights", weights, rows, tasks)
    _check("now", now, rows)
    _check("before", before, rows)
    _check("finite", finite, rows)


@register_fake("excess_")
def _(out: Tensor, partials: Tensor, squares: Tensor, grads: Tensor, finite: Tensor, chunks: Tensor) -> None:
    rows, tasks, columns = grads.shape
    _check("squares", squares, rows, tasks, columns)
    _check("out", out, rows, out.shape[1], tasks)
    _check("partials", partials, rows, chunks.shape[0], tasks)
    _check("finite", finite, rows)


@register_fake("drop_signs_")
def _(grads: Tensor, key: Tensor, finite: Tensor, chunks: Tensor, *, stream: int, leak: float) -> None:
    _check("finite", finite, grads.shape[0])
    torch._check(key.numel() == 1, lambda: f"key must be one number, not {list(key.shape)}")
