"""Builds the native libraries: writes one build.ninja from sources.json and runs ninja.

torch's BuildExtension has one set of flags for an extension; instruction sets need them per file.
Environment: MT2O_NO_EXT, MT2O_DEBUG, MT2O_CPU_ONLY, FORCE_CUDA (=1); CUDA_HOME, TORCH_CUDA_ARCH_LIST, CXX, MAX_JOBS;
MT2O_LOCAL_VERSION, the part of a wheel's version after the plus sign (cpu, cu130).
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.egg_info import egg_info

from build_backend import MINIMUM_TORCH

ROOT = Path(__file__).resolve().parent
SOURCES = json.loads((ROOT / "sources.json").read_text())
TARGET = "0x{:02x}{:02x}000000000000".format(*MINIMUM_TORCH)
STABLE_ABI = [f"-DTORCH_TARGET_VERSION={TARGET}", "-DTORCH_STABLE_ONLY"]  # runs under every later torch too

RULES = """\
rule compile
  command = $compiler -MD -MF $out.d $flags -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = compile $in
rule link
  command = $compiler -shared $in $flags -o $out
  description = link $out
"""


def is_set(variable: str) -> bool:
    return os.environ.get(variable, "0") not in ("", "0")


OPTIMIZE = ("-O0", "-g") if is_set("MT2O_DEBUG") else ("-O3", "-DNDEBUG")


def version_of(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:2]))


def required(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SystemExit(f"mt2o_ext: the build needs {name} ({error}): pip install {name}, or MT2O_NO_EXT=1") from None


def find_torch() -> Any:
    torch = required("torch")
    if version_of(torch.__version__) < MINIMUM_TORCH:
        oldest = "{}.{}".format(*MINIMUM_TORCH)
        raise SystemExit(f"mt2o_ext: needs torch >= {oldest}, found {torch.__version__}: pip install -U torch")
    return torch


def find_compiler() -> list[str]:
    command = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    if shutil.which(command[0]) is None:
        raise SystemExit(f"mt2o_ext: {command[0]} not found; needs g++ (Debian: build-essential), or MT2O_NO_EXT=1")
    return command


def find_python_headers() -> Path:
    path = Path(sysconfig.get_path("include"))
    if not (path / "Python.h").exists():
        raise SystemExit(f"mt2o_ext: no Python.h in {path}; needs it (Debian: python3-dev), or MT2O_NO_EXT=1")
    return path


def find_cuda(torch: Any) -> Cuda | None:
    """What `_C_cuda` is built with, or None and the reason is printed; with FORCE_CUDA=1 the reason is an error."""
    nvcc = shutil.which("nvcc", path=f"{os.environ['CUDA_HOME']}/bin" if os.environ.get("CUDA_HOME") else None)
    if "_C_cuda" not in SOURCES["libraries"]:
        reason = "this version has no CUDA kernels"
    elif is_set("MT2O_CPU_ONLY"):
        reason = "MT2O_CPU_ONLY=1"
    elif nvcc is None:
        reason = "no nvcc; set CUDA_HOME to build for CUDA"
    elif torch.version.cuda is None and not is_set("FORCE_CUDA"):
        reason = f"torch {torch.__version__} has no CUDA; FORCE_CUDA=1 builds for CUDA all the same"
    else:
        return Cuda(nvcc, torch)
    if is_set("FORCE_CUDA"):
        raise SystemExit(f"mt2o_ext: FORCE_CUDA=1, but {reason}")
    print(f"mt2o_ext: CPU only ({reason})")
    return None


def toolkit_of(nvcc: str) -> tuple[str, Path]:
    """The release (13.0) and the directory of a compiler's toolkit; nvcc itself may be a script or a link elsewhere."""

    def asked(pattern: str, *arguments: str) -> str:
        done = subprocess.run([nvcc, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        found = re.search(pattern, done.stdout)
        if found is None:
            raise SystemExit(f"mt2o_ext: `{shlex.join([nvcc, *arguments])}` does not say {pattern}: {done.stdout}")
        return found[1]

    return asked(r"release ([\d.]+)", "--version"), Path(asked("TOP=(.*)", "-x", "cu", "--dryrun", "-c", "/dev/null"))


class Cuda:
    """The CUDA toolkit that `nvcc` belongs to, and the GPUs to compile for."""

    def __init__(self, nvcc: str, torch: Any) -> None:
        self.nvcc = nvcc
        self.version, self.home = toolkit_of(nvcc)
        ours, theirs = version_of(self.version), version_of(torch.version.cuda or self.version)
        if ours[0] != theirs[0]:
            raise SystemExit(
                f"mt2o_ext: torch {torch.__version__} ({torch.__file__}) is for CUDA {torch.version.cuda}, {nvcc} is "
                f"CUDA {self.version}: install a torch for CUDA {ours[0]} or point CUDA_HOME to CUDA {theirs[0]}"
            )
        devices = sorted({torch.cuda.get_device_capability(device) for device in range(torch.cuda.device_count())})
        present = ";".join(f"{major}.{minor}" for major, minor in devices)
        default = "7.5;8.0;8.6;8.9;9.0" + (";10.0;12.0+PTX" if ours >= (12, 8) else "+PTX")
        self.archs = os.environ.get("TORCH_CUDA_ARCH_LIST") or present or default
        print(f"mt2o_ext: CUDA {self.version} ({nvcc}) for {self.archs}")

    def defines(self) -> list[str]:
        return [f'-DMT2O_CUDA_VERSION="{self.version}"', f'-DMT2O_CUDA_ARCHS="{self.archs}"']

    def arch_flags(self) -> list[str]:
        archs = re.findall(r"(\d+)\.(\d+[af]?)(\+PTX)?", self.archs)
        pairs = [(major + minor, code) for major, minor, ptx in archs for code in ("sm", *(["compute"] if ptx else []))]
        return [f"-gencode=arch=compute_{arch},code={code}_{arch}" for arch, code in pairs]


class Labelled(egg_info):
    """Appends MT2O_LOCAL_VERSION to the version of the distribution.

    An option given to setup() would not do: the setup.cfg that setuptools puts into an sdist is read after it.
    """

    def finalize_options(self) -> None:
        label = os.environ.get("MT2O_LOCAL_VERSION", "")
        if not re.fullmatch(r"[a-z0-9]*", label):  # what PEP 440 leaves as it is
            raise SystemExit(f"mt2o_ext: MT2O_LOCAL_VERSION is letters and digits such as cu130, not {label!r}")
        if label:
            self.tag_build = f"+{label}"
        super().finalize_options()


class NinjaBuild(build_ext):
    """Builds in build/<ABI tag>, which stays between builds, and copies the libraries to where they are wanted."""

    extensions: list[Extension]

    def run(self) -> None:
        if not self.extensions:
            return
        compiler, torch = find_compiler(), find_torch()
        version = self.distribution.get_version().partition("+")[0]  # as mt2o_ext.__version__
        root, cuda = Path(torch.__file__).parent, find_cuda(torch)
        headers = {"torch": root / "include", "python": find_python_headers()}
        self.plan = Plan(compiler, headers, root / "lib", torch.__version__, version, cuda)
        self.extensions = [e for e in self.extensions if cuda or e.name != "mt2o_ext._C_cuda"]
        self.force = True  # copies a library even if it is older: a release build after a debug build
        super().run()

    def build_extensions(self) -> None:
        directory = build_directory()
        paths = {e.name.rpartition(".")[2]: Path(self.get_ext_fullpath(e.name)) for e in self.extensions}
        run_ninja(directory, [self.plan.library(library, path.name) for library, path in paths.items()])
        for path in paths.values():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(directory / path.name), str(path))


def build_directory() -> Path:
    return ROOT / "build" / (sysconfig.get_config_var("SOABI") + ("-debug" if is_set("MT2O_DEBUG") else ""))


def run_ninja(directory: Path, statements: Iterable[str]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "build.ninja").write_text(RULES + "".join(statements))
    ninja = shutil.which("ninja") or str(Path(required("ninja").BIN_DIR, "ninja"))
    jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
    if subprocess.run([ninja, "-C", str(directory), *jobs]).returncode != 0:
        raise SystemExit("mt2o_ext: the build failed; the compiler's message is above")


@dataclass(frozen=True)
class Plan:
    """What sources are compiled and linked with, as statements of a build.ninja."""

    compiler: list[str]
    headers: dict[str, Path]  # of torch and python
    torch_libraries: Path
    torch_version: str  # of the headers
    version: str  # of this package
    cuda: Cuda | None
    optimize: tuple[str, ...] = OPTIMIZE

    def library(self, library: str, file_name: str) -> str:
        text, objects = "", []
        for group in groups_of(library):
            text += self.compilation(group)
            objects += objects_of(group)
        return text + self.link(library, file_name, objects)

    def compilation(self, group: dict[str, Any]) -> str:
        text = ""
        for source, compiled in zip(group["sources"], objects_of(group), strict=True):
            nvcc = self.cuda if source.endswith(".cu") else None
            compiler = [nvcc.nvcc, "-ccbin", self.compiler[-1]] if nvcc else self.compiler
            flags = self.nvcc_flags(group, nvcc) if nvcc else self.cxx_flags(group)
            text += f"build {compiled}: compile {ninja_path(ROOT / source)}\n"
            text += f"  compiler = {command_line(compiler)}\n  flags = {command_line(flags)}\n"
        return text

    def link(self, library: str, file_name: str, objects: list[str]) -> str:
        flags = [f"-L{self.torch_libraries}", "-Wl,--as-needed", "-ltorch_cpu"]
        if library == "_C_cuda" and self.cuda:  # not linked by nvcc, which would leave these paths in the library
            flags += [f"-L{self.cuda.home}/lib64", f"-L{self.cuda.home}/lib", "-lcudart_static", "-lrt", "-ldl"]
        text = f"build {file_name}: link {' '.join(objects)}\n"
        return text + f"  compiler = {command_line(self.compiler)}\n  flags = {command_line(flags)}\n"

    def cxx_flags(self, group: dict[str, Any]) -> list[str]:
        flags = [*SOURCES["flags"], *group.get("flags", []), *self.optimize]
        headers = {}  # by the name that stands for their path in messages
        if group.get("torch"):
            headers["torch"], flags = self.headers["torch"], flags + STABLE_ABI
        if group.get("python"):
            headers["python"] = self.headers["python"]
            flags += [f'-DMT2O_VERSION="{self.version}"', f'-DMT2O_TORCH_VERSION="{self.torch_version}"']
        if group.get("pybind11"):
            headers["pybind11"] = Path(required("pybind11").get_include())
        if group.get("cuda") and self.cuda:
            flags += self.cuda.defines()
        for name, path in headers.items():
            flags += ["-isystem", str(path), f"-ffile-prefix-map={path}={name}"]
        return [*flags, f"-ffile-prefix-map={ROOT}=."]

    def nvcc_flags(self, group: dict[str, Any], cuda: Cuda) -> list[str]:
        host = f"-fPIC,-fvisibility=hidden,-ffile-prefix-map={ROOT}=."
        return [*group.get("flags", []), *self.optimize, *cuda.arch_flags(), "-Xcompiler", host]


def groups_of(library: str) -> list[dict[str, Any]]:
    """Those for this machine."""
    machine = platform.machine()
    return [g for g in SOURCES["libraries"][library].values() if machine in g.get("machines", [machine])]


def objects_of(group: dict[str, Any]) -> list[str]:
    return [f"{source}.o" for source in group["sources"]]


def ninja_path(path: Path) -> str:
    return re.sub(r"([$ :])", r"$\1", str(path))


def command_line(arguments: list[str]) -> str:
    return shlex.join(arguments).replace("$", "$$")


if __name__ == "__main__":  # tools import the rest
    names = [] if is_set("MT2O_NO_EXT") else SOURCES["libraries"]
    setup(
        license="MIT",  # pyproject's key for it changed its form with setuptools 77
        ext_modules=[Extension(f"mt2o_ext.{name}", []) for name in names],
        cmdclass={"build_ext": NinjaBuild, "egg_info": Labelled},
    )
