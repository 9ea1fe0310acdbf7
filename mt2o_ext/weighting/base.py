"""The contract of weightings: what they are asked, what they remember, and when they refuse."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..checks import PerTask, per_task
from ..loss_domain import LossDomain, Reason
from .context import Needs, WeightingContext
from .draw import Draw
from .elements import finite_rows
from .judging import Judged, as_table, judged, settled
from .refusal import Outcome, overflow
from .state import Stateful
from .tables import batched_tables, check_fields

_NUMBERS = Needs.LOSSES | Needs.GRAM | Needs.SEGMENTS | Needs.DIAGONAL | Needs.CROSS


class Weighting(Stateful, ABC):
    """Gives the weights w of the combined gradient ``g = sum_t w_t g_t``, for K subproblems at once.

    `bind` comes first; `weights` never waits for the device. A subclass gives `_weights`, and `_initial_state` where it
    remembers something. Its state is a dictionary of tensors whose first dimension is K; `_weights`, `_transform_` and
    `_after_step` put new tensors into it and never write into old ones, because a subproblem whose numbers are not all
    finite, whose losses are outside of ``loss_domain`` or whose weights are no usable numbers must keep its old state.
    Such a subproblem gets NaN as weights: the optimizer skips its step, and tells why (`refusals`, `reasons`).

    A step without some of the tasks (``context.present``) needs nothing from a subclass, if all tables of its state
    have the tasks in the second dimension (`_axes_of_tasks`), and counts of what a task has seen are [K, T] too.

    Attributes:
        needs: what the weighting reads; see `Needs`.
        loss_domain: the losses that its formula exists for; see `LossDomain`.
        degree: all losses (and their history) times a give the update times a^degree; None: there is no such law.
        per_segment: the weights are [K, S, T].
        reads_preferences: whether the weights depend on ``context.preferences``; None: nobody has said.
        undoes_factors: the direction of the update stays the same where one task's loss is multiplied, so that weighted
            losses make no trade-off.
        shares: names of tables [K, T] of the state that are weights on the simplex: in a step without some tasks the
            others share what they have together.
        divisor: of what `_weights` gives, which costs no launch of its own.

    Example:
        >>> class InverseLosses(Weighting):
        ...     needs = Needs.LOSSES
        ...     degree = 0.0
        ...
        ...     def _weights(self, context):
        ...         return 1 / context.losses
        ...
        >>> InverseLosses()(losses=torch.tensor([2.0, 0.5]))
        tensor([0.5000, 2.0000], dtype=torch.float64)
    """

    needs: Needs = Needs.NOTHING
    loss_domain: LossDomain = LossDomain.ANY
    degree: float | None = 1.0
    per_segment: bool = False
    reads_preferences: bool | None = None
    undoes_factors: bool = False
    divisor: float = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.mark = 0  # of the optimizer that it works for
        self._calls = 0
        # The subproblems that took part in the last `weights`: only they learn from `after_step`.
        self._took_part: Tensor | None = None

    def __repr__(self) -> str:
        names = [name for name in inspect.signature(type(self)).parameters if hasattr(self, name)]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    def bind(self, num_rows: int, num_tasks: int, num_segments: int, device: torch.device | str) -> None:
        """Prepares for K subproblems, T tasks and S segments on ``device`` and forgets any state.

        Raises:
            ValueError: for settings that do not fit.
        """
        self._shape = (num_rows, num_tasks, num_segments)
        self._device = torch.device(device)
        self._calls = 0
        self._took_part = self._last = None
        self._numbers = {
            name: per_task(name, value, num_tasks, device)
            for name, value in self._settings_of_tasks().items()
            if value is not None
        }
        self._state = self._initial_state(torch.ones(num_rows, num_tasks, dtype=torch.float64, device=device))
        for part in self._parts().values():
            part.bind(num_rows, num_tasks, num_segments, device)

    def needs_at(self, step: int) -> Needs:
        """Return what `weights` reads after ``step`` finished steps: less than ``needs`` where old weights are kept."""
        return self.needs

    @torch.no_grad()
    def weights(self, context: WeightingContext) -> Tensor:
        """w, float64 [K, T] (per segment: [K, S, T]); NaN in the rows of subproblems that must skip this step.

        With ``context.present`` those of the other tasks are 0, and all else is as if there were none.

        Raises:
            ValueError: where the context lacks what the weighting needs.
            RuntimeError: before `bind`.
        """
        self._check(context)
        if context.present is not None:
            with self._without_absent(context.present):
                self.weights(context.of_present())
            assert self._last is not None
            return self._last.weights
        before = dict(self._state)
        found = self._judge(context)
        for part in self._parts().values():
            part._last = None
        outcome = settled(self._weights(found.context), found, self.divisor)
        self._keep(outcome.took_part, before)
        self._took_part, self._last = outcome.took_part, outcome
        self._settle(before)
        return outcome.weights

    @property
    def outcome(self) -> Outcome | None:
        """The findings of the last `weights`; None before any."""
        return self._last

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """The reasons that `refusals` counts from 1: its own ones to refuse a step, and then those of its parts."""
        name = type(self).__name__
        of_parts = [reason for part in self._parts().values() for reason in part.reasons]
        return (self.loss_domain.reason(name), overflow(name), *of_parts)

    @property
    def refused(self) -> Tensor | None:
        """bool [K], where the last `weights` were NaN though gradients and losses were finite; None before any."""
        return None if self._last is None else self._last.refused

    def refusals(self) -> Tensor | None:
        """Return why that was so, as numbers; None before any weights.

        Returns:
            float64 [K, 3]: in each row the number of one of the `reasons` (0: not refused), the task and the value that
            it speaks of.
        """
        if self._last is None:
            return None
        return self._last.refusals_with((len(part.reasons), part.refusals()) for part in self._parts().values())

    @torch.no_grad()
    def transform_(self, rows: Sequence[Tensor], context: WeightingContext) -> None:
        """Changes the task gradients J in place, before their Gram matrix is taken (`Needs.ROWS`).

        Args:
            rows: one [K, T, P] for each dtype of the model; where ``context.columns`` is None, padding counts as well.
                Subproblems with a non-finite gradient or loss are left as they are.
            context: of this step; it holds no Gram matrix yet.
        """
        self._check(context, only=Needs.LOSSES | Needs.DRAWS)
        if context.present is not None:
            parts = [matrix.index_select(1, context.present) for matrix in rows]
            with self._without_absent(context.present):
                self.transform_(parts, context.of_present())
            for matrix, part in zip(rows, parts, strict=True):
                matrix.index_copy_(1, context.present, part)
            return
        finite = finite_rows(rows, context)
        seen = self._judge(replace(context, finite=finite), look=True).context
        finite = finite if seen.finite is None else seen.finite
        before = dict(self._state)
        self._transform_(rows, seen)
        self._keep(finite, before)
        self._settle(before)

    @torch.no_grad()
    def after_step(self, losses_before: Tensor, losses_after: Tensor, present: Tensor | None = None) -> None:
        """Learns from the losses [K, T] of one mini-batch before and after the step (`Needs.FEEDBACK`).

        Not finite ones teach nothing, nor do those of subproblems whose weights were NaN.

        Args:
            losses_before: [K, T].
            losses_after: [K, T].
            present: as of `WeightingContext`.
        """
        self._check_bound()
        both = [losses.detach().double() for losses in (losses_before, losses_after)]
        if present is not None:
            with self._without_absent(present):
                self.after_step(*(losses.index_select(1, present) for losses in both))
            return
        finite = both[0].isfinite().all(-1) & both[1].isfinite().all(-1)
        if self._took_part is not None:
            finite = finite & self._took_part
        before = dict(self._state)
        self._after_step(*(torch.where(finite[:, None], losses, 1.0) for losses in both))
        self._keep(finite, before)
        self._settle(before)
        for part in self._parts().values():
            if Needs.FEEDBACK in part.needs:
                part.after_step(losses_before, losses_after)

    @torch.no_grad()
    def __call__(
        self,
        gram: Tensor | None = None,
        *,
        losses: Tensor | None = None,
        preferences: Tensor | None = None,
        segments: Tensor | None = None,
        cross: Tensor | None = None,
        epoch: int = 0,
        generator: torch.Generator | None = None,
        accuracy: float | None = None,
    ) -> Tensor:
        """The weights for matrices at hand, without an optimizer: ``CAGrad()(jacobian @ jacobian.T)``.

        A method with a state keeps it from call to call until the shape changes.

        Args:
            gram: the Gram matrix J J' of the task gradients, [T, T], or [K, T, T] for K subproblems.
            losses: [T] or [K, T], for methods that read them.
            preferences: [T] or [K, T]; the same for all tasks where None.
            segments: one Gram matrix for each parameter tensor, [S, T, T] or [K, S, T, T].
            cross: inner products of the gradients of two mini-batches, [T, T] or [K, T, T].
            epoch: finished epochs, for methods that count them.
            generator: for methods that draw; torch's default one where None.
            accuracy: relative error of the matrices' entries; the rounding of their dtype where None. What is zero to
                this accuracy counts as zero: give ``mt2o_ext.ops.length_accuracy(dtype)`` for the dtype of the
                gradients where you have converted the matrix.

        Returns:
            float64 [T], or [K, T].
        """
        tables = {"losses": (losses, 1), "gram": (gram, 2), "segments": (segments, 3), "cross": (cross, 2)}
        tables["preferences"] = (preferences, 1)
        batched, given = batched_tables(tables)
        table = next(iter(given.values()))
        num_rows, num_tasks = len(table), table.shape[-1]
        num_segments = given["segments"].shape[1] if "segments" in given else 1
        if self._shape != (num_rows, num_tasks, num_segments) or self._device != table.device:
            self.bind(num_rows, num_tasks, num_segments, table.device)
        given.setdefault("preferences", table.new_full((num_rows, num_tasks), 1 / num_tasks))
        if "segments" in given:
            given.setdefault("gram", given["segments"].sum(1))
        draw = Draw.new(generator) if Needs.DRAWS in self.needs else None
        if accuracy is None:
            grams = [table for table in (gram, segments, cross) if table is not None]
            accuracy = max((torch.finfo(table.dtype).eps for table in grams), default=2.0**-52)
        context = WeightingContext(
            preferences=given["preferences"],
            losses=given.get("losses"),
            gram=given.get("gram"),
            segments=given.get("segments"),
            cross=given.get("cross"),
            accuracy=accuracy,
            length_accuracy=accuracy,
            step=self._calls,
            epoch=epoch,
            draw=draw,
        )
        weights = self.weights(context)
        self._calls += 1
        return weights if batched else weights[0]

    @abstractmethod
    def _weights(self, context: WeightingContext) -> Tensor:
        """w of finite input."""

    def _transform_(self, rows: Sequence[Tensor], context: WeightingContext) -> None:
        """Changes the task gradients of the subproblems where ``context.finite``; here: the parts do."""
        for part in self._parts().values():
            if Needs.ROWS in part.needs:
                part.transform_(rows, context)

    def _after_step(self, losses_before: Tensor, losses_after: Tensor) -> None:
        """Learns from finite losses, float64 [K, T]."""
        return

    def _settings_of_tasks(self) -> dict[str, PerTask | None]:
        """Settings that are a number for each task, or one for all: `bind` puts them into ``_numbers``, [T]."""
        return {}

    def _empty_weights(self, ones: Tensor) -> Tensor:
        """Zeros in the shape of the weights."""
        assert self._shape is not None
        zeros = torch.zeros_like(ones)
        return zeros[:, None].repeat(1, self._shape[2], 1) if self.per_segment else zeros

    def _judged(self, context: WeightingContext, losses: Tensor) -> Tensor:
        """[K, T], what ``loss_domain`` is about: the losses themselves, but for a bound or a preference."""
        return losses

    def _first_known(self) -> Tensor | None:
        """bool [K, T]: the losses that later ones are measured by are known; None: there are none."""
        return None

    def _judge(self, context: WeightingContext, *, look: bool = False) -> Judged:
        """Look at the numbers of the step, where the formula reads any, or ``look``; it sees harmless ones."""
        if self.loss_domain is not LossDomain.ANY and context.measured is not None and context.measured.scalars:
            losses = as_table(context.measured.scalars, len(context.preferences))
            context = replace(context, losses=losses, measured=replace(context.measured, scalars=()))
        outside = None
        if context.losses is not None:
            outside = self.loss_domain.outside(self._judged(context, context.losses), self._first_known())
        due = self.needs_at(context.step)
        look = look or bool(due & _NUMBERS or self._parts() or (context.measured and context.measured.together))
        return judged(context, due, outside, look=look)

    def _check(self, context: WeightingContext, only: Needs | None = None) -> None:
        """The context has the shapes of `bind` and everything that is needed (of ``only``)."""
        self._check_bound()
        assert self._shape is not None
        rows, tasks, _ = self._shape
        name = type(self).__name__
        if context.preferences.shape != (rows, tasks):
            got = tuple(context.preferences.shape)
            raise ValueError(f"{name} expected preferences [{rows}, {tasks}], got {got}: call bind again")
        check_fields(name, context, self.needs_at(context.step) if only is None else self.needs & only, rows, tasks)
