"""The backends: implementations of all operators, which the same problems are given to.

A machine without a GPU never runs `CUDA`.  Its parametrizations carry the mark `gpu`, by which tests/conftest.py leaves
them out there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from emulator import library
from mt2o_ext import _native
from mt2o_ext.ops import (
    reference,
    reference_draw,
    reference_elements,
    reference_judge,
    reference_mask,
    reference_solve,
)


@dataclass(frozen=True)
class Backend:
    """One implementation of all operators: called as they are, results in their arguments."""

    name: str
    device: torch.device
    combine_: Callable[..., None]
    gram_: Callable[..., None]
    transfer_: Callable[..., None]
    step_: Callable[..., None]
    finite_: Callable[..., None]
    priority_: Callable[..., None]
    track_: Callable[..., None]
    feed_: Callable[..., None]
    excess_: Callable[..., None]
    drop_signs_: Callable[..., None]
    draw_: Callable[..., None]
    mask_: Callable[..., None]
    harmony_: Callable[..., None]
    exchange_: Callable[..., None]
    judge_: Callable[..., None]
    settle_: Callable[..., None]
    count_: Callable[..., None]
    solve: Any  # where the functions of family `solve` are
    missing: str = ""  # why it cannot run here


SOLVERS = (
    "minimum_norm_",
    "conflict_averse_",
    "power_barrier_",
    "dual_cone_",
    "eigen_",
    "project_",
    "descent_",
)


PLAIN = {  # where the reference of an operator is
    **dict.fromkeys(("combine_", "gram_", "transfer_", "step_", "finite_", "priority_"), reference),
    **dict.fromkeys(("track_", "feed_", "excess_", "drop_signs_"), reference_elements),
    **dict.fromkeys(("draw_",), reference_draw),
    **dict.fromkeys(("mask_", "harmony_", "exchange_"), reference_mask),
    **dict.fromkeys(("judge_", "settle_", "count_"), reference_judge),
}


def _copied(tensor: Tensor, device: torch.device, copies: dict[tuple[int, torch.dtype], Tensor]) -> Tensor:
    """The same strides in a copy of all the memory that the tensor is a view of, which is copied once."""
    storage = tensor.untyped_storage()
    key = (storage.data_ptr(), tensor.dtype)
    if key not in copies:
        copies[key] = torch.empty(0, dtype=tensor.dtype).set_(storage).to(device, copy=True)
    return copies[key].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _on(device: torch.device, function: Callable[..., None]) -> Callable[..., None]:
    """The operator on copies of its arguments there; what they are afterwards is copied back."""

    def run(*arguments: object, **options: object) -> None:
        memory: dict[tuple[int, torch.dtype], Tensor] = {}

        def moved(item: Any) -> Any:
            if isinstance(item, list):
                return [moved(one) for one in item]
            return _copied(item, device, memory) if isinstance(item, Tensor) else item

        copies = list(map(moved, arguments))
        function(*copies, **options)
        for item, copy in zip(arguments, copies, strict=True):
            if isinstance(item, Tensor) and 0 not in item.stride():
                item.copy_(copy)

    return run


def _backend(name: str, missing: str, device: str = "cpu", library: str = "mt2o_ext") -> Backend:
    where = torch.device(device)
    if missing:
        return replace(REFERENCE, name=name, device=where, missing=missing)
    operators = getattr(torch.ops, library)
    functions = {operator: getattr(operators, operator) for operator in PLAIN}
    if where.type == "cpu":
        return Backend(name, where, **functions, solve=operators)
    solve = SimpleNamespace(**{solver: _on(where, getattr(operators, solver)) for solver in SOLVERS})
    return Backend(name, where, **{key: _on(where, function) for key, function in functions.items()}, solve=solve)


def _without_gpu() -> str:
    if not torch.cuda.is_available():
        return "no GPU: torch.cuda.is_available() is False"
    return "" if _native.C_cuda is not None else _native.without_cuda()


def _emulated() -> Backend:
    """The CUDA kernels as g++ compiles them, each of their threads a fiber."""
    reason = library.missing()
    if not reason:
        library.load()
    return _backend("cuda-emulated", reason, library="mt2o_ext_emulated")


REFERENCE = Backend(
    "reference",
    torch.device("cpu"),
    **{operator: getattr(module, operator) for operator, module in PLAIN.items()},
    solve=reference_solve,
)
CPU = _backend("cpu", "" if _native.C is not None else f"the compiled part was not loaded: {_native.load_error}")
CUDA = _backend("cuda", _without_gpu(), "cuda")
EMULATED = _emulated()


def each(*backends: Backend) -> list[Any]:
    """These backends as parameters of a fixture or a test, named in its id."""
    return [pytest.param(one, id=one.name, marks=pytest.mark.gpu if one is CUDA else ()) for one in backends]


def usable(backend: Backend) -> Backend:
    """The backend; skips the test that asks, with the reason, where it cannot run."""
    if backend.missing:
        pytest.skip(backend.missing)
    return backend
