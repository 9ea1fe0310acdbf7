"""Importing other people's libraries: a test that wants one is skipped, with the reason, where it is not installed."""

from __future__ import annotations

import importlib
import sys
import warnings
from types import ModuleType
from typing import Any

import pytest

# What these libraries say about themselves, their neighbours and this machine; anything else is an error as everywhere.
NOISE = (
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore:.*does not have many workers:UserWarning",
    "ignore:.*number of training batches:UserWarning",
    "ignore:.*pin_memory.*no accelerator is found:UserWarning",
    "ignore:Checkpoint directory .* exists and is not empty:UserWarning",
    "ignore:.*None of the inputs have requires_grad=True:UserWarning",
    "ignore:(?s)Using ModelCheckpoint with manual optimization:UserWarning",
    "ignore:Be aware that when using `ckpt_path`:UserWarning",
    "ignore:GPU available but not used:UserWarning",
)


def library(name: str) -> Any:
    """The imported module; skips the module of tests that asks, where it cannot be imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError as error:
            pytest.skip(f"{name} is not here: {error} (make test-clients)", allow_module_level=True)


def timm_schedulers() -> Any:
    """timm.scheduler, also without torchvision, which the rest of timm wants."""
    try:
        return importlib.import_module("timm.scheduler")
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            pytest.skip(f"timm is not here: {error} (make test-clients)")
    spec = importlib.util.find_spec("timm")
    assert spec is not None
    bare = ModuleType("timm")
    bare.__path__ = list(spec.submodule_search_locations or [])
    sys.modules["timm"] = bare
    return importlib.import_module("timm.scheduler")
