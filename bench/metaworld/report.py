"""README.md and the figure beside the records: everything is worked out from these."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..measure import table
from ..pareto.statistics import T975
from .demonstrations import EVALUATION, HELD_OUT, NOISE, POOL
from .networks import ARMS, NETWORKS, TOLERANCE
from .plan import DEMONSTRATIONS, RATES, SEARCH_SEED, chosen_rate, pilot
from .robots import LIMIT
from .runs import BATCH, STEPS, Key, Record, Records

Arm = tuple[str, str]

TASKS = (
    "reach",
    "push",
    "pick-place",
    "door-open",
    "drawer-open",
    "drawer-close",
    "button-press",
    "peg-insert",
    "window-open",
    "window-close",
)

HEAD = """# One policy for ten robot tasks, from {demonstrations} demonstrations of each

Written by `python -m bench.metaworld report` from the records beside it, one line of JSON for each run; `make
metaworld` makes those that are missing. Do not edit.

MT10 of MetaWorld (3.1.1, in MuJoCo 3.3.0): a simulated arm reaches, pushes, opens drawers and presses buttons. A policy
is cloned from scripted experts: it learns their actions by squared errors, from {demonstrations} demonstrations of each
task. Then it acts by itself in {episodes} episodes of each task, with places of things and goals that no demonstration
had. **Success** is the share of episodes that reach the goal within {limit} steps, over all ten tasks.

* **Networks**: {networks}. All have as many parameters, within {tolerance:.0f} %. **Weightings** of the
  tasks' gradients are those of `WeightedFused`, with AdamW and the same mini-batches ({batch} of each task in each of
  {steps:,} steps; a cosine schedule). The published system trains the modules by reinforcement learning, with weights
  of the losses that belong to it: this asks about the network alone.
* **Demonstrations**: noise with deviation {noise} is added to the experts' actions (which lie in [-1, 1]); what is
  learned is the action without it. A seed draws the demonstrations (of {pool} goals), the start and the mini-batches.
  The {episodes} goals of the episodes are the same for every run.
* **The rate** of each arm is that one of {rates} which has the least loss on {held_out} other goals, on
  one seed that is not reported. "Edge" marks the least and the greatest of them.
* **The number of demonstrations** was set by separate networks alone, before any other arm was run: in {pilot_episodes}
  episodes of each task {pilot}.
* Brackets: 95 % t-intervals over seeds, of differences seed by seed where two arms are compared; a single seed has
  none. There are {comparisons} of these differences: one in twenty such intervals leaves 0 out by chance alone.
"""


@dataclass(frozen=True)
class Interval:
    """A mean, and half of its 95 % t-interval (None of a single number)."""

    mean: float
    half: float | None

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Interval:
        """Of 1 to 21 numbers."""
        if len(numbers) == 1:
            return cls(numbers[0], None)
        half = T975[len(numbers) - 2] * statistics.stdev(numbers) / math.sqrt(len(numbers))
        return cls(statistics.mean(numbers), half)

    @property
    def clear(self) -> bool:
        """Whether it leaves 0 out."""
        return self.half is not None and abs(self.mean) > self.half

    def points(self, sign: str = "") -> str:
        """In hundredths."""
        text = f"{100 * self.mean:{sign}.1f}"
        if self.half is None:
            return text
        low, high = (100 * (self.mean + side * self.half) for side in (-1, 1))
        return f"{text} [{low:{sign}.1f}, {high:{sign}.1f}]"


Runs = dict[Arm, dict[int, Record]]
"""Arm -> seed -> record, at the arm's chosen rate."""


def runs_of(records: Mapping[Key, Record]) -> Runs:
    """Only arms whose search is finished."""
    found: Runs = {}
    for arm in ARMS:
        rate = chosen_rate(arm, records)
        mine = {
            key.seed: record
            for key, record in records.items()
            if key[:4] == (*arm, DEMONSTRATIONS, rate) and key.seed != SEARCH_SEED
        }
        if mine:
            found[arm] = mine
    return found


def difference(runs: Runs, arm: Arm, other: Arm) -> Interval | None:
    """Of success, over the seeds that both have; None without any."""
    seeds = sorted(runs.get(arm, {}).keys() & runs.get(other, {}).keys())
    if not seeds:
        return None
    return Interval.of([runs[arm][seed].success - runs[other][seed].success for seed in seeds])


def comparisons() -> list[tuple[Arm, Arm]]:
    """Networks against the plain one at the same weighting, weightings against the sum in the same network."""
    networks = [((network, weighting), ("plain", weighting)) for network, weighting in ARMS if network != "plain"]
    weightings = [((network, weighting), (network, "sum")) for network, weighting in ARMS if weighting != "sum"]
    return networks + weightings


