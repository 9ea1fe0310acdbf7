"""What times kernels on a GPU, run on the CPU: no case is missing, all run, what goes wrong is in the report."""

from __future__ import annotations

import itertools
import json
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import bench_gpu, gpu_cases, gpu_optimizers, gpu_steps, gpu_table, gpu_timing
from tools.gpu_check import bits

HOST = torch.device("cpu")
LIMITS = {"copy": 1e9, "read": 1e9}
SHAPES: list[tuple[int, ...]] = [(8, 4, 3, 3), (8,), (8,), (10, 8), (10,)]
F32, HALVES = "float32", {"bfloat16", "float16"}


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_timing, "ROUNDS", 1)
    monkeypatch.setattr(gpu_timing, "FEWEST", 1)


# ---------------------------------------------------------------------- the table
def test_the_table_has_every_family_type_and_number_of_rows() -> None:
    rows = [{"R": r} | gpu_timing.timed(make(device=HOST), HOST, LIMITS) for r, make in gpu_table.grid(800)]
    found = {(row["family"], row["dtype"], row["R"]) for row in rows}
    assert len(rows) == len(found)
    families, numbers = ("step", "combine", "finite", "gram"), (2, 3, 5, 8, 16, 40)
    assert found == {
        *itertools.product(families, {F32} | HALVES, numbers),
        *itertools.product(["transfer"], [F32], numbers),  # of parameters, which are no 16-bit numbers
    }
    of_tables = {"judge", "settle", "count"}  # a few numbers of each step: only their launch takes time
    others = {make.func.family for make in gpu_table.other_cases(800, SHAPES)}
    assert {"mask", "harmony", "exchange", "priority"} < others
    assert {*families, *others, *of_tables, "transfer", "solve"} == bits.families()  # no CUDA kernel is missing
    counted = {"step": "K", "combine": "T", "finite": "K", "gram": "R", "transfer": "K"}
    assert all(row[counted[row["family"]]] == row["R"] for row in rows)
    assert all(row["R"] * row["P"] <= 800 < row["R"] * (row["P"] + 1) for row in rows)
    assert all(row["of"] == ("read" if row["family"] in ("gram", "finite") else "copy") for row in rows)


@pytest.mark.parametrize(
    ("make", "num_bytes"),
    [
        (partial(gpu_cases.Gram, 3, torch.float32, 100), 3 * 100 * 4),
        (partial(gpu_cases.Gram, 3, torch.bfloat16, 100), 3 * 100 * 2),
        (partial(gpu_cases.Finite, 5, 2, torch.float16, 100), 10 * 100 * 2),
        (partial(gpu_cases.Combine, 5, 2, torch.bfloat16, 100), 5 * (2 + 1) * 100 * 2),
        (partial(gpu_cases.Transfer, 5, torch.float32, 100), 2 * 5 * 100 * 4),
        (partial(gpu_cases.Step, 5, 2, torch.float32, 100), 5 * 100 * (6 + 2) * 4),
        (partial(gpu_cases.Step, 5, 2, torch.float16, 100), 5 * 100 * (6 * 4 + 2 * 2)),
    ],
)
def test_bytes_are_those_that_must_move(make: Any, num_bytes: int) -> None:
    case = make(device=HOST)
    assert case.num_bytes == num_bytes
    rate = num_bytes / gpu_timing.timed(case, HOST, LIMITS)["ms"] * 1e3
    assert 0 < rate < 1e13


