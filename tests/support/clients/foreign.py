"""Importing other people's libraries: a test that wants one is skipped, with the reason, where it is not installed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from pathlib import Path
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
    """The imported module; or a skip of the test (the module of tests) that asks, where it cannot be imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError as error:
            pytest.skip(f"{name} is not here: {error} (make test-clients)", allow_module_level=True)


def timm_module(name: str) -> Any:
    """A module of timm, also without torchvision, which timm wants for its models; skips the test without timm."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != "torchvision":
                pytest.skip(f"timm is not here: {error} (make test-clients)")
        package = name.rpartition(".")[0]  # whose __init__ imports the models
        spec = importlib.util.find_spec("timm")
        assert spec is not None and spec.submodule_search_locations
        root = Path(spec.submodule_search_locations[0]).parent
        for bare in ("timm", package) if package != "timm" else ("timm",):
            sys.modules[bare] = module = ModuleType(bare)
            module.__path__ = [str(root / bare.replace(".", "/"))]
        return importlib.import_module(name)
