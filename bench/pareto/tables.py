"""The records as comparisons, and the comparisons as Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from ..measure import table
from .arms import ARMS, CONTROL
from .plan import SEARCH_SEEDS, Series, best_of
from .problems import PROBLEMS
from .runs import Key, Record
from .statistics import Ratio, compare

Runs = dict[str, dict[int, Record]]
"""Of one problem: arm -> seed -> record, at the arm's chosen rate."""

LEAST_SEEDS = 3
"""Of the problems in the summary and the figures: an interval of two seeds is as wide as the page."""

PAIRS = (
    ("spec", "placebo"),
    ("spec", "branch25"),
    ("vertices", "spec"),
    ("vertices", "mean"),
    ("vertices", "placebo"),
    ("vertices", "branch25"),
    ("vertices", "pml"),
    ("vbranch25", "branch25"),
    ("vbranch25", "pml"),
    ("vbranch25", "vertices"),
    ("sbranch25", "branch25"),
    ("sbranch25", "vbranch25"),
)
"""An arm over a rival: a claim needs a gain over the control and over these."""


@dataclass(frozen=True)
class Group:
    """The finished series of one problem with one number of steps and one set of options."""

    problem: str
    steps: int
    options: str
    runs: Runs
    edges: frozenset[str]
    """Arms whose best rate is at the edge of a grid that would not grow further."""

    @property
    def says_something(self) -> bool:
        """Whether the control has seeds enough, and any hypervolume to compare with."""
        control = self.runs[CONTROL].values()
        return len(control) >= LEAST_SEEDS and any(record.validation["main"][-1] > 0 for record in control)

    @property
    def title(self) -> str:
        return self.problem + (f", {self.options}" if self.options else "")


def groups(records: Mapping[Key, Record]) -> list[Group]:
    """Those with at least one seed of the control; problems in their order, plain ones first."""
    kinds = {(key.options, key.problem, key.steps) for key in records}
    order = list(PROBLEMS)
    found = []
    for options, problem, steps in sorted(kinds, key=lambda kind: (kind[0], order.index(kind[1]), kind[2])):
        runs: Runs = {}
        edges = set()
        for arm in ARMS:
            scores = Series(problem, arm, steps, options).scores(records)
            if None in scores.values():
                continue
            lr = best_of(scores)
            if lr in (min(scores), max(scores)):
                edges.add(arm)
            mine = {
                key.seed: record
                for key, record in records.items()
                if key[:3] == (problem, arm, lr) and key[4:] == (steps, options) and key.seed not in SEARCH_SEEDS
            }
            if mine:
                runs[arm] = mine
        if CONTROL in runs:
            found.append(Group(problem, steps, options, runs, frozenset(edges)))
    return found


def percent(ratio: Ratio) -> str:
    text = f"{100 * (ratio.mean - 1):+.1f}%"
    if ratio.low is None or ratio.high is None:
        return text
    return f"{text} [{100 * (ratio.low - 1):+.1f}, {100 * (ratio.high - 1):+.1f}]"


def times(ratio: Ratio, never: int = 0) -> str:
    text = f"{ratio.mean:.2f}"
    if ratio.low is not None and ratio.high is not None:
        text += f" [{ratio.low:.2f}, {ratio.high:.2f}]"
    return text + (f" ({never} never)" if never else "")


def problem_table(group: Group) -> str:
    """Every arm over the control; the best final hypervolume first."""
    control, rows = group.runs[CONTROL], []
    for arm, runs in group.runs.items():
        rate = next(iter(runs.values())).key.lr
        seconds = statistics.median(record.seconds for record in runs.values())
        main = compare(runs, control)
        edge = " (edge)" if arm in group.edges else ""
        row: dict[str, object] = {"arm": arm, "rate": f"{rate:g}{edge}", "n": len(runs.keys() & control.keys())}
        if main is not None and arm != CONTROL:
            row |= {
                "final HV": percent(main.final),
                "worst": f"{100 * (min(main.final.each) - 1):+.0f}%",
                "wins": f"{main.final.wins}/{len(main.final.each)}",
                "sooner, GE": times(main.sooner, main.never),
                "sooner, steps": times(main.sooner_steps),
            }
            tight = compare(runs, control, "tight")
            if tight is not None:
                row["tight: wins"] = f"{tight.final.wins}/{len(tight.final.each)}"
                row["tight: sooner, GE"] = times(tight.sooner, tight.never)
            inner = compare(runs, control, "inner")
            if inner is not None:
                row["inner rows: HV"] = percent(inner.final)
        optimum = PROBLEMS[group.problem].optimum
        if optimum is not None:
            row["HV / best"] = f"{statistics.mean(record.test['main'] for record in runs.values()) / optimum:.3f}"
        row["steps"] = next(iter(runs.values())).taken[-1]
        row["seconds"] = f"{seconds:.0f}"
        rows.append((math.inf if arm == CONTROL or main is None else -main.final.mean, row))
    names = dict.fromkeys(name for _, row in rows for name in row)  # the control's row has few of them
    order = ["arm", "rate", "n", *(name for name in names if name not in ("arm", "rate", "n", "steps", "seconds"))]
    order += ["steps", "seconds"]
    return table([{name: row.get(name, "") for name in order} for _, row in sorted(rows, key=lambda each: each[0])])


def summary(found: list[Group]) -> str:
    """Arms by problems: sooner in GE / in steps / final hypervolume; and the geometric means of the first two."""
    arms = [arm for arm in ARMS if arm != CONTROL and any(arm in group.runs for group in found)]
    rows = []
    for arm in arms:
        row: dict[str, object] = {"arm": arm}
        both = []
        for group in found:
            result = compare(group.runs.get(arm, {}), group.runs[CONTROL])
            if result is None:
                continue
            both.append((result.sooner.mean, result.sooner_steps.mean, result.final.mean))
            final = f"{100 * (result.final.mean - 1):+.1f}%"
            final = f"**{final}**" if result.final.clear else final
            row[group.problem] = f"{result.sooner.mean:.2f} / {result.sooner_steps.mean:.2f} / {final}"
        means = [math.exp(statistics.mean(map(math.log, numbers))) for numbers in zip(*both, strict=True)]
        row[f"mean of {len(found)}"] = "" if len(both) < len(found) else f"{means[0]:.2f} / {means[1]:.2f}"
        rows.append(row)
    columns = ["arm", *(group.problem for group in found), f"mean of {len(found)}"]
    return table([{name: row.get(name, "") for name in columns} for row in rows])


def pairs(found: list[Group]) -> str:
    """Final test hypervolume of an arm over a rival, with wins."""
    rows = []
    for arm, rival in PAIRS:
        row: dict[str, object] = {"arm / rival": f"{arm} / {rival}"}
        for group in found:
            result = compare(group.runs.get(arm, {}), group.runs.get(rival, {}))
            if result is not None:
                final = result.final
                row[group.problem] = f"{percent(final)}, {final.wins}/{len(final.each)}"
        if len(row) > 1:
            rows.append(row)
    columns = ["arm / rival", *(group.problem for group in found)]
    return table([{name: row.get(name, "") for name in columns} for row in rows]) if rows else ""
