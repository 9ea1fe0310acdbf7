"""The transfer of an optimizer: when it is due, its matrices, and what it does beside the fused step."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import check_choice
from ..device import LateFlags, capturing, kept_in_place, refuse_in_graph, warn_in_graph
from ..entries import member, tensors_of
from ..ops import Order
from ..preferences import check_preferences
from ..ranks import Ranks
from ..transfer import Identity, TransferContext, TransferRule
from ..transfer.moments import Moments
from .blending import blend_changes, blend_moments, hold_rows, split_matrices
from .flat import FlatParameters
from .share import Share

__all__ = ["Blend"]


class Blend:
    """A transfer rule at work on flat buffers.

    Args:
        rule: gives M.
        preferences: float64 [K, T].
        order: "consensus" or "adapt_then_combine"; the rule may require the second.
        moments: whether moments are blended too.
        warm_up: the number of first steps in which all rows become their mean, whatever the rule says.
        share: the rows that lie here; None: all.

    Attributes:
        steps: optimizer steps taken.
        initial_lr: the learning rate that the first group started with.
    """

    def __init__(
        self,
        rule: TransferRule,
        preferences: Tensor,
        order: str,
        moments: Moments,
        warm_up: int = 0,
        share: Share | None = None,
    ) -> None:
        check_choice("order", order, ("consensus", "adapt_then_combine"))
        if not isinstance(moments, Moments):
            raise TypeError(f"expected moments as one of Moments, got {moments!r:.80}: pass Moments.KEEP, say")
        self.rule = rule
        self.moments = moments.check(rule)
        self.warm_up = warm_up
        self.order = Order.ADAPT_THEN_COMBINE if "adapt_then_combine" in (order, rule.order) else Order.CONSENSUS
        if self.order is Order.ADAPT_THEN_COMBINE and rule.relative:
            raise ValueError(
                f"{type(rule).__name__} filters changes before the update (relative): use the order consensus"
            )
        if warm_up > 0 and rule.relative:
            raise ValueError(
                f"expected warm_up=0 with {type(rule).__name__} that filters changes (relative), got {warm_up}: take "
                "relative=False"
            )
        rule.bind(preferences)
        self.preferences = preferences
        self._part = Share(len(preferences)) if share is None else share
        if self._part.is_part and rule.needs_slopes:
            raise ValueError(
                f"expected a rule that goes by parameters and preferences with subproblem_mesh=, got "
                f"{type(rule).__name__}, which goes by the gradients of all subproblems, too: take the rule without it"
            )
        self._own: tuple[Tensor, Tensor] | None = None  # the preferences, and this rank's rows of them
        self._last: list[Tensor] = []
        self.steps = 0
        self.initial_lr = 0.0
        self._lr: tuple[float, Tensor] | None = None  # of the last transfer, and the same on the device
        self._eye: Tensor | None = None  # [K, K]
        self._shared_batch: LateFlags | None = None  # until it is known whether the first step had one

    def prefer(self, preferences: Tensor) -> None:
        """Takes other preferences [K, T]; the rule, which may refuse them, forgets what it has learned."""
        rule = copy.deepcopy(self.rule)
        rule.bind(preferences)
        self.rule, self.preferences = rule, preferences

    def to(self, device: torch.device) -> None:
        """Moves preferences and the state of the rule."""
        self._shared_batch = None
        if device != self.preferences.device:
            state = self.rule.state_dict()
            self.preferences = self.preferences.to(device)
            self.rule.bind(self.preferences)
            self.rule.load_state_dict({key: value.to(device) for key, value in state.items()})

    def share(self, ranks: Ranks) -> None:
        """From now on the rule has the first rank's state, and so the random numbers that it would have drawn."""
        state = {key: value.clone() for key, value in self.rule.state_dict().items()}
        ranks.share_(list(state.values()))
        self.rule.load_state_dict(state)

    @property
    def own(self) -> Tensor:
        """float64 [K / R, T], the preferences of this rank's subproblems; the same tensor while they are the same."""
        if not self._part.is_part:
            return self.preferences
        if self._own is None or self._own[0] is not self.preferences:
            self._own = self.preferences, self._part.rows(self.preferences)
        return self._own[1]

    def due(self, flats: Sequence[FlatParameters]) -> bool:
        """True if a transfer is due in the next step."""
        if not self._counts_steps or len(self.preferences) == 1 or not flats:
            return False
        return self.steps < self.warm_up or self.rule.due(self.steps)

    @property
    def reads_gram(self) -> bool:
        """True if the matrices of the next step, which is due, go by inner products of the rows."""
        return self.steps >= self.warm_up and self.rule.needs_gram

    def sources(self) -> list[list[int]] | None:
        """For each row those that it takes from in the next step, where that is known; None: any."""
        return None if self.steps < self.warm_up else self.rule.sources()

    def matrices(
        self,
        flats: Sequence[FlatParameters],
        losses: Tensor | None,
        lr: float | Tensor,
        gram: Tensor | None = None,
        gradients: Callable[[], list[Tensor]] | None = None,
    ) -> list[Tensor | None]:
        """For each buffer M [K, K] or [S, K, K], or None where no transfer is due.

        Args:
            flats: the buffers.
            losses: float64 [K, T], or None.
            lr: of the first group.
            gram: float64 [S, K, K] of the rows less their mean, where other ranks have some; None: all are here.
            gradients: makes the combined gradients [K, P] of each buffer, for rules that need them.
        """
        nothing: list[Tensor | None] = [None] * len(flats)
        captured = capturing(self.preferences.device)
        if captured and self._counts_steps and self.steps >= self.warm_up and len(self.preferences) > 1:
            self._check_capture(self.preferences.device)
        if not self.due(flats):
            return nothing
        if self.steps < self.warm_up:
            return self._means(flats)
        before = self.rule.state_dict() if captured else {}
        if gram is None and self.rule.needs_gram:
            gram = torch.cat([flat.centred_gram(self.rows(flat)) for flat in flats])
        rate = self._rate(lr)
        slopes = None
        if self.rule.needs_slopes and gradients is not None:
            slopes = torch.cat([flat.slopes(of) for flat, of in zip(flats, gradients(), strict=True)])
        context = TransferContext(self.preferences, gram, losses, self.steps, rate, self.initial_lr, slopes)
        mix = self.rule.matrix(context)
        if mix is None:
            return nothing
        self.moments.check_matrix(mix, self.rule)
        if before:
            self.rule.load_state_dict(kept_in_place(before, self.rule.state_dict()))
        return list(split_matrices(mix, flats, len(self.preferences)))

    def _rate(self, lr: float | Tensor) -> Tensor:
        """float64 [], the learning rate where the preferences are; the same tensor for the same number."""
        if isinstance(lr, Tensor) or torch.compiler.is_compiling() or capturing(self.preferences.device):
            return self.preferences.new_empty(()).fill_(lr.reshape(()) if isinstance(lr, Tensor) else lr)
        if self._lr is None or self._lr[0] != lr or self._lr[1].device != self.preferences.device:
            self._lr = lr, self.preferences.new_full((), lr)
        return self._lr[1]

    def held(self, mix: Tensor, active: Tensor | None, skipped: Tensor) -> Tensor:
        """M with rows of the identity where the step touches nothing, as `hold_rows` says."""
        if torch.compiler.is_compiling() or capturing(mix.device):
            return hold_rows(mix, active, skipped, torch.eye(mix.shape[-1], dtype=mix.dtype, device=mix.device))
        if self._eye is None or self._eye.device != mix.device:
            self._eye = torch.eye(mix.shape[-1], dtype=mix.dtype, device=mix.device)
        return hold_rows(mix, active, skipped, self._eye)

    @property
    def _counts_steps(self) -> bool:
        """True if anybody asks for the number of steps: else compiled steps need no other number each time."""
        return self.warm_up > 0 or not isinstance(self.rule, Identity)

    def _means(self, flats: Sequence[FlatParameters]) -> list[Tensor | None]:
        device, num_rows = self.preferences.device, len(self.preferences)
        refuse_in_graph(device, "the steps of warm_up=", "take them outside of the capture first")
        mean = self.preferences.new_full((num_rows, num_rows), 1 / num_rows)
        return [mean] * len(flats)

    def _check_capture(self, device: torch.device) -> None:
        if self.rule.counts_steps:
            name = type(self.rule).__name__
            refuse_in_graph(device, f"{name} with a strength that goes by the number of steps", "take a constant one")
        if self.rule.every > 1:
            warn_in_graph(
                device,
                f"a transfer every {self.rule.every} steps",
                f"capture {self.rule.every} steps as one graph, or a multiple of that",
            )

    def rows(self, flat: FlatParameters) -> Tensor:
        """[K, P], what is blended: theta, or its change since the last transfer."""
        return flat.theta - flat.buffers["transfer_base"] if self.rule.relative else flat.theta

    def has_shared_batch(self, losses: Tensor) -> bool:
        """True, once, if all subproblems started with one mini-batch, as soon as the host knows.

        Transfer by a fixed rule averages gradient noise, of which shared batches leave none.

        losses: float64 [K, T], of each step.
        """
        if torch.compiler.is_compiling() or not self.rule.fixed:
            return False
        if self.steps == 0:
            self._shared_batch = LateFlags()
            self._shared_batch.add((losses == losses[0]).all().float().reshape(1))
        flags = self._shared_batch
        if flags is None or not flags.known():
            return False
        self._shared_batch = None
        return bool(flags.raised())

    def about_shared_batch(self) -> str:
        """The words of a warning of that."""
        return (
            f"all {len(self.preferences)} subproblems started with exactly the same losses: they seem to share their "
            f"mini-batches. Transfer by a fixed rule ({type(self.rule).__name__}) averages gradient noise; shared "
            "batches leave none: draw one for each subproblem (repeat(loader), stack(...))."
        )

    def before_step(
        self, flats: Sequence[FlatParameters], matrices: list[Tensor | None], skipped: Tensor
    ) -> list[Tensor | None]:
        """Blends changes, where the rule is about those; returns the matrices that are left to the fused step."""
        if not self.rule.relative:
            return matrices
        for flat, matrix in zip(flats, matrices, strict=True):
            if matrix is not None:
                blend_changes(flat, self.rows(flat), matrix, skipped)
        return [None] * len(flats)

    def after_step(self, flats: Sequence[FlatParameters], matrices: Sequence[Tensor | None]) -> None:
        """Blends moments, if asked for."""
        if self.moments is not Moments.KEEP:
            blend_moments(flats, matrices, self.moments)
        self.count_step(matrices)

    def count_step(self, matrices: Sequence[Tensor | None] = ()) -> None:
        """Counts a step, if anybody goes by their number.

        matrices: of each buffer M [K, K] or [S, K, K], or None; none at all where no transfer was due.
        """
        self._last = [mix for mix in matrices if mix is not None]
        if self._counts_steps:
            self.steps += 1

    def taken(self) -> Tensor | None:
        """float64 [rows here], the share 1 - M_kk that the last step took from other rows, mean over tensors.

        None where no transfer was due.
        """
        if not self._last:
            return None
        kept = torch.cat([mix.diagonal(dim1=-2, dim2=-1).reshape(-1, mix.shape[-1]) for mix in self._last])
        return self._part.rows(1 - kept.mean(0))

    def take_over(self, other: Blend) -> None:
        """Goes on with the state of another one, as `loaded` gave it."""
        self.rule, self.preferences = other.rule, other.preferences
        self.steps, self.initial_lr = other.steps, other.initial_lr

    def state_dict(self) -> dict[str, Any]:
        """The state of the transfer rule, the preferences and the count of steps."""
        return {
            "preferences": self.preferences.clone(),
            "steps": self.steps,
            "initial_lr": self.initial_lr,
            "transfer": {key: value.clone() for key, value in self.rule.state_dict().items()},
        }

    def loaded(self, state: dict[str, Any]) -> Blend:
        """A copy with the state of a dict.

        Raises:
            TypeError: for an entry of another kind.
            ValueError: for the state of another rule or another K.
        """
        where = f"the transfer rule {type(self.rule).__name__}"
        other = copy.copy(self)
        other.rule = copy.copy(self.rule)
        preferences = member(state, "preferences", self.preferences.shape, where).to(self.preferences)
        other.preferences = check_preferences(preferences.cpu(), *preferences.shape).to(self.preferences)
        given = tensors_of(state, "transfer", where)
        if given.keys() != self.rule.state_dict().keys():
            raise ValueError(f"expected the state {list(self.rule.state_dict())} of {where}, got {list(given)}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what it says of too few subproblems was said before
            other.rule.bind(other.preferences)
        other.rule.load_state_dict({key: value.to(self.preferences) for key, value in given.items()})
        other.steps = int(member(state, "steps", (), where))
        other.initial_lr = float(member(state, "initial_lr", (), where))
        return other
