"""Which wheels there are, and what they leave to the user's torch; each with its reason.

A wheel is for one CPython (pybind11 excludes the limited API) and for every torch >= 2.10 (its stable ABI): there is no
axis for torch or for the C++ ABI.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """One kind of wheel for a CPython and a processor."""

    name: str
    label: str  # of the version, after the plus sign
    cuda: str | None  # the toolkit that it is compiled with
    archs: str  # TORCH_CUDA_ARCH_LIST
    reason: str


# PTX of the newest architecture is in every CUDA wheel: GPUs that come later compile it when they load it.
MATRIX = (
    Variant("pypi", "", None, "", "the package index takes no local versions, and a CPU wheel suits every machine"),
    Variant("cpu", "cpu", None, "", "the same, to be asked for by name beside the CUDA wheels"),
    Variant(
        "cu126", "cu126", "12.6", "7.5;8.0;8.6;8.9;9.0+PTX",
        "the driver of a machine with CUDA 12 need not run CUDA 13's runtime, which is linked in; 12.6 is the oldest "
        "toolkit of the 12.x that torch >= 2.10 is published for, and knows nothing newer than 9.0",
    ),
    Variant("cu130", "cu130", "13.0", "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX", "CUDA 13.x; older GPUs than 7.5 left it"),
)  # fmt: skip

# Libraries that auditwheel must not copy into a wheel.
EXCLUDED = {
    "libtorch_cpu.so": "the user's torch is loaded already; a second copy would have its own operators and allocators",
    "libtorch.so": "as libtorch_cpu.so; an older linker names this one, which only gathers the others",
    "libc10.so": "part of the user's torch, loaded with libtorch_cpu.so",
}
