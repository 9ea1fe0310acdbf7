"""Figures from the records: fronts, hypervolume against both clocks, and a forest plot of the intervals."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot, ticker

from .arms import CONTROL
from .problems import PROBLEMS
from .statistics import Ratio, compare
from .tables import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = ("ind", "mean", "placebo", "spec", "branch25", "sbranch25", "pml", "vertices", "vbranch25")
COLOURS = dict(
    zip(
        SHOWN,
        ("#444444", "#b8b8b8", "#d8a25e", "#1f6fb4", "#2e9b57", "#86c58f", "#c5548b", "#d1342b", "#7b1fa2"),
        strict=True,
    )
)
MARKERS = dict(zip(SHOWN, "oXPsv^dD*", strict=True))


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


def fronts(found: list[Group], path: Path) -> Path:
    """Test losses at the end; of each problem that seed whose control is the median one. Lines: the best models."""
    figure, grid = pyplot.subplots(1, len(found), figsize=(4.6 * len(found), 4.2), squeeze=False, layout="constrained")
    for group, ax in zip(found, grid[0], strict=True):
        problem, control = PROBLEMS[group.problem], group.runs[CONTROL]
        arms = arms_of(group)
        common = set.intersection(*(set(group.runs[arm]) for arm in arms))
        seeds = sorted(common, key=lambda each: control[each].test["main"])
        if not seeds:
            continue
        seed, shown = seeds[len(seeds) // 2], []
        for arm in arms:
            points = sorted(group.runs[arm][seed].front)
            best = [
                point for index, point in enumerate(points) if point[1] < min([9e9, *(p[1] for p in points[:index])])
            ]
            ax.plot(*zip(*points, strict=True), MARKERS[arm], color=COLOURS[arm], markersize=4, label=arm, alpha=0.85)
            ax.plot(*zip(*best, strict=True), color=COLOURS[arm], linewidth=1.2)
            shown += points
        for axis, losses, most in zip("xy", zip(*shown, strict=True), problem.main, strict=True):
            low, high = min(losses), min(most, sorted(losses)[int(0.92 * len(losses))])  # a few stragglers left out
            getattr(ax, f"set_{axis}lim")(low - 0.05 * (high - low), high + 0.05 * (high - low))
        ax.set_xlabel(f"test loss, {problem.tasks[0]}", fontsize=9)
        ax.set_ylabel(f"test loss, {problem.tasks[1]}", fontsize=9)
        ax.set_title(f"{group.problem}, seed {seed}", fontsize=10, loc="left")
        clean(ax)
    legend(figure, grid[0][0])
    return save(figure, path)


def legend(figure: pyplot.Figure, ax: Axes) -> None:
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=8, frameon=False, fontsize=8)


def plain_numbers(ax: Axes) -> None:
    """1, 2, 5, 10, ... along a logarithmic axis."""
    ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_minor_locator(ticker.NullLocator())
    ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))


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
            plain_numbers(ax)
            clean(ax)
        axes[0].set_xlim(budget / 30, budget * 1.05)
        axes[1].set_xlim(left=budget / 30 / PROBLEMS[group.problem].rows)
        axes[0].set_ylabel(f"{group.problem}\nhypervolume / ind's", fontsize=9)
        axes[0].set_ylim(bottom=0.45)
    grid[-1][0].set_xlabel("gradient evaluations")
    grid[-1][1].set_xlabel("sequential steps")
    legend(figure, grid[0][0])
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
            ax.axvline(1, color="#777777", linewidth=0.8)
            ax.grid(axis="x", color="#eeeeee", linewidth=0.8)
            ax.set_axisbelow(True)
            ax.set_xscale("log")
            ax.set_yticks(range(len(arms)), list(reversed(arms)) if ax is axes[0] else [""] * len(arms))
            ax.set_ylim(-0.6, len(arms) - 0.4)
            clean(ax)
        axes[0].set_ylabel(group.problem, fontsize=9)
    for ax, head, ticks in zip(
        grid[0], heads, ((0.5, 1, 2, 4), (0.25, 0.5, 1, 2), (0.8, 0.9, 1, 1.1, 1.2, 1.4)), strict=True
    ):
        ax.set_title(head, fontsize=9, loc="left")
        ax.xaxis.set_major_locator(ticker.FixedLocator(ticks))
        ax.xaxis.set_minor_locator(ticker.NullLocator())
        ax.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    return save(figure, path)


def bar(ax: Axes, place: int, ratio: Ratio, colour: str) -> None:
    if ratio.low is not None and ratio.high is not None:
        ax.plot([ratio.low, ratio.high], [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
    ax.plot([ratio.mean], [place], marker="o", markersize=4.5, color=colour)
