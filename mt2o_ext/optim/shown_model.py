"""The user's model as it shows one of several sets of parameters: a trained row, a running average, a point."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..sharding import local_of
from .buffers import Buffers
from .flat_vertices import FlatVertices
from .model_buffers import ModelBuffers
from .now import Now

__all__ = ["ShownModel"]


class ShownModel(NamedTuple):
    """The way in which the user's model comes to other parameters, and back.

    buffers: of the parameters, which are views into the row that is shown: to show another one copies nothing.
    own: the model's own buffers (BatchNorm statistics), which are few and small: they are copied in and out.
    now: knows which subproblem is shown, and how.
    """

    buffers: Buffers
    own: ModelBuffers
    now: Now

    # ------------------------------------------------------------------ rows
    def enter(self, row: int) -> None:
        """Shows a row."""
        with torch.no_grad():
            for flat in self.buffers.flats:
                flat.activate(row)
            torch.clear_autocast_cache()  # it knows tensors by their identity: the parameters show other values now
            self.own.show(row)
        self.now.row = row

    def go_back(self, row: int, *, detached: bool) -> None:
        """Shows a row as it was shown before."""
        self.enter(row)
        if detached:
            self.detach(None)

    def detach(self, name: str | None) -> None:
        """Gives the parameters tensors of their own, with the row's values in a buffer; None: those it has."""
        with torch.inference_mode(False):  # parameters cannot become inference tensors
            for flat in self.buffers.flats:
                flat.detach_values(name, self.now.row)
        self.now.detached = True

    # ------------------------------------------------------------------ points of a front on vertices
    def flats(self) -> list[FlatVertices]:
        """The buffers, where they hold vertices."""
        return [flat for flat in self.buffers.flats if isinstance(flat, FlatVertices)]

    def show_point(self, name: str | None, weights: Tensor) -> None:
        """Shows points that are not those of the step.

        Args:
            name: the buffer whose rows are the vertices; None: theta.
            weights: float64 [1, T], of a bank [K, T].
        """
        with torch.inference_mode(False), torch.no_grad():
            for flat in self.flats():
                flat.show(flat.at(weights, None if name is None else flat.buffers[name]))
        torch.clear_autocast_cache()
        self.now.averaged, self.now.point = True, (name, weights)

    def lost_changes(self, name: str | None, weights: Tensor) -> Iterator[tuple[str, str]]:
        """Tells of what is lost with a point that was shown: a key for each kind of it, and the words of a warning.

        name, weights: as of `show_point`.
        """
        if any(p.grad is not None for flat in self.buffers.flats for p in flat.parameters):
            yield (
                "dropped gradients",
                'gradients were made inside of at() or subproblem() of front="vertices", at a point that is in no '
                "step: they are dropped. optimizer.points tells the points of a step, which the model shows outside.",
            )
        if self._is_changed(name, weights):
            yield (
                "dropped changes",
                'parameters were changed inside of at() or subproblem() of front="vertices", where the model is '
                "computed from the vertices: the changes are dropped. Save the model inside of the context, or "
                "change it outside, which moves all vertices alike.",
            )
        yield from self.foreign_statistics()

    def _is_changed(self, name: str | None, weights: Tensor) -> bool:
        for flat in self.flats():
            row = flat.at(weights, None if name is None else flat.buffers[name])
            views = [flat.rows_of(row, segment)[0] for segment in range(len(flat.parameters))]
            if not all(torch.equal(local_of(p.data), view) for p, view in zip(flat.parameters, views, strict=True)):
                return True
        return False

    def foreign_statistics(self) -> Iterator[tuple[str, str]]:
        """Tells, likewise, of buffers that are none of the point that was shown."""
        if self.own.shows_those_of_steps():
            yield (
                "foreign statistics",
                'inside of at(), subproblem() or front() of front="vertices" the model had the buffers (running '
                "statistics of BatchNorm, say) that the steps have left, which are those of random points and fit no "
                "single one: call optimizer.update_buffers(...) before subproblem() and front(), and compute them anew "
                "inside of at(), both with torch.optim.swa_utils.update_bn(loader, model), before you evaluate or save",
            )

    def take_changes(self) -> None:
        """Moves the vertices by what somebody has changed in the points of the step."""
        for flat in self.flats():
            flat.take_changes()

    def start_vertices(self, start: Callable[[int], None], row: int) -> None:
        """Lets the vertices begin where a function of the user's puts the model; row: that is shown afterwards."""
        flats = self.flats()
        for vertex in range(self.buffers.num_trained):
            for flat in flats:
                flat.show(flat.theta[vertex : vertex + 1])
            start(vertex)
            for flat in flats:
                for segment, p in enumerate(flat.parameters):
                    flat.rows_of(flat.theta, segment)[vertex].copy_(local_of(p.data))
        for flat in flats:
            flat.spread()
            flat.activate(row)
