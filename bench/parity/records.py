"""What a run leaves, in a file of one line of JSON each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

Record = dict[str, Any]


class Key(NamedTuple):
    """What a run is known by: the data, the method, the seed."""

    data: str
    method: str
    seed: int


def key_of(record: Record) -> Key:
    return Key(record["data"], record["method"], record["seed"])


def read(path: Path) -> dict[Key, list[Record]]:
    """The records of each run in their order: one, or one for each look at a front."""
    found: dict[Key, list[Record]] = {}
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
        try:
            record = json.loads(line)
            found.setdefault(key_of(record), []).append(record)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"expected a record in line {number} of {path}, got {line[:60]!r}: delete it ({error})"
            ) from error
    return found


def append(path: Path, record: Record) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        file.write(json.dumps(record, separators=(",", ":")) + "\n")
