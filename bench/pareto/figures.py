"""Figures from the records: fronts, hypervolume against both clocks, and a forest plot of the intervals."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from .arms import CONTROL
from .problems import PROBLEMS
from .statistics import Ratio, compare
from .tables import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = ("ind", "mean", "placebo", "spec", "branch25", "sbranch25", "pml", "rk")
COLOURS = dict(
    zip(SHOWN, ("#444444", "#b8b8b8", "#d8a25e", "#1f6fb4", "#2e9b57", "#86c58f", "#c5548b", "#d1342b"), strict=True)
)
MARKERS = dict(zip(SHOWN, "oXPsv^dD", strict=True))


def save(figure: pyplot.Figure, path: Path) -> Path:
    figure.savefig(path, dpi=130, bbox_inches="tight")
    pyplot.close(figure)
    return path


def clean(ax: Axes) -> None:
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.tick_params(labelsize=8)


def arms_of(group: Group) -> list[str]:
    return [arm for arm in SHOWN if arm in group.runs]


def fronts(group: Group, path: Path) -> Path:
    """Test losses at the end, of the seed whose control is the median one."""
    problem, control = PROBLEMS[group.problem], group.runs[CONTROL]
    seeds = sorted(set.intersection(*(set(runs) for runs in group.runs.values()))) or sorted(control)
    seed = sorted(seeds, key=lambda each: control[each].test["main"])[len(seeds) // 2]
    figure, ax = pyplot.subplots(figsize=(6.4, 4.6))
    for arm in arms_of(group):
        if seed not in group.runs[arm]:
            continue
        points = sorted(group.runs[arm][seed].front)
        style = {"color": COLOURS[arm], "marker": MARKERS[arm], "markersize": 4.5, "linewidth": 1.2}
        ax.plot(*zip(*points, strict=True), label=arm, **style)
    everything = [point for runs in group.runs.values() for record in runs.values() for point in record.front]
    lows = [min(losses) for losses in zip(*everything, strict=True)]
    for axis, low, high in zip("xy", lows, problem.main, strict=True):
        getattr(ax, f"set_{axis}lim")(low - 0.05 * (high - low), high)
    ax.set_xlabel(f"test loss, {problem.tasks[0]}")
    ax.set_ylabel(f"test loss, {problem.tasks[1]}")
    ax.set_title(f"{group.problem}: the front at the end, seed {seed}", fontsize=10, loc="left")
    ax.legend(frameon=False, fontsize=8)
    clean(ax)
    return save(figure, path)


def clocks(found: list[Group], path: Path) -> Path:
    """Mean validation hypervolume over the mean of the control at its end."""
    figure, grid = pyplot.subplots(
        len(found), 2, figsize=(9, 2.7 * len(found)), squeeze=False, sharey="row", layout="constrained"
    )
    for group, axes in zip(found, grid, strict=True):
        end = statistics.mean(record.validation["main"][-1] for record in group.runs[CONTROL].values())
        budget = next(iter(group.runs[CONTROL].values())).spent[-1]
        for ax, clock in zip(axes, ("spent", "taken"), strict=True):
            for arm in arms_of(group):
                records = list(group.runs[arm].values())
                curve = [
                    statistics.mean(each) / end
                    for each in zip(*(record.validation["main"] for record in records), strict=True)
                ]
                ax.plot(getattr(records[0], clock), curve, color=COLOURS[arm], linewidth=1.4, label=arm)
            ax.axhline(0.99, color="#999999", linewidth=0.7, linestyle=":")
            ax.set_xscale("log")
            clean(ax)
        axes[0].set_xlim(budget / 30, budget * 1.05)
        axes[0].set_ylabel(f"{group.problem}\nhypervolume / ind's", fontsize=9)
        axes[0].set_ylim(bottom=0.45)
    grid[-1][0].set_xlabel("gradient evaluations")
    grid[-1][1].set_xlabel("sequential steps")
    figure.legend(
        *grid[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=8, frameon=False, fontsize=8
    )
    return save(figure, path)


def forest(found: list[Group], path: Path) -> Path:
    """Times sooner than the control, on both clocks, and the final hypervolume over the control's."""
    heads = ("sooner, gradient evaluations", "sooner, sequential steps", "final hypervolume")
    heights = [max(1, len(arms_of(group)) - 1) for group in found]
    figure, grid = pyplot.subplots(
        len(found), 3, figsize=(10, 0.5 + 0.27 * sum(heights) + 0.3 * len(found)), squeeze=False, sharex="col",
        height_ratios=heights, layout="constrained",
    )  # fmt: skip
    for group, axes in zip(found, grid, strict=True):
        arms = [arm for arm in arms_of(group) if arm != CONTROL]
        for place, arm in enumerate(reversed(arms)):
            result = compare(group.runs[arm], group.runs[CONTROL])
            if result is None:
                continue
            for ax, ratio in zip(axes, (result.sooner, result.sooner_steps, result.final), strict=True):
                bar(ax, place, ratio, COLOURS[arm])
        for ax in axes:
            ax.axvline(1, color="#999999", linewidth=0.8)
            ax.set_xscale("log")
            ax.set_yticks(range(len(arms)), list(reversed(arms)) if ax is axes[0] else [""] * len(arms))
            ax.set_ylim(-0.6, len(arms) - 0.4)
            clean(ax)
        axes[0].set_ylabel(group.problem, fontsize=9)
    for ax, head, ticks in zip(
        grid[0], heads, ((0.5, 1, 2, 4), (0.25, 0.5, 1, 2), (0.8, 0.9, 1, 1.1, 1.2, 1.4)), strict=True
    ):
        ax.set_title(head, fontsize=9, loc="left")
        ax.xaxis.set_major_locator(matplotlib.ticker.FixedLocator(ticks))
        ax.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        ax.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    return save(figure, path)


def bar(ax: Axes, place: int, ratio: Ratio, colour: str) -> None:
    if ratio.low is not None and ratio.high is not None:
        ax.plot([ratio.low, ratio.high], [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
    ax.plot([ratio.mean], [place], marker="o", markersize=4.5, color=colour)
