"""A weighting at work on flat buffers: the passes it needs, its random numbers, its state."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import count
from typing import Any, Protocol

import torch
from torch import Tensor

from ..device import capturing, graph_generator, warn_in_graph
from ..entries import generator_state, member, tensors_of
from ..ops import gram_accuracy, length_accuracy
from ..ops.limits import MAX_ROWS, MAX_TASKS
from ..ranks import Ranks
from ..weighting import Draw, Needs, Weighting, WeightingContext
from .options import check_generator
from .table import GradientTable

__all__ = ["READS_GRADIENTS", "Weigher", "largest_weights", "undone_on_error"]

GRAMS = Needs.GRAM | Needs.SEGMENTS | Needs.DIAGONAL
READS_GRADIENTS = GRAMS | Needs.ROWS
_marks = count(1)  # of weightings, to know which optimizer has one
PATIENCE = 100  # steps without an `epoch_end` until there is a warning


def largest_weights(squares: Tensor, dtypes: Iterable[torch.dtype]) -> Tensor:
    """float64 [K, T]: with weights up to these no sum of w_t g_t can be infinite in the type that it is added up in.

    squares: float64 [K, T], |g_t|^2.
    """
    limit = min(torch.finfo(torch.promote_types(dtype, torch.float32)).max for dtype in dtypes)
    lengths = squares.sqrt().clamp(min=1.0)  # at least 1: the weights themselves become numbers of this type
    return limit / (squares.shape[1] * lengths)


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


class Weigher:
    """Gives the weights of T task gradients for K subproblems.

    Args:
        weighting: belongs to this one optimizer from now on.
        preferences: float64 [K, T], what the weighting sees as preferences.
        generator: of all random numbers; None: one that begins with a number of torch's default generator.

    Attributes:
        steps: steps taken.  epoch: epochs ended.
        ranks: of data parallelism, or None; see `share`.
        last_losses: float64 [K, T], of the last step until there was feedback, or None.

    (torch.compile keeps what a step writes to this object, but not what it writes to the optimizer itself.)
    """

    def __init__(self, weighting: Weighting, preferences: Tensor, generator: torch.Generator | None) -> None:
        if Needs.CROSS in weighting.needs:
            raise NotImplementedError(
                f"{type(weighting).__name__} needs the gradients of two mini-batches, of which an optimizer keeps one; "
                "use it alone, weighting(cross=...), with weights of your own"
            )
        check_generator(generator)
        limit = MAX_ROWS if weighting.needs & GRAMS else MAX_TASKS if weighting.needs & READS_GRADIENTS else math.inf
        if preferences.shape[1] > limit:
            raise ValueError(
                f"expected num_tasks <= {limit} with {type(weighting).__name__}, got {preferences.shape[1]}: take "
                "fewer tasks, because the kernels hold no more task gradients at once"
            )
        if generator is None:
            draws = Needs.DRAWS in weighting.needs  # else torch's own numbers go on as if nobody had been here
            generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())) if draws else 0)
        self.weighting = weighting
        self._mark = weighting.mark = next(_marks)
        self.preferences = preferences
        self.generator = generator
        self.ranks: Ranks | None = None
        self._warned: set[str] = set()
        self.steps = 0
        self.epoch = 0
        self._shape: tuple[int, torch.device] | None = None
        self._columns: list[int] | None = None
        self._widths: list[int] = []
        self._dtypes: list[torch.dtype] = [torch.float64]
        self._before: dict[str, Tensor] | None = None
        self._key: Tensor | None = None
        self.last_losses: Tensor | None = None

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
        self._dtypes = list(dtypes) or [torch.float64]
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
        self.ranks = ranks
        self.generator = ranks.generator(self.generator)

    def description(self) -> dict[str, Any]:
        """Options that have to be the same on all ranks from the start."""
        return {"weighting": repr(self.weighting), "preferences": self.preferences.tolist()}

    def progress(self) -> dict[str, Any]:
        """Numbers that have to be the same on all ranks at each step."""
        numbers = {"number of steps": self.steps, "number of epochs": self.epoch}
        if Needs.DRAWS in self.weighting.needs:
            numbers["state of the generator"] = hash(tuple(self.generator.get_state().view(torch.int64).tolist()))
        return numbers

    # ------------------------------------------------------------------ what it reads
    def due(self) -> Needs:
        """Needs of the weighting in the step that comes next."""
        return self.weighting.needs_at(self.steps)

    def reads_gradients(self) -> bool:
        """True if the next step needs task gradients, or their inner products."""
        return bool(self.due() & READS_GRADIENTS) or self.weighting.per_segment

    def segment_grams(self, tables: Sequence[GradientTable], factor: Tensor | None) -> Tensor:
        """float64 [K, S, T, T] of all parameters of these tables, whose gradients have to be divided by factor."""
        diagonal = not self.due() & (Needs.GRAM | Needs.SEGMENTS)
        grams = [table.gram(diagonal=diagonal) for table in tables]
        segments = grams[0] if len(grams) == 1 else torch.cat(grams, 1)
        if diagonal:
            segments = torch.diag_embed(segments)
        return segments if factor is None else segments / factor.double().square()

    # ------------------------------------------------------------------ weights
    def context(
        self, losses: Tensor | None, skipped: Tensor | None, dtypes: Sequence[torch.dtype] = ()
    ) -> WeightingContext:
        """The numbers of the next step but for the Gram matrix.

        skipped: float32 [K], rows that are not updated.  dtypes: of the gradients, where they are not the parameters'.
        """
        if self.weighting.mark != self._mark:
            raise RuntimeError(
                f"this {type(self.weighting).__name__} was given to another optimizer since, which has made it forget "
                "what it had learned here: give each optimizer an instance of its own"
            )
        dtypes = dtypes or self._dtypes
        if self.weighting.needs & (Needs.EPOCHS | Needs.STEPS):
            name = type(self.weighting).__name__
            warn_in_graph(
                self.preferences.device,
                f"the weights of {name}, which go by the number of steps or epochs,",
                "capture as many steps as it has a period of, and anew for each epoch",
            )
        return WeightingContext(
            preferences=self.preferences,
            losses=losses,
            accuracy=max(map(gram_accuracy, dtypes)),
            length_accuracy=max(map(length_accuracy, dtypes)),
            step=self.steps,
            epoch=self.epoch,
            draw=self._draw() if Needs.DRAWS in self.weighting.needs else None,
            finite=None if skipped is None else skipped == 0,
        )

    def draw_ahead(self) -> None:
        """Draws the key of the next step, so that a compiled step need not know generators."""
        drawn = self._key is not None and not capturing(self.preferences.device)
        if Needs.DRAWS in self.weighting.needs and not drawn:
            self._key = self._new_key()

    def _new_key(self) -> Tensor:
        """A key also for steps that are skipped, the same on all ranks.

        In a CUDA graph it comes from torch's generator of the device, which draws anew at each replay, on each rank
        something else.
        """
        device = self.preferences.device
        if not capturing(device):
            return Draw.new(self.generator).key
        key = Draw.new(graph_generator(device)).key
        return key if self.ranks is None else self.ranks.from_first_(key.to(device))

    def _draw(self) -> Draw:
        """The random numbers of this step, the same however often it is weighed."""
        if self._key is None:
            self._key = self._new_key()
        return Draw(self._key)

    def weigh_early(self, losses: Tensor) -> Tensor:
        """The weights [1, T] by losses [1, T] alone, before there are gradients; `undo` until `done`."""
        self.remember()
        return self.weighting.weights(self.context(losses, None))

    def remember(self) -> None:
        """Notes what the weighting knows, for `undo` until `done`."""
        self._before = self.weighting.state_dict()
        if capturing(self.preferences.device):  # which changes the state in place
            self._before = {key: tensor.clone() for key, tensor in self._before.items()}

    def undo(self) -> None:
        """Takes back what the weighting has learned from losses whose step is not made."""
        if self._before is not None:
            self.weighting.load_state_dict(self._before)
            self._before = None

    def undo_where(self, skipped: Tensor) -> None:
        """The same where this tensor is not zero, which the host need not know."""
        if self._before is not None:
            now, missed = self.weighting.state_dict(), skipped.amax() != 0
            self.weighting.load_state_dict({key: torch.where(missed, self._before[key], now[key]) for key in now})
            self._before = None

    def done(self) -> None:
        """Counts the step that was made, and keeps what was learned from it."""
        self.steps += 1
        self._before = self._key = None
        if torch.compiler.is_compiling() or Needs.EPOCHS not in self.weighting.needs:
            return
        if self.epoch == 0 and self.steps >= PATIENCE:
            self._warn_once(
                "epochs",
                f"{self.weighting!r} goes by the epochs, which only you know: in {PATIENCE} steps there was no "
                "epoch_end(), and until there is, its weights are those of the first epoch. Call epoch_end() at the "
                "end of each epoch (if the first one is longer than that, all is well)",
            )

    def forget(self) -> None:
        """Drops what was drawn and learned for the next step."""
        self.undo()
        self._key = None

    # ------------------------------------------------------------------ feedback
    def await_feedback(self, losses: Tensor | None) -> None:
        """losses: float64 [K, T] of the step just made, which feedback belongs to; NaN where it was skipped."""
        missed = not torch.compiler.is_compiling() and self.last_losses is not None
        if missed and Needs.FEEDBACK in self.weighting.needs:
            self._warn_once(
                "feedback",
                f"{self.weighting!r} learns from the losses of each mini-batch after the step, and there was no "
                "feedback(losses) between the last two steps: without it, it learns nothing. After each step, call "
                "feedback(losses) with the losses of the same mini-batch, computed anew",
            )
        self.last_losses = losses

    def check_feedback(self) -> Tensor:
        """The losses of the last step, which feedback belongs to, float64 [K, T].

        Raises:
            RuntimeError: if the weighting learns nothing from feedback, or there was no step with losses.
        """
        if Needs.FEEDBACK not in self.weighting.needs:
            raise RuntimeError(
                f"expected a weighting that learns from feedback, got {type(self.weighting).__name__}, which "
                "learns nothing from it: leave the call out"
            )
        if self.last_losses is None:
            raise RuntimeError(
                "expected feedback(losses) after a step with losses, got it before one: call it after step()"
            )
        return self.last_losses

    def learn(self, losses: Tensor) -> None:
        """losses: float64 [K, T] of the last mini-batch, after the step."""
        before = self.check_feedback()
        self.weighting.after_step(before, losses.reshape(before.shape))
        self.last_losses = None

    def _warn_once(self, key: str, text: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(text, UserWarning, stacklevel=5)

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """The state of the weighting and of the random numbers, and the counts of steps and epochs."""
        return {
            "weighting": {key: value.clone() for key, value in self.weighting.state_dict().items()},
            "generator": self.generator.get_state(),
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
        given = tensors_of(state, "weighting", where)
        numbers = generator_state(state, self.generator, where)
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
            self.generator.set_state(numbers)
            self.steps, self.epoch = steps, epoch
            self._before = None

        return commit

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy, which generators do not know."""
        own = {key: value for key, value in self.__dict__.items() if key not in ("generator", "_before")}
        return {**own, "generator": (str(self.generator.device), self.generator.get_state())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        device, numbers = state.pop("generator")
        self.__dict__.update(state)
        self._before = None
        self.generator = torch.Generator(device)
        self.generator.set_state(numbers)
