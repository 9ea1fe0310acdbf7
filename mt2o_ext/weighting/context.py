"""The things that a weighting may look at, and the flags by which it asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from .draw import Draw
from .judging import Measured
from .needs import Needs as Needs
from .present import selected, selected_share


class Columns(NamedTuple):
    """Places of tensors in rows [K, T, P] of one dtype, for the kernels that change such rows.

    chunks: int64 [C, 3], see :mod:`mt2o_ext.ops`; or a list of such triples, for plain torch.
    num_segments: the number of tensors.
    """

    chunks: Tensor | list[tuple[int, int, int]]
    num_segments: int


@dataclass(frozen=True, kw_only=True)
class WeightingContext:
    """K subproblems, T tasks, S segments (one per parameter tensor); float64, all on one device.

    Attributes:
        preferences: [K, T], rows on the simplex.
        losses: [K, T], of this step.
        gram: [K, T, T], <g_i, g_j>; zeros off the diagonal for a weighting that needs only the diagonal.
        segments: [K, S, T, T]; their sum is ``gram``.
        cross: [K, T, T], <g_i of one mini-batch, g_j of another>.
        accuracy: relative error of the Gram matrices' entries; :func:`mt2o_ext.ops.gram_accuracy` of the gradients'
            dtype.
        length_accuracy: of |J'w|^2 where gradients cancel; :func:`mt2o_ext.ops.length_accuracy` of their dtype.
        step: optimizer steps taken before this one.
        epoch: epochs finished before this step, as the user counts them.
        draw: the random numbers of this step.
        finite: bool [K], False where the step is skipped: nothing is remembered of it. None: found from the other
            fields, which in any case count too.
        tasks: int64 [T], the names of the tasks for random numbers; None: 0 .. T-1.
        present: int64 [P], the tasks that have losses and gradients in this step, in ascending order; None: all. The
            numbers of the others are not looked at, and their weights are 0.
        largest: [K, T], the largest weights with which the gradients still add up to finite numbers of their type;
            None: those of float64. Larger ones are refused.
        columns: for each dtype of the rows that `Weighting.transform_` changes, where their tensors lie; then the rows
            are such as compiled kernels take.  None: nothing is known of them, and plain torch changes them.
        measured: of an optimizer, numbers that nobody has looked at yet, see `Measured`: losses and Gram matrices are
            made of these then.

    Example:
        >>> preferences, gram = torch.tensor([[0.5, 0.5]]).double(), torch.eye(2).double()[None]
        >>> context = WeightingContext(preferences=preferences, gram=gram)
        >>> weighting = CAGrad(c=0.0, rescale=0)
        >>> weighting.bind(1, 2, 1, "cpu")
        >>> weighting.weights(context)
        tensor([[0.5000, 0.5000]], dtype=torch.float64)
    """

    preferences: Tensor
    losses: Tensor | None = None
    gram: Tensor | None = None
    segments: Tensor | None = None
    cross: Tensor | None = None
    accuracy: float = 2.0**-52
    length_accuracy: float = 2.0**-52
    step: int = 0
    epoch: int = 0
    draw: Draw | None = None
    finite: Tensor | None = None
    tasks: Tensor | None = None
    largest: Tensor | None = None
    present: Tensor | None = None
    columns: Sequence[Columns] | None = None
    measured: Measured | None = None

    def of_present(self) -> WeightingContext:
        """The context as if there were no tasks but those that are present; their preferences sum to 1 again."""
        present = self.present
        if present is None:
            return self

        def part(table: Tensor | None, dims: int) -> Tensor | None:
            return None if table is None else selected(table, range(-dims, 0), present)

        return replace(
            self,
            preferences=selected_share(self.preferences, present),
            losses=part(self.losses, 1),
            gram=part(self.gram, 2),
            segments=part(self.segments, 2),
            cross=part(self.cross, 2),
            tasks=part(self.tasks, 1),
            largest=part(self.largest, 1),
            present=None,
            measured=None if self.measured is None else self.measured.of(present),
        )

    def rtol(self, given: float | None = None) -> float:
        """``given``, or T times ``length_accuracy``: |J'w|^2 below this much of sum_t (w_t |g_t|)^2 is rounding."""
        return self.preferences.shape[-1] * self.length_accuracy if given is None else given

    def gram_rtol(self) -> float:
        """T times the accuracy of the Gram matrices: rounding made no eigenvalue of the cosines lower than -this."""
        return self.preferences.shape[-1] * self.accuracy
