"""gpu-check: a part that fails is seen, does not stop the others, and is in the report; bench_gpu, on the CPU."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from samplers import Layout
from torch import Tensor

from bench import bench_gpu, gpu_cases, gpu_steps
from tools.gpu_check import __main__ as gpu_check
from tools.gpu_check import bits, sanitize, suite
from tools.gpu_check.runner import RESULT, ROOT, Part, run_part, run_parts

HOST = torch.device("cpu")


def program(text: str, limit: float = 30) -> Part:
    return Part("part", [sys.executable, "-c", text, RESULT], limit)


def test_a_part_hands_over_what_it_wrote() -> None:
    entry = run_part(program("import sys; open(sys.argv[1], 'w').write('[1]')"))
    assert entry["status"] == "ok" and entry["result"] == [1] and "output" not in entry


def test_a_part_that_fails_says_how_and_keeps_what_it_had() -> None:
    entry = run_part(program("import sys; open(sys.argv[1], 'w').write('[1]'); sys.exit('no such kernel')"))
    assert entry["status"] == "failed" and entry["exit status"] == 1 and entry["result"] == [1]
    assert "no such kernel" in entry["output"]


def test_a_part_ends_at_its_limit_and_takes_its_children_along(tmp_path: Path) -> None:
    child = f"import time, pathlib; time.sleep(2); pathlib.Path({str(tmp_path / 'alive')!r}).touch()"
    text = f"import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    entry = run_part(program(text, limit=1.0))
    assert entry["status"] == "out of time" and entry["seconds"] < 2 and "begun" in entry["output"]
    assert run_part(program("import time; time.sleep(1.5)"))["status"] == "ok"
    assert not (tmp_path / "alive").exists()


def test_a_failed_part_does_not_stop_the_next_and_is_in_the_report(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    seen = f"import json; assert list(json.load(open({str(path)!r}))['parts']) == ['first']"
    parts = [
        Part("first", [sys.executable, "-c", "raise SystemExit(3)"], 30),
        Part("second", [sys.executable, "-c", seen], 30),
    ]
    assert not run_parts(parts, {"machine": {}}, path)
    report = json.loads(path.read_text())
    assert {name: part["status"] for name, part in report["parts"].items()} == {"first": "failed", "second": "ok"}
    assert run_parts(parts[:0], {}, path)


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (1, 1)])
def test_the_command_fails_if_a_part_does(
    code: int, expected: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = {"gpu": "Some GPU", "date": "2026-01-31", "architecture": "9.0", "torch": "2.11.0", "nvcc": "13.0"}
    found = program(f"import sys; open(sys.argv[1], 'w').write({json.dumps(machine)!r})")
    architectures = []

    def parts(architecture: str | None) -> list[Part]:
        architectures.append(architecture)
        return [Part("only", [sys.executable, "-c", f"raise SystemExit({code})"], 30)]

    monkeypatch.setattr(gpu_check, "machine_part", lambda dry: found)
    monkeypatch.setattr(gpu_check, "parts", parts)
    assert gpu_check.check(tmp_path, dry=False) == expected
    report = json.loads((tmp_path / "gpu-some-gpu-2026-01-31.json").read_text())
    assert report["machine"] == machine and architectures == ["9.0"]
    assert report["parts"]["only"]["status"] == ("failed" if code else "ok")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_fails_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.check(tmp_path, dry=False) == 1
    assert "finds no GPU; --dry-run needs none" in capsys.readouterr().out


def test_all_parts_for_a_gpu_fit_into_eight_minutes() -> None:
    assert sum(part.limit for part in gpu_check.parts("9.0")) <= 8 * 60 - 10
    assert [part.name for part in gpu_check.parts("9.0")] == [part.name for part in gpu_check.parts(None)]


def test_the_report_is_named_after_the_gpu() -> None:
    assert gpu_check.file_name({"gpu": "NVIDIA H100 80GB HBM3", "date": "2026-01-31"}) == (
        "gpu-nvidia-h100-80gb-hbm3-2026-01-31.json"
    )


REPORT = """<testsuites><testsuite>
<testcase classname="tests.ops.test_step" name="test_step[cuda]"/>
<testcase classname="tests.ops.test_step" name="test_other[cuda]"><failure message="0.5 is not 0.25"/></testcase>
<testcase classname="tests.ops.test_step" name="test_third[cuda]"><skipped message="no bfloat16"/></testcase>
<testcase classname="" name="tests.ops.test_gram"><error message="collection failure">E
ModuleNotFoundError: No module named 'hypothesis'</error></testcase>
</testsuite></testsuites>"""


def test_the_suites_report_is_counted(tmp_path: Path) -> None:
    (path := tmp_path / "report.xml").write_text(REPORT)
    assert suite.counts(path) == {
        "passed": 1,
        "failed": 1,
        "skipped": {"no bfloat16": 1},
        "not collected": {"tests.ops.test_gram": "ModuleNotFoundError: No module named 'hypothesis'"},
        "failures": {"tests.ops.test_step.test_other[cuda]": "0.5 is not 0.25"},
    }


def test_a_suite_is_right_if_something_passed_and_nothing_of_a_backend_is_missing() -> None:
    passed = {"passed": 3, "failed": 0, "not collected": {}}
    assert suite.right(passed)
    assert not suite.right(passed | {"passed": 0})
    assert not suite.right(passed | {"failed": 1})
    assert not suite.right(passed | {"not collected": {"tests.ops.test_gram": "ModuleNotFoundError"}})
    assert suite.right(passed | {"not collected": {"tests.test_pareto_plot": "ModuleNotFoundError"}})


@pytest.mark.parametrize(
    ("code", "output", "outcome"),
    [
        (0, "ERROR SUMMARY: 0 errors", "clean"),
        (9, "Invalid __global__ write of size 4 bytes\nnot supported on this", "found"),
        (1, "Error: Device not supported", "refused"),
        (1, "Segmentation fault", "found"),
    ],
)
def test_what_the_sanitizer_says(code: int, output: str, outcome: str) -> None:
    assert sanitize.verdict(code, output)["outcome"] == outcome


def test_the_sanitizers_program_calls_every_kernel_family() -> None:
    assert bits.families() == set(re.findall(r"cuda::(\w+)\(", (ROOT / sanitize.SOURCE).read_text()))


# ---------------------------------------------------------------------- bits
LIBRARY = bits.Backend("cpu", HOST, torch.ops.mt2o_ext)


def test_the_same_kernels_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bits, "LAYOUT", Layout((17, 1, 0, 33)))
    result = bits.compare(LIBRARY, LIBRARY, LIBRARY)
    assert result["cases"] > 100 and result["differ"] == {} and result["must agree"] == []


@pytest.mark.parametrize("family", ["combine", "gram", "transfer", "step", "priority"])
def test_one_other_bit_is_found(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bits, "LAYOUT", Layout((17, 1, 0, 33)))
    calls = [call for call in bits.all_calls() if call.family == family][:2]
    monkeypatch.setattr(bits, "calls", lambda: iter(calls))
    right = getattr(torch.ops.mt2o_ext, f"{family}_")

    def one_bit_off(out: Tensor, *others: Tensor, **options: object) -> None:
        right(out, *others, **options)
        first = out.flatten()[:1]
        first.copy_(torch.nextafter(first, torch.full_like(first, torch.inf)))

    other = bits.Backend("other", HOST, SimpleNamespace(**{f"{family}_": one_bit_off}))
    assert len(bits.compare(LIBRARY, other, LIBRARY)["must agree"]) == 2
    compared = bits.compare(LIBRARY, LIBRARY, other)
    assert len(compared["differ"]) == 2
    assert len(compared["must agree"]) == (0 if family in ("gram", "priority") else 2)


def test_every_family_with_cuda_kernels_is_compared() -> None:
    assert bits.families()
    assert bits.families() == {call.family for call in bits.calls()}


# ---------------------------------------------------------------------- bench_gpu, on the CPU
@pytest.mark.parametrize("make", list(gpu_cases.makers(1000, compiled=False)), ids=lambda make: make.func.__name__)
def test_every_case_runs_with_its_peers(make) -> None:
    row = bench_gpu.timed(make(HOST), HOST, rounds=1)
    times = [row["ms"], row["x copy"], *(value for key, value in row.items() if key.endswith("/ ours"))]
    assert all(isinstance(time, float) and time > 0 for time in times)


def test_rows_behind_a_copy_or_a_peer_are_below_the_target() -> None:
    good = {"x copy": 0.95, "mm / ours": 1.5, "compiled / ours": "ImportError: no Triton"}
    bad = [good | {"x copy": 0.8}, good | {"mm / ours": 0.9}]
    assert bench_gpu.below_target([good, *bad]) == bad


def test_steps_are_found_to_launch_as_often_for_many_tensors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_steps, "MANY", 20)
    report = bench_gpu.Report(tmp_path / "report.json")
    for entry in gpu_steps.steps(HOST):
        report.add("steps", entry)
    written = json.loads((tmp_path / "report.json").read_text())["steps"]
    assert [entry["optimizer"] for entry in written] == list(gpu_steps.OPTIMIZERS)
    assert all(entry["right"] for entry in written)
