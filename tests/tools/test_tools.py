"""Wheels: what they may ask for and give away, how they are named, what is built with which compiler."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from tools import check_wheel, variants, wheels
from tools.wheels import ROOT


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