def test_a_rehearsal_measures_all_there_is(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    report = gpu_timing.Report(path, math.inf, gpu_table.NOTES, ("others", "optimizers", "solvers"))
    gpu_table.measure_all(report, HOST, quick=True)
    written = json.loads(path.read_text())
    assert report.whole and written["notes"] == gpu_table.NOTES
    assert len(written["rows"]) == 4 * 3 * 6 + 6
    assert {(row["solver"], row["T"]) for row in written["solvers"]} == {
        (f"{name}_", tasks)
        for name in ["minimum_norm", "conflict_averse", "power_barrier", "dual_cone", "eigen", "project", "descent"]
        for tasks in (3, 8, 16, 40)
    }
    assert {row["T"] for row in written["others"] if row["family"] == "priority"} == {2, 3, 8}
    assert [row["optimizer"] for row in written["optimizers"]] == list(gpu_optimizers.OPTIMIZERS)
    assert all(0 < row["host ms"] <= row["ms"] <= row["largest ms"] for row in written["optimizers"])
    assert len(written["ceilings, GB/s"]) == 2 and set(written["ceilings, GB/s"][0]) == {"copy", "read", "write"}
    text = gpu_table.printed(report)
    assert "| gram | bfloat16 |" in text and "left out" not in text


def test_each_optimizer_and_torchs_is_timed() -> None:
    names = " ".join(gpu_optimizers.OPTIMIZERS)
    assert all(name in names for name in ("AdamW(fused=True)", "WeightedFused", "MT2OFused", "ConnectionStrengthFused"))


def test_the_table_has_a_line_for_each_kernel_and_a_column_for_each_number_of_rows() -> None:
    rows = [{"family": "gram", "R": r, "ms": ms} for r, ms in ((2, 0.1), (40, 0.5))]
    rows.append({"family": "step", "R": 40, "ms": 0.7})
    assert gpu_table.pivot(rows, "ms", "R", "family").splitlines() == [
        "| family | R=2 | R=40 |", "|---|---|---|", "| gram | 0.1 | 0.5 |", "| step |  | 0.7 |"
    ]  # fmt: skip


# ---------------------------------------------------------------------- the report
def fails() -> dict[str, Any]:
    raise RuntimeError("misaligned address")


def test_an_error_is_in_the_report_and_stops_no_other_row(tmp_path: Path) -> None:
    report = gpu_timing.Report(path := tmp_path / "table.json", math.inf, "")
    assert report.whole
    report.add("first", fails)
    report.add("second", lambda: {"ms": 1})
    assert json.loads(path.read_text())["rows"] == [{"ms": 1}]
    assert report.content["errors"] == ["first: RuntimeError: misaligned address"] and not report.whole


def test_what_there_is_no_time_for_is_said() -> None:
    report = gpu_timing.Report(None, time.time() - 1, "")
    gpu_timing.add_cases(report, gpu_cases.compiled_cases(800), HOST, lambda case: {"ms": 1})
    assert report.content["rows"] == [] and len(report.content["left out"]) == 4 and not report.whole
    assert "left out for want of time: Step(1, 1" in gpu_table.left_out(report.content)[0]


def test_long_runs_are_timed_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_timing, "ROUNDS", 30)
    calls: list[float] = []

    def run() -> None:
        calls.append(1.0)
        time.sleep(0.06)

    assert 0.06 <= gpu_timing.seconds_of(run, HOST) < 1
    assert 2 + 1 <= len(calls) <= 2 + 5


# ---------------------------------------------------------------------- peers
@pytest.mark.parametrize("make", list(gpu_cases.peer_cases(800, SHAPES)), ids=lambda make: make.func.__name__)
def test_every_case_runs_with_its_peers(make: Any) -> None:
    row = bench_gpu.with_peers(make(device=HOST), HOST, LIMITS)
    times = [row["ms"], row["x ceiling"], *(value for key, value in row.items() if key.endswith("/ ours"))]
    assert len(times) >= 3 and all(isinstance(time, float) and time >= 0 for time in times)


def test_torch_compile_is_a_peer_of_the_step() -> None:
    assert [list(make(device=HOST).peers()) for make in gpu_cases.compiled_cases(800)] == [["compiled"]] * 4


def test_a_peer_that_cannot_run_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_cases.Finite, "peers", lambda self: {"isfinite": fails})
    row = bench_gpu.with_peers(gpu_cases.Finite(1, 1, torch.float32, 100, HOST), HOST, LIMITS)
    assert row["isfinite / ours"] == "RuntimeError: misaligned address"


def test_rows_behind_the_ceiling_or_a_peer_are_below_the_target() -> None:
    good = {"x ceiling": 0.95, "mm / ours": 1.5, "compiled / ours": "ImportError: no Triton"}
    bad = [good | {"x ceiling": 0.8}, good | {"mm / ours": 0.9}]
    assert bench_gpu.below_target([good, *bad]) == bad


# ---------------------------------------------------------------------- whole steps
def test_steps_are_found_to_launch_as_often_for_many_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_steps, "MANY", 20)
    entries = list(gpu_steps.steps(HOST))
    assert [entry["optimizer"] for entry in entries] == list(gpu_steps.OPTIMIZERS)
    assert all(entry["right"] for entry in entries)
