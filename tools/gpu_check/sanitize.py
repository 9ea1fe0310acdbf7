"""compute-sanitizer on tools/gpu_check/kernels.cu, with the kernels that the package was built with; JSON.

python -m tools.gpu_check.sanitize FILE ARCHITECTURE [--dry-run]

Where the sanitizer is not there or refuses the device, that is recorded and no failure.  A dry run has no GPU: the
program runs in the emulator.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from tools import toolkit
from tools.gpu_check.runner import ROOT

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
LIMIT = 12  # seconds for each tool
FOUND = 9  # the exit status for what a tool finds, none of the program's own
REFUSED = re.compile(r".*(device not supported|not supported on|internal sanitizer error|unable to).*", re.IGNORECASE)

SOURCE = "tools/gpu_check/kernels.cu"
BUILD = ROOT / "build" / "gpu-check"


def cuda_flags() -> list[str]:
    """The flags with which sources.json compiles kernels."""
    groups = json.loads((ROOT / "sources.json").read_text())["libraries"]["_C_cuda"].values()
    return next(g for g in groups if g["sources"][0].endswith(".cu")).get("flags", [])


def link_for_gpu(architecture: str) -> list[list[str]]:
    """Commands that make the program from the objects that setup.py has compiled for the package."""
    home, built = toolkit.home(), ROOT / "build" / sysconfig.get_config_var("SOABI") / "csrc" / "cuda"
    kernels = [str(path) for path in built.glob("*.cu.o")]
    arch, program = architecture.replace(".", ""), str(BUILD / "kernels")
    compile_it = ["nvcc", *cuda_flags(), f"-gencode=arch=compute_{arch},code=sm_{arch}", "-lineinfo", "-Icsrc"]
    libraries = [f"-L{home}/lib64", f"-L{home}/lib", "-lcudart_static", "-lrt", "-ldl", "-lpthread"]
    return [
        [*compile_it, "-c", SOURCE, "-o", f"{program}.o"],
        ["g++", f"{program}.o", *kernels, *libraries, "-o", program],
    ]


def link_for_emulator() -> list[list[str]]:
    """The same, with the kernels of the emulator, which CMake has built."""
    built = ROOT / "build" / "cmake-release" / "tests" / "emulator"
    libraries = [str(built / f"libmt2o_{name}.a") for name in ("emulated_kernels", "emulator")]
    flags = ["-std=c++20", "-O1", "-ffp-contract=off", "-DMT2O_EMULATED", "-Itests/emulator", "-Icsrc"]
    headers = ["-isystem", f"{toolkit.home()}/include", "-Wno-unknown-pragmas"]
    return [["g++", *flags, *headers, "-xc++", SOURCE, "-xnone", *libraries, "-o", str(BUILD / "kernels")]]


def outcome(tool: str) -> dict[str, Any]:
    """What one tool says: "clean", "found" or "refused", and its words."""
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", str(FOUND), str(BUILD / "kernels")]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return {"outcome": "out of time", "seconds": LIMIT}
    return verdict(done.returncode, done.stdout + done.stderr)


def verdict(code: int, output: str) -> dict[str, Any]:
    refusal = REFUSED.search(output)
    if code == 0:
        return {"outcome": "clean"}
    if refusal and code != FOUND:
        return {"outcome": "refused", "words": refusal[0].strip()}
    return {"outcome": "found", "words": output[-3000:]}


def main() -> int:
    path, architecture, dry = Path(sys.argv[1]), sys.argv[2], "--dry-run" in sys.argv[3:]
    BUILD.mkdir(parents=True, exist_ok=True)
    for command in link_for_emulator() if dry else link_for_gpu(architecture):
        subprocess.run(command, cwd=ROOT, check=True)
    result: dict[str, Any] = {"program": subprocess.run([BUILD / "kernels"]).returncode}
    if not dry and shutil.which("compute-sanitizer") is None:
        result["refused"] = "compute-sanitizer is not installed"
    elif not dry:
        result |= {tool: outcome(tool) for tool in TOOLS}
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(result)
    bad = [tool for tool in TOOLS if result.get(tool, {}).get("outcome") in ("found", "out of time")]
    return 1 if result["program"] or bad else 0


if __name__ == "__main__":
    sys.exit(main())
