"""The demo's picture: both fronts, and the hypervolumes on the way there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from .digits import TASKS
from .report import TARGET, Result
from .training import REFERENCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw"]

INK, PALE = "#3b4252", "#aab2c0"
# Of the colour-blind safe palette of Okabe and Ito; markers and dashes tell the arms apart without colours.
STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#0072B2", "marker": "o", "linestyle": "-", "zorder": 4},
    {"color": "#D55E00", "marker": "s", "linestyle": "--", "zorder": 3},
)


def draw(transfer: Result, independent: Result) -> Figure:
    """Left: test losses of all subproblems. Right: validation hypervolume against steps; steps to the target."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('the picture needs matplotlib: pip install "mt2o_ext[demo]"') from error
    figure = Figure(figsize=(10.0, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for result, style in zip((transfer, independent), STYLES, strict=True):
        _draw_front(left, result, style)
        _draw_curve(right, result, style)
    _finish_fronts(left)
    _finish_curves(right, transfer, independent)
    return figure


def _draw_front(ax: Axes, result: Result, style: dict[str, Any]) -> None:
    losses = result.front.losses
    label = f"{result.run.arm.label}: hypervolume {result.front.hypervolume():.3f}"
    ax.plot(losses[:, 0], losses[:, 1], label=label, markersize=7, markeredgecolor="white", linewidth=1.4, **style)


def _draw_curve(ax: Axes, result: Result, style: dict[str, Any]) -> None:
    run = result.run
    label = f"{run.arm.label}, learning rate {run.lr:g}"
    ax.plot(run.steps, run.hypervolumes, label=label, markersize=4, linewidth=1.6, **style)


def _finish_fronts(ax: Axes) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    ax.set_title("Test losses of the subproblems", color=INK, loc="left", fontsize=11)
    ax.plot(
        *[[value] for value in REFERENCE],
        marker="+",
        markersize=10,
        color=INK,
        linestyle="none",
        label="reference point",
    )
    for axis, task in zip((ax.xaxis, ax.yaxis), TASKS, strict=True):
        axis.set_label_text(f"cross entropy of the {task}")
    ax.set(xscale="log", yscale="log")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(FixedLocator([0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0]))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    _finish(ax, loc="upper right")


def _finish_curves(ax: Axes, transfer: Result, independent: Result) -> None:
    ax.set_title("Validation hypervolume", color=INK, loc="left", fontsize=11)
    ax.set_xlabel("optimizer steps")
    goal = TARGET * independent.run.hypervolumes[-1]
    ax.axhline(goal, color=PALE, linewidth=1.0, linestyle=":", zorder=1)
    ax.annotate(
        f"{TARGET:.0%} of independent, at the end", (0.01, goal), xycoords=("axes fraction", "data"), xytext=(0, 3),
        textcoords="offset points", color=INK, fontsize=8,
    )  # fmt: skip
    ax.set_xscale("log")
    ax.set_ylim(bottom=0.0)
    for result, style in zip((transfer, independent), STYLES, strict=True):
        if result.steps_to_target is not None:
            ax.plot(2 * [result.steps_to_target], [0.0, goal], color=style["color"], linestyle=":", linewidth=1.2)
            ax.annotate(
                f"{result.steps_to_target:.0f} steps", (result.steps_to_target, 0.02), xytext=(-3, 0), rotation=90,
                textcoords="offset points", ha="right", color=style["color"], fontsize=9,
            )  # fmt: skip
    _finish(ax, loc="center left")


def _finish(ax: Axes, loc: Literal["upper right", "center left"]) -> None:
    ax.legend(frameon=False, labelcolor=INK, fontsize=9, loc=loc)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(PALE)
    ax.tick_params(colors=INK, color=PALE, labelsize=9, which="both")
    ax.xaxis.label.set_color(INK)
    ax.yaxis.label.set_color(INK)
    ax.grid(color=PALE, linewidth=0.5, alpha=0.4)
    ax.set_axisbelow(True)
