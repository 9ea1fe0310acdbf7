"""What the check runs on, as JSON: GPU, driver, toolkit, versions, commit.  Fails where no GPU can be used.

python -m tools.gpu_check.machine FILE
"""

from __future__ import annotations

import datetime
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tools import toolkit


def first_line(*command: str) -> str | None:
    """The first line that a command prints; None where it is not there or fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.partition("\n")[0].strip() if done.returncode == 0 else None


def gpu() -> dict[str, Any]:
    """The first GPU; raises RuntimeError where torch finds none."""
    if not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds no GPU; --dry-run needs none")
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "architecture": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory, GB": round(properties.total_memory / 1e9, 1),
        "L2 cache, MB": round(properties.L2_cache_size / 1e6, 1),
        "driver": first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
    }


def software() -> dict[str, Any]:
    return {
        "date": datetime.date.today().isoformat(),
        "commit": first_line("git", "rev-parse", "HEAD"),
        "first uncommitted change": first_line("git", "status", "--porcelain", "--untracked-files=no"),
        "torch": torch.__version__,
        "torch CUDA": torch.version.cuda,
        "nvcc": toolkit.release() if shutil.which("nvcc") else None,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def main() -> int:
    path, dry = Path(sys.argv[1]), "--dry-run" in sys.argv[2:]
    path.write_text(json.dumps(software() | ({"gpu": "none, dry run"} if dry else gpu()), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
