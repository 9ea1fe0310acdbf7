"""What the check runs on, as JSON: GPU, driver, toolkit, versions, commit.  Fails where no GPU can be used.

python -m tools.gpu_check.machine FILE [--dry-run] [--commit TEXT]
"""

from __future__ import annotations

import argparse
import datetime
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tools import toolkit
from tools.gpu_check.runner import write_json


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


def software(commit: str) -> dict[str, Any]:
    """commit: where this copy of the tree is from; "": git is asked."""
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit or first_line("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"),
        "torch": torch.__version__,
        "torch CUDA": torch.version.cuda,
        "nvcc": toolkit.release() if shutil.which("nvcc") else None,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--commit", default="")
    chosen = parser.parse_args()
    write_json(chosen.file, software(chosen.commit) | ({"gpu": "none, dry run"} if chosen.dry_run else gpu()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
