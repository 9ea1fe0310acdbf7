"""The step as a value: all that the fused kernel is given, complete before anything is changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..base import BaseRule
from ..gradients.table import GradientTable, Source
from ..gradients.tasks import Combination
from ..masks.tables import StepMasks
from ..ops import MOMENTS, Order, combine_, step_
from ..sharding import sum_shards
from .buffers import Buffers
from .flat import FlatParameters

__all__ = ["Clipped", "Plan", "StepInputs", "apply", "clip", "combined_gradient", "moments_of"]


class StepInputs(NamedTuple):
    """The inputs of the fused step of one buffer.

    gradients: what is combined, and the weights.
    active: bool [K, S], the tensors that are updated; None: all.
    reached: for each tensor, whether it has a gradient in any row.
    divisor: float32 [1], what gradients are divided by, or None.
    skipped: float32 [K], not zero in rows that are left as they are; [1] where all are or none is.
    mix: M [K, K] or [S, K, K] of the transfer, or None where none is due.
    masks: of the tasks whose gradients these are, or None: everything moves.
    """

    gradients: Combination
    active: Tensor | None
    reached: Sequence[bool]
    divisor: Tensor | None
    skipped: Tensor
    mix: Tensor | None = None
    masks: StepMasks | None = None

    @classmethod
    def of(cls, table: GradientTable, gradients: Combination, divisor: Tensor | None, skipped: Tensor) -> StepInputs:
        """The inputs for gradients that were made from this table; no transfer."""
        return cls(gradients, table.active(), table.reached(), divisor, skipped)


class Plan(NamedTuple):
    """A step that is ready to be made.

    found: float32 [K], the number of what was found in a row, see :mod:`mt2o_ext.gradients.skipped`; 0: nothing.
    skipped: float32 [K], not zero in rows that are left as they are; [1] where all are or none is.
    inputs: of each buffer.
    """

    found: Tensor
    skipped: Tensor
    inputs: list[StepInputs]


class Clipped(NamedTuple):
    """Inputs whose combined gradients are no longer than was asked for.

    norm: float64 [K], the length that each row had before.
    """

    inputs: list[StepInputs]
    norm: Tensor


def apply(
    buffers: Buffers, base: BaseRule, groups: Sequence[dict[str, Any]], inputs: Sequence[StepInputs], order: Order
) -> None:
    """Steps every buffer.

    Memory for moments is taken first, for all of them: if there is none left, nothing has been changed.
    """
    rule, moments = base.rule(groups), moments_of(buffers, base, groups)
    for flat, (first, second, largest), given in zip(buffers.flats, moments, inputs, strict=True):
        (grads, addresses), weights = given.gradients
        low = flat.values if flat.shows_rounded else None
        bits, whole, hold = (None, None, False) if given.masks is None else given.masks
        step_(
            flat.theta, first, second, largest, flat.buffers.get("ema"), low, flat.step, flat.constants, grads,
            weights, given.mix, flat.segments, flat.chunks, given.active, given.divisor, given.skipped, rule=rule,
            order=order, addresses=addresses, masks=bits, whole=whole, hold=hold,
        )  # fmt: skip
        flat.write_back()
        flat.mark_changed()


def moments_of(buffers: Buffers, base: BaseRule, groups: Sequence[dict[str, Any]]) -> list[list[Tensor | None]]:
    """The moments of each buffer, made of zeros where they are new; None: the base rule does not have it."""
    names = {name for group in groups for name in base.moments(group).values()}
    return [[flat.buffer(name) if name in names else None for name in MOMENTS] for flat in buffers.flats]


def combined_gradient(flat: FlatParameters, gradients: Combination) -> Tensor:
    """[K, 1, P], the combined gradient in a buffer of its own."""
    (grads, addresses), weights = gradients
    out = torch.zeros(flat.num_trained, flat.width, dtype=grads.dtype, device=flat.device)
    if weights is None:
        weights = torch.ones(flat.num_trained, 1, dtype=torch.float64, device=flat.device)
    combine_(out, grads, weights, flat.chunks, addresses=addresses)
    return out.unsqueeze(1)


def _squares(flat: FlatParameters, combined: Tensor) -> Tensor:
    """float64 [K], the squared length of each row of gradients [K, P], of all shards."""
    if not flat.sharded:
        return torch.linalg.vector_norm(combined, dim=1, dtype=torch.float64).square()
    rows = [flat.rows_of(combined, segment, int(combined.storage_offset())) for segment in range(len(flat.parameters))]
    squares = [torch.linalg.vector_norm(row.flatten(1), dim=1, dtype=torch.float64).square() for row in rows]
    return sum_shards(torch.stack(squares, 1), flat.parameters).sum(1)


def clip(buffers: Buffers, inputs: Sequence[StepInputs], max_norm: float) -> Clipped:
    """The same step with gradients of at most this length, all tensors of a row as one vector.

    As ``torch.nn.utils.clip_grad_norm_``, but of each of the K subproblems on its own, and exactly to max_norm.
    """
    rows = []
    squares = torch.zeros(buffers.num_trained, dtype=torch.float64, device=buffers.device)
    for flat, given in zip(buffers.flats, inputs, strict=True):
        (grads, addresses), weights = given.gradients
        ready = weights is None and addresses is None
        combined = grads if ready else combined_gradient(flat, given.gradients)
        squares = squares + _squares(flat, combined[:, 0])
        rows.append(combined)
    divisor = next((given.divisor for given in inputs), None)
    norm = squares.sqrt() if divisor is None else squares.sqrt() / divisor.double()
    factors = torch.where(norm > max_norm, max_norm / norm, 1.0).unsqueeze(1)
    clipped = [
        given._replace(gradients=Combination(Source(row, None), factors))
        for given, row in zip(inputs, rows, strict=True)
    ]
    return Clipped(clipped, norm)
