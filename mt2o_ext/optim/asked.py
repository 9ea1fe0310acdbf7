"""The arguments of an `MT2OFused` that speak of its front, and the choice between rows and vertices by them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..checks import check_choice
from ..scalarization import Scalarization
from ..transfer import TransferContext, TransferRule
from ..transfer.moments import Moments
from ..weighting import Needs, Weighting

__all__ = ["Asked", "Transfer", "listed"]

MOST_TASKS = 3  # that vertices were measured with, where nobody asks for them
Transfer = TransferRule | str | Callable[[TransferContext], Tensor | None] | None


class Asked(NamedTuple):
    """Arguments of an `MT2OFused`, as they were given, but for pieces given by name, which are instances."""

    params: Any
    front: str | None
    num_tasks: int
    num_subproblems: int
    preferences: Tensor | Sequence[Sequence[float]] | None
    points: int | None
    concentration: float
    warm_up: int
    transfer: Transfer
    order: str
    moments: Moments
    stacked: bool
    start: Callable[[int], None] | None
    process_group: Any
    scalarization: Scalarization | None
    weighting: Weighting | None

    def kind(self) -> str:
        """Returns "rows" or "vertices", by ``front=`` or, if it is None, as the other arguments ask for.

        Arguments that vertices alone have decide first, then those that ask for rows; without either it is vertices.

        Raises:
            ValueError: for another front, and for arguments of which some belong to rows and some to vertices.
        """
        if self.front is not None:
            check_choice("front", self.front, ("rows", "vertices"))
            return self.front
        of_vertices, of_rows = self._of_vertices(), self._of_rows()
        if of_vertices and of_rows:
            raise ValueError(
                f'{", ".join(of_vertices)} would have no effect with front="rows", and {", ".join(of_rows)} none with '
                'front="vertices": leave one of them out'
            )
        return "vertices" if of_vertices or not (of_rows or self._asks_for_rows()) else "rows"

    def check(self, kind: str) -> None:
        """Checks that no argument is without effect in a front of this kind.

        Raises:
            ValueError: for one that is.
        """
        if kind == "rows" and (given := self._of_vertices()):
            raise ValueError(
                f'{", ".join(given)} would have no effect with front="rows": leave it out, or take front="vertices"'
            )
        if kind == "vertices" and (given := self._of_rows()):
            raise ValueError(
                f'{", ".join(given)} would have no effect with front="vertices": leave it out, or take front="rows"'
            )

    @property
    def _automatic(self) -> bool:
        return isinstance(self.transfer, str) and self.transfer == "auto"

    def _of_vertices(self) -> list[str]:
        """The arguments that have no meaning for rows."""
        return ["points="] * (self.points is not None) + ["concentration="] * (self.concentration != 1.0)

    def _of_rows(self) -> list[str]:
        """The arguments that have no meaning for vertices."""
        idle = {
            "transfer=": not (self._automatic or self.transfer is None or self.transfer is False),
            "order=": self.order != "consensus",
            "moments=": self.moments is not Moments.KEEP,
            "groups with transfer=False": isinstance(self.params, Iterable)
            and not isinstance(self.params, Tensor)
            and any(isinstance(group, Mapping) and group.get("transfer") is False for group in self.params),
        }
        return [name for name, given in idle.items() if given]

    def _asks_for_rows(self) -> bool:
        """True if an argument that both fronts could have is about single models that are trained."""
        return (
            not self._automatic
            or self.preferences is not None
            or self.start is not None
            or self.process_group is False  # somebody averages the gradients over ranks that draw points of their own
            or self.num_tasks == 1
            or self.num_subproblems == 1
            or (self.num_tasks > MOST_TASKS and not _by_points(self.weighting))
            or (self.scalarization is not None and self.scalarization.whole_table)
            or (self.weighting is not None and _remembers(self.weighting, self.num_tasks))
        )


def listed(params: Any) -> Any:
    """Parameters or groups that can be looked at before they are used: an iterator as a list, the rest as it is."""
    return list(params) if isinstance(params, Iterator) else params


def _by_points(weighting: Weighting | None) -> bool:
    """True if a weighting is made for other points in each step."""
    return weighting is not None and Needs.POINTS in weighting.needs


def _remembers(weighting: Weighting, num_tasks: int) -> bool:
    """True if a weighting remembers something of each model, which then has to be the same one in the next step."""
    if _by_points(weighting):
        return False
    probe = copy.deepcopy(weighting)
    probe.bind(1, num_tasks, 1, "cpu")
    return bool(probe.state_dict())
