"""Compiles the package against the headers of the oldest torch that it declares: ``make floor``.

What is compiled elsewhere sees the headers of the torch that is installed, which may be years newer than what
pyproject.toml allows.  So this builds both libraries again, in build/floor, with torch's headers out of a wheel of that
version (of any platform: nothing of it is installed, and the smallest is a tenth of Linux's), and once more as a GPU
machine would.  Objects that would be the same are those of the last build in place.  A library for this interpreter
is then loaded, and its kernels are checked, with the torch that is installed.  What is compiled here is not optimized:
headers compile or they do not, whatever is made of them, and what they leave undefined is no less.  For the same reason
the files of a group are one file here, so that torch's headers, most of the work, are read once for all of them; that
each file includes what it needs is seen by every other build.

With FORCE_CUDA=1 (and the TORCH_CUDA_ARCH_LIST of that build) _C_cuda is linked too; without, its operators are
compiled.  Exits with 1 if something does not compile, link, load or work, or if the headers cannot be had.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import setup
from build_backend import MINIMUM_TORCH
from tools import check_wheel

ROOT = setup.ROOT
FLOOR = ROOT / "build" / "floor"
HERE = "{}.{}".format(*sys.version_info)
# Platforms whose wheels of torch are small, by their tags for pip.
SMALL = ("macosx_11_0_arm64", "macosx_14_0_arm64", "win_amd64")


@dataclass(frozen=True)
class Target:
    """A torch and a CPython to compile for, both as 2.10."""

    torch: str
    python: str = HERE


TARGETS = (
    Target("{}.{}".format(*MINIMUM_TORCH)),
    Target("2.11", "3.12"),  # what the machine has that gpu-check runs on
)


def torch_headers(version: str) -> Path:
    """The include directory of the newest torch of this version, downloaded once."""
    kept = FLOOR / f"torch-{version}"
    if not kept.exists():
        scratch = FLOOR / "download"
        shutil.rmtree(scratch, ignore_errors=True)
        platforms = [argument for name in SMALL for argument in ("--platform", name)]
        options = ["--no-deps", "--only-binary=:all:", "--python-version", "3.12", *platforms, "-d", str(scratch)]
        pip = [sys.executable, "-m", "pip", "download", "--quiet", *options, f"torch=={version}.*"]
        if subprocess.run(pip).returncode != 0:
            raise SystemExit(f"floor: no headers of torch {version}: pip could not download a wheel (its words: above)")
        (wheel,) = scratch.glob("torch-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if name.startswith("torch/include/")]
            archive.extractall(scratch, members)
        os.replace(scratch / "torch", kept)  # whole or not at all
        shutil.rmtree(scratch)
    return kept / "include"


def python_headers(version: str) -> Path | None:
    """Where Python.h of this CPython is, if this machine has it."""
    program, pyenv = shutil.which(f"python{version}"), Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    include = Path("include", f"python{version}")
    candidates = [
        *([Path(sysconfig.get_path("include"))] if version == HERE else []),
        *([Path(program).resolve().parents[1] / include] if program else []),
        *pyenv.glob(f"versions/{version}.*/{include}"),
    ]
    return next((path for path in candidates if (path / "Python.h").exists()), None)


def file_name(library: str, python: str) -> str:
    """_C.cpython-312-x86_64-linux-gnu.so"""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    return library + re.sub(r"cpython-\d+", f"cpython-{python.replace('.', '')}", suffix)


def depends(group: dict, python: str) -> bool:
    """Whether objects for another torch, and for this CPython, are others than those of the build."""
    return bool(group.get("torch") or (group.get("python") and python != HERE))


def objects_of_the_build(group: dict) -> list[str]:
    return [str(setup.build_directory() / compiled) for compiled in setup.objects_of(group)]


def as_one_file(group: dict, path: Path) -> dict:
    """The group with a single source, at this path, that includes all of its sources."""
    text = "".join(f'#include "{ROOT / source}"\n' for source in group["sources"])
    if not path.exists() or path.read_text() != text:  # else ninja would compile it again
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return {**group, "sources": [os.path.relpath(path, ROOT)]}


def statements(plan: setup.Plan, python: str, directory: Path) -> Iterator[str]:
    """Of a build.ninja in this directory: both libraries, as far as they can be linked here."""
    for library in setup.SOURCES["libraries"]:
        groups, objects = setup.groups_of(library), []
        linked = library != "_C_cuda" or plan.cuda is not None
        for number, group in enumerate(groups):
            if not depends(group, python):
                objects += objects_of_the_build(group)
            elif linked or not group.get("cuda"):
                together = as_one_file(group, directory / f"{library}_{number}.cpp")
                yield plan.compilation(together)
                objects += setup.objects_of(together)
        if linked:
            yield plan.link(library, file_name(library, python), objects)


def build(target: Target, cuda: setup.Cuda | None) -> Path:
    """Where the libraries are."""
    torch, python = target.torch, target.python
    headers = python_headers(python)
    if headers is None:
        print(f"floor: no headers of CPython {python} on this machine: compiled for {HERE} instead")
        python, headers = HERE, setup.find_python_headers()
    libraries = Path(setup.find_torch().__file__).parent / "lib"
    version = importlib.metadata.version("mt2o_ext").partition("+")[0]
    both = {"torch": torch_headers(torch), "python": headers}
    plan = setup.Plan(setup.find_compiler(), both, libraries, torch, version, cuda, optimize=("-O0", "-DNDEBUG"))
    directory = FLOOR / f"torch-{torch}-cpython-{python}"
    setup.run_ninja(directory, statements(plan, python, directory))
    return directory


def faults(directory: Path) -> Iterator[str]:
    """What is wrong with the libraries: what they need that no list allows; for this interpreter, how they run."""
    libraries = sorted(directory.glob("*.so"))
    for library in libraries:
        if symbols := check_wheel.foreign(check_wheel.undefined_symbols(library)):
            yield f"{library.name} needs {', '.join(symbols[:5])}"
    own = [path for path in libraries if path.name.endswith(sysconfig.get_config_var("EXT_SUFFIX"))]
    if not own:
        return
    package = directory / "package" / "mt2o_ext"
    shutil.rmtree(package.parent, ignore_errors=True)
    shutil.copytree(ROOT / "mt2o_ext", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for library in own:
        shutil.copy(library, package)
    python = ["env", f"PYTHONPATH={package.parent}", sys.executable]
    yield from check_wheel.program_faults(python, [path.name.partition(".")[0] for path in own])


def main() -> int:
    cuda, wrong = setup.find_cuda(setup.find_torch()), False
    for target in TARGETS:
        directory = build(target, cuda)
        lines = list(faults(directory))
        wrong |= bool(lines)
        built = ", ".join(path.name for path in sorted(directory.glob("*.so")))
        print(f"floor: headers of torch {target.torch}: {built}: {'; '.join(lines) or 'ok'}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
