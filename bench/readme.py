"""README's tables, from the committed JSON: what stands between <!-- NAME --> and <!-- end --> is written here."""

from __future__ import annotations

import json
import re
from pathlib import Path

from bench.measure import RESULTS, table

README = Path(__file__).parents[1] / "README.md"


def rendered(name: str) -> str:
    result = json.loads((RESULTS / f"{name}.json").read_text())
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
    README.write_text(updated(README.read_text()))
