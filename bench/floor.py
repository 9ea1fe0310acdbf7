"""The floor: how fast this machine moves the bytes that a kernel must move, measured beside the kernel."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

FACTOR = ctypes.c_float(1.0000001)  # not 1: the compiler must not know it


@cache
def library() -> ctypes.CDLL:
    source = Path(__file__).with_name("floor.cpp")
    out = Path(tempfile.mkdtemp()) / "floor.so"
    command = ["g++", "-O3", "-march=native", "-ffp-contract=off", "-std=c++17", "-shared", "-fPIC", "-pthread"]
    subprocess.run([*command, str(source), "-o", str(out)], check=True)
    return ctypes.CDLL(str(out))


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _size(n: int) -> ctypes.c_int64:
    return ctypes.c_int64(n)


def copies(num_bytes: int, threads: int) -> dict[str, Callable[[], object]]:
    """Streaming copy, streaming triad and in-place scale, each moving ``num_bytes``."""
    n = max(num_bytes // 4, 1 << 20)
    work = torch.ones(n)  # touched
    half, third = n // 2 & ~15, n // 3 & ~15
    fast = library()
    base = work.data_ptr()

    def at(first: int) -> ctypes.c_void_p:
        return ctypes.c_void_p(base + 4 * first)

    def keep(call: Callable[[], object]) -> Callable[[], object]:
        call.work = work  # type: ignore[attr-defined]
        return call

    return {
        "copy": keep(lambda: fast.floor_copy(at(half), at(0), _size(half), threads)),
        "triad": keep(lambda: fast.floor_triad(at(2 * third), at(0), at(third), FACTOR, _size(third), threads)),
        "scale": keep(lambda: fast.floor_scale(at(0), FACTOR, _size(half), threads)),
    }


def step_twin(theta: Tensor, m: Tensor, v: Tensor, grads: Tensor, threads: int) -> Callable[[], object]:
    """The loop that reads and writes the arrays of a step, with trivial arithmetic."""
    rows, tasks, row = grads.shape
    fast = library()
    return lambda: fast.floor_step(
        _pointer(theta), _pointer(m), _pointer(v), _pointer(grads), _size(rows), _size(tasks), _size(row),
        ctypes.c_float(1e-12), threads,
    )  # fmt: skip


def read(tensor: Tensor, threads: int) -> Callable[[], object]:
    """One read of a tensor."""
    fast = library()
    fast.floor_read.restype = ctypes.c_float
    return lambda: fast.floor_read(_pointer(tensor), _size(tensor.numel() & ~15), threads)


def row_sum(out: Tensor, rows: Tensor, threads: int) -> Callable[[], object]:
    """One read of all rows [T, P] and one write of their sum."""
    fast = library()
    return lambda: fast.floor_sum(_pointer(out), _pointer(rows), _size(rows.shape[0]), _size(rows.shape[1]), threads)
