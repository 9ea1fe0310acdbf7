"""The CUDA toolkit that an nvcc belongs to, as the build finds it."""

from __future__ import annotations

from setup import toolkit_of


def home(nvcc: str = "nvcc") -> str:
    """Its directory."""
    return str(toolkit_of(nvcc)[1])


def release(nvcc: str = "nvcc") -> str:
    """13.0, say."""
    return toolkit_of(nvcc)[0]
