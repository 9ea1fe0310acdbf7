"""A weighting at work on flat buffers: the passes it needs, its random numbers, its state."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from itertools import count
from typing import Any, Protocol

import torch
from torch import Tensor

from ..device import warn_in_graph
from ..entries import generator_state, member, tensors_of
from ..ops import gram_accuracy, length_accuracy
from ..ops.limits import MAX_ROWS, MAX_TASKS
from ..ranks import Ranks
from ..sharding import sum_shards
from ..weighting import Needs, Weighting, WeightingContext
from ..weighting.judging import Measured, as_table
from ..weighting.refusal import Outcome
from .keys import StepKeys
from .learned import Feedback, Undo
from .options import check_one_row
from .table import GradientTable

__all__ = ["READS_GRADIENTS", "Weigher", "undone_on_error"]

GRAMS = Needs.GRAM | Needs.SEGMENTS | Needs.DIAGONAL
READS_GRADIENTS = GRAMS | Needs.ROWS
_marks = count(1)  # of weightings, to know which optimizer has one
PATIENCE = 100  # steps without an `epoch_end` until there is a warning


class Learner(Protocol):
    """A piece that learns from a step: a weighting, a transfer rule.  Its state is never written to in place."""

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors of what was learned."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores what ``state_dict`` gave."""


def undone_on_error(*learners: Learner) -> AbstractContextManager[None]:
    """Takes back what these have learned in this context if it ends with an exception."""
    return nullcontext() if torch.compiler.is_compiling() else _undone_on_error(learners)


@contextmanager
def _undone_on_error(learners: Sequence[Learner]) -> Iterator[None]:
    before = [learner.state_dict() for learner in learners]
    try:
        yield
    except BaseException:
        for learner, state in zip(learners, before, strict=True):
            learner.load_state_dict(state)
        raise


def accuracies(dtypes: Sequence[torch.dtype]) -> tuple[float, float]:
    """The relative errors of inner products of gradients of these dtypes, and of |J'w|^2."""
    return max(map(gram_accuracy, dtypes)), max(map(length_accuracy, dtypes))


