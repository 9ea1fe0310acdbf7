"""Options of `MT2OFused`: their checks, and the pieces that they choose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checks import check_count, check_flag, check_function, check_positive
from ..gradients.options import check_idle_task_options, check_task_options
from ..gradients.skipped import Refuser
from ..gradients.tasks import TaskGradients
from ..gradients.weigher import Weigher
from ..ops.limits import MAX_ROWS, MAX_TASKS
from ..preferences import check_preferences, default_preferences
from ..ranks import SubproblemRanks, as_subproblem_ranks, together
from ..scalarization import Scalarization
from ..sharding import is_sharded
from ..transfer import Spectral, as_transfer_rule
from ..weighting import Needs, Weighting
from .asked import Asked
from .blend import Blend
from .buffers import Buffers
from .exchange import Exchange
from .mesh_options import exchange_of
from .objective import Objective
from .vertices import Vertices

__all__ = [
    "Front",
    "Inner",
    "Pieces",
    "check_equal_slices",
    "check_group",
    "check_plain",
    "pieces_of",
]


class Front(NamedTuple):
    """Subproblems and the models that are trained for them.

    num_rows: the models of a step; of those on this rank, where other ranks have some.
    num_tasks: T.
    preferences: float64 [K, T], of the subproblems.
    vertices: of the simplex that the models are points of, or None: the models themselves are trained.
    exchange: with the ranks that have other models, or None: all are here.
    """

    num_rows: int
    num_tasks: int
    preferences: Tensor
    vertices: Vertices | None
    exchange: Exchange | None

    def buffers(self, num_tasks: int, *, stacked: bool) -> Buffers:
        """The buffers for these models; num_tasks: the gradients of each that are kept apart."""
        return Buffers(self.num_rows, num_tasks, stacked=stacked, vertices=self.vertices, exchange=self.exchange)


class Pieces(NamedTuple):
    """The pieces of an optimizer that its options choose.

    front: the models.  objective: of each.  tasks: from task gradients to one; None without a weighting.  blend: the
    transfer.
    """

    front: Front
    objective: Objective
    tasks: TaskGradients | None
    blend: Blend

    @property
    def refusers(self) -> list[Refuser]:
        """Those who may refuse a step for what is finite."""
        weighting = None if self.tasks is None else self.tasks.weigher.weighting
        return [one for one in (weighting, self.objective.refused) if one is not None]


class Inner(NamedTuple):
    """Options of the weighting inside of each subproblem."""

    weighting: Weighting | str | None
    heads: str
    collect: str
    generator: torch.Generator | None


def pieces_of(asked: Asked, inner: Inner, subproblem_mesh: Any) -> Pieces:
    """Checks all these options, and makes the pieces that they choose.

    Raises:
        TypeError: for an option of another kind.
        ValueError: for options that are out of range, do not fit together, or would have no effect.
        RuntimeError: without the process groups that they need.
    """
    peers = as_subproblem_ranks(subproblem_mesh, asked.process_group)
    with together(peers):
        front = front_of(asked, inner, peers)
    objective = objective_of(asked.scalarization, inner, front)
    return Pieces(front, objective, inner_of(inner, front, objective), blend_of(asked, front))


def front_of(asked: Asked, inner: Inner, peers: SubproblemRanks | None) -> Front:
    """Checks the options that say which models are trained, and makes the front.

    peers: the ranks that the models are divided over, or None.

    Raises:
        TypeError: for an option of another kind.
        ValueError: for options that are out of range, do not fit together, or would have no effect.
    """
    num_tasks, num_subproblems, points = asked.num_tasks, asked.num_subproblems, asked.points
    check_count("num_tasks", num_tasks)
    check_count("num_subproblems", num_subproblems)
    check_count("warm_up", asked.warm_up, 0)
    concentration = check_positive("concentration", asked.concentration)
    kind = asked.kind()
    if num_subproblems > MAX_ROWS:
        raise ValueError(f"expected num_subproblems <= {MAX_ROWS}, got {num_subproblems}: take fewer subproblems")
    preferences = asked.preferences
    if preferences is None:
        preferences = default_preferences(num_subproblems, num_tasks)
    preferences = check_preferences(preferences, num_subproblems, num_tasks)
    asked.check(kind)
    if kind == "rows":
        exchange = exchange_of(peers, num_subproblems, asked, "num_subproblems")
        num_rows = num_subproblems if exchange is None else len(exchange.share.own)
        return Front(num_rows, num_tasks, preferences, None, exchange)
    if num_tasks < 2:
        raise ValueError(f'expected at least 2 tasks, one for each vertex, with front="vertices", got {num_tasks}')
    num_points = num_subproblems if points is None else check_count("points", points)
    if asked.stacked and num_points != num_subproblems:
        raise ValueError(
            f"expected points={num_subproblems} with stacked=True, as many as the bank has models, got {num_points}"
        )
    joined = num_points * (1 if inner.weighting is None else num_tasks)
    if joined > MAX_TASKS or num_points > MAX_ROWS:
        raise ValueError(
            f"expected at most {MAX_ROWS} points and {MAX_TASKS} gradients in a step, got {num_points} and {joined}: "
            'take fewer points, or front="rows"'
        )
    exchange = exchange_of(peers, num_points, asked, "num_subproblems" if points is None else "points")
    share = None if exchange is None else exchange.share
    vertices = Vertices(num_tasks, num_points, inner.generator, asked.warm_up, concentration, share)
    return Front(len(vertices.own), num_tasks, preferences, vertices, exchange)


def objective_of(scalarization: Scalarization | None, inner: Inner, front: Front) -> Objective:
    """Checks that the scalarization fits, and makes the objective.

    Raises:
        ValueError: where preferences would have no effect, and for a scalarization that fits no vertices.
    """
    if scalarization is None and inner.weighting is None:
        raise ValueError("scalarization=None leaves the preferences to a weighting: give one, or a scalarization")
    if scalarization is not None and scalarization.whole_table and front.vertices is not None:
        raise ValueError(
            'expected a scalarization of single subproblems with front="vertices", got '
            f'{type(scalarization).__name__}: take front="rows"'
        )
    return Objective(scalarization, front.num_rows, front.num_tasks)


def inner_of(inner: Inner, front: Front, objective: Objective) -> TaskGradients | None:
    """Checks the options of the weighting, and makes the way from task gradients to one; None without a weighting.

    Raises:
        TypeError: for an option of another kind.
        ValueError: for options that are out of range, or would have no effect.
    """
    if inner.weighting is None:
        check_idle_task_options(inner.heads, inner.collect, inner.generator if front.vertices is None else None)
        return None
    weighting = check_task_options(inner.weighting, inner.heads, inner.collect)
    if front.vertices is not None and Needs.FEEDBACK in weighting.needs:
        raise ValueError(
            f'expected a weighting without feedback with front="vertices", got {type(weighting).__name__}: take '
            'front="rows", or another one, because the points after a step are not those that its losses were of'
        )
    if Needs.POINTS in weighting.needs and objective.scalarization is not None:
        raise ValueError(
            f"expected scalarization=None with {type(weighting).__name__}, which weighs losses by the points that they "
            f"are computed at itself, got {objective.scalarization!r}: pass scalarization=None"
        )
    if bool((front.preferences != front.preferences[:1]).any()):
        check_trade_offs(weighting, objective)
    equal = torch.full((front.num_rows, front.num_tasks), 1 / front.num_tasks, dtype=torch.float64)
    own = front.preferences if front.exchange is None else front.exchange.share.rows(front.preferences)
    fixed = front.vertices is None and objective.scalarization is None
    seen = own if fixed else equal  # points of a step come with the step
    weigher = Weigher(weighting, seen, inner.generator)
    return TaskGradients(weigher, front.num_tasks, inner.heads, inner.collect)


def check_trade_offs(weighting: Weighting, objective: Objective) -> None:
    """Checks that subproblems with different preferences are different ones.

    Raises:
        ValueError: for a weighting with which all of them would have the same update.
    """
    name = type(weighting).__name__
    others = "another weighting, UPGrad() or PCGrad(), say"
    if objective.scalarization is None:
        if weighting.reads_preferences is False:
            raise ValueError(
                f"expected a weighting that goes by preferences with scalarization=None, got {name}, with which all "
                f"subproblems would be the same: leave scalarization=None out, or take {others}"
            )
    elif weighting.undoes_factors:
        own = (
            "pass scalarization=None, with which it goes by the preferences, or " if weighting.reads_preferences else ""
        )
        raise ValueError(
            f"expected a weighting that keeps what a loss is multiplied with, got {name}, which undoes the preferences "
            f"in the losses, so that all subproblems would be the same: {own}take {others}"
        )


def blend_of(asked: Asked, front: Front) -> Blend:
    """Checks the options of the transfer, and makes it.

    Raises:
        TypeError: for an option of another kind.
        ValueError: for options that are out of range.
    """
    if front.vertices is not None:
        return Blend(as_transfer_rule(None), front.preferences, asked.order, asked.moments)
    transfer = asked.transfer
    if isinstance(transfer, str) and transfer == "auto":
        transfer = Spectral() if len(front.preferences) > 1 else None
    share = None if front.exchange is None else front.exchange.share
    return Blend(as_transfer_rule(transfer), front.preferences, asked.order, asked.moments, asked.warm_up, share)


def check_plain(skip_nonfinite: str | bool, stacked: bool, start: Any) -> None:
    """Checks options that need nothing of the others.

    Raises:
        TypeError: for an option of another kind.
        ValueError: for one that is out of range.
    """
    if skip_nonfinite not in ("subproblem", "all") and skip_nonfinite is not False:
        raise ValueError(f'expected skip_nonfinite="subproblem", "all" or False, got {skip_nonfinite!r}: choose one')
    check_flag("stacked", stacked)
    if start is not None:
        check_function("start", start, "pass a function of the subproblem's number, or None")
    if start is not None and stacked:
        raise ValueError("start= is for one model; initialise the slices of a bank before the optimizer is made")


def check_group(options: dict[str, Any], tasks: TaskGradients | None, *, vertices: bool) -> None:
    """Checks the options of a group that only some fronts and weightings have.

    vertices: whether the front is on vertices.

    Raises:
        ValueError: for a head where heads would get no share of the point, and for rows that are not blended.
    """
    by_points = tasks is not None and tasks.heads == "plain" and Needs.POINTS in tasks.weigher.weighting.needs
    if by_points and options.get("task") is not None:
        raise ValueError(
            'expected heads="weighted" for groups with task= and a weighting by points, without which no share of '
            'the point would be in the gradients of heads, got heads="plain": pass it, or leave task= out'
        )
    if vertices and options.get("transfer") is False:
        raise ValueError(
            'expected groups without transfer=False with front="vertices", where no rows are blended, got one: '
            'leave it out, or take front="rows"'
        )


def check_equal_slices(params: Sequence[Any], num_models: int) -> None:
    """Checks that the models of a bank are equal, which has no place for others: its vertices are trained.

    What is no parameter of a bank of so many models is left to other checks.

    Raises:
        ValueError: for a parameter whose slices differ.
    """
    for p in params:
        tensor = p[1] if isinstance(p, tuple) else p
        if isinstance(tensor, Tensor) and tensor.shape[:1] == (num_models,) and tensor.requires_grad:
            if tensor.device.type == "meta" or is_sharded(tensor):
                continue
            values = tensor.detach()
            if bool((values != values[:1]).any()):
                raise ValueError(
                    'expected equal models in the bank with front="vertices", got a parameter of shape '
                    f"{list(tensor.shape)} whose slices differ: make the bank from one model, since all vertices start "
                    'as that (a saved bank is loaded after its optimizer is made), or take front="rows"'
                )
