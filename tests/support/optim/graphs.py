"""Steps recorded once and replayed without the host: CUDA graphs, and what comes closest to them on a CPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from mt2o_ext import device
from support.backends import CUDA, usable

WAITS = ("_local_scalar_dense", "nonzero", "equal", "item", "masked_select", "unique")


def _alias(value: Any) -> Any:
    """The same memory, whatever becomes of the tensor (``p.data = ...`` gives a parameter other memory)."""
    return tree_map_only(Tensor, lambda tensor: tensor.detach(), value)


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


class Recorder(TorchDispatchMode):
    """Keeps every operation with the memory that it reads and writes; refuses those whose result the host reads."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        if name in WAITS:
            raise RuntimeError(f"{name}: reads a value on the host")
        kept = _alias(args), _alias(kwargs or {})
        result = func(*args, **(kwargs or {}))
        if func.namespace != "profiler":
            self.calls.append((func, *kept, _alias(result)))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, result in self.calls:
            for old, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and not _same_memory(old, new):
                    old.copy_(new)


class OnCpu:
    """Records on a CPU, where the package is told that it is a capture, and that the host may not wait."""

    device = torch.device("cpu")
    same_draws = True

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.patch = monkeypatch

    @contextmanager
    def capturing(self) -> Iterator[None]:
        with self.patch.context() as patch:
            patch.setattr(device, "_records", lambda device: True)
            yield

    def record(self, step: Callable[[], Any]) -> Callable[[], None]:
        """Does the step, and gives what does it again."""
        recorder = Recorder()
        with self.capturing(), recorder:
            step()
        return recorder.replay


class OnCuda:
    """Records CUDA graphs."""

    device = torch.device("cuda")
    same_draws = False  # eager steps draw from the optimizer's generator, replays from the device's

    def __init__(self) -> None:
        """A matrix product, forwards and backwards: with its first one a thread opens cuBLAS, which allocates, and that
        cannot be recorded.  (Backward has a thread of its own.)"""
        torch.nn.Linear(2, 2, device=self.device)(torch.ones(2, 2, device=self.device)).sum().backward()
        torch.cuda.synchronize()

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """For what is refused: torch warns of a graph in which there is nothing, which is right here."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The CUDA Graph is empty")
            with torch.cuda.graph(torch.cuda.CUDAGraph()):
                yield

    def record(self, step: Callable[[], Any]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        graph.replay()
        return graph.replay


Graphs = OnCpu | OnCuda


@pytest.fixture(params=["recorded", pytest.param("cuda", marks=pytest.mark.gpu)])
def graphs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Graphs]:
    if request.param == "recorded":
        yield OnCpu(monkeypatch)
    else:
        usable(CUDA)
        with torch.cuda.stream(torch.cuda.Stream()):  # steps before a capture must not be on the default stream
            yield OnCuda()
