"""The CUDA toolkit that an nvcc belongs to."""

from __future__ import annotations

import re
import subprocess


def home(nvcc: str = "nvcc") -> str:
    """Its directory; nvcc itself may be a script or a link in another place."""
    return re.findall(r"TOP=(.*)", subprocess.getoutput(f"{nvcc} -x cu --dryrun -c /dev/null"))[0]


def release(nvcc: str = "nvcc") -> str:
    """13.0, say."""
    return re.findall(r"release ([\d.]+)", subprocess.check_output([nvcc, "--version"], text=True))[0]
