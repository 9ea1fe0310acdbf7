"""Losses of whole batches: each has a gradient by the output of each layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from .kind import LayerKind
from .record import Call
from .sums import GramSums, through_autograd
from .terms import Dense, Outer, Term, joined
from .trace import Trace

__all__ = ["of_batches", "wide"]


def wide(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor as an operation in this type saw it, in at least 32 bits."""
    if not tensor.is_floating_point():
        return tensor
    return tensor.to(dtype).to(torch.promote_types(dtype, torch.float32))


def of_batches(
    trace: Trace, scalars: Sequence[Tensor | None], wanted: Sequence[Tensor], sums: GramSums, *, batched: bool
) -> None:
    """Add the Gram matrices of losses that may depend on all samples.

    Gradients by a layer's output are taken, for all losses, where they are at most half as large as those by its
    parameters; all others are gradients by the parameters.
    """
    there = [loss for loss in scalars if loss is not None]
    tasks = torch.tensor(
        [task for task, loss in enumerate(scalars) if loss is not None], dtype=torch.int64, device=sums.values.device
    )
    uses = trace.usable(_is_small)
    uses = {p: uses[p] for p in wanted if p in uses}
    numbers = sorted({number for found in uses.values() for number, _ in found})
    points = [GradientEdge(node, call.output_nr) for node, call in (trace.calls[number] for number in numbers)]
    others = [p for p in wanted if p not in uses]

    def take(p: Tensor, gram: Tensor) -> None:
        sums.add(p, gram, "autograd", tasks)

    grads = dict(zip(numbers, through_autograd(there, others, points, take, batched=batched), strict=True))
    for p, found in uses.items():
        terms = [
            _term(trace.calls[number][1], name, grad) for number, name in found if (grad := grads[number]) is not None
        ]
        if terms:
            term = joined(terms)
            sums.add(p, term.gram(), term.way, tasks)


def _is_small(call: Call) -> bool:
    size = sum(p.numel() for p in call.parameters.values())
    return call.kind.separable and 2 * call.shape.numel() <= size


def _term(call: Call, name: str, grads: Tensor) -> Term:
    """The gradients of P losses by one parameter, from those by the output, [P, *shape]."""
    kind: LayerKind = call.kind
    flat = wide(grads, call.dtype).flatten(0, 1)
    term = kind.terms(call.module, wide(call.x, call.dtype), flat, (name,))[name]
    if isinstance(term, Outer):
        return term.shared_by(len(grads))
    return Dense(term.rows().unflatten(0, (len(grads), -1)).sum(1))
