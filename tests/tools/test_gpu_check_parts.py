"""What the parts of gpu-check find: failed tests, what the sanitizer and ncu say, wrong operators, other bits."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mt2o_ext.ops import reference_solve
from support.samplers import Layout
from tools.gpu_check import bits, counters, problems, recorder, sanitize, smoke, suite
from tools.gpu_check.runner import ROOT

HOST = torch.device("cpu")


# ---------------------------------------------------------------------- tests
TESTS = """
import time
import warnings

import pytest


@pytest.fixture
def broken():
    yield
    raise RuntimeError("no tear-down")


@pytest.mark.parametrize("backend", ["cuda", "cpu"])
class TestAll:
    def test_right(self, backend):
        warnings.warn("not an error here")

    def test_wrong(self, backend):
        assert 0.5 == 0.25, "sums"

    def test_torn(self, backend, broken):
        pass

    def test_left_out(self, backend):
        pytest.skip("no bfloat16")
"""


@pytest.fixture
def of_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with other tests than this one."""
    (tmp_path / "pytest.ini").write_text("[pytest]\ntestpaths = tests\nfilterwarnings = error\nmarkers = slow\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_some.py").write_text(TESTS)
    monkeypatch.setattr(suite, "FAILED", tmp_path / "build" / "failed.json")
    monkeypatch.setattr(suite, "WORKERS", 1)
    monkeypatch.setattr(suite, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def run_suite(path: Path, monkeypatch: pytest.MonkeyPatch, *words: str, seconds: float = 60) -> tuple[int, Any]:
    result = path / "result.json"
    monkeypatch.setattr(sys, "argv", ["suite", str(result), str(time.time() + seconds), "cuda", *words])
    return suite.main(), json.loads(result.read_text())


def test_the_suite_counts_and_runs_again_what_failed(of_tests: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (of_tests / "tests" / "test_other.py").write_text("import no_such_module_for_a_backend")
    code, result = run_suite(of_tests, monkeypatch)
    assert code == 1 and (result["passed"], result["failed"]) == (1, 2)
    assert result["skipped"] == {"no bfloat16": 1}
    assert "no_such_module_for_a_backend" in result["not collected"]["tests/test_other.py"]
    wrong, torn = (f"tests/test_some.py::TestAll::test_{name}[cuda]" for name in ("wrong", "torn"))
    assert result["failures"][wrong].startswith("AssertionError: sums")
    assert result["failures"][torn] == "RuntimeError: no tear-down"
    (of_tests / "tests" / "test_other.py").unlink()
    (of_tests / "tests" / "test_some.py").write_text(TESTS.replace("0.5 == 0.25", "True"))
    suite.FAILED.write_text(json.dumps([wrong, torn]))
    code, result = run_suite(of_tests, monkeypatch, "--failed")
    assert code == 1 and (result["passed"], result["failed"]) == (1, 1) and list(result["failures"]) == [torn]


def test_there_must_be_something_to_run_again(of_tests: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["suite", str(of_tests / "result.json"), "0", "cuda", "--failed"])
    assert suite.main() == 1


def test_a_suite_that_is_stopped_tells_what_it_has(of_tests: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "def test_quick_cuda(): pass\ndef test_slow_cuda(): import time; time.sleep(100)\n"
    (of_tests / "tests" / "test_some.py").write_text(text)
    code, result = run_suite(of_tests, monkeypatch, seconds=10)
    assert code == 1 and result["exit status"] is None and (result["passed"], result["failed"]) == (1, 0)


def test_a_worker_of_the_tests_records_nothing(tmp_path: Path) -> None:
    registered: list[Any] = []
    config = SimpleNamespace(
        getoption=lambda name: tmp_path, pluginmanager=SimpleNamespace(register=registered.append), workerinput={}
    )
    recorder.pytest_configure(config)  # type: ignore[arg-type]
    assert registered == []


def test_a_suite_is_right_if_most_tests_passed_and_nothing_of_a_backend_is_missing() -> None:
    passed = {"passed": 3, "failed": 0, "skipped": {"no bfloat16": 1}, "not collected": {}, "exit status": 0}
    assert suite.right(passed)
    assert not suite.right(passed | {"skipped": {"no GPU": 2, "no bfloat16": 1}})  # three that need none have passed
    assert not suite.right(passed | {"passed": 0})
    assert not suite.right(passed | {"failed": 1})
    assert not suite.right(passed | {"exit status": None})
    assert not suite.right(passed | {"exit status": 3})  # an error in pytest itself
    assert not suite.right(passed | {"not collected": {"tests/ops/test_gram.py": "ModuleNotFoundError"}})
    assert suite.right(passed | {"not collected": {"tests/pareto/test_plot.py": "ModuleNotFoundError"}})


# ---------------------------------------------------------------------- sanitizer
WRITE = "========= COMPUTE-SANITIZER\n========= Invalid __global__ write of size 4 bytes\n"


@pytest.mark.parametrize(
    ("code", "output", "outcome"),
    [
        (0, "========= ERROR SUMMARY: 0 errors", "clean"),
        (9, WRITE + "not supported on this", "found"),
        (1, "Error: Device not supported", "refused"),
        (9, "========= Error: Device not supported\n========= Program hit error 999", "refused"),
        (1, "Segmentation fault", "found"),
        (None, "========= COMPUTE-SANITIZER\n", "out of time"),
        (None, WRITE, "found"),
    ],
)
def test_what_the_sanitizer_says(code: int | None, output: str, outcome: str) -> None:
    assert sanitize.verdict(code, output)["outcome"] == outcome


FAKE_SANITIZER = """#!/bin/sh
echo "========= COMPUTE-SANITIZER"
case "$2" in
  memcheck) exit 0 ;;
  racecheck) echo "========= Error: Race reported"; exit 9 ;;
  *) sleep 4; echo "$@" ;;
esac
"""


def test_the_sanitizers_tools_run_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tool := tmp_path / "compute-sanitizer").write_text(FAKE_SANITIZER)
    (kernels := tmp_path / "kernels").write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    kernels.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(sanitize, "BUILD", tmp_path)
    monkeypatch.setattr(sanitize, "commands", lambda architecture, dry: [])
    result, begin = tmp_path / "result.json", time.time()
    monkeypatch.setattr(sys, "argv", ["sanitize", str(result), str(begin + 2), "9.0"])
    assert sanitize.main() == 1
    assert time.time() - begin < 4
    outcomes = {
        name: entry.get("outcome") for name, entry in json.loads(result.read_text()).items() if name in sanitize.TOOLS
    }
    assert outcomes == {
        "memcheck": "clean", "racecheck": "found", "synccheck": "out of time", "initcheck": "out of time"
    }  # fmt: skip


def test_the_sanitizers_program_calls_every_kernel_family() -> None:
    assert bits.families() == set(re.findall(r"cuda::(\w+)\(", (ROOT / sanitize.SOURCE).read_text()))


# ---------------------------------------------------------------------- counters
TABLE = """==PROF== Connected to process 71
"ID","Kernel Name","gpu__time_duration.sum","dram__bytes_read.sum","launch__registers_per_thread","{}"
"","","ns","byte","register/thread","inst"
"0","gram_chunks","123,456","400,000,000","128","7.25"
"1","add_chunks","2000","n/a","","0.5"
==PROF== Disconnected
""".format(counters.STALL.format("long_scoreboard"))


def test_the_table_of_counters_is_read() -> None:
    gram, add = counters.kernels(TABLE.splitlines())
    assert gram == {"kernel": "gram_chunks", "us": 123.456, "read, GB": 0.4, "registers": 128, "long_scoreboard": 7.25}
    assert add == {"kernel": "add_chunks", "us": 2.0, "long_scoreboard": 0.5}
    assert counters.line_of(gram)["warps per issue that wait for"] == "long_scoreboard 7.25"


FAKE_NCU = """#!/bin/sh
while [ $# -gt 0 ]; do
  case "$1" in --log-file) log=$2 ;; --metrics) metrics=$2 ;; esac
  shift
done
case $metrics in *stalled*) echo "==ERROR== Failed to find metric" > "$log"; exit 1 ;; esac
cat "$(dirname "$0")/table" > "$log"
"""


@pytest.mark.parametrize("table", [TABLE, "==ERROR== ERR_NVGPUCTRPERM\n"], ids=["read", "refused"])
def test_counters_are_read_or_it_is_said_that_they_are_not(
    table: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also where this ncu does not know the counters of stalls."""
    (ncu := tmp_path / "ncu").write_text(FAKE_NCU)
    ncu.chmod(0o755)
    (tmp_path / "table").write_text(table)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(counters, "LOG", tmp_path / "ncu.csv")
    monkeypatch.setattr(sys, "argv", ["counters", str(tmp_path / "result.json"), str(time.time() + 30)])
    assert counters.main() == 0
    result = json.loads((tmp_path / "result.json").read_text())
    if table is TABLE:
        assert [kernel["kernel"] for kernel in result["kernels"]] == ["gram_chunks", "add_chunks"]
    else:
        assert "Failed to find metric" in result["refused"] and "ERR_NVGPUCTRPERM" in result["refused"]


def test_without_ncu_that_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(counters, "find_ncu", lambda: None)
    monkeypatch.setattr(sys, "argv", ["counters", str(tmp_path / "result.json"), str(time.time() + 30)])
    assert counters.main() == 0
    assert "there is no ncu" in json.loads((tmp_path / "result.json").read_text())["refused"]


def test_four_kernels_are_counted() -> None:
    shapes = {make.func.family: make.args[:-1] for make in counters.cases(800)}
    assert shapes == {
        "gram": (8, torch.float32), "step": (5, 2, torch.float32), "finite": (8, 1, torch.bfloat16),
        "combine": (1, 8, torch.float32),
    }  # fmt: skip
    counters.launch(HOST, 800)


# ---------------------------------------------------------------------- smoke
def test_every_operator_is_smoked() -> None:
    result = {"checks": list(smoke.checks(problems.CPU))}
    assert smoke.right(result)
    names = {entry["operator"] for entry in result["checks"]}
    assert names >= (bits.families() - {"solve"}) | {call.operator for call in problems.calls() if call.operator}


@pytest.mark.parametrize("error", [1e-3, math.nan])
def test_a_wrong_solver_is_seen_by_smoke(error: float) -> None:
    def wrong(weights: Tensor, *others: Tensor, **options: Any) -> None:
        reference_solve.project_(weights, *others, **options)
        weights[0, 0] += error

    operators = {name: getattr(reference_solve, name) for name in dir(reference_solve) if name.endswith("_")}
    subject = problems.Backend("cpu", HOST, SimpleNamespace(**operators | {"project_": wrong}))
    checks = list(smoke.checks(subject))
    assert [c["operator"] for c in checks if not c["error"] <= c["allowed"]] == ["project_"]
    assert not smoke.right({"checks": checks})


def test_smoke_is_about_this_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert smoke.foreign(problems.CPU) == ""
    monkeypatch.setattr(smoke, "ROOT", tmp_path)
    assert "of this checkout was expected" in smoke.foreign(problems.CPU)


# ---------------------------------------------------------------------- bits
LIBRARY = problems.CPU
NAN, OTHER_NAN = torch.tensor([0x7FFFFFFF, 0x7FC00000], dtype=torch.int32).view(torch.float32)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "LAYOUT", Layout((17, 1, 0, 33)))


def columns(*inside: float | Tensor, padding: Tensor = NAN) -> Tensor:
    """A row of the small layout, zeros behind what is given."""
    row = torch.zeros(problems.LAYOUT.row)
    row[: len(inside)] = torch.stack([torch.as_tensor(value) for value in inside])
    row[~problems.LAYOUT.inside] = padding
    return row


def test_what_is_computed_may_be_any_nan(small: None) -> None:
    """In float32 a GPU's arithmetic has one NaN, a CPU's the one that it was given."""
    assert not bits.unequal(columns(NAN, 1.0), columns(OTHER_NAN, 1.0)).any()
    assert bits.difference([columns(NAN, 1.0)], [columns(OTHER_NAN, 1.0)]) is None
    assert bits.difference([NAN[None]], [OTHER_NAN[None]]) is None  # not a row: a table


@pytest.mark.parametrize(
    ("actual", "expected", "largest"), [(NAN, 1.0, math.inf), (1.5, NAN, math.inf), (2.0, 1.5, 0.5), (-0.0, 0.0, 0.0)]
)
def test_a_number_and_another_or_none_differ(small: None, actual: Any, expected: Any, largest: float) -> None:
    found = bits.difference([columns(1.0, actual)], [columns(1.0, expected)])
    assert found == {"numbers": 1, "largest": largest}


def test_what_must_not_be_touched_keeps_its_nan(small: None) -> None:
    padding = int((~problems.LAYOUT.inside).sum())
    found = bits.difference([columns(1.0, padding=NAN)], [columns(1.0, padding=OTHER_NAN)])
    assert padding > 0 and found is not None and found["numbers"] == padding


def some_calls(family: str, count: int = 2) -> list[problems.Call]:
    return [call for call in problems.calls() if call.family == family][:count]


def test_the_same_kernels_give_the_same_bits(small: None) -> None:
    calls = list(problems.calls())
    result = bits.compare(LIBRARY, LIBRARY, LIBRARY, calls)
    assert result["cases"] == len(calls) > 100 and result["numbers"] > result["cases"]
    assert result["differ"] == {} and bits.right(result)


@pytest.mark.parametrize("family", ["combine", "gram", "transfer", "step", "priority"])
def test_one_other_bit_is_found(family: str, small: None) -> None:
    right = getattr(torch.ops.mt2o_ext, f"{family}_")

    def one_bit_off(out: Tensor, *others: Tensor, **options: object) -> None:
        right(out, *others, **options)
        first = out.flatten()[:1]
        first.copy_(torch.nextafter(first, torch.full_like(first, torch.inf)))

    other = problems.Backend("other", HOST, SimpleNamespace(**{f"{family}_": one_bit_off}))
    result = bits.compare(LIBRARY, other, LIBRARY, some_calls(family))
    assert len(result["must agree"]) == 2 and not bits.right(result)
    compared = bits.compare(LIBRARY, LIBRARY, other, some_calls(family))
    assert len(compared["differ"]) == 2
    assert len(compared["must agree"]) == (0 if family in ("gram", "priority") else 2)


@pytest.mark.parametrize("value", [None, torch.nan], ids=["nothing", "NaN"])
def test_agreement_about_no_number_is_an_error(value: float | None, small: None) -> None:
    """Operators that write nothing, or NaN alone, agree with themselves and say nothing."""

    def writes_none(out: Tensor, *others: Tensor, **options: object) -> None:
        if value is not None:
            out.fill_(value)

    idle = problems.Backend("idle", HOST, SimpleNamespace(transfer_=writes_none))
    result = bits.compare(idle, idle, idle, some_calls("transfer"))
    assert result["must agree"] == [] and len(result["nothing compared"]) == 2
    assert not bits.right(result)
    assert not bits.right(bits.compare(idle, idle, idle, []))


def test_every_family_with_cuda_kernels_is_compared() -> None:
    assert bits.families()
    assert bits.families() == {call.family for call in problems.calls()}
