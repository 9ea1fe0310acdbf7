"""Builds the package in place and, beside it, the emulator; JSON.

python -m tools.gpu_check.build FILE ARCHITECTURE [--no-emulator]

ARCHITECTURE is that of the GPU ("9.0"), or "none": without CUDA.  A build that fails leaves the libraries that lie in
the package as they are: those that were brought along (README.md) serve then for the parts that follow.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tools.gpu_check.runner import ROOT, write_json

TAIL = 2500  # characters of the output of a build that fails


class Build:
    """A shell command in the background."""

    def __init__(self, command: str, environment: dict[str, str] | None = None) -> None:
        self.output = tempfile.TemporaryFile()  # noqa: SIM115  (as long as the command runs)
        self.process = subprocess.Popen(
            ["bash", "-c", command], cwd=ROOT, env=os.environ | (environment or {}),
            stdout=self.output, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def end(self) -> dict[str, Any]:
        code = self.process.wait()
        with self.output as stream:
            stream.seek(0)
            text = stream.read().decode(errors="replace")
        return {"exit status": code} | ({"output": text[-TAIL:]} if code else {})


def package(architecture: str) -> Build:
    cuda = {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": architecture}
    command = shlex.join([sys.executable, "setup.py", "build_ext", "--inplace"])
    return Build(command, cuda if architecture != "none" else None)


def emulator() -> Build:
    torch = find_spec("torch")
    assert torch is not None and torch.origin is not None
    configure = shlex.join(["cmake", "--preset", "release", f"-DMT2O_TORCH={Path(torch.origin).parent}"])
    return Build(f"{configure} && cmake --build --preset release --target mt2o_emulated")


def libraries() -> list[str]:
    """Those in the package that this interpreter can load."""
    return sorted(path.name for path in (ROOT / "mt2o_ext").glob(f"_C*.{sysconfig.get_config_var('SOABI')}.so"))


def main() -> int:
    path, architecture, with_emulator = Path(sys.argv[1]), sys.argv[2], "--no-emulator" not in sys.argv[3:]
    brought = libraries()
    builds = {"package": package(architecture)} | ({"emulator": emulator()} if with_emulator else {})
    result: dict[str, Any] = {"libraries before": brought}
    for name, build in builds.items():
        result[name] = build.end()
        write_json(path, result)
        print(f"{name}: exit status {result[name]['exit status']}\n{result[name].get('output', '')}")
    if result["package"]["exit status"]:
        print(
            f"what was in the package before serves: {', '.join(brought) or 'nothing, so all that follows will fail'}"
        )
    return 1 if any(result[name]["exit status"] for name in builds) else 0


if __name__ == "__main__":
    sys.exit(main())
