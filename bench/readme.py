"""The tables of the pages, from committed JSON: what stands between <!-- NAME --> and <!-- end -->."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.measure import RESULTS, table

README = Path(__file__).parents[1] / "README.md"
DOCS = README.with_name("docs")
DOCUMENTS = (README, DOCS / "performance.md", Path(__file__).with_name("README.md"))
DEMO = DOCS / "front.json"
CONNECTION_STRENGTH = DOCS / "connection_strength.json"


@dataclass(frozen=True)
class Selection:
    """A table in short: some rows of a result, some of their columns, numbers of two digits, no notes."""

    result: str
    rows: tuple[dict[str, Any], ...]
    columns: tuple[str, ...]

    def of(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        chosen = [row for wanted in self.rows for row in rows if wanted.items() <= row.items()]
        return [{name: short(row[name]) for name in self.columns} for row in chosen]


SHORT = {
    "weightings_short": Selection(
        "weightings",
        tuple({"method": "UPGrad", "T": tasks, "P": "1e7"} for tasks in (2, 3, 8, 16)),
        ("T", "ms", "TorchJD / ours"),
    ),
}


def short(value: Any) -> Any:
    """A float with two digits that count."""
    return f"{float(f'{value:.2g}'):g}" if isinstance(value, float) else value


def demo() -> str:
    """The demo's runs: hypervolume on test data, and steps to 99% of what the independent runs ended with."""
    result = json.loads(DEMO.read_text())
    first = {key: [arm[key] for arm in result["arms"]] for key in ("test_hypervolume", "steps_to_target")}
    rows = []
    for run in [{"seed": result["options"]["seed"], **first}, *result["other_seeds"]]:
        (volume, independent), (steps, independent_steps) = run["test_hypervolume"], run["steps_to_target"]
        row = {"seed": run["seed"], "hypervolume: transfer": f"{volume:.4f}", "independent": f"{independent:.4f}"}
        row |= {"change": f"{volume / independent - 1:+.1%}", "steps to 99%: transfer": round(steps)}
        rows.append(row | {"independent ": round(independent_steps), "factor": f"{independent_steps / steps:.2f}"})
    return table(rows)


def demo_short() -> str:
    """The same in four rows: medians over the seeds, and how many of them gained."""
    result = json.loads(DEMO.read_text())
    first = {key: [arm[key] for arm in result["arms"]] for key in ("test_hypervolume", "steps_to_target")}
    runs = [first, *result["other_seeds"]]
    volumes, steps = ([run[key] for run in runs] for key in ("test_hypervolume", "steps_to_target"))
    changes = [ours / theirs - 1 for ours, theirs in volumes]
    factors = [theirs / ours for ours, theirs in steps]

    def row(name: str, *cells: str) -> dict[str, str]:
        return dict(zip((f"{len(runs)} seeds", "transfer", "independent"), (name, *cells), strict=True))

    return table(
        [
            row("hypervolume, median", *(f"{median(column):.3f}" for column in zip(*volumes, strict=True))),
            row("its change, from worst to best", f"{min(changes):+.1%} to {max(changes):+.1%}", ""),
            row("steps to 99%, median", *(f"{median(column):.0f}" for column in zip(*steps, strict=True))),
            row("times fewer steps, from worst to best", f"{min(factors):.2f} to {max(factors):.2f}", ""),
        ]
    )


def connection_strength() -> str:
    """The arms of the demo of connection strength: means and deviations over seeds."""
    if not CONNECTION_STRENGTH.exists():
        return "<sub>Not measured yet: `python -m mt2o_ext.demo connection-strength --out docs`.</sub>"
    report = json.loads(CONNECTION_STRENGTH.read_text())
    options = report["options"]
    note = (
        f"{options['seeds']} seeds, {options['steps']} mini-batches of 64 (times 3 where it says so), AdamW at "
        f"{options['lr']:g} falling to zero in all arms, {options['threads']} thread; mean ± standard deviation "
        "(`docs/connection_strength.json`)."
    )
    return f"{table(report['table'])}\n\n<sub>{note}</sub>"


DEMOS = {"demo": demo, "demo_short": demo_short, "connection_strength": connection_strength}


def rendered(name: str) -> str:
    if name in DEMOS:
        return DEMOS[name]()
    selection = SHORT.get(name)
    path = RESULTS / f"{selection.result if selection else name}.json"
    if not path.exists():
        return f"<sub>Not measured yet: `python -m bench.bench_{path.stem}`.</sub>"
    result = json.loads(path.read_text())
    if selection:
        return table(selection.of(result["rows"]))
    where = result["machine"]
    line = (
        f"{where['processor']}, {where['threads']} threads, {where['instruction set']}, torch {where['torch']}, "
        f"load {where['load average']}, {where['date']} (`bench/results/{name}.json`). {result['notes']}"
    )
    return f"{table(result['rows'])}\n\n<sub>{line}</sub>"


def updated(text: str) -> str:
    def replace(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n{rendered(match[1])}\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", replace, text, flags=re.DOTALL)


if __name__ == "__main__":
    for document in DOCUMENTS:
        document.write_text(updated(document.read_text()))
