"""The tables of README and bench/README, from committed JSON: what stands between <!-- NAME --> and <!-- end -->."""

from __future__ import annotations

import json
import re
from pathlib import Path

from bench.measure import RESULTS, table

README = Path(__file__).parents[1] / "README.md"
DOCUMENTS = (README, Path(__file__).with_name("README.md"))
DEMO = README.with_name("docs") / "front.json"
CONNECTION_STRENGTH = DEMO.with_name("connection_strength.json")

# Tables that show some rows of a result only: of those with these values.
SELECTIONS = {"weightings_of_ten_million": ("weightings", {"P": "1e7"})}


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


def rendered(name: str) -> str:
    if name == "demo":
        return demo()
    if name == "connection_strength":
        return connection_strength()
    name, wanted = SELECTIONS.get(name, (name, {}))
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return f"<sub>Not measured yet: `python -m bench.bench_{name}`.</sub>"
    result = json.loads(path.read_text())
    where = result["machine"]
    line = (
        f"{where['processor']}, {where['threads']} threads, {where['instruction set']}, torch {where['torch']}, "
        f"load {where['load average']}, {where['date']} (`bench/results/{name}.json`). {result['notes']}"
    )
    rows = [row for row in result["rows"] if wanted.items() <= row.items()]
    return f"{table(rows)}\n\n<sub>{line}</sub>"


def updated(text: str) -> str:
    def replace(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n{rendered(match[1])}\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", replace, text, flags=re.DOTALL)


if __name__ == "__main__":
    for document in DOCUMENTS:
        document.write_text(updated(document.read_text()))