class Weigher:
    """Gives the weights of T task gradients for K subproblems.

    Args:
        weighting: belongs to this one optimizer from now on.
        preferences: float64 [K, T], what the weighting sees as preferences, unless a step brings its own.
        generator: of all random numbers; None: one that begins with a number of torch's default generator.

    Attributes:
        steps: steps taken.  epoch: epochs ended.
        keys: the random numbers.

    (torch.compile keeps what a step writes to this object, but not what it writes to the optimizer itself.)
    """

    def __init__(self, weighting: Weighting, preferences: Tensor, generator: torch.Generator | None) -> None:
        if Needs.CROSS in weighting.needs:
            raise NotImplementedError(
                f"{type(weighting).__name__} needs the gradients of two mini-batches, of which an optimizer keeps one; "
                "use it alone, weighting(cross=...), with weights of your own"
            )
        limit = MAX_ROWS if weighting.needs & GRAMS else MAX_TASKS if weighting.needs & READS_GRADIENTS else math.inf
        if preferences.shape[1] > limit:
            raise ValueError(
                f"expected num_tasks <= {limit} with {type(weighting).__name__}, got {preferences.shape[1]}: take "
                "fewer tasks, because the kernels hold no more task gradients at once"
            )
        self.keys = StepKeys(generator, used=Needs.DRAWS in weighting.needs)
        self.weighting = weighting
        self._mark = weighting.mark = next(_marks)
        self.preferences = preferences
        self._present: Tensor | None = None  # of the last step
        self._undo, self._feedback = Undo(weighting), Feedback(weighting)
        self._warned_of_epochs = False
        self.steps = 0
        self.epoch = 0
        self._shape: tuple[int, torch.device] | None = None
        self._columns: list[int] | None = None
        self._widths: list[int] = []
        self._accuracies = accuracies([torch.float64])

    # ------------------------------------------------------------------ where it works
    def bind(
        self,
        num_segments: int,
        device: torch.device,
        dtypes: Iterable[torch.dtype],
        *,
        columns: Sequence[int] = (),
        widths: Sequence[int] = (),
        forget: bool = True,
    ) -> None:
        """Prepares for this many tensors; of a new number of them, a weighting that remembers each starts anew.

        dtypes: of the gradients.
        columns: the sizes of all tensors, buffer after buffer: of others, what is kept for each element starts anew.
        widths: the columns of the buffers.
        forget: at the first time, forget what the weighting remembers of an earlier use.
        """
        self._accuracies = accuracies(list(dtypes) or [torch.float64])
        self._widths = list(widths)
        known, self._columns = self._columns, list(columns)
        if known not in (None, self._columns) and self.weighting.forget_columns():
            name = type(self.weighting).__name__
            warnings.warn(
                f"the state of the weighting starts anew: {name} remembers each element of the gradients, and the "
                "parameters are others now",
                UserWarning,
                stacklevel=2,
            )
        if self._shape == (num_segments, device):
            return
        state = {} if self._shape is None and forget else self.weighting.state_dict()
        self.preferences = self.preferences.to(device)
        self._bind(num_segments, device)
        if state:
            try:
                self.weighting.load_state_dict({key: value.to(device) for key, value in state.items()})
            except ValueError as error:
                self._bind(num_segments, device)
                warnings.warn(f"the state of the weighting starts anew: {error}", UserWarning, stacklevel=2)

    def _bind(self, num_segments: int, device: torch.device) -> None:
        rows, tasks = self.preferences.shape
        self.weighting.bind(rows, tasks, num_segments, device)
        self._shape = (num_segments, device)

    # ------------------------------------------------------------------ data parallelism
    def share(self, ranks: Ranks) -> None:
        """From now on all ranks draw the numbers that the first one would have drawn."""
        self.keys.share(ranks)

    def prefer(self, preferences: Tensor | Sequence[float], ranks: Ranks | None) -> None:
        """Takes other preferences [T] of one model, from the next step on.

        Raises:
            ValueError: as `check_one_row`.
            RanksError: on all ranks, if they are not the same on all; nothing is changed then.
        """
        checked = check_one_row(preferences, self.preferences.shape[1])
        if ranks is not None:
            ranks.agree({"call": "preferences =", "preferences": checked[0].tolist()})
        self.preferences = checked.to(self.preferences)

    def description(self) -> dict[str, Any]:
        """Options that have to be the same on all ranks from the start."""
        return {"weighting": repr(self.weighting), "preferences": self.preferences.tolist()}

    def progress(self) -> dict[str, Any]:
        """Numbers that have to be the same on all ranks at each step."""
        numbers = {"number of steps": self.steps, "number of epochs": self.epoch}
        if Needs.DRAWS in self.weighting.needs:
            numbers["state of the generator"] = self.keys.fingerprint()
        return numbers

    # ------------------------------------------------------------------ what it reads
    def due(self) -> Needs:
        """Needs of the weighting in the step that comes next."""
        return self.weighting.needs_at(self.steps)

    def reads_gradients(self) -> bool:
        """True if the next step needs task gradients, or their inner products."""
        return bool(self.due() & READS_GRADIENTS) or self.weighting.per_segment

    def segment_grams(self, tables: Sequence[GradientTable]) -> Tensor:
        """float64 [K, S, T, T] of all parameters of these tables, or [K, S, T] where squares are enough."""
        diagonal = not self.due() & (Needs.GRAM | Needs.SEGMENTS)
        grams = [table.gram(diagonal=diagonal) for table in tables]
        segments = grams[0] if len(grams) == 1 else torch.cat(grams, 1)
        if any(table.layout.sharded for table in tables):
            segments = sum_shards(segments, [p for table in tables for p in table.layout.parameters])
        return segments

    # ------------------------------------------------------------------ weights
    def context(
        self,
        losses: Tensor | None,
        dtypes: Sequence[torch.dtype] = (),
        *,
        measured: Measured | None = None,
        present: Tensor | None = None,
        preferences: Tensor | None = None,
    ) -> WeightingContext:
        """The numbers of the next step.

        measured: those that nobody has looked at yet.  dtypes: of the gradients, where they are not the parameters'.
        present: int64 [P], the tasks that have losses and gradients; None: all.
        preferences: float64 [K, T] of this step alone, where it has others.
        """
        self._present = present
        if self.weighting.mark != self._mark:
            raise RuntimeError(
                f"this {type(self.weighting).__name__} was given to another optimizer since, which has made it forget "
                "what it had learned here: give each optimizer an instance of its own"
            )
        of_grams, of_lengths = accuracies(dtypes) if dtypes else self._accuracies
        if self.weighting.needs & (Needs.EPOCHS | Needs.STEPS):
            name = type(self.weighting).__name__
            warn_in_graph(
                self.preferences.device,
                f"the weights of {name}, which go by the number of steps or epochs,",
                "capture as many steps as it has a period of, and anew for each epoch",
            )
        return WeightingContext(
            preferences=self.preferences if preferences is None else preferences,
            losses=losses,
            accuracy=of_grams,
            length_accuracy=of_lengths,
            step=self.steps,
            epoch=self.epoch,
            draw=self.keys.draw(self.preferences.device) if Needs.DRAWS in self.weighting.needs else None,
            measured=measured,
            present=present,
        )

    def weigh(
        self,
        losses: Tensor | Sequence[Tensor] | None,
        measured: Measured,
        *,
        present: Tensor | None = None,
        preferences: Tensor | None = None,
    ) -> Outcome:
        """The weights of the next step, and what was found on the way.

        losses: float64 [K, T], or K T scalars.  present, preferences: as of `context`.
        """
        if losses is not None and not isinstance(losses, Tensor):
            if present is None:
                measured, losses = replace(measured, scalars=losses), None
            else:
                losses = as_table(losses, len(self.preferences))
        self.weighting.weights(self.context(losses, measured=measured, present=present, preferences=preferences))
        assert self.weighting.outcome is not None
        return self.weighting.outcome

    def draw_ahead(self) -> None:
        """Draws the random numbers of the next step, so that a compiled step need not know generators."""
        if Needs.DRAWS in self.weighting.needs:
            self.keys.draw_ahead(self.preferences.device)

    def weigh_early(
        self, losses: Tensor | Sequence[Tensor], present: Tensor | None, dtype: torch.dtype = torch.float64
    ) -> Outcome:
        """The weights [1, T] by losses [1, T] alone, before there are gradients; `undo` until `done`.

        dtype: float32 or float64, of the weights as they are applied.
        """
        self.remember()
        return self.weigh(losses, Measured(dtype=dtype), present=present)

    def remember(self) -> None:
        """Notes what the weighting knows, for `undo` until `done`."""
        self._undo.remember(self.preferences.device)

    def undo(self) -> None:
        """Takes back what the weighting has learned from losses whose step is not made."""
        self._undo.undo()

    def undo_where(self, skipped: Tensor) -> None:
        """The same where this tensor is not zero, which the host need not know."""
        self._undo.undo_where(skipped)

    def done(self) -> None:
        """Counts the step that was made, and keeps what was learned from it."""
        self.steps += 1
        self._undo.forget()
        self.keys.forget()
        if torch.compiler.is_compiling() or Needs.EPOCHS not in self.weighting.needs:
            return
        if self.epoch == 0 and self.steps >= PATIENCE and not self._warned_of_epochs:
            self._warned_of_epochs = True
            warnings.warn(
                f"{self.weighting!r} goes by the epochs, which only you know: in {PATIENCE} steps there was no "
                "epoch_end(), and until there is, its weights are those of the first epoch. Call epoch_end() at the "
                "end of each epoch (if the first one is longer than that, all is well)",
                UserWarning,
                stacklevel=4,
            )

    def forget(self) -> None:
        """Drops what was drawn and learned for the next step."""
        self.undo()
        self.keys.forget()

    # ------------------------------------------------------------------ feedback
    def await_feedback(self, losses: Tensor | None) -> None:
        """losses: float64 [K, T] of the step just made, which feedback belongs to; NaN where it was skipped."""
        self._feedback.expect(losses, self._present)

    def check_feedback(self) -> None:
        """Checks that there is something to learn from feedback.

        Raises:
            RuntimeError: if the weighting learns nothing from it, or there was no step with losses.
        """
        self._feedback.check()

    def learn(self, losses: Tensor) -> None:
        """losses: float64 [K, T] of the last mini-batch, after the step."""
        self._feedback.learn(losses)

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """The state of the weighting and of the random numbers, and the counts of steps and epochs."""
        return {
            "weighting": {key: value.clone() for key, value in self.weighting.state_dict().items()},
            "generator": self.keys.generator.get_state(),
            "steps": self.steps,
            "epoch": self.epoch,
        }

    def loaded(self, state: dict[str, Any]) -> Callable[[], None]:
        """Checks what ``state_dict`` gave.

        Returns:
            A function that takes the state over, and cannot fail.

        Raises:
            TypeError: for an entry of another kind.
            ValueError: for the state of another weighting.
        """
        where = f"the weighting {type(self.weighting).__name__}"
        if not isinstance(state, Mapping):
            raise TypeError(f"expected the state of {where} as a dict, got {type(state).__name__}: pass state_dict()")
        given = tensors_of(state, "weighting", where)
        numbers = generator_state(state, self.keys.generator, where)
        steps, epoch = (int(member(state, key, (), where)) for key in ("steps", "epoch"))
        other = copy.deepcopy(self.weighting)  # with its parts
        assert self._shape is not None
        rows, tasks = self.preferences.shape
        other.bind(rows, tasks, *self._shape)
        weighting = {key: value.to(self._shape[1]) for key, value in given.items()}
        other.load_state_dict(weighting)
        if self._widths:
            other.check_columns(self._widths)

        def commit() -> None:
            self.weighting.load_state_dict(weighting)
            self.keys.generator.set_state(numbers)
            self.steps, self.epoch = steps, epoch
            self._undo.forget()

        return commit
