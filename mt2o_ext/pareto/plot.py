"""Plots of a `ParetoFront`: a plane for two tasks, space for three, parallel coordinates for more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .hover import Point, name_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

    from .front import ParetoFront

INK = "#3b4252"
PALE = "#aab2c0"
_COLOUR_MAP = "viridis"
# The colour-blind safe palette of Okabe and Ito; T tasks share it in turn.
_TASK_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def plot_front(front: ParetoFront, ax: Axes | None = None, tasks: Sequence[int | str] | None = None) -> Axes:
    """Draws the losses of `front` and returns the axes; never shows the figure.

    In an interactive figure, a point under the mouse tells its index, preference, losses and metrics.

    Args:
        front: at least two tasks. Filled points are non-dominated, hollow ones dominated; a diverged row is not drawn.
        ax: where to draw (a 3-D axes for three tasks); a new pyplot figure if None, and pyplot is not touched
            otherwise.
        tasks: indices or names of the tasks to show, all if None. Whether a point is dominated still depends on all
            tasks.
    """
    shown = _task_indices(front, tasks)
    if not front.non_dominated.any():
        raise ValueError("expected a subproblem with finite losses, got none: there is nothing to draw")
    if ax is None:
        ax = _new_axes(three_dimensional=len(shown) == 3)
    elif (ax.name == "3d") != (len(shown) == 3):
        needed = 'a 3-D axes, figure.add_subplot(projection="3d")' if len(shown) == 3 else "a plane axes"
        raise ValueError(f"expected {needed} for {len(shown)} tasks, got ax.name = {ax.name!r}: leave out ax=")
    draw = {2: _draw_plane, 3: _draw_space}.get(len(shown), _draw_parallel)
    name_points(ax, front, draw(front, ax, shown))
    return ax


def _task_indices(front: ParetoFront, tasks: Sequence[int | str] | None) -> list[int]:
    names = front.task_names
    shown = list(range(front.num_tasks)) if tasks is None else []
    for task in tasks or ():
        if isinstance(task, str) and task in names:
            shown.append(names.index(task))
        elif isinstance(task, int) and 0 <= task < front.num_tasks:
            shown.append(task)
        else:
            raise ValueError(
                f"expected tasks of this front, got {task!r}: give indices below {front.num_tasks} or names of {names}"
            )
    if len(shown) < 2 or len(set(shown)) < len(shown):
        raise ValueError(f"expected at least two different tasks, got {[names[task] for task in shown]}: show more")
    return shown


def _new_axes(three_dimensional: bool) -> Axes:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError('plot needs matplotlib: pip install "mt2o_ext[pareto]"') from error
    figure = plt.figure(figsize=(6.4, 4.8), layout="constrained")
    axes: Axes = figure.add_subplot(projection="3d" if three_dimensional else None)
    return axes


def _draw_plane(front: ParetoFront, ax: Axes, shown: list[int]) -> list[Point]:
    """The staircase separates what the front dominates (shaded up to the reference) from what it does not."""
    import matplotlib

    losses, filled, hollow = _groups(front, shown)
    weight = _relative_preferences(front, shown)[:, 0]
    if front.num_tasks == 2:  # among more tasks, two of them show no staircase
        steps = losses[filled][losses[filled][:, 0].argsort()]
        ax.plot(steps[:, 0], steps[:, 1], drawstyle="steps-post", color=PALE, linewidth=1.4, zorder=1, label="_front")
        if front.reference is not None:
            _shade_dominated(ax, steps, front.reference[shown])
    if hollow:
        rings = matplotlib.colormaps[_COLOUR_MAP](weight[hollow].numpy()).tolist()
        ax.scatter(
            losses[hollow, 0], losses[hollow, 1], facecolors="none", edgecolors=rings, s=42, linewidths=1.6, zorder=3
        )
    points = ax.scatter(
        losses[filled, 0],
        losses[filled, 1],
        c=weight[filled],
        cmap=_COLOUR_MAP,
        vmin=0.0,
        vmax=1.0,
        s=60,
        edgecolors="white",
        linewidths=0.8,
        zorder=4,
    )
    names = [front.task_names[task] for task in shown]
    ax.set_xlabel(f"loss of {names[0]}")
    ax.set_ylabel(f"loss of {names[1]}")
    bar = ax.figure.colorbar(points, ax=ax)
    bar.set_label(f"preference for {names[0]} (the rest for {names[1]})", color=INK)
    bar.ax.tick_params(colors=INK, color=PALE, labelsize=9)
    bar.outline.set_visible(False)
    finish_plane(ax)
    if hollow:
        _legend(ax, [_group_handle("non-dominated", INK), _group_handle("dominated", "none")], loc="best")
    return [(k, losses[k].tolist()) for k in filled + hollow]


def _shade_dominated(ax: Axes, steps: Tensor, reference: Tensor) -> None:
    from matplotlib.patches import Polygon

    inside = steps[(steps < reference).all(1)]
    if len(inside) == 0:
        return
    first, corners = inside[0], []
    for left, right in zip(inside[:-1].tolist(), inside[1:].tolist(), strict=True):
        corners += [left, [right[0], left[1]]]
    corners += [inside[-1].tolist(), [float(reference[0]), float(inside[-1, 1])], reference.tolist()]
    corners.append([float(first[0]), float(reference[1])])
    # As an artist, not a patch: a reference far away must not change the limits of the axes.
    ax.add_artist(Polygon(corners, closed=True, facecolor=PALE, alpha=0.18, edgecolor="none", zorder=0))


def _draw_space(front: ParetoFront, ax: Any, shown: list[int]) -> list[Point]:
    """Thin stems down to the floor give the points their place. `ax` is an Axes3D, which has no type information."""
    from matplotlib.ticker import MaxNLocator

    losses, filled, hollow = _groups(front, shown)
    colours = _mixed_colours(front, shown)
    drawn = losses[filled + hollow]
    low, high = drawn[:, 2].amin().item(), drawn[:, 2].amax().item()
    floor = low - 0.1 * ((high - low) or abs(low) or 1.0)
    for k in filled + hollow:
        x, y, z = losses[k].tolist()
        ax.plot([x, x], [y, y], [floor, z], color=PALE, linewidth=0.7, zorder=1)
    dots = {"s": 60, "facecolors": colours[filled].tolist(), "edgecolors": "white", "linewidths": 0.8}
    rings = {"s": 42, "facecolors": "none", "edgecolors": colours[hollow].tolist(), "linewidths": 1.6}
    for rows, style in ((filled, dots), (hollow, rings)):
        if rows:
            ax.scatter(*losses[rows].T, depthshade=False, **style)
    ax.set_zlim(bottom=floor)
    for axis, task in zip((ax.xaxis, ax.yaxis, ax.zaxis), shown, strict=True):
        axis.set_label_text(f"loss of {front.task_names[task]}", color=INK)
        axis.set_pane_color((1.0, 1.0, 1.0, 0.0))
        axis.set_major_locator(MaxNLocator(5))
    ax.tick_params(colors=INK, labelsize=8)
    ax.view_init(elev=22.0, azim=40.0)
    ax.set_box_aspect(None, zoom=0.85)
    handles = _task_handles(front, shown) + ([_group_handle("dominated", "none")] if hollow else [])
    _legend(ax, handles, loc="upper center", ncols=2)
    return [(k, losses[k].tolist()) for k in filled + hollow]


def _draw_parallel(front: ParetoFront, ax: Axes, shown: list[int]) -> list[Point]:
    """One vertical axis per task, each scaled to its own range; the ends carry the least and the largest loss."""
    losses, filled, hollow = _groups(front, shown)
    colours = _mixed_colours(front, shown)
    drawn = losses[filled + hollow]
    low, high = drawn.amin(0), drawn.amax(0)
    span = high - low
    heights = (losses - low) / span.where(span > 0.0, 1.0)
    positions = range(len(shown))
    for k in hollow:
        ax.plot(
            positions,
            heights[k],
            color=colours[k].tolist(),
            linestyle=":",
            marker="o",
            markerfacecolor="none",
            zorder=2,
        )
    for k in filled:
        ax.plot(positions, heights[k], color=colours[k].tolist(), linewidth=1.8, marker="o", markersize=6, zorder=3)
    for x in positions:
        ax.axvline(x, color=PALE, linewidth=0.8, zorder=1)
        ax.annotate(f"{low[x]:.3g}", (x, -0.035), ha="center", va="top", color=INK, fontsize=8, annotation_clip=False)
        ax.annotate(
            f"{high[x]:.3g}", (x, 1.035), ha="center", va="bottom", color=INK, fontsize=8, annotation_clip=False
        )
    ax.set_xticks(list(positions), [front.task_names[task] for task in shown])
    ax.set_xlim(-0.3, len(shown) - 0.7)
    ax.set_ylim(-0.12, 1.12)
    ax.set_yticks([0.0, 1.0], ["least", "largest"])
    ax.set_xlabel("task")
    ax.set_ylabel("loss, in the range of each task")
    finish_plane(ax)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    handles = _task_handles(front, shown) + ([_group_handle("dominated", "none", ":")] if hollow else [])
    _legend(ax, handles, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return [(k, [x, heights[k, x].item()]) for k in filled + hollow for x in positions]


def _groups(front: ParetoFront, shown: list[int]) -> tuple[Tensor, list[int], list[int]]:
    """Losses [K, shown], and the rows that are non-dominated and (finite but) dominated."""
    on_front = front.non_dominated
    finite = front.losses.isfinite().all(1)
    rows = [mask.nonzero().flatten().tolist() for mask in (on_front, finite & ~on_front)]
    return front.losses[:, shown], rows[0], rows[1]


def _relative_preferences(front: ParetoFront, shown: list[int]) -> Tensor:
    """Preferences among the shown tasks [K, shown]; even where a row has no weight for any of them."""
    weights = front.preferences[:, shown]
    total = weights.sum(1, keepdim=True)
    return torch.where(total > 0.0, weights / total, 1.0 / len(shown))


def _mixed_colours(front: ParetoFront, shown: list[int]) -> Tensor:
    """RGB [K, 3]: the colours of the tasks, mixed as the preferences."""
    from matplotlib.colors import to_rgb

    palette = torch.tensor([to_rgb(_task_colour(task)) for task in shown], dtype=torch.float64)
    return (_relative_preferences(front, shown) @ palette).clamp(0.0, 1.0)


def _task_colour(task: int) -> str:
    return _TASK_COLOURS[task % len(_TASK_COLOURS)]


def _task_handles(front: ParetoFront, shown: list[int]) -> list[Line2D]:
    """Legend entries that explain the mixed colours."""
    from matplotlib.lines import Line2D

    style: dict[str, Any] = {"linestyle": "none", "marker": "o", "markeredgecolor": "white", "markersize": 8}
    return [Line2D([], [], color=_task_colour(t), label=f"prefers {front.task_names[t]}", **style) for t in shown]


def _group_handle(label: str, face: str, linestyle: Literal["none", ":"] = "none") -> Line2D:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=INK, linestyle=linestyle, marker="o", markerfacecolor=face, label=label)


def _legend(ax: Axes, handles: list[Line2D], **place: Any) -> None:
    ax.legend(handles=handles, frameon=False, labelcolor=INK, fontsize=9, **place)


def finish_plane(ax: Axes) -> None:
    """Axes that stand back behind the data: no frame, pale lines and grid."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(PALE)
    ax.tick_params(colors=INK, color=PALE, labelsize=9)
    ax.xaxis.label.set_color(INK)
    ax.yaxis.label.set_color(INK)
    ax.grid(color=PALE, linewidth=0.5, alpha=0.4)
    ax.set_axisbelow(True)
