"""compute-sanitizer, its four tools at once, on tools/gpu_check/kernels.cu with the package's kernels; JSON.

python -m tools.gpu_check.sanitize FILE UNTIL ARCHITECTURE [--dry-run]

Where the sanitizer is not there, refuses the device or is not done in time, that is recorded and no failure.  A dry run
has no GPU: the program is built for one if there is an nvcc, and runs in the emulator.  UNTIL: as time.time() counts.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

from tools import toolkit
from tools.gpu_check.runner import ROOT, write_json

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
PORT = 49152  # the first tool talks to its program through a port from here on, each other one a hundred later
WORDS = 3000  # characters of what a tool found that are kept
FOUND = 9  # the exit status for what a tool finds, none of the program's own
ALONE = 20.0  # seconds for the program without a tool, which takes one or two
NO_DEVICE = re.compile(r".*device not supported.*", re.IGNORECASE)  # the program's own errors then follow from that
REFUSED = re.compile(r".*(not supported on|internal sanitizer error|unable to).*", re.IGNORECASE)
SAID = re.compile(r"^=+ (?!COMPUTE-SANITIZER)\S", re.MULTILINE)  # a line of a tool behind its first, which is its name

SOURCE = "tools/gpu_check/kernels.cu"
BUILD = ROOT / "build" / "gpu-check"


def cuda_group() -> dict[str, Any]:
    """The kernels and the flags that they are compiled with."""
    groups = json.loads((ROOT / "sources.json").read_text())["libraries"]["_C_cuda"].values()
    return next(group for group in groups if group["sources"][0].endswith(".cu"))


def link_for_gpu(architecture: str) -> list[list[str]]:
    """Commands that make the program from the kernels' objects of the package, which are built where they are not."""
    group, home, built = cuda_group(), toolkit.home(), ROOT / "build" / sysconfig.get_config_var("SOABI")
    kernels = [f"{source}.o" for source in group["sources"]]
    arch, program = architecture.replace(".", ""), str(BUILD / "kernels")
    compile_it = [
        "nvcc",
        *group.get("flags", []),
        f"-gencode=arch=compute_{arch},code=sm_{arch}",
        "-lineinfo",
        "-Icsrc",
    ]
    libraries = [f"-L{home}/lib64", f"-L{home}/lib", "-lcudart_static", "-lrt", "-ldl", "-lpthread"]
    return [
        ["ninja", "-C", str(built), *kernels],
        [*compile_it, "-c", SOURCE, "-o", f"{program}.o"],
        ["g++", f"{program}.o", *(str(built / kernel) for kernel in kernels), *libraries, "-o", program],
    ]


def link_for_emulator() -> list[list[str]]:
    """The same, with the kernels of the emulator, which CMake has built."""
    built = ROOT / "build" / "cmake-release" / "tests" / "emulator"
    libraries = [str(built / f"libmt2o_{name}.a") for name in ("emulated_kernels", "emulator")]
    flags = ["-std=c++20", "-O1", "-ffp-contract=off", "-DMT2O_EMULATED", "-Itests/emulator", "-Icsrc"]
    headers = ["-isystem", f"{toolkit.home()}/include", "-Wno-unknown-pragmas"]
    return [["g++", *flags, *headers, "-xc++", SOURCE, "-xnone", *libraries, "-o", str(BUILD / "kernels")]]


def commands(architecture: str, dry: bool) -> list[list[str]]:
    for_gpu = link_for_gpu(architecture) if architecture != "none" else []
    return for_gpu + (link_for_emulator() if dry else [])


class Run:
    """The program under one tool, in the background."""

    def __init__(self, tool: str) -> None:
        self.output = BUILD / f"{tool}.txt"
        port = PORT + 100 * TOOLS.index(tool)
        options = ["--tool", tool, "--error-exitcode", str(FOUND), "--port", str(port)]
        with self.output.open("w") as stream:
            command = ["compute-sanitizer", *options, str(BUILD / "kernels")]
            self.process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)

    def outcome(self, until: float) -> dict[str, Any]:
        """What the tool says until then."""
        try:
            code: int | None = self.process.wait(max(until - time.time(), 0))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            code = None
        return verdict(code, self.output.read_text(errors="replace"))


def verdict(code: int | None, output: str) -> dict[str, Any]:
    """code None: the tool was stopped; what it has found until then counts."""
    refusal = NO_DEVICE.search(output) or (REFUSED.search(output) if code not in (FOUND, None) else None)
    if code == 0:
        return {"outcome": "clean"}
    if refusal:
        return {"outcome": "refused", "words": refusal[0].strip()}
    if code is None and not SAID.search(output):
        return {"outcome": "out of time"}
    return {"outcome": "found", "words": output[-WORDS:]}


def run_alone(limit: float) -> int | None:
    """The program's exit status; None if it hangs."""
    try:
        return subprocess.run([BUILD / "kernels"], timeout=limit).returncode
    except subprocess.TimeoutExpired:
        return None


def main() -> int:
    path, until, architecture = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
    dry = "--dry-run" in sys.argv[4:]
    BUILD.mkdir(parents=True, exist_ok=True)
    for command in commands(architecture, dry):
        subprocess.run(command, cwd=ROOT, check=True)
    result: dict[str, Any] = {"exit status of the program": run_alone(10 * ALONE if dry else ALONE)}
    write_json(path, result)
    if not dry and shutil.which("compute-sanitizer") is None:
        result["refused"] = "compute-sanitizer is not installed"
    elif not dry:
        runs = {tool: Run(tool) for tool in TOOLS}
        for tool, run in runs.items():
            result[tool] = run.outcome(until)
            write_json(path, result)
    write_json(path, result)
    print(result)
    found = [tool for tool in TOOLS if result.get(tool, {}).get("outcome") == "found"]
    return 1 if result["exit status of the program"] != 0 or found else 0


if __name__ == "__main__":
    sys.exit(main())
