"""The compiled parts: loaded once, on the first import; without them everything runs on the plain-torch reference."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import re
import warnings
from types import ModuleType
from typing import Any

import torch

REBUILD_CUDA = "`FORCE_CUDA=1 pip install --no-build-isolation .` where nvcc is"

load_error: str | None = None
cuda_load_error: str | None = None
_usable: dict[int, bool] = {}  # GPUs that were asked for


def _required() -> bool:
    return os.environ.get("MT2O_REQUIRE_NATIVE", "0") not in ("", "0")


def _warn(text: str) -> None:
    warnings.warn(f"{text} `python -m mt2o_ext` shows what was found.", RuntimeWarning, stacklevel=3)


def _load() -> ModuleType | None:
    global load_error
    try:
        return importlib.import_module("mt2o_ext._C")
    except ImportError as error:
        load_error = str(error)
        if _required():
            raise
        _warn(
            "mt2o_ext runs on its slow reference in plain torch, because the compiled part could not be loaded: "
            f"{error}. Rebuild with `pip install --no-build-isolation .`;"
        )
        return None


def _load_cuda() -> ModuleType | None:
    """The CUDA kernels, where torch has CUDA and they were built; a CPU user hears nothing of their absence."""
    global cuda_load_error
    if C is None or torch.version.cuda is None:
        return None
    try:
        return importlib.import_module("mt2o_ext._C_cuda")
    except ImportError as error:
        cuda_load_error = str(error)
        if importlib.util.find_spec("mt2o_ext._C_cuda") is None:
            return None
        if _required():
            raise
        _warn(
            "mt2o_ext runs on its slow reference in plain torch where parameters are on a GPU, because its CUDA part "
            f"could not be loaded: {error}. Rebuild with {REBUILD_CUDA};"
        )
        return None


C: ModuleType | None = _load()
C_cuda: ModuleType | None = _load_cuda()


def without_cuda() -> str:
    """The reason why operators of this package do not take tensors on a GPU, and what to do."""
    reason = "torch has no CUDA" if torch.version.cuda is None else cuda_load_error
    return f"mt2o_ext was built without CUDA: {reason}; rebuild with {REBUILD_CUDA}"


def covers(archs: str, capability: tuple[int, int]) -> bool:
    """True if code for these archs (written as in TORCH_CUDA_ARCH_LIST) runs on a GPU of this compute capability.

    Machine code runs on the same major version with at least the same minor one (9.0a: on just that one), PTX on
    everything later.
    """
    for major, minor, specific, ptx in re.findall(r"(\d+)\.(\d)([af]?)(\+PTX)?", archs):
        arch = (int(major), int(minor))
        if specific == "a":
            if arch == capability:
                return True
        elif (arch[0] == capability[0] and arch <= capability) or (ptx and arch <= capability):
            return True
    return False


def _problem_of_gpu(index: int) -> str | None:
    """The reason why the CUDA kernels do not run on this GPU, or None."""
    if C_cuda is None:
        return without_cuda()
    major, minor = torch.cuda.get_device_capability(index)
    if covers(C_cuda.archs, (major, minor)):
        return None
    archs = ", ".join(re.split(r"[;, ]+", C_cuda.archs))
    return f"mt2o_ext: sm_{major}{minor} is not in [{archs}]; rebuild with TORCH_CUDA_ARCH_LIST={major}.{minor}"


def _gpu_available(index: int) -> bool:
    """Asked at the first use of each GPU, not on import, which must not start CUDA (processes may still fork)."""
    if index not in _usable:
        problem = _problem_of_gpu(index)
        if problem is not None and _required():
            raise RuntimeError(problem)
        _usable[index] = problem is None
        if problem is not None:
            _warn(f"mt2o_ext runs on its slow reference in plain torch on cuda:{index}. {problem}.")
    return _usable[index]


# All that torch.compiler.assume_constant_result does, but for importing torch._dynamo, which takes as long as torch.
_gpu_available._dynamo_marked_constant = True  # type: ignore[attr-defined]


def available(device: torch.device | str = "cpu") -> bool:
    """True if compiled kernels exist for tensors on this device; warns once for each GPU that has none."""
    if C is None:
        return False
    if isinstance(device, str):
        device = torch.device(device)
    if device.type == "cuda" and torch.version.cuda is not None:
        return _gpu_available(torch.cuda.current_device() if device.index is None else device.index)
    return device.type == "cpu"


def _gpus() -> list[str]:
    return [
        "{} (sm_{}{})".format(torch.cuda.get_device_name(index), *torch.cuda.get_device_capability(index))
        for index in range(torch.cuda.device_count())
    ]


def backend_info() -> dict[str, Any]:
    """Facts about what was built and found, as plain values: the text of `python -m mt2o_ext`, for bug reports."""
    return {
        "mt2o_ext": None if C is None else C.version,
        "torch": torch.__version__,
        "torch at build": None if C is None else C.torch_version,
        "compiler": None if C is None else C.compiler,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "native library": None if C is None else C.__file__,
        "load error": load_error,
        "instruction sets": None if C is None else C.supported_isas(),
        "instruction set": None if C is None else C.cpu_isa(),
        "torch CUDA": torch.version.cuda,
        "CUDA library": None if C_cuda is None else C_cuda.__file__,
        "CUDA load error": cuda_load_error,
        "CUDA at build": None if C_cuda is None else C_cuda.cuda_version,
        "CUDA archs": None if C_cuda is None else C_cuda.archs,
        "GPUs": _gpus() or None,
    }
