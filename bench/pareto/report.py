"""README.md and the figures beside the records: everything is worked out from these."""

from __future__ import annotations

from pathlib import Path

from .arms import ARMS
from .arms.base import EMA
from .evaluation import CALIBRATION
from .plan import GRID, SEARCH_SEEDS
from .problems import PROBLEMS
from .runs import Records
from .tables import Group, groups, pairs, problem_table, summary

HEAD = """# Fronts of K models: every method on every problem

Written by `make pareto-report` from the records beside it, one line of JSON for each run; `make pareto` makes those
that are missing. Do not edit.

**How to read it.** All arms start from the same net at one seed, use AdamW, and are evaluated as running averages
(decay {ema}; an arm with K times as many steps also keeps one with K times the memory, and the one that validates best
counts). Rates come from one grid, {grid}, on seeds {search} that are not reported; the grid grows while its edge is
best. Every arm spends the same number of **gradient evaluations** (GE: one backward pass of one mini-batch through one
net). They differ in **sequential steps**, which is the clock that counts where K nets side by side cost no more time
than one; both are in every table.

* HV: hypervolume of the front on test data at the end. **Sooner**: how many times fewer GE, or steps, an arm takes to
  99% of the final validation hypervolume of `ind` at the same seed; runs that never get there count with their whole
  budget and are named ("2 never"), so that such a number is too kind to the arm. Brackets: 95% t-intervals of paired
  log ratios.
* **Worst**: the seed that loses most, or gains least. **Wins**: seeds above `ind`. **Tight**: from a reference point
  near the front, where volumes are small: wins, no percentages. **Inner rows**: without the extreme trade-offs.
* BatchNorm's statistics are worked out anew for the averaged weights, from {calibration} training samples, in every
  arm alike. **Seconds**: median time of training in one thread, on a machine with other work: a hint, no measurement.
* Limits: nets of 800 to 30,000 parameters, and budgets at whose end fronts still rise; a seed changes the initial net
  and the mini-batches, not the split of the data. A rate marked "edge" is the last one of a grid of seven.
* A gain over `ind` alone is no claim: it needs a gain over `branch25` and the placebo as well (second table).
"""


def report(folder: Path) -> None:
    """Writes README.md and figures into `folder`; may be called while a driver writes records."""
    records = Records(folder)
    if not records.by_key:
        raise SystemExit(f"expected records in {folder}, got none: run `make pareto` or `make pareto-quick` first")
    found = groups(records.by_key)
    plain = [group for group in found if not group.options and group.says_something]
    parts = [
        HEAD.format(
            ema=EMA,
            grid=", ".join(f"{lr:g}" for lr in GRID),
            search=" and ".join(map(str, SEARCH_SEEDS)),
            calibration=CALIBRATION,
        )
    ]
    if plain:
        parts += _overview(plain, folder)
    for group in found:
        problem = PROBLEMS[group.problem]
        references = f"main {problem.main}, tight {problem.tight}"
        budget = f"K = {problem.rows}, mini-batches of {problem.batch}, {group.steps * problem.rows} GE"
        parts.append(
            f"## {group.title}\n\n{problem.title}. {budget}; references {references}.\n\n{problem_table(group)}"
        )
    shown = {arm: entry for arm, entry in ARMS.items() if any(arm in group.runs for group in found)}
    arms = "\n".join(f"| `{arm}` | {entry.text} |" for arm, entry in shown.items())
    if shown:
        parts.append(f"## The arms\n\n| arm | |\n|---|---|\n{arms}")
    (folder / "README.md").write_text("\n\n".join(part.strip() for part in parts) + "\n")


def _overview(plain: list[Group], folder: Path) -> list[str]:
    from . import figures

    two_tasks = [group for group in plain if PROBLEMS[group.problem].num_tasks == 2]
    figures.forest(plain, folder / "forest.png")
    figures.clocks(
        [group for group in plain if PROBLEMS[group.problem].optimum is None] or plain, folder / "clocks.png"
    )
    if two_tasks:
        figures.fronts(two_tasks[:3], folder / "front.png")
    parts = [
        "## All problems\n\nSooner in GE / sooner in steps / final HV, over `ind`; bold where the last interval "
        "leaves 0 out.\n\n" + summary(plain),
    ]
    if rivals := pairs(plain):
        parts.append("Final HV of an arm over a rival, and wins:\n\n" + rivals)
    parts.append(
        "![intervals](forest.png)\n\n![both clocks](clocks.png)" + "\n\n![fronts](front.png)" * bool(two_tasks)
    )
    return parts
