"""The state that a `WeightedFused` keeps beside that of its parameters: weighting, preferences, skipped steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..entries import member, member_dict
from ..gradients.weigher import Weigher
from .history import Recorder
from .skips import SkipReport

__all__ = ["exported", "loaded"]


def exported(weigher: Weigher, report: SkipReport, recorder: Recorder | None) -> dict[str, Any]:
    """Return the state; {} where one task without a state is weighted: then the dict is that of torch.optim."""
    state = weigher.state_dict()
    recorded = {} if recorder is None else {"history": recorder.state_dict()}
    if weigher.preferences.shape[1] == 1 and not state["weighting"] and not recorded:
        return {}
    return {**state, "skipped": report.counts.clone(), "preferences": weigher.preferences.clone(), **recorded}


def loaded(
    shared: Any, weigher: Weigher, report: SkipReport, recorder: Recorder | None, *, others: bool
) -> Callable[[], None]:
    """Check what `exported` gave.

    Args:
        shared: the state, or None where a dict has none.
        weigher: takes it over.
        report: takes it over.
        recorder: takes the record over, where both have one.
        others: whether the dict has a state of parameters.

    Returns:
        A function that takes the state over, and cannot fail.

    Raises:
        TypeError: for an entry of another kind.
        ValueError: for the state of another optimizer.
    """
    num_tasks = weigher.preferences.shape[1]
    if shared is None:
        if num_tasks > 1 and others:
            raise ValueError(
                "expected the state of a WeightedFused of several tasks, got one of another optimizer: load the state "
                "that was saved from such a one, or load this one where it is from and go on with "
                "WeightedFused.branch_from(optimizer)"
            )
        return lambda: None
    shared = member_dict({"weighted": shared}, "weighted", "the first group")
    weigh = weigher.loaded(shared)
    skipped = member(shared, "skipped", (1,), "the optimizer")
    preferences = member(shared, "preferences", (1, num_tasks), "the optimizer")
    record = recorder.loaded(shared["history"]) if recorder is not None and "history" in shared else None

    def commit() -> None:
        weigh()
        weigher.preferences = preferences.to(weigher.preferences)
        report.counts.copy_(skipped)
        if record is not None:
            record()

    return commit
