"""The compiled part: loaded once, on the first import; without it everything runs on the plain-torch reference."""

from __future__ import annotations

import importlib
import os
import platform
import warnings
from types import ModuleType
from typing import Any

import torch

load_error: str | None = None


def _load() -> ModuleType | None:
    global load_error
    try:
        return importlib.import_module("mt2o_ext._C")
    except ImportError as error:
        load_error = str(error)
        if os.environ.get("MT2O_REQUIRE_NATIVE", "0") not in ("", "0"):
            raise
        warnings.warn(
            "mt2o_ext runs on its slow reference in plain torch, because the compiled part could not be loaded: "
            f"{error}. Rebuild with `pip install --no-build-isolation .`; `python -m mt2o_ext` shows what was found.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


C: ModuleType | None = _load()


def available(device: torch.device | str = "cpu") -> bool:
    """True if compiled kernels exist for tensors on this device."""
    return C is not None and torch.device(device).type == "cpu"


def backend_info() -> dict[str, Any]:
    """What was built and what was found, as plain values: the text of `python -m mt2o_ext`, for bug reports."""
    info: dict[str, Any] = {
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
        "CUDA kernels": "none in this version: parameters on a GPU run on the reference in plain torch",
    }
    return info
