"""The combined gradient in ``.grad``, where clipping, norms, noise and hooks find it between backward and step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..flat_gradients import FlatGradients, check_dense
from ..ops import finite_

__all__ = ["ShownGradients"]


class ShownGradients:
    """Gradients of one row of parameters: written for others to see, and read again with what they made of them.

    Each buffer has a row [1, P], in which ``.grad`` of its parameters lie.  A buffer that keeps one gradient for each
    parameter is that row itself: backward adds to what is there.

    Args:
        flats: the buffers.
        combined: for each of them, whether its gradients are combined into a row apart.
    """

    def __init__(self, flats: Sequence[FlatGradients], combined: Sequence[bool]) -> None:
        self._flats = list(flats)
        self._apart = list(combined)
        self._rows = [
            torch.zeros_like(flat.grads[:, 0]) if apart else flat.grads[:, 0]
            for flat, apart in zip(self._flats, self._apart, strict=True)
        ]
        # Tensors with version counters of their own, as place() of a buffer gives them.
        self._views = [
            [flat.rows_of(row, segment)[0].data for segment in range(len(flat.parameters))]
            for flat, row in zip(self._flats, self._rows, strict=True)
        ]
        self._given: dict[int, Tensor] = {}  # what stood in `.grad` before the first backward, by parameter
        self._written: list[tuple[Tensor, Tensor, int | None]] = []  # parameter, its `.grad`, and version, if combined

    # ------------------------------------------------------------------ backward
    def begin(self) -> None:
        """Before the first backward since a step: notes the gradients that somebody else left in ``.grad``."""
        self._given = {}
        for flat, views in zip(self._flats, self._views, strict=True):
            for p, view in zip(flat.parameters, views, strict=True):
                if p.grad is not None and p.grad is not view:
                    self._given[id(p)] = p.grad

    def dropped(self) -> bool:
        """True if gradients that were shown have been taken away since: their batch counts no more."""
        return any(p.grad is None for p, _, _ in self._written)

    def check_unchanged(self) -> None:
        """Raises RuntimeError where ``.grad`` was changed since the last backward, to which another is to be added."""
        for p, grad, version in self._written:
            if version is not None and (p.grad is not grad or grad._version != version):
                raise RuntimeError(
                    "the gradients in .grad were changed between two calls of backward(), which combines those of both "
                    "anew: change them after the last call (or call step() or zero_grad() before the next one)"
                )

    def show(self, combine: Callable[[int, Tensor], None], *, first: bool) -> None:
        """Puts the gradients that are there into ``.grad``.

        combine: writes the combined gradient of a buffer, by its number, to [1, P].  first: of the first backward.
        """
        self._written = []
        for index, (flat, row, views) in enumerate(zip(self._flats, self._rows, self._views, strict=True)):
            if self._apart[index] and any(map(any, flat.filled)):
                combine(index, row)
            for segment, (p, view) in enumerate(zip(flat.parameters, views, strict=True)):
                if not any(filled[segment] for filled in flat.filled):
                    continue
                given = self._given.get(id(p))
                if given is not None and (first or self._apart[index]):
                    view.add_(given)
                # A parameter that was converted since the buffers were made wants a gradient like itself.
                p.grad = view if (p.dtype, p.device) == (view.dtype, view.device) else view.to(p)
                self._written.append((p, p.grad, p.grad._version if self._apart[index] else None))

    # ------------------------------------------------------------------ the step
    def take(self) -> list[Tensor]:
        """What stands in ``.grad``, for each buffer [1, 1, P]; the buffers know then which gradients are there.

        Raises TypeError, before anything is changed, for gradients that are not dense.
        """
        if torch.compiler.is_compiling():  # in-place changes are there; what was replaced is not looked for
            return [row.unsqueeze(1) for row in self._rows]
        for flat in self._flats:
            check_dense(p.grad for p in flat.parameters)
        for flat, views in zip(self._flats, self._views, strict=True):
            there = [p.grad is not None for p in flat.parameters]
            flat.filled = [there, *([False] * len(there) for _ in flat.filled[1:])]
            others = [(v, p.grad) for v, p in zip(views, flat.parameters, strict=True) if p.grad is not v]
            if new := [(view, grad) for view, grad in others if grad is not None]:
                torch._foreach_copy_([view for view, _ in new], [grad for _, grad in new])
            if missing := [view for view, grad in others if grad is None]:
                torch._foreach_zero_(missing)
        return [row.unsqueeze(1) for row in self._rows]

    def find_nonfinite(self, found: Tensor) -> None:
        """Sets found[0] = 1 (float32 [1]) where a gradient that was taken is infinite or NaN."""
        for flat, row in zip(self._flats, self._rows, strict=True):
            finite_(found, row.unsqueeze(1), flat.chunks)

    def forget(self, *, used: bool) -> None:
        """used: a step has used up what stood in ``.grad``."""
        self._written, self._given = [], {}
        if used:
            for p in (p for flat in self._flats for p in flat.parameters):
                p.grad = None
