"""README.md beside the records: published numbers and ours, side by side."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path

from ..measure import table
from . import digits, fronts
from .records import Key, Record

PUBLISHED_DIGITS = {
    "sum": ((95.37, 95.47, 95.56), (93.89, 94.94, 94.51)),
    "CAGrad": ((95.50, 95.44, 95.72), (94.03, 94.81, 93.68)),
    "Nash-MTL": ((95.95, 95.61, 95.95), (94.52, 94.66, 95.15)),
}
"""Test accuracies of both tasks in per cent, three seeds: the raw results in the repository of PaLoRA (ICLR 2025)."""

PUBLISHED_FRONTS = {"COSMOS": 2.31, "PHN-LS": 2.14}
"""Hypervolumes on Multi-Fashion, means of ten seeds: GMOOAR (NeurIPS 2022), Table 1."""

HEAD = """# Published numbers, and ours

Written by `python -m bench.parity report` from the records beside it; `make parity` makes those that are missing. Do
not edit. Seconds are those of one core that had other work, too.
"""

DIGITS = """## Two digits in one picture

PaLoRA's raw results on MultiMNIST have three seeds of each method. Test accuracy in per cent, left-top / right-bottom
digit: the mean, and the range of the seeds.

{table}

* **The same**: pictures of 28 x 28 (two digits of 28 x 28 on a canvas of 36 x 36, the second one moved by 6 pixels,
  made smaller), {train:,} training pairs, {test:,} test pairs, the network (27,450 parameters), Adam with rate
  {rate:g}, mini-batches of {batch}, {epochs} epochs, of which the last one counts.
* **Not the same**: ours are paired from {digits:,} digits (others are for the test), published ones from 60,000. So
  ours are learned by heart more easily and do worse on test data; only the order and the size of differences can be
  compared. CAGrad's c is 0.5 (theirs is not told); standardisation and resizing are ours.

Differences to the sum of losses, in points, seed by seed:

{differences}
"""

FRONTS = """## Two garments in one picture

Hypervolume from (2, 2) on test data, {rays} rays. GMOOAR's Table 1 has means of ten seeds; ours is one seed. "Best" is
the look with the best validation hypervolume, as one would choose it.

{table}

* **The same**: Multi-Fashion (36 x 36, pairs inside of a split; 108,000 training, 12,000 validation and 20,000 test
  pairs), mini-batches of {batch}, Adam, rates and their steps, Dirichlet(1.2) and lambda 2 for COSMOS, Dirichlet(0.2)
  for PHN-LS: the settings of COSMOS' published code, which compares both. PHN-LS makes the network of 31,910 parameters
  by a hypernetwork of 3,243,410.
* **Not the same**: pairs are drawn anew; COSMOS gets its preference as constant channels, where the published code has
  learned transposed convolutions; whether GMOOAR took these settings is not told, and its reference point and number
  of rays are inferred. Epochs that are missing are named in the table.
"""


def span(numbers: tuple[float, ...] | list[float], sign: str = "") -> str:
    return f"{statistics.mean(numbers):{sign}.2f} ({min(numbers):{sign}.2f} to {max(numbers):{sign}.2f})"


def digits_tables(runs: Mapping[Key, list[Record]]) -> tuple[str, str]:
    """Accuracies, and their differences to the sum seed by seed."""
    rows, differences = [], []
    ours = {
        method: [runs[key][-1]["accuracy"] for key in sorted(runs) if key.data == "digits" and key.method == method]
        for method in digits.METHODS
    }
    for method, published in PUBLISHED_DIGITS.items():
        row: dict[str, object] = {"method": method, "published": " / ".join(span(each) for each in published)}
        other: dict[str, object] = {"method": method, "published": paired(published, PUBLISHED_DIGITS["sum"])}
        if ours[method]:
            mine = tuple(zip(*ours[method], strict=True))
            row |= {"ours": " / ".join(span(each) for each in mine), "seeds": len(ours[method])}
            other["ours"] = paired(mine, tuple(zip(*ours["sum"], strict=True)))
        rows.append(row)
        differences.append(other)
    return table(rows), table(differences[1:])


def paired(one: tuple[tuple[float, ...], ...], other: tuple[tuple[float, ...], ...]) -> str:
    """Of both tasks; over the seeds that both have."""
    return " / ".join(span([a - b for a, b in zip(*pair, strict=False)], "+") for pair in zip(one, other, strict=True))


def fronts_table(runs: Mapping[Key, list[Record]]) -> str:
    rows = []
    for method, settings in fronts.METHODS.items():
        looks = {record["epochs"]: record for record in runs.get(Key("garments", method, 0), [])}
        if not looks:
            continue
        best = max(looks.values(), key=lambda record: record["validation"])
        last = looks[max(looks)]
        rows.append(
            {
                "method": method,
                "published": PUBLISHED_FRONTS[method],
                "ours, best": f"{best['test']:.3f}",
                "ours, last": f"{last['test']:.3f}",
                "validation, by epoch": ", ".join(
                    f"{epoch}: {looks[epoch]['validation']:.3f}" for epoch in sorted(looks)
                ),
                "epochs": f"{last['epochs']} of {settings.epochs}",
                "seconds": f"{last['seconds']:.0f}",
            }
        )
    return table(rows)


def report(runs: Mapping[Key, list[Record]], folder: Path) -> None:
    """Writes README.md into `folder`; parts without a record are left out.

    Raises:
        SystemExit: without any record.
    """
    if not runs:
        raise SystemExit(f"expected records in {folder}, got none: run `make parity` first")
    parts = [HEAD]
    if any(key.data == "digits" for key in runs):
        accuracies, differences = digits_tables(runs)
        parts.append(
            DIGITS.format(
                table=accuracies, differences=differences, train=50_000, test=10_000, digits=4_000,
                rate=digits.RATE, batch=digits.BATCH, epochs=digits.EPOCHS,
            )
        )  # fmt: skip
    if any(key.data == "garments" for key in runs):
        parts.append(FRONTS.format(table=fronts_table(runs), batch=fronts.BATCH, rays=fronts.RAYS))
    (folder / "README.md").write_text("\n\n".join(part.strip() for part in parts) + "\n")