def arms_table(runs: Runs) -> str:
    rows = []
    for (network, weighting), mine in runs.items():
        records = list(mine.values())
        rows.append(
            {
                "network": network,
                "weighting": weighting,
                "parameters": f"{records[0].parameters:,}",
                "rate": f"{records[0].key.lr:g}" + " (edge)" * (records[0].key.lr in (RATES[0], RATES[-1])),
                "seeds": len(records),
                "held-out loss": f"{statistics.mean(record.loss for record in records):.4f}",
                "success, %": Interval.of([record.success for record in records]).points(),
                "seconds of training": f"{statistics.median(record.seconds[0] for record in records):.0f}",
            }
        )
    return table(rows)


def differences_table(runs: Runs) -> str:
    rows = []
    for arm, other in comparisons():
        found = difference(runs, arm, other)
        if found is not None:
            text = found.points("+")
            rows.append(
                {
                    "arm": ", ".join(arm),
                    "less": ", ".join(other),
                    "success, points": f"**{text}**" if found.clear else text,
                }
            )
    return table(rows) if rows else "No two arms have a seed in common yet."


def tasks_table(runs: Runs) -> str:
    """Success of each task, in per cent, over all seeds."""
    rows = []
    for (network, weighting), mine in runs.items():
        shares = zip(*([each / record.episodes for each in record.reached] for record in mine.values()), strict=True)
        row: dict[str, Any] = {"network": network, "weighting": weighting}
        row |= {name: f"{100 * statistics.mean(share):.0f}" for name, share in zip(TASKS, shares, strict=True)}
        rows.append(row)
    return table(rows)


def pilot_text(records: Mapping[Key, Record]) -> str:
    found = [records[key] for key in pilot()]
    return ", ".join(f"{record.key.demonstrations} give {100 * record.success:.1f} %" for record in found)


def figure(runs: Runs, path: Path) -> None:
    """A row for each arm: every seed, and the mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = dict(zip(NETWORKS, ("#d1342b", "#1f6fb4", "#2e9b57", "#777777"), strict=True))
    canvas, ax = pyplot.subplots(figsize=(6.5, 0.6 + 0.33 * len(runs)), layout="constrained")
    for place, ((network, _), mine) in enumerate(reversed(runs.items())):
        each = [100 * record.success for record in mine.values()]
        ax.plot(each, [place] * len(each), "o", color=colours[network], alpha=0.35, markersize=5)
        ax.plot(statistics.mean(each), place, "|", color=colours[network], markersize=17, markeredgewidth=2.5)
    ax.set_yticks(range(len(runs)), [", ".join(arm) for arm in reversed(runs)], fontsize=8)
    ax.set_xlabel("success in episodes with new goals, % (dots: seeds, bars: means)", fontsize=9)
    ax.grid(axis="x", color="#dddddd", linewidth=0.6)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    canvas.savefig(path, dpi=130)
    pyplot.close(canvas)


def report(records: Records, folder: Path) -> None:
    """Writes README.md and figure.png into `folder`.

    Raises:
        SystemExit: without a reported run.
    """
    runs = runs_of(records.by_key)
    if not runs:
        raise SystemExit(f"expected records in {records.path}, got none of a reported seed: run `make metaworld` first")
    head = HEAD.format(
        demonstrations=DEMONSTRATIONS,
        episodes=len(EVALUATION),
        limit=LIMIT,
        networks="; ".join(f"`{name}`, {network.text}" for name, network in NETWORKS.items()),
        tolerance=100 * TOLERANCE,
        batch=BATCH,
        steps=STEPS,
        noise=NOISE,
        pool=len(POOL),
        held_out=len(HELD_OUT),
        rates=", ".join(f"{rate:g}" for rate in RATES),
        pilot=pilot_text(records.by_key),
        pilot_episodes=records.by_key[pilot()[0]].episodes,
        comparisons=len(comparisons()),
    )
    minutes = sum(sum(record.seconds) for record in records.by_key.values()) / 60
    parts = [
        head,
        "## Arms\n\n" + arms_table(runs),
        "![success](figure.png)",
        "## Differences\n\nBold where the interval leaves 0 out.\n\n" + differences_table(runs),
        "## Tasks\n\nSuccess in per cent, over all seeds.\n\n" + tasks_table(runs),
        f"All {len(records.by_key)} runs, search and pilot included, took {minutes:.0f} minutes of one core.",
    ]
    figure(runs, folder / "figure.png")
    (folder / "README.md").write_text("\n\n".join(part.strip() for part in parts) + "\n")
