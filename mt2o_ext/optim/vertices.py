"""Fronts on vertices: T trained sets of weights, and the models at points of the simplex that they span.

With vertices C [V, P] (one for each task) and points W [K, V] on the simplex, the models of a step are Theta = W C, and
their gradients G [K, P] return to the vertices by the adjoint, W^T G.  Both are products that the kernels know:
``combine`` makes the models, and ``step`` combines the K gradients of all models with the weights of each vertex while
it updates it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ..device import refuse_in_graph, to_device
from ..dirichlet import dirichlet, uniform_on_simplex
from ..entries import generator_state, member
from ..gradients.options import own_generator
from ..gradients.table import Source
from ..gradients.tasks import Combination
from ..ranks import Ranks
from .flat import FlatParameters
from .flat_vertices import FlatVertices
from .share import Share
from .step import StepInputs

__all__ = ["Vertices"]


class Vertices:
    """Random points on a simplex with one vertex for each task, drawn anew for each step.

    Args:
        num_vertices: V, the number of tasks.
        num_points: K, the points of a step.
        generator: of the draws; None: one that begins with a number of torch's default generator.
        warm_up: the number of first steps in which all points are the centre, so that all vertices stay equal: one
            model is trained.
        concentration: p, the parameter of the Dirichlet distribution, the same for each vertex.  1: uniform on the
            simplex.  Larger: nearer to the centre.  Smaller: nearer to the corners.
        share: the points whose gradients are computed here; None: all.

    Attributes:
        own: float64 [K / R, V], those of `points` that are computed here, the same memory.
        points: float64 [K, V] on the simplex, of the step that comes next.
        shares: float64 [V, K], what each vertex gets of the points' gradients: V / K points^T.
        steps: steps taken.
        own_generator: whether nobody gave a generator.
    """

    def __init__(
        self,
        num_vertices: int,
        num_points: int,
        generator: torch.Generator | None,
        warm_up: int,
        concentration: float = 1.0,
        share: Share | None = None,
    ) -> None:
        self._part = Share(num_points) if share is None else share
        self.num_vertices = num_vertices
        self.own_generator = generator is None
        self.generator = own_generator(generator)
        self.warm_up = warm_up
        self.concentration = concentration
        self.steps = 0
        self._lay(torch.zeros(2, num_points * num_vertices, dtype=torch.float64), num_points)
        self._draw()

    def _lay(self, tables: Tensor, num_points: int) -> None:
        """Puts points and shares side by side: they come to the device in one copy."""
        self._tables = tables
        self.points = tables[0].view(num_points, self.num_vertices)
        self.shares = tables[1].view(self.num_vertices, num_points)
        self.own = self._part.rows(self.points)

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy, in which points and shares would no longer lie in one table."""
        num_points = {"num_points": self.num_points}
        return {key: one for key, one in self.__dict__.items() if key not in ("points", "shares", "own")} | num_points

    def __setstate__(self, state: dict[str, Any]) -> None:
        num_points = state.pop("num_points")
        self.__dict__.update(state)
        self._lay(self._tables, num_points)

    @property
    def num_points(self) -> int:
        """K."""
        return len(self.points)

    def to(self, device: torch.device) -> None:
        """Moves the points."""
        if device != self._tables.device:
            self._lay(self._tables.to(device), self.num_points)

    def share(self, ranks: Ranks) -> None:
        """From now on all ranks draw the numbers that the first one would have drawn."""
        self.generator = ranks.generator(self.generator)
        ranks.share_([self._tables])

    def _draw(self) -> None:
        """Draws the points of the next step."""
        if torch.compiler.is_compiling():
            self._draw_untraced()
        else:
            self._draw_now()

    @torch._disable_dynamo
    def _draw_untraced(self) -> None:
        self._draw_now()

    def _draw_now(self) -> None:
        shape = self.points.shape
        if self.steps < self.warm_up:
            points = torch.full(shape, 1 / self.num_vertices, dtype=torch.float64)
        elif self.concentration == 1.0:
            points = uniform_on_simplex(shape, self.generator).cpu()
        else:
            points = dirichlet(torch.full(shape, self.concentration, dtype=torch.float64), self.generator).cpu()
        self._set(points)

    def _set(self, points: Tensor) -> None:
        """points: float64 [K, V] on the host."""
        rows, factor = points.tolist(), self.num_vertices / self.num_points
        shares = [share * factor for of_vertex in zip(*rows, strict=True) for share in of_vertex]
        tables = torch.tensor([[*chain.from_iterable(rows)], shares], dtype=torch.float64)
        self._tables.copy_(to_device(tables, self._tables.device))

    def advance(self, flats: Sequence[FlatParameters]) -> None:
        """Counts a step, draws the points of the next one, and lets the parameters show them."""
        refuse_in_graph(
            self.points.device,
            'the draw of points (front="vertices")',
            'capture forward and backward only, and call step() outside of the graph, or take front="rows"',
        )
        self.steps += 1
        self._draw()
        self.spread(flats)

    def spread(self, flats: Sequence[FlatParameters]) -> None:
        """Lets the parameters show the points."""
        for flat in flats:
            assert isinstance(flat, FlatVertices)
            flat.points = self.own
            flat.spread()

    def returned(self, given: StepInputs) -> StepInputs:
        """The step of the vertices, from that of the points: the adjoint of the map from vertices to points.

        The gradient of vertex v is V / K sum_k W_kv g_k; here of the points that are computed here.  By the factor,
        equal points with equal weights are one model with the mean of the gradients, at the same learning rate.
        """
        (grads, addresses), weights = given.gradients
        num_points, tasks, width = grads.shape
        vertices, joined = self.num_vertices, num_points * tasks
        places = None if addresses is None else addresses.view(1, joined, -1).expand(vertices, -1, -1)
        source = Source(grads.reshape(1, joined, width).expand(vertices, -1, -1), places)
        shares = self._part.rows(self.shares.T).T.contiguous() if self._part.is_part else self.shares
        if weights is not None:  # of the tasks inside of each point
            shares = (shares.unsqueeze(2) * weights.unsqueeze(0)).view(vertices, joined)
        active = given.active
        if active is not None:
            active = active.any(0, keepdim=True).expand(vertices, -1).contiguous()
        return given._replace(gradients=Combination(source, shares), active=active)

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """The points of the next step, the state of the generator, the count of steps, and p."""
        return {
            "points": self.points.clone(),
            "steps": self.steps,
            "generator": self.generator.get_state(),
            "concentration": self.concentration,
        }

    def loaded(self, state: dict[str, Any], flats: Callable[[], Sequence[FlatParameters]]) -> Callable[[], None]:
        """Checks what ``state_dict`` gave.

        flats: gives the buffers that will show the points.

        Returns:
            A function that takes the state over, and cannot fail.

        Raises:
            TypeError: for an entry of another kind.
            ValueError: for a state of other numbers of points or vertices.
        """
        where = "the vertices"
        points = member(state, "points", self.points.shape, where).to("cpu", torch.float64)
        steps = int(member(state, "steps", (), where))
        concentration = float(member(state, "concentration", (), where))
        numbers = generator_state(state, self.generator, where)

        def commit() -> None:
            self._set(points)
            self.steps, self.concentration = steps, concentration
            self.generator.set_state(numbers)
            self.spread(flats())

        return commit
