"""Runs the parts of a check one after another, each with a time limit, and writes what is known after each."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TAIL = 6000  # characters of a failed part's output that are kept


@dataclass(frozen=True)
class Part:
    """One command, which may write a JSON file of its own to the path that stands where RESULT is in it."""

    name: str
    command: Sequence[str]
    limit: float  # seconds
    environment: dict[str, str] = field(default_factory=dict)


RESULT = "{result}"


def run_part(part: Part) -> dict[str, Any]:
    """status "ok", "failed" or "out of time"; seconds; result, what the part wrote; output, of one that failed."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        result, output = Path(directory, "result.json"), Path(directory, "output")
        command = [word.replace(RESULT, str(result)) for word in part.command]
        with output.open("w") as stream:
            process = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | part.environment, stdin=subprocess.DEVNULL,
                stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                code: int | None = process.wait(part.limit)
            except subprocess.TimeoutExpired:
                code = None
            finally:  # also what the part has left running, and when this program is interrupted
                stop_group(process)
        entry: dict[str, Any] = {
            "status": "ok" if code == 0 else "out of time" if code is None else "failed",
            "seconds": round(time.monotonic() - begin, 1),
        }
        if result.exists():
            entry["result"] = json.loads(result.read_text())
        if code != 0:
            entry |= {"command": command, "exit status": code, "output": output.read_text(errors="replace")[-TAIL:]}
    return entry


def stop_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_parts(parts: Sequence[Part], report: dict[str, Any], path: Path) -> bool:
    """Runs all parts, also after a failure; ``path`` holds the report after each.  True if all are ok."""
    report["parts"] = {}
    for part in parts:
        print(f"{part.name:<12}", end="", flush=True)
        entry = report["parts"][part.name] = run_part(part)
        path.write_text(json.dumps(report, indent=1) + "\n")
        print(f"{entry['status']:<12}{entry['seconds']:6.1f} s", flush=True)
        if entry["status"] != "ok":
            print(entry["output"], flush=True)
    return all(entry["status"] == "ok" for entry in report["parts"].values())
