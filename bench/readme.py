"""The tables of the pages, from committed JSON: what stands between <!-- NAME --> and <!-- end -->."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
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
    "many_losses_short": Selection(
        "many_losses",
        tuple({"model": model, "T": tasks, "weights": "even"} for model in ("mlp", "cnn") for tasks in (32, 256)),
        ("model", "T", "ms", "x sum", "TorchJD / ours", "MiB, ours", "MiB, TorchJD"),
    ),
}


def short(value: Any) -> Any:
    """A float with two digits that count."""
    return f"{float(f'{value:.2g}'):g}" if isinstance(value, float) else value


def _count(count: float, factor: float) -> str:
    """A count, and how many times fewer it is than that of independent runs."""
    if factor == 1.0:
        return f"{count:.0f}"
    return f"{count:.0f} ({factor:.2f} times fewer)" if factor > 1.0 else f"{count:.0f} ({1 / factor:.2f} times more)"


def _reached(ours: float | None, theirs: float) -> str:
    return "not reached" if ours is None else _count(ours, theirs / ours)


def demo() -> str:
    """The demo's runs: hypervolume on test data, and both clocks to 99% of what the independent runs ended with."""
    result = json.loads(DEMO.read_text())
    labels = [arm["label"] for arm in result["arms"]]
    rows = []
    for run in result["seeds"]:
        for index, label in enumerate(labels):
            volume, last = run["test_hypervolume"][index], run["test_hypervolume"][-1]
            rows.append(
                {
                    "seed": run["seed"],
                    "arm": label,
                    "hypervolume": f"{volume:.4f}",
                    "change": "" if label == labels[-1] else f"{volume / last - 1:+.1%}",
                    "gradient evaluations to 99%": _reached(
                        run["evaluations_to_target"][index], run["evaluations_to_target"][-1]
                    ),
                    "sequential steps to 99%": _reached(run["steps_to_target"][index], run["steps_to_target"][-1]),
                }
            )
    return table(rows)


def demo_short() -> str:
    """The same in four rows: medians over the seeds, and the range of the changes; the arms are columns."""
    result = json.loads(DEMO.read_text())
    labels, runs = [arm["label"] for arm in result["arms"]], result["seeds"]

    def row(name: str, cell: Callable[[list[dict[str, Any]], int], str]) -> dict[str, str]:
        return {f"{len(runs)} seeds": name} | {label: cell(runs, index) for index, label in enumerate(labels)}

    return table(
        [
            row("hypervolume, median", lambda runs, arm: f"{median(run['test_hypervolume'][arm] for run in runs):.3f}"),
            row("its change, from worst to best seed", _range_of_changes),
            row("gradient evaluations to 99%, median", _clock("evaluations_to_target")),
            row("sequential steps to 99%, median", _clock("steps_to_target")),
        ]
    )


def _range_of_changes(runs: list[dict[str, Any]], arm: int) -> str:
    changes = [run["test_hypervolume"][arm] / run["test_hypervolume"][-1] - 1 for run in runs]
    return f"{min(changes):+.1%} to {max(changes):+.1%}" if any(changes) else ""


def _clock(name: str) -> Callable[[list[dict[str, Any]], int], str]:
    """Counts and factors of all seeds; one that did not reach the target is slower than all others."""

    def cell(runs: list[dict[str, Any]], arm: int) -> str:
        counts = [inf if run[name][arm] is None else run[name][arm] for run in runs]
        factor = median(run[name][-1] / count for run, count in zip(runs, counts, strict=True))
        return _count(median(counts), factor)

    return cell


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
    rows = [{name: short(value) for name, value in row.items()} for row in result["rows"]]
    return f"{table(rows)}\n\n<sub>{line}</sub>"


def updated(text: str) -> str:
    def replace(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n{rendered(match[1])}\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", replace, text, flags=re.DOTALL)


if __name__ == "__main__":
    for document in DOCUMENTS:
        document.write_text(updated(document.read_text()))
