"""The note that appears beside the point of a plot under the mouse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from .front import ParetoFront

__all__ = ["Point", "description", "name_points"]

Point: TypeAlias = "tuple[int, Sequence[float]]"
"""A subproblem, and where it stands in data coordinates of a plane or a space."""

_REACH = 8.0
"""Pixels from the mouse to the point that is meant."""


def description(front: ParetoFront, k: int) -> str:
    """The lines of the note: subproblem, preference, losses and metrics."""
    preference = ", ".join(f"{weight:.3g}" for weight in front.preferences[k].tolist())
    losses = zip(front.task_names, front.losses[k].tolist(), strict=True)
    return "\n".join(
        [
            f"subproblem {k}",
            f"preference {preference}",
            *(f"loss of {name} {loss:.4g}" for name, loss in losses),
            *(f"{name} {column[k].item():.4g}" for name, column in front.metrics.items()),
        ]
    )


def name_points(ax: Any, front: ParetoFront, points: Sequence[Point]) -> None:
    """Shows the `description` of a point while the mouse is on it (the first one of several).

    Args:
        ax: the axes, a plane or a space (Axes3D has no type information).
        front: the front that is drawn there.
        points: its subproblems with their places.
    """
    note = ax.annotate(
        "",
        (0.0, 0.0),
        xycoords="figure pixels",
        xytext=(10.0, 10.0),
        textcoords="offset points",
        fontsize=8,
        bbox={"boxstyle": "round", "facecolor": "white", "edgecolor": "lightgray", "alpha": 0.95},
        zorder=10,
        visible=False,
        annotation_clip=False,
    )
    note.set_in_layout(False)  # it makes no room for itself

    def move(event: Any) -> None:
        near = [(k, at) for k, at in _pixels(ax, points) if math.dist(at, (event.x, event.y)) <= _REACH]
        found = near[0] if event.inaxes is ax and near else None
        if found is not None:
            note.xy = found[1]
            note.set_text(description(front, found[0]))
        if found is not None or note.get_visible():
            note.set_visible(found is not None)
            ax.figure.canvas.draw_idle()

    ax.figure.canvas.mpl_connect("motion_notify_event", move)


def _pixels(ax: Any, points: Sequence[Point]) -> list[tuple[int, tuple[float, float]]]:
    """The points as they lie in the figure now."""
    found = []
    for k, place in points:
        at = place
        if len(place) == 3:
            from mpl_toolkits.mplot3d.proj3d import proj_transform

            at = proj_transform(*place, ax.get_proj())[:2]
        x, y = ax.transData.transform(at)
        found.append((k, (float(x), float(y))))
    return found
