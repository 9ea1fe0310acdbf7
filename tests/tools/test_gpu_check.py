"""gpu-check: its parts in their order and within their time; one that fails is seen, and stops no other."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from tools.gpu_check import __main__ as gpu_check
from tools.gpu_check import build, fallback, machine, runner
from tools.gpu_check.runner import MARGIN, RESULT, ROOT, UNTIL, Part, Report, run_part, run_parts, write_json

BEGUN = "import sys, time; open(sys.argv[1], 'w').write('{\"rows\": [1, 2'); print('half', flush=True); "


def program(text: str, limit: float = 30, name: str = "part", **options: bool) -> Part:
    return Part(name, [sys.executable, "-c", text, RESULT], limit, **options)


def writes(value: Any, then: str = "pass", **options: Any) -> Part:
    return program(f"import sys; open(sys.argv[1], 'w').write({json.dumps(value)!r}); {then}", **options)


# ---------------------------------------------------------------------- one part
def test_a_part_hands_over_what_it_wrote() -> None:
    entry = run_part(writes([1]), 60)
    assert entry["status"] == "ok" and entry["result"] == [1]


def test_a_part_that_fails_says_how_and_keeps_what_it_had() -> None:
    entry = run_part(writes([1], "sys.exit('no such kernel')"), 60)
    assert entry["status"] == "failed" and entry["exit status"] == 1 and entry["result"] == [1]
    assert "no such kernel" in entry["output"]


def test_a_part_ends_at_its_limit_and_takes_its_children_along(tmp_path: Path) -> None:
    child = f"import time, pathlib; time.sleep(2); pathlib.Path({str(tmp_path / 'alive')!r}).touch()"
    text = f"import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    entry = run_part(program(text, limit=1.0), 60)
    assert entry["status"] == "out of time" and "begun" in entry["output"]
    time.sleep(1.5)
    assert not (tmp_path / "alive").exists()


@pytest.mark.parametrize(("then", "status"), [("time.sleep(60)", "out of time"), ("sys.exit(0)", "failed")])
def test_a_part_that_ends_while_it_writes_has_no_result(then: str, status: str) -> None:
    """Killed, or by itself: then "ok" would be wrong."""
    entry = run_part(program(BEGUN + then, limit=2.0), 60)
    assert entry["status"] == status and "half" in entry["output"]
    assert "result" not in entry and entry["no result"].startswith("JSONDecodeError")


def test_a_part_that_writes_nothing_has_failed() -> None:
    entry = run_part(program("pass"), 60)
    assert entry["status"] == "failed" and entry["no result"].startswith("FileNotFoundError")
    assert run_part(Part("part", [sys.executable, "-c", "pass"], 30), 60)["status"] == "ok"  # if none was asked for


def test_a_part_is_told_when_to_end_by_itself() -> None:
    part = Part("part", [sys.executable, "-c", "import sys; print(sys.argv[1])", UNTIL], 100.0)
    for seconds, limit in ((1000.0, 100.0), (50.0, 50.0)):
        begin = time.time()
        until = float(run_part(part, seconds)["output"])
        assert abs(until - (begin + limit - MARGIN)) < 5


def test_what_is_written_is_whole_or_what_was_there_before(tmp_path: Path) -> None:
    write_json(path := tmp_path / "result.json", {"rows": [1]})
    with pytest.raises(TypeError):
        write_json(path, {"rows": [1, 2, object()]})
    assert json.loads(path.read_text()) == {"rows": [1]}


@pytest.mark.parametrize("die", ["os._exit(1)", "os.kill(os.getpid(), 9)"])
def test_who_dies_while_writing_leaves_what_was_there_before(die: str, tmp_path: Path) -> None:
    write_json(path := tmp_path / "result.json", {"rows": [1]})
    text = (
        "import os, sys, pathlib; from tools.gpu_check.runner import write_json\n"
        "write = pathlib.Path.write_text\n"
        f"pathlib.Path.write_text = lambda path, text: (write(path, text[:5]), {die})\n"
        "write_json(pathlib.Path(sys.argv[1]), {'rows': [1, 2]})"
    )
    assert subprocess.run([sys.executable, "-c", text, str(path)], cwd=ROOT).returncode != 0
    assert json.loads(path.read_text()) == {"rows": [1]}


# ---------------------------------------------------------------------- all parts
def statuses(report: Report) -> dict[str, str]:
    return {name: entry["status"] for name, entry in json.loads(report.path.read_text())["parts"].items()}


def run_all(parts: list[Part], path: Path, seconds: float = 60) -> Report:
    report = Report(path, {"machine": {}})
    run_parts(parts, report, time.monotonic() + seconds)
    return report


def test_a_failed_part_does_not_stop_the_next_and_is_in_the_report(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    seen = f"import json; assert list(json.load(open({str(path)!r}))['parts']) == ['first', 'killed']"
    parts = [
        Part("first", [sys.executable, "-c", "raise SystemExit(3)"], 30),
        program(BEGUN + "import os; os.kill(os.getpid(), 9)", name="killed"),
        Part("last", [sys.executable, "-c", seen], 30),
    ]
    report = run_all(parts, path)
    assert statuses(report) == {"first": "failed", "killed": "failed", "last": "ok"} and not report.passed
    assert run_all(parts[2:0], path).passed


def test_the_budget_cuts_the_later_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LEAST", 0.5)
    seconds = {"first": 0.5, "second": 60, "third": 0}
    parts = [Part(name, [sys.executable, "-c", f"import time; time.sleep({s})"], 60) for name, s in seconds.items()]
    begin = time.monotonic()
    report = run_all(parts, tmp_path / "report.json", seconds=4)
    assert time.monotonic() - begin < 50, "the second part alone would take 60"
    assert statuses(report) == {"first": "ok", "second": "out of time", "third": "not run"} and not report.passed


@pytest.mark.parametrize(("must_end", "passed"), [(True, False), (False, True)])
@pytest.mark.parametrize("seconds", [60.0, 0.0], ids=["out of time", "not run"])
def test_only_some_parts_may_be_cut_short(must_end: bool, passed: bool, seconds: float, tmp_path: Path) -> None:
    part = program("import time; time.sleep(60)", limit=1.0, must_end=must_end)
    assert run_all([part], tmp_path / "report.json", seconds).passed == passed


def test_no_part_may_fail(tmp_path: Path) -> None:
    assert not run_all([writes([], "sys.exit(1)", must_end=False)], tmp_path / "report.json").passed


def test_a_part_that_runs_ends_with_the_command(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    text = f"import time; open({str(tmp_path / 'begun')!r}, 'w'); time.sleep(3); open({str(alive)!r}, 'w')"
    caller = (
        "import signal, sys; from tools.gpu_check import __main__ as check; from tools.gpu_check.runner import Part\n"
        f"check.check = lambda *_: check.run_part(Part('part', [sys.executable, '-c', {text!r}], 60), 60)\n"
        "sys.argv = ['gpu_check', '--dry-run']; sys.exit(check.main())"
    )
    process = subprocess.Popen([sys.executable, "-c", caller], cwd=ROOT)
    while not (tmp_path / "begun").exists():
        time.sleep(0.05)
    process.terminate()
    assert process.wait(10) == 143
    time.sleep(3.5)
    assert not alive.exists()


# ---------------------------------------------------------------------- the command
ORDER = ["build", "smoke", "timing", "tests", "bits", "steps", "sanitizer", "counters", "peers"]


def test_parts_come_in_the_order_of_their_worth() -> None:
    assert [part.name for part in gpu_check.parts("9.0")] == ORDER
    assert [part.name for part in gpu_check.parts(None)] == ORDER


def test_what_must_pass_fits_into_the_budget() -> None:
    must = [part for part in gpu_check.parts("9.0") if part.must_end]
    assert gpu_check.TOTAL == 400
    assert {part.name for part in must} == set(ORDER[:6])
    assert sum(part.limit for part in must) + 10 <= gpu_check.TOTAL  # and the question what machine this is
    assert gpu_check.AGAIN == 120 and [part.name for part in gpu_check.failed_parts("9.0")] == ["build", "tests"]


def test_parts_are_for_this_gpu() -> None:
    commands = {part.name: part.command for part in gpu_check.parts("8.6")}
    assert "8.6" in commands["build"] and "8.6" in commands["sanitizer"]
    assert not [word for command in commands.values() for word in command if word in ("--dry-run", "--quick", "cpu")]


@pytest.fixture
def fake_machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    found = {"gpu": "Some GPU", "date": "2026-01-31", "architecture": "9.0"}
    found |= {"torch": "2.11.0", "nvcc": "13.0", "commit": "abc"}
    monkeypatch.setattr(gpu_check, "machine_part", lambda dry, commit: writes(found))
    return found


def chosen(**options: Any) -> Namespace:
    return Namespace(**{"dry_run": False, "commit": "", "only": [], "only_failed": False, **options})


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (1, 1)])
def test_the_command_fails_if_a_part_does(
    code: int, expected: int, fake_machine: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    architectures = []

    def parts(architecture: str | None) -> list[Part]:
        architectures.append(architecture)
        return [writes({"notes": "", "rows": [{"ms": 1}]}, f"sys.exit({code})", name="timing")]

    monkeypatch.setattr(gpu_check, "parts", parts)
    assert gpu_check.check(chosen(), tmp_path) == expected
    report = json.loads((tmp_path / "gpu-check-some-gpu-2026-01-31.json").read_text())
    assert report["machine"] == fake_machine and architectures == ["9.0"]
    assert report["parts"]["timing"]["status"] == ("failed" if code else "ok")
    table = json.loads((tmp_path / "gpu-some-gpu-2026-01-31.json").read_text())
    assert table == {"machine": fake_machine, "notes": "", "rows": [{"ms": 1}]}


def test_the_second_call_does_not_overwrite_the_first(
    fake_machine: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu_check, "failed_parts", lambda architecture: [writes([1], name="tests")])
    assert gpu_check.check(chosen(only_failed=True), tmp_path) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["gpu-check-some-gpu-2026-01-31-failed.json"]


def test_cuda_and_the_programs_of_this_interpreter_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/bin")
    monkeypatch.setenv("MT2O_REQUIRE_NATIVE", "0")
    gpu_check.prepare_environment()
    assert os.environ["PATH"].split(":") == [str(Path(sys.executable).parent), "/bin", "/usr/local/cuda/bin"]
    assert os.environ["MT2O_REQUIRE_NATIVE"] == "1"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_fails_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.check(chosen(), tmp_path) == 1
    assert "finds no GPU; --dry-run needs none" in capsys.readouterr().out


def test_the_commit_can_be_given() -> None:
    assert machine.software("0123-dirty")["commit"] == "0123-dirty"


def test_makefile_and_script_start_it() -> None:
    help_text = subprocess.check_output(["make", "-s", "--no-print-directory", "help"], cwd=ROOT, text=True)
    assert re.search(r"make gpu-check +.*seven minutes", help_text)
    started = subprocess.check_output(
        ["make", "-sn", "--no-print-directory", "gpu-check", "OUT=here", "PYTHON=that"], cwd=ROOT, text=True
    )
    assert started.strip() == 'PYTHON="that" tools/gpu_check.sh --out "here"'
    script = ROOT / "tools" / "gpu_check.sh"
    help_text = subprocess.check_output([script, "--help"], text=True, env=os.environ | {"PYTHON": sys.executable})
    assert all(option in help_text for option in ("--out", "--commit", "--dry-run", "--only", "--only-failed"))


# ---------------------------------------------------------------------- build
def test_a_build_tells_its_end_only_if_it_fails() -> None:
    assert build.Build("echo fine").end() == {"exit status": 0}
    assert build.Build("echo no such macro; exit 3").end() == {"exit status": 3, "output": "no such macro\n"}


@pytest.mark.parametrize(("package", "emulator", "expected"), [(0, 0, 0), (1, 0, 1), (0, 1, 1)])
def test_a_build_that_fails_leaves_the_libraries_that_were_there(
    package: int, emulator: int, expected: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(build, "package", lambda architecture: build.Build(f"exit {package}"))
    monkeypatch.setattr(build, "emulator", lambda: build.Build(f"exit {emulator}"))
    monkeypatch.setattr(build, "libraries", lambda: ["_C.here.so"])
    monkeypatch.setattr(sys, "argv", ["build", str(path := tmp_path / "result.json"), "9.0"])
    assert build.main() == expected
    result = json.loads(path.read_text())
    assert result["libraries before"] == ["_C.here.so"]
    assert (result["package"]["exit status"], result["emulator"]["exit status"]) == (package, emulator)


def test_the_fallback_builds_with_a_torch_that_need_not_run(tmp_path: Path) -> None:
    fallback.stand_in(Path(torch.__file__).parent, tmp_path)
    fallback.stand_in(Path(torch.__file__).parent, tmp_path)  # again
    text = "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.device_count(), torch.__file__)"
    output = subprocess.check_output([sys.executable, "-S", "-c", text], cwd=tmp_path, text=True)
    assert output.split() == [torch.__version__, "None", "0", str(tmp_path / "torch" / "__init__.py")]
    assert (tmp_path / "torch" / "include" / "torch" / "csrc" / "stable" / "tensor.h").exists()
