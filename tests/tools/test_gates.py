"""The gates on what nvcc makes of the CUDA kernels, which .ci/run applies: that they see, and that none is left out."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLAGS = [
    flag
    for group in json.loads((ROOT / "sources.json").read_text())["libraries"]["_C_cuda"].values()
    if any(source.endswith(".cu") for source in group["sources"])
    for flag in group["flags"]
]


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


gate = load(ROOT / "tools" / "sass_gate.py")

SASS = """
arch = sm_75
		Function : _ZN4mt2o4cuda12combine_rowsIffEEvNS_7CombineENS0_5PartsE
	.headerflags	@"EF_CUDA_SM75"
        /*0000*/                   MOV R1, c[0x0][0x28] ;   /* 0x00000a0000017a02 */
        /*0010*/              @!P0 LDG.E.128.SYS R4, [R2] ; /* 0x0000000002047381 */
                                                            /* 0x000e220000000f00 */
        /*0020*/                   {instruction} R6, R4 ;   /* 0x0000000604067221 */
        /*0030*/                   STG.E.{width}.SYS [R2], R4 ; /* 0x0000000402007386 */
"""


def problems(instruction: str = "FFMA", width: str = "128", name: str = "combine_rows") -> list[str]:
    sass = SASS.format(instruction=instruction, width=width).replace("12combine_rows", f"{len(name)}{name}")
    (kernel,) = gate.kernels_of(sass)
    assert kernel.name == f"{name}<float, float>"
    return kernel.problems()


def test_code_as_it_should_be():
    assert problems() == []


@pytest.mark.parametrize(
    "instruction", ["LDL.LU", "STL.128", "DADD", "DMUL", "DFMA.RM", "ATOMG.E.ADD", "RED.E.ADD.F32"]
)
def test_instructions_that_must_not_be_there(instruction: str):
    assert problems(instruction) == [f"contains {instruction.partition('.')[0]}"]


def test_narrow_stores():
    assert problems(width="64") == ["stores sixteen bytes in pieces", "has no STG of 128 bits"]


def test_a_kernel_without_a_rule():
    assert problems(name="some_kernel") == ["has no rule in tools/sass_gate.py"]


def test_every_kernel_has_a_rule_and_every_rule_a_kernel():
    text = "".join(path.read_text() for path in sorted((ROOT / "csrc" / "cuda").glob("*.cu*")))
    kernels = set(re.findall(r"__global__\s+void\s+(?:__launch_bounds__\((?:[^()]|\([^()]*\))*\)\s+)?(\w+)\(", text))
    assert len(kernels) == text.count("__global__")
    ruled = {name for pattern in gate.RULES for name in re.findall(r"\w+", re.sub(r"<.*", "", pattern))}
    assert kernels == ruled


def test_nvcc_is_told_to_refuse_warnings_spills_and_local_memory():
    assert FLAGS[FLAGS.index("-Werror") + 1] == "all-warnings"
    assert {"-warn-spills", "-warn-lmem-usage"} <= set(FLAGS[FLAGS.index("-Xptxas") + 1].split(","))
    assert "-fmad=false" in FLAGS
    assert not any("fast" in flag for flag in FLAGS)
