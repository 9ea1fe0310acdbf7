"""The tools: what a wheel may ask for and give away, how it is named, and that a failed check is seen as one."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from bench import bench_gpu, gpu_cases, gpu_steps
from tools import check_wheel, variants, wheels
from tools.gpu_check import __main__ as gpu_check
from tools.gpu_check import sanitize, suite
from tools.gpu_check.runner import RESULT, ROOT, Part, run_part, run_parts

CPU = torch.device("cpu")


# ---------------------------------------------------------------------- wheels
@pytest.mark.parametrize(
    "symbol",
    [
        "aoti_torch_empty_strided", "torch_parallel_for", "PyErr_SetString", "_Py_Dealloc", "memcpy@GLIBC_2.14",
        "_ZSt9terminatev@GLIBCXX_3.4", "__cxa_throw@CXXABI_1.3", "_Unwind_Resume@GCC_3.0", "__gmon_start__",
        "_ZNSt15__exception_ptr13exception_ptr10_M_releaseEv",
    ],
)  # fmt: skip
def test_symbols_that_every_machine_defines(symbol: str) -> None:
    assert check_wheel.foreign([symbol]) == []


@pytest.mark.parametrize(
    "symbol",
    [
        "_ZN3c105ErrorC2ENS_14SourceLocationESs", "_ZN2at6Tensor4dataEv", "_ZN5torch3jit5ErrorE", "cudaLaunchKernel",
        "_ZNSt6vectorIN2at6TensorESaIS1_EED1Ev", "omp_get_thread_num@OMP_1.0", "xaoti_torch_free", "cblas_sgemm",
    ],
)  # fmt: skip
def test_symbols_that_bind_a_wheel_to_one_torch_or_machine(symbol: str) -> None:
    assert check_wheel.foreign(["memcpy@GLIBC_2.14", symbol]) == [symbol]


def test_paths_of_the_builder_are_found_and_those_that_say_nothing_are_not() -> None:
    data = b"\0./csrc/ops/step.cpp\0torch/csrc/stable/x.h\0/dev/nvidia0\0at /tmp/pip-req-build-1/csrc/ops/step.cpp:12\0"
    assert check_wheel.source_paths(data) == ["/tmp/pip-req-build-1/csrc/ops/step.cpp"]


def test_what_only_a_newer_torch_has_is_known_from_its_headers() -> None:
    root = Path(torch.__file__).parent / "include" / "torch" / "csrc" / "stable" / "c" / "shim.h"
    newer = check_wheel.newer_than((2, 10), root.read_text())
    assert "torch_get_mutable_data_ptr" not in newer and "torch_parallel_for" not in newer  # of 2.10
    assert "torch_get_mutable_data_ptr" in check_wheel.newer_than((2, 9), root.read_text())
    guarded = "#if TORCH_FEATURE_VERSION >= TORCH_VERSION_2_11_0\n#ifdef X\nint torch_new(int);\n#endif\n#endif\n"
    assert check_wheel.newer_than((2, 10), guarded + "int torch_old();") == {"torch_new"}


LISTING = """
ELF file    1: step.1.sm_75.cubin
ELF file    2: step.2.sm_120.cubin
PTX file    1: step.1.sm_120.ptx
ELF file    3: gram.3.sm_75.cubin
ELF file    4: gram.4.sm_120.cubin
PTX file    2: gram.2.sm_120.ptx
"""


def test_architectures_are_those_named() -> None:
    found = check_wheel.architectures(LISTING)
    assert found == Counter({"7.5": 2, "12.0": 2, "12.0+PTX": 2})
    assert not check_wheel.wrong_architectures(found, "7.5;12.0+PTX")
    for archs in ("7.5;12.0", "7.5+PTX;12.0+PTX", "12.0+PTX", "7.5;8.0;12.0+PTX"):
        assert check_wheel.wrong_architectures(found, archs)
    without_one = check_wheel.architectures(LISTING.replace("ELF file    3: gram.3.sm_75.cubin\n", ""))
    assert check_wheel.wrong_architectures(without_one, "7.5;12.0+PTX")


@pytest.mark.parametrize(
    ("name", "label", "archs"),
    [
        ("mt2o_ext-0.1.0+cu130-cp311-cp311-linux_x86_64.whl", "cu130", wheels.variant("cu130").archs),
        ("mt2o_ext-0.1.0+cpu-cp314-cp314-manylinux_2_28_aarch64.whl", "cpu", ""),
        ("mt2o_ext-0.1.0-cp310-cp310-manylinux_2_28_x86_64.whl", "", ""),
    ],
)
def test_the_label_of_a_wheel_says_what_is_in_it(name: str, label: str, archs: str) -> None:
    assert check_wheel.label_of(Path(name)) == label
    assert check_wheel.archs_of(Path(name)) == archs


def test_labels_follow_the_toolkit() -> None:
    for variant in variants.MATRIX:
        if variant.cuda:
            assert variant.label == variant.name == "cu" + variant.cuda.replace(".", "")
            assert variant.archs.endswith("+PTX")
        else:
            assert variant.archs == ""


def test_a_variant_without_its_compiler_is_left_out_with_the_reason() -> None:
    assert wheels.why_not(wheels.variant("cpu"), {}) == ""
    assert wheels.why_not(wheels.variant("cu130"), {"13.0": "/opt/cuda"}) == ""
    assert "CUDA 12.6 (found: 13.0)" in wheels.why_not(wheels.variant("cu126"), {"13.0": "/opt/cuda"})


def test_the_builders_own_settings_do_not_reach_a_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MT2O_DEBUG", "MT2O_NO_EXT", "MT2O_CPU_ONLY", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "FORCE_CUDA"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("MAX_JOBS", "3")
    environment = wheels.build_environment(wheels.variant("cu130"), {"13.0": "/opt/cuda"})
    ours = {name: value for name, value in environment.items() if re.match("MT2O|FORCE|TORCH_CUDA|CUDA|MAX", name)}
    assert ours == {
        "MT2O_LOCAL_VERSION": "cu130", "FORCE_CUDA": "1", "CUDA_HOME": "/opt/cuda",
        "TORCH_CUDA_ARCH_LIST": wheels.variant("cu130").archs, "MAX_JOBS": "3",
    }  # fmt: skip
    environment = wheels.build_environment(wheels.variant("cpu"), {})
    assert environment["MT2O_CPU_ONLY"] == "1" and "FORCE_CUDA" not in environment


def test_the_index_links_wheels_by_addresses_that_pip_can_follow() -> None:
    page = wheels.index_page(["mt2o_ext-0.1.0+cu130-cp311.whl"], "https://example.org/v0.1.0/")
    assert (
        '<a href="https://example.org/v0.1.0/mt2o_ext-0.1.0%2Bcu130-cp311.whl">mt2o_ext-0.1.0+cu130-cp311.whl' in page
    )


def test_the_workflow_builds_the_variants_of_the_matrix() -> None:
    text = (ROOT / ".github" / "workflows" / "wheels.yml").read_text()
    (listed,) = re.findall(r"variant: \[(.*)\]", text)
    assert listed.split(", ") == [variant.name for variant in variants.MATRIX]


# ---------------------------------------------------------------------- gpu-check
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
    families = re.findall(r"^Problem (\w+)\(", (ROOT / "csrc" / "cuda" / "kernels.h").read_text(), flags=re.MULTILINE)
    assert families
    assert set(families) == set(re.findall(r"cuda::(\w+)\(", (ROOT / sanitize.SOURCE).read_text()))


# ---------------------------------------------------------------------- bench_gpu, on the CPU
@pytest.mark.parametrize("make", list(gpu_cases.makers(1000, compiled=False)), ids=lambda make: make.func.__name__)
def test_every_case_runs_with_its_peers(make) -> None:
    row = bench_gpu.timed(make(CPU), CPU, rounds=1)
    times = [row["ms"], row["x copy"], *(value for key, value in row.items() if key.endswith("/ ours"))]
    assert all(isinstance(time, float) and time > 0 for time in times)


def test_rows_behind_a_copy_or_a_peer_are_below_the_target() -> None:
    good = {"x copy": 0.95, "mm / ours": 1.5, "compiled / ours": "ImportError: no Triton"}
    bad = [good | {"x copy": 0.8}, good | {"mm / ours": 0.9}]
    assert bench_gpu.below_target([good, *bad]) == bad


def test_steps_are_found_to_launch_as_often_for_many_tensors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_steps, "MANY", 20)
    report = bench_gpu.Report(tmp_path / "report.json")
    for entry in gpu_steps.steps(CPU):
        report.add("steps", entry)
    written = json.loads((tmp_path / "report.json").read_text())["steps"]
    assert [entry["optimizer"] for entry in written] == list(gpu_steps.OPTIMIZERS)
    assert all(entry["right"] for entry in written)
