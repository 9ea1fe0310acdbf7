"""setuptools' build backend (PEP 517), which finds the torch of the environment that asks for the install.

Build isolation hides that torch.  Without this file, every isolated build would download another one, or fail with
"No module named torch".
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import site
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

from setuptools import build_meta

PYPROJECT = Path(__file__).resolve().parent / "pyproject.toml"
# What the package declares is what it is compiled for and checked with; no other file has this number.
MAJOR, MINOR = re.findall(r'^dependencies = .*"torch>=(\d+)\.(\d+)"', PYPROJECT.read_text(), re.MULTILINE)[0]
MINIMUM_TORCH = (int(MAJOR), int(MINOR))

build_sdist = build_meta.build_sdist
get_requires_for_build_sdist = build_meta.get_requires_for_build_sdist
prepare_metadata_for_build_wheel = build_meta.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = build_meta.prepare_metadata_for_build_editable


def target_paths() -> list[str]:
    """Where the interpreter that runs the install keeps its packages (pip's isolated build is run by the same one)."""
    paths = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    if sys.prefix == sys.base_prefix:  # not in a virtual environment
        paths.append(site.getusersitepackages())
    return list(dict.fromkeys(paths))


def target_has_torch() -> bool:
    versions = (torch.version for torch in importlib.metadata.distributions(name="torch", path=target_paths()))
    return any(tuple(map(int, version.split(".")[:2])) >= MINIMUM_TORCH for version in versions)


def torch_requirement() -> list[str]:
    if os.environ.get("MT2O_NO_EXT") == "1" or target_has_torch():
        return []
    return ["torch>={}.{}".format(*MINIMUM_TORCH)]


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return build_meta.get_requires_for_build_wheel(config_settings) + torch_requirement()


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    return build_meta.get_requires_for_build_editable(config_settings) + torch_requirement()


def with_target_paths(build: Callable[..., str]) -> Callable[..., str]:
    def wrapped(*args: Any, **kwargs: Any) -> str:
        sys.path.extend(target_paths())  # last: what the build environment has itself comes first
        return build(*args, **kwargs)

    return wrapped


build_wheel = with_target_paths(build_meta.build_wheel)
build_editable = with_target_paths(build_meta.build_editable)
