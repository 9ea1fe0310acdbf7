"""The state that a `ConnectionStrengthFused` keeps beside that of its parameters: draws, history, skipped steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..entries import member, member_dict
from ..priority.history import HistoryRecorder
from ..priority.phases import PhaseDraw
from .history import Recorder
from .skips import SkipReport

__all__ = ["Kept"]


class Kept(NamedTuple):
    """The parts of an optimizer that have a state.

    draw: of phases and orders.  history: of phases and priorities.  steps: of the last steps, or None.  report: of
    skipped steps.
    """

    draw: PhaseDraw
    history: HistoryRecorder
    steps: Recorder | None
    report: SkipReport

    def exported(self) -> dict[str, Any]:
        """Return the state."""
        recorded = {} if self.steps is None else {"last_steps": self.steps.state_dict()}
        return {
            "draw": self.draw.state_dict(),
            "history": self.history.state_dict(),
            "skipped": self.report.counts.clone(),
            **recorded,
        }

    def loaded(self, shared: Any, family: str) -> Callable[[], None]:
        """Check what `exported` gave.

        Args:
            shared: the state, or None where a dict has none.
            family: its key in the first group.

        Returns:
            A function that takes the state over, and cannot fail.

        Raises:
            TypeError: for an entry of another kind.
            ValueError: for the state of another optimizer.
        """
        if shared is None:
            return lambda: None
        where = "the optimizer"
        shared = member_dict({family: shared}, family, "the first group")
        draw, history = member_dict(shared, "draw", where), member_dict(shared, "history", where)
        drawn = self.draw.checked(draw)
        recorded = self.history.checked(history, drawn["steps"])
        steps = self.steps if "last_steps" in shared else None
        last = None if steps is None else steps.loaded(shared["last_steps"])
        skipped = member(shared, "skipped", (1,), where)

        def commit() -> None:
            self.draw.load_state_dict(drawn)
            self.history.load_state_dict(recorded)
            self.report.counts.copy_(skipped)
            if last is not None:
                last()

        return commit
