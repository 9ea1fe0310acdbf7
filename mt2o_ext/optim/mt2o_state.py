"""The state that an `MT2OFused` keeps beside that of its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from ..checks import check_choice
from ..entries import member, member_dict
from ..gradients.tasks import TaskGradients
from .blend import Blend
from .buffers import Buffers
from .history import Recorder
from .model_buffers import ModelBuffers
from .objective import Objective
from .skips import SkipReport
from .vertices import Vertices
from .whole_state import check_share

__all__ = ["Parts"]


class Parts(NamedTuple):
    """The parts of an optimizer that have a state.

    row: that the model shows.
    """

    blend: Blend
    objective: Objective
    report: SkipReport
    model_buffers: ModelBuffers
    tasks: TaskGradients | None
    buffers: Buffers
    recorder: Recorder | None
    row: int

    @property
    def kind(self) -> str:
        """The front, as of ``front=``."""
        return self.buffers.kind

    @property
    def vertices(self) -> Vertices | None:
        """The simplex, where the front is one."""
        return self.buffers.vertices

    def exported(self) -> dict[str, Any]:
        """Return the state; {} where the dict is that of torch.optim."""
        if len(self.blend.preferences) == 1 and not (self.tasks or self.vertices or self.recorder):
            return {}
        state = {
            **self.blend.state_dict(),
            **self.objective.state_dict(),
            **self.model_buffers.state_dict(self.row),
            "skipped": self.report.counts.clone(),
            "front": self.kind,
        }
        if self.vertices is not None:  # which skip a step together
            state["skipped"] = self.report.counts[:1].repeat(self.vertices.num_points)
        share, learns = self.buffers.share, self.tasks is not None and self.tasks.weigher.weighting.state_dict()
        if share.is_part and (self.vertices is None or learns):
            state["share"] = [share.own.start, share.own.stop, share.total]
        if self.recorder is not None:
            state["history"] = self.recorder.state_dict()
        if self.vertices is not None:
            state["vertices"] = self.vertices.state_dict()
        return state if self.tasks is None else {**state, "weighting": self.tasks.weigher.state_dict()}

    def named(self, ema: float | None) -> str:
        """Return the options that a ``repr`` shows, but for those of parameter groups."""
        blend, tasks, vertices = self.blend, self.tasks, self.vertices
        num_subproblems, num_tasks = blend.preferences.shape
        weighting = None if tasks is None else type(tasks.weigher.weighting).__name__
        common = (
            f"num_tasks={num_tasks}, num_subproblems={num_subproblems}, scalarization={self.objective.scalarization}, "
            f"weighting={weighting}, ema={ema}"
        )
        if vertices is None:
            return f"{common}, front='rows', transfer={type(blend.rule).__name__}, order={blend.order.name.lower()}"
        return f"{common}, front='vertices', points={vertices.num_points}, concentration={vertices.concentration}"

    def described(self) -> dict[str, Any]:
        """Return the options that have to be the same on all ranks when the optimizer is made."""
        blend, vertices = self.blend, self.vertices
        return {
            "front": self.kind,
            "scalarization": repr(self.objective.scalarization),
            "transfer": type(blend.rule).__name__,
            "order": blend.order.name,
            "moments": blend.moments.name,
            "points": None if vertices is None else vertices.num_points,
            "concentration": None if vertices is None else vertices.concentration,
            "warm_up": blend.warm_up if vertices is None else vertices.warm_up,
            "subproblem": [{"preferences": row} for row in blend.preferences.tolist()],
        }

    def tell_weigher(self) -> None:
        """Gives the preferences to a weighting that has those of the subproblems."""
        if self.vertices is None and self.tasks is not None and self.objective.scalarization is None:
            self.tasks.weigher.preferences = self.blend.own

    def loaded(self, shared: Any) -> Callable[[], None]:
        """Check what `exported` gave.

        Args:
            shared: the state, or None where a dict has none.

        Returns:
            A function that takes the state over, and cannot fail.

        Raises:
            TypeError: for an entry of another kind.
            ValueError: for the state of another optimizer.
        """
        self._check_kind(shared)
        check_share(shared, self.buffers.share)
        if shared is None:
            return lambda: None
        self._check_points(shared)
        counts = self.report.counts.shape if self.vertices is None else (self.vertices.num_points,)
        skipped = member(shared, "skipped", counts, "the optimizer")[: len(self.report.counts)]
        last = {"last_losses": member(shared, "last_losses", None, "the optimizer")} if "last_losses" in shared else {}
        self.model_buffers.check(shared)
        blend = self.blend.loaded(shared)
        commits = []
        if self.tasks is not None:
            commits.append(self.tasks.weigher.loaded(member_dict(shared, "weighting", "the optimizer")))
        if self.recorder is not None and "history" in shared:
            commits.append(self.recorder.loaded(shared["history"]))
        if self.vertices is not None:
            given = member_dict(shared, "vertices", "the optimizer")
            commits.append(self.vertices.loaded(given, lambda: self.buffers.flats))

        def commit() -> None:
            self.blend.take_over(blend)
            self.tell_weigher()
            self.report.counts.copy_(skipped)
            self.objective.load_state_dict(last)
            self.model_buffers.load(shared, self.row)
            for each in commits:
                each()

        return commit

    def _check_points(self, shared: Any) -> None:
        """The state of vertices is one of as many points in each step."""
        counts = shared.get("skipped") if isinstance(shared, dict) else None
        if self.vertices is None or not isinstance(counts, Tensor) or counts.dim() != 1:
            return
        if len(counts) != self.vertices.num_points:
            raise ValueError(
                f"expected the state of {self.vertices.num_points} points in each step (points=), got one of "
                f"{len(counts)}: make the optimizer with points={len(counts)}, or load it into such a one and go on "
                "from that by MT2OFused.branch_from(..., points=...)"
            )

    def _check_kind(self, shared: Any) -> None:
        """The state is one of as many subproblems and tasks, with the same parts."""
        expected = tuple(self.blend.preferences.shape)
        if shared is None and expected[0] > 1:
            raise ValueError(
                f"expected the state of {expected[0]} subproblems and {expected[1]} tasks, got one of 1 (or of another "
                "optimizer)"
            )
        given = {} if shared is None else member_dict({"mt2o": shared}, "mt2o", "the first group")
        found_kind = "rows" if shared is None else check_choice("front", str(given.get("front")), ("rows", "vertices"))
        if found_kind != self.kind:
            raise ValueError(
                f'expected the state of front="{self.kind}", as this optimizer has it, got that of '
                f'front="{found_kind}": make the optimizer with MT2OFused(..., front="{found_kind}") to go on from it'
            )
        if (self.tasks is not None) != ("weighting" in given):
            raise ValueError("expected the state of an optimizer with a weighting exactly where this one has one")
        found = tuple(getattr(given.get("preferences"), "shape", ()))
        if len(found) == 2 and found != expected:
            raise ValueError(
                f"expected the state of {expected[0]} subproblems and {expected[1]} tasks, got one of {found[0]} and "
                f"{found[1]}"
            )
