"""Builds the package's libraries for another CPython than the one that torch is installed for.

python3.12 -m tools.gpu_check.fallback TORCH [ARCHITECTURE]

TORCH is the directory of any torch >= 2.10, of any CPython and with or without CUDA: only its headers and libtorch_cpu
are used, and the libraries then run under every torch >= 2.10.  ARCHITECTURE is that of the GPU, "9.0" if not given.
Needs nvcc, and setuptools, pybind11 and ninja in the interpreter that runs this: it is the one that they are built for.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# What setup.py asks torch for.
STAND_IN = """\
from types import SimpleNamespace
__version__ = {version!r}
version = SimpleNamespace(cuda=None)
cuda = SimpleNamespace(device_count=lambda: 0)
"""


def stand_in(torch: Path, directory: Path) -> None:
    """A module `torch` in the directory, with headers and libraries and without anything that would have to run."""
    package = directory / "torch"
    package.mkdir(parents=True, exist_ok=True)
    version = re.findall(r"__version__ = '(.*)'", (torch / "version.py").read_text())[0]
    (package / "__init__.py").write_text(STAND_IN.format(version=version))
    for name in ("include", "lib"):
        (package / name).unlink(missing_ok=True)
        (package / name).symlink_to((torch / name).resolve())


def load(torch: Path) -> None:
    """Loads the libraries into this interpreter, with that torch's libtorch_cpu."""
    ctypes.CDLL(str(torch / "lib" / "libtorch_cpu.so"))
    for name in ("_C", "_C_cuda"):
        path = ROOT / "mt2o_ext" / f"{name}.{sysconfig.get_config_var('SOABI')}.so"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e6:.1f} MB, loads")


def main() -> int:
    torch, architecture = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "9.0"
    headers = ROOT / "build" / "gpu-check" / "headers"
    stand_in(torch, headers)
    environment = {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": architecture, "PYTHONPATH": str(headers)}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=True)
    load(torch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
