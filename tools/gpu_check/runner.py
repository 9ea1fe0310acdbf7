"""Runs the parts of a check one after another, each within its limit and all within one budget of time.

A part that fails, is killed, or dies while it writes stops no other.  What is known is on disk after each.
"""

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
TAIL = 12_000  # characters of the end of what a part printed that are kept
PRINTED = 2500  # of those, characters that are printed of a part that failed
LEAST = 5.0  # seconds below which a part is not begun
MARGIN = 5  # seconds before its limit that a part is asked to end by itself

# What stands for these in a part's command is put in when it is run: the file that it writes its result to, and when
# it should end by itself (as time.time() counts).
RESULT, UNTIL = "{result}", "{until}"


@dataclass(frozen=True)
class Part:
    """One command."""

    name: str
    command: Sequence[str]
    limit: float  # seconds
    environment: dict[str, str] = field(default_factory=dict)
    must_end: bool = True  # False: to be cut short is no failure
    shown: bool = False  # what it prints is shown even if all is well

    def passed(self, entry: dict[str, Any]) -> bool:
        return entry["status"] == "ok" or (not self.must_end and entry["status"] in ("out of time", "not run"))


class Report:
    """What the parts gave so far, on disk after each."""

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self.path, self.content, self.passed = path, head | {"parts": {}}, True

    def add(self, part: Part, entry: dict[str, Any]) -> None:
        self.content["parts"][part.name] = entry
        self.passed &= part.passed(entry)
        write_json(self.path, self.content)


def write_json(path: Path, content: Any) -> None:
    """Whole or not at all: who is killed while writing leaves what was there before."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(content, indent=1) + "\n")
    new.replace(path)


def run_part(part: Part, seconds: float) -> dict[str, Any]:
    """Runs a part for at most its limit, and at most for so many seconds.

    Gives status, "ok", "failed", "out of time" or "not run"; seconds; result, what the part wrote; output, its end.
    """
    limit = min(part.limit, seconds)
    if limit < min(LEAST, part.limit):
        return {"status": "not run", "seconds": 0.0, "output": "the budget of time is used up"}
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        result, output = Path(directory, "result.json"), Path(directory, "output")
        values = {RESULT: str(result), UNTIL: str(time.time() + limit - MARGIN)}
        command = [values.get(word, word) for word in part.command]
        code = run_command(command, part.environment, output, limit)
        entry: dict[str, Any] = {
            "status": "ok" if code == 0 else "out of time" if code is None else "failed",
            "seconds": round(time.monotonic() - begin, 1),
            "output": output.read_text(errors="replace")[-TAIL:],
        }
        if code != 0:
            entry |= {"command": command, "exit status": code}
        if RESULT in part.command:
            take_result(entry, result)
    return entry


def run_command(command: Sequence[str], environment: dict[str, str], output: Path, limit: float) -> int | None:
    """Its exit status; None if it was stopped at the limit, with all that it has started."""
    with output.open("w") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | environment, stdin=subprocess.DEVNULL,
            stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:  # also what the part has left running, and when this program is interrupted
            stop_group(process)


def stop_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def take_result(entry: dict[str, Any], path: Path) -> None:
    """Puts what a part wrote into its entry; one that says "ok" without a result that can be read has failed."""
    try:
        entry["result"] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        entry["no result"] = f"{type(error).__name__}: {error}"
        if entry["status"] == "ok":
            entry["status"] = "failed"


def run_parts(parts: Sequence[Part], report: Report, end: float) -> None:
    """Runs all parts, also after a failure, until ``end`` on the monotonic clock: the later ones are cut."""
    for part in parts:
        print(f"{part.name:<12}", end="", flush=True)
        entry = run_part(part, end - time.monotonic())
        report.add(part, entry)
        print(line_of(part, entry), flush=True)
        if part.shown or entry["status"] != "ok":
            print(entry["output"][-(TAIL if part.shown else PRINTED) :], flush=True)


def line_of(part: Part, entry: dict[str, Any]) -> str:
    excuse = "" if entry["status"] == "ok" or not part.passed(entry) else "  (no failure: it may be cut short)"
    reason = f"  no result: {entry['no result']}" if "no result" in entry else ""
    return f"{entry['status']:<12}{entry['seconds']:6.1f} s{excuse}{reason}"
