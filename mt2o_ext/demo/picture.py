"""The demo's picture: the fronts, and the hypervolumes on the way there by two clocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from ..pareto.plot import INK, finish_plane
from .digits import TASKS
from .report import TARGET, Result
from .training import REFERENCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = ["draw"]

# Of the colour-blind safe palette of Okabe and Ito; markers and dashes tell the arms apart without colours.
STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#0072B2", "marker": "o", "linestyle": "-", "zorder": 5},
    {"color": "#009E73", "marker": "D", "linestyle": "-.", "zorder": 4},
    {"color": "#D55E00", "marker": "s", "linestyle": "--", "zorder": 3},
)
LOSS_TICKS = [digit * 10.0**power for power in range(-3, 3) for digit in (1, 1.5, 2, 3, 5, 7)]
COUNT_TICKS = [digit * 10.0**power for power in range(7) for digit in (1, 2, 5)]


def draw(results: Sequence[Result]) -> Figure:
    """Test losses of all subproblems; validation hypervolume by gradient evaluations, and by sequential steps."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise ImportError('the picture needs matplotlib: pip install "mt2o_ext[demo]"') from error
    figure = Figure(figsize=(13.5, 4.4), layout=ConstrainedLayoutEngine(wspace=0.05))
    fronts, work, time = figure.subplots(1, 3)
    for result, style in zip(results, STYLES, strict=True):
        run = result.run
        _draw_front(fronts, result, style)
        goal = TARGET * results[-1].run.hypervolumes[-1]
        _draw_curve(work, result, style, run.evaluations, result.evaluations_to_target, goal)
        _draw_curve(time, result, style, run.steps, result.steps_to_target, goal)
    _finish_fronts(fronts, len(results[0].front))
    for ax, title, clock in (
        (work, "Hypervolume by work", "gradient evaluations, all nets together"),
        (time, "Hypervolume by time, nets side by side", "sequential steps"),
    ):
        _finish_curves(ax, results, title, clock)
    return figure


def _draw_front(ax: Axes, result: Result, style: dict[str, Any]) -> None:
    """Numbered points, from the subproblem that prefers the first task to the one that prefers the last."""
    losses = result.front.losses
    label = f"{result.run.arm.label}: hypervolume {result.front.hypervolume():.3f}"
    ax.plot(losses[:, 0], losses[:, 1], label=label, markersize=11, markeredgecolor="white", linewidth=1.4, **style)
    for k, (x, y) in enumerate(losses.tolist()):
        ax.text(x, y, str(k), color="white", fontsize=8, ha="center", va="center_baseline", zorder=style["zorder"])


def _finish_fronts(ax: Axes, num_subproblems: int) -> None:
    title = f"Test losses, 0 (left digit first) to {num_subproblems - 1} (right digit first)"
    ax.set_title(title, color=INK, loc="left", fontsize=11)
    corner = [[value] for value in REFERENCE]
    ax.plot(*corner, marker="+", markersize=11, color=INK, linestyle="none", label="reference point")
    ax.set(xscale="log", yscale="log")
    for axis, task in zip((ax.xaxis, ax.yaxis), TASKS, strict=True):
        axis.set_label_text(f"cross entropy of the {task}")
        _round_ticks(axis, LOSS_TICKS)
    _finish(ax, loc="upper right")


def _draw_curve(
    ax: Axes, result: Result, style: dict[str, Any], clock: Sequence[int], reached: float | None, goal: float
) -> None:
    """The hypervolume, and a line where it reaches the goal."""
    ax.plot(clock, result.run.hypervolumes, label=result.run.arm.label, markersize=4, linewidth=1.6, **style)
    if reached is not None:
        ax.plot([reached, reached], [0.0, goal], color=style["color"], linestyle=":", linewidth=1.2, zorder=2)
        ax.annotate(
            f"{reached:.0f}", (reached, 0.02), xycoords=("data", "axes fraction"), xytext=(-2, 0),
            textcoords="offset points", ha="right", rotation=90, color=style["color"], fontsize=9,
        )  # fmt: skip


def _finish_curves(ax: Axes, results: Sequence[Result], title: str, clock: str) -> None:
    ax.set_title(title, color=INK, loc="left", fontsize=11)
    ax.set_xlabel(clock)
    ax.set_xscale("log")
    _round_ticks(ax.xaxis, COUNT_TICKS)
    independent = results[-1].run
    line = f"{TARGET:.0%} of what {independent.arm.label} end with"
    ax.axhline(TARGET * independent.hypervolumes[-1], color=INK, linestyle=":", linewidth=1.0, zorder=1, label=line)
    highest = max(value for result in results for value in result.run.hypervolumes)
    ax.set_ylim(0.0, 1.4 * highest or 1.0)  # room for the legend above the curves
    _finish(ax, loc="upper left")


def _round_ticks(axis: Axis, ticks: Sequence[float]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())


def _finish(ax: Axes, loc: Literal["upper right", "upper left"]) -> None:
    ax.legend(frameon=False, labelcolor=INK, fontsize=9, loc=loc)
    finish_plane(ax)
