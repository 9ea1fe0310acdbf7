"""The gradients of T losses by a shared representation, instead of by the parameters (MGDA-UB)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import check_list
from ..ranks import Ranks
from .collect import Slot, gram_of

__all__ = ["FeatureGradients", "check_features"]


def check_features(features: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """The tensors of a representation, each of which has to be part of a graph.

    Raises:
        TypeError: for anything but a tensor or several.
        ValueError: for anything but tensors with a graph.
    """
    advice = "pass the tensor that the trunk returns, or a list of tensors"
    points = [features] if isinstance(features, Tensor) else check_list("features", features, advice)
    if any(not isinstance(z, Tensor) or not z.requires_grad for z in points):
        raise ValueError(
            "expected features as tensors of the losses' graph, got others: pass them as the trunk returns them"
        )
    return points


class FeatureGradients:
    """The gradients of T losses by each tensor z of a representation; those by the heads go to their slots.

    Args:
        points: the tensors z.
        losses: T scalars, or None of tasks that are absent.
        heads: for each task, the slots of its heads.
        retain_graph: keep the graph between losses and representation.
    """

    def __init__(
        self,
        points: Sequence[Tensor],
        losses: Sequence[Tensor | None],
        heads: Sequence[Sequence[Slot]],
        *,
        retain_graph: bool,
    ) -> None:
        self._points = list(points)
        last = max(task for task, loss in enumerate(losses) if loss is not None)
        rows = [
            _by_points(points, loss, of_task, retain_graph or task < last)
            for task, (loss, of_task) in enumerate(zip(losses, heads, strict=True))
        ]
        self._gradients = [torch.stack(grads) for grads in zip(*rows, strict=True)]

    @property
    def dtypes(self) -> list[torch.dtype]:
        """The types of the gradients."""
        return [grads.dtype for grads in self._gradients]

    def grams(self, ranks: Ranks | None) -> Tensor:
        """float64 [N, T, T] of the N tensors; with several ranks, of the gradients of all ranks' samples."""
        grams = torch.stack([gram_of(grads) for grads in self._gradients])
        # Each rank has the features of its own samples, in a mean over the ranks.
        return grams if ranks is None else ranks.add_(grams) / ranks.size**2

    def backward(self, weights: Tensor, *, retain_graph: bool) -> None:
        """Sends the gradients, combined with weights [T], through what the representation was made from."""
        combined = [torch.tensordot(weights.to(grads), grads, 1) for grads in self._gradients]
        torch.autograd.backward(self._points, combined, retain_graph=retain_graph)


def _by_points(
    points: Sequence[Tensor], loss: Tensor | None, heads: Sequence[Slot], retain_graph: bool
) -> list[Tensor]:
    """The gradients of one loss by the representation."""
    if loss is None:
        return [torch.zeros_like(z) for z in points]
    live = [slot for slot in heads if slot.parameter.requires_grad]
    inputs = [*points, *(slot.parameter for slot in live)]
    grads = torch.autograd.grad(loss, inputs, retain_graph=retain_graph, allow_unused=True)
    for slot, grad in zip(live, grads[len(points) :], strict=True):
        if grad is not None:
            slot.put(grad, copy=True)
    return [torch.zeros_like(z) if grad is None else grad for z, grad in zip(points, grads, strict=False)]
