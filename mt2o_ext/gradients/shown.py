"""The combined gradient in ``.grad``, where clipping, norms, noise and hooks find it between backward and step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..sharding import any_nonzero, like_parameter, local_gradient
from .table import GradientTable

__all__ = ["ShownGradients", "is_used"]


def is_used(grad: Tensor) -> bool:
    """True if a step has used this ``.grad`` as it is: it stands there for others to see, and counts no more.

    The mark is on the tensor, where other optimizers of the same parameters find it; a change of the tensor undoes it.
    """
    return getattr(grad, "_used", None) == grad._version


class ShownGradients:
    """Gradients of one row of parameters: written for others to see, and read again with what they made of them.

    Args:
        tables: of the parameters' task gradients.
        apart: for each of them, whether what is shown is a combination, written to a buffer [1, P] of its own.  If not,
            ``.grad`` is the gradient in the table itself, to which a later backward adds.
    """

    def __init__(self, tables: Sequence[GradientTable], apart: Sequence[bool]) -> None:
        self._tables = list(tables)
        self._apart = list(apart)
        self._rows: dict[int, tuple[Tensor, list[Tensor]]] = {}  # the buffers, and views of the parameters' shapes
        self._given: dict[int, Tensor] = {}  # what stood in `.grad` before the first backward, by parameter
        self._written: list[tuple[Tensor, Tensor, int | None]] = []  # parameter, its `.grad`, and version, if combined

    def _row(self, index: int) -> tuple[Tensor, list[Tensor]]:
        if index not in self._rows:
            layout = self._tables[index].layout
            row = torch.zeros(1, layout.width, dtype=layout.dtype, device=layout.device)
            # Tensors with version counters of their own.
            views = [layout.rows_of(row, segment)[0].data for segment in range(len(layout.parameters))]
            self._rows[index] = row, views
        return self._rows[index]

    def begin(self) -> None:
        """Notes the gradients that somebody else left in ``.grad`` before the first backward since a step.

        Those that the step has used go: not all parameters may get another one, and nobody should clip with these.
        """
        for p in self._parameters():
            if p.grad is not None and not torch.compiler.is_compiling() and is_used(p.grad):
                p.grad = None
        self._given = {id(p): p.grad for p in self._parameters() if p.grad is not None}

    def dropped(self) -> bool:
        """True if gradients that were shown have been taken away, or set to zero: their batch counts no more."""
        if any(p.grad is None for p, _, _ in self._written):
            return True
        changed = any(version not in (None, grad._version) for _, grad, version in self._written)
        return changed and not any_nonzero([grad for _, grad, _ in self._written])

    def check_unchanged(self) -> None:
        """Checks that ``.grad`` is as the last backward left it, before another is added.

        Raises:
            RuntimeError: if it was changed.
        """
        for p, grad, version in self._written:
            if p.grad is not grad or (version is not None and grad._version != version):
                raise RuntimeError(
                    "the gradients in .grad were changed between two calls of backward(), which combines those of both "
                    "anew: change them after the last call (or call step() or zero_grad() before the next one)"
                )

    def show(self, combine: Callable[[int, Tensor], None], *, first: bool) -> None:
        """Puts the gradients that are there into ``.grad``.

        combine: writes the combined gradient of a table, by its number, to [1, P].  first: of the first backward.
        """
        self._written = []
        for index, table in enumerate(self._tables):
            reached, apart = table.reached(), self._apart[index]
            if not any(reached):
                continue
            if apart:
                row, views = self._row(index)
                combine(index, row)
            for segment, p in enumerate(table.layout.parameters):
                if not reached[segment]:
                    continue
                grad = views[segment] if apart else table.at(0, 0, segment)
                assert grad is not None
                given = self._given.get(id(p))
                if given is not None and given is not grad and (first or apart):
                    grad.add_(local_gradient(p, given) if table.layout.sharded else given)
                # A parameter that was converted since the buffers were made wants a gradient like itself.
                like = grad if (p.dtype, p.device) == (grad.dtype, grad.device) else grad.to(p.device, p.dtype)
                p.grad = like_parameter(p, like) if table.layout.sharded else like
                if not torch.compiler.is_compiling():
                    p.grad._used = None  # type: ignore[attr-defined]
                self._written.append((p, p.grad, p.grad._version if apart else None))

    # ------------------------------------------------------------------ the end of a round
    def mark_used(self) -> None:
        """Notes that a step has used what stands in ``.grad``."""
        self.forget()
        for p in self._parameters():
            if p.grad is not None:
                p.grad._used = p.grad._version  # type: ignore[attr-defined]

    def drop(self) -> None:
        """Takes the gradients of this round out of ``.grad``."""
        for p, _, _ in self._written:
            p.grad = None
        self.forget()

    def forget(self) -> None:
        """Ends the round; ``.grad`` is left as it is."""
        self._written, self._given = [], {}

    def _parameters(self) -> list[Tensor]:
        return [p for table in self._tables for p in table.layout.parameters]
