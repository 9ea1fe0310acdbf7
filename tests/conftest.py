"""Each backend in turn; and tests that need a GPU are left out where there is none."""

from __future__ import annotations

import gc

import pytest
import torch

from support.backends import CPU, CUDA, EMULATED, REFERENCE, Backend, each, usable

LEFT_OUT = pytest.StashKey[int]()
OF_WORKER = "tests left out without a GPU"  # under this name, a worker of pytest-xdist reports its number

gc.disable()  # until all is collected: next to nothing of it is garbage, and looking for some is a third of the work


@pytest.fixture(params=each(REFERENCE, CPU, CUDA, EMULATED), scope="session")
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each implementation of the operators in turn."""
    return usable(request.param)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a GPU, nothing marked `gpu` is collected."""
    if torch.cuda.is_available():
        return
    left_out = [item for item in items if item.get_closest_marker("gpu")]
    items[:] = [item for item in items if not item.get_closest_marker("gpu")]
    config.stash[LEFT_OUT] = len(left_out)
    if hasattr(config, "workeroutput"):
        config.workeroutput[OF_WORKER] = len(left_out)


def pytest_collection_finish() -> None:
    """From here on garbage is looked for among what the tests make, and not among modules and tests."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    """Takes the number from a worker of pytest-xdist, each of which collects all tests."""
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get(OF_WORKER, 0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Says in one line how many were left out."""
    if number := config.stash.get(LEFT_OUT, 0):
        reason = "no GPU: torch.cuda.is_available() is False"
        terminalreporter.write_line(f"{number} tests marked `gpu` were left out ({reason}); see make gpu-check")
