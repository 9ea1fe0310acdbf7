"""The operators with CUDA kernels that run on the CPU: ``torch.ops.mt2o_ext_emulated``, backend ``cuda-emulated``."""

from __future__ import annotations

from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "build" / "emulator" / "libmt2o_emulated.so"


def missing() -> str:
    """Why there are no such operators, or "".  What is older than the sources does not count: it would test others."""
    if not LIBRARY.exists():
        return f"{LIBRARY.relative_to(ROOT)} is not built: make test-emulator (needs the CUDA toolkit's headers)"
    built = LIBRARY.stat().st_mtime
    sources = [*(ROOT / "csrc").rglob("*"), *Path(__file__).parent.glob("*.[ch]*")]
    newer = [path for path in sources if path.suffix in (".h", ".cpp", ".cu", ".cuh") and path.stat().st_mtime > built]
    if newer:
        return f"{LIBRARY.relative_to(ROOT)} is older than {newer[0].relative_to(ROOT)}: make test-emulator"
    return ""


def load() -> None:
    """Registers the operators; loading twice does nothing.

    Raises:
        RuntimeError: if the library is missing or older than its sources.
    """
    if reason := missing():
        raise RuntimeError(reason)
    torch.ops.load_library(str(LIBRARY))
