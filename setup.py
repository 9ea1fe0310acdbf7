"""Builds the native libraries: writes one build.ninja from sources.json and runs ninja.

torch's BuildExtension has one set of flags for an extension; instruction sets need them per file.  Metadata needs no torch.

Environment: MT2O_NO_EXT, MT2O_DEBUG, MT2O_CPU_ONLY, FORCE_CUDA (=1); CUDA_HOME, TORCH_CUDA_ARCH_LIST, CXX, MAX_JOBS.
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
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
SOURCES = json.loads((ROOT / "sources.json").read_text())
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY"]  # runs under every torch >= 2.10

RULES = """\
rule cxx
  command = $cxx -MD -MF $out.d $flags -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = $cxx $in
rule nvcc
  command = $nvcc -MD -MF $out.d $flags -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = $nvcc $in
rule link
  command = $linker -shared $in $flags -o $out
  description = link $out
"""


def is_set(variable: str) -> bool:
    return os.environ.get(variable, "0") not in ("", "0")


DEBUG = is_set("MT2O_DEBUG")
OPTIMIZE = ["-O0", "-g"] if DEBUG else ["-O3", "-DNDEBUG"]


def version_of(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:2]))


def required(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SystemExit(f"mt2o_ext: the build needs {name} ({error}): pip install {name}, or MT2O_NO_EXT=1") from None


def find_torch() -> Any:
    torch = required("torch")
    if version_of(torch.__version__) >= (2, 10):
        return torch
    raise SystemExit(f"mt2o_ext: needs torch >= 2.10, found {torch.__version__}: pip install -U torch")


def find_compiler() -> list[str]:
    command = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    if shutil.which(command[0]):
        return command
    raise SystemExit(f"mt2o_ext: {command[0]} not found; needs g++ (Debian: build-essential), or MT2O_NO_EXT=1")


def find_python_headers() -> Path:
    path = Path(sysconfig.get_path("include"))
    if (path / "Python.h").exists():
        return path
    raise SystemExit(f"mt2o_ext: no Python.h in {path}; needs Python's headers (Debian: python3-dev), or MT2O_NO_EXT=1")


def find_nvcc(torch: Any) -> str | None:
    """The compiler for `_C_cuda`, or None with the reason printed; with FORCE_CUDA=1 the reason is an error."""
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=f"{home}/bin" if home else None)
    if "_C_cuda" not in SOURCES["libraries"]:
        reason = "this version has no CUDA kernels"
    elif is_set("MT2O_CPU_ONLY"):
        reason = "MT2O_CPU_ONLY=1"
    elif nvcc is None:
        reason = "no nvcc; set CUDA_HOME to build for CUDA"
    elif torch.version.cuda is None and not is_set("FORCE_CUDA"):
        reason = f"torch {torch.__version__} has no CUDA; FORCE_CUDA=1 builds for CUDA all the same"
    else:
        return nvcc
    if is_set("FORCE_CUDA"):
        raise SystemExit(f"mt2o_ext: FORCE_CUDA=1, but {reason}")
    print(f"mt2o_ext: CPU only ({reason})")
    return None


class Cuda:
    """The CUDA toolkit that `nvcc` belongs to, and the GPUs to compile for."""

    def __init__(self, nvcc: str, torch: Any) -> None:
        report = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
        self.nvcc, self.version = nvcc, re.findall(r"release ([\d.]+)", report)[0]
        self.include = Path(os.environ.get("CUDA_HOME") or Path(nvcc).resolve().parents[1], "include")
        ours, of_torch = version_of(self.version), version_of(torch.version.cuda or self.version)
        if ours[0] != of_torch[0]:
            raise SystemExit(
                f"mt2o_ext: torch {torch.__version__} in {Path(torch.__file__).parent} is for CUDA {torch.version.cuda}, "
                f"{nvcc} is CUDA {self.version}: install a torch for CUDA {ours[0]} or point CUDA_HOME to CUDA {of_torch[0]}"
            )
        devices = sorted({torch.cuda.get_device_capability(device) for device in range(torch.cuda.device_count())})
        default = "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX" if ours >= (12, 8) else "7.5;8.0;8.6;8.9;9.0+PTX"
        present = ";".join(f"{major}.{minor}" for major, minor in devices)
        self.archs = os.environ.get("TORCH_CUDA_ARCH_LIST") or present or default
        print(f"mt2o_ext: CUDA {self.version} ({nvcc}) for {self.archs}")

    def arch_flags(self) -> list[str]:
        flags = []
        for name, ptx in re.findall(r"(\d+\.\d+[af]?)(\+PTX)?", self.archs):
            arch = name.replace(".", "")
            flags += [f"-gencode=arch=compute_{arch},code={code}_{arch}" for code in ("sm", "compute")[: 2 if ptx else 1]]
        return flags


class NinjaBuild(build_ext):
    """Builds in build/<ABI tag>, which stays between builds, and copies the libraries to where setuptools wants them."""

    def run(self) -> None:
        if not self.extensions:
            return
        self.torch, self.compiler_command, self.force = find_torch(), find_compiler(), True  # copy whatever the times
        nvcc = find_nvcc(self.torch)
        self.cuda = Cuda(nvcc, self.torch) if nvcc else None
        if self.cuda is None:
            self.extensions = [extension for extension in self.extensions if extension.name != "mt2o_ext._C_cuda"]
        super().run()

    def build_extensions(self) -> None:
        directory = ROOT / "build" / f"{sysconfig.get_config_var('SOABI')}{'-debug' if DEBUG else ''}"
        directory.mkdir(parents=True, exist_ok=True)
        paths = {extension.name.rpartition(".")[2]: self.get_ext_fullpath(extension.name) for extension in self.extensions}
        text = f"cxx = {shlex.join(self.compiler_command)}\nnvcc = {self.cuda.nvcc if self.cuda else ''}\n{RULES}"
        text += "".join(self.rules_for(library, Path(path).name) for library, path in paths.items())
        (directory / "build.ninja").write_text(text)
        ninja = shutil.which("ninja") or str(Path(required("ninja").BIN_DIR, "ninja"))
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        if subprocess.run([ninja, "-C", str(directory), *jobs]).returncode != 0:
            raise SystemExit("mt2o_ext: the build failed; the compiler's message is above")
        for path in paths.values():
            self.mkpath(str(Path(path).parent))
            self.copy_file(str(directory / Path(path).name), path)

    def rules_for(self, library: str, file_name: str) -> str:
        text, objects = "", []
        for group in SOURCES["libraries"][library].values():
            if platform.machine() not in group.get("machines", [platform.machine()]):
                continue
            for source in group["sources"]:
                rule, flags = ("nvcc", self.nvcc_flags) if source.endswith(".cu") else ("cxx", self.cxx_flags)
                path = re.sub(r"([ $:])", r"$\1", str(ROOT / source))
                text += f"build {source}.o: {rule} {path}\n  flags = {command_line(flags(group))}\n"
                objects.append(f"{source}.o")
        flags = command_line([f"-L{self.torch_path('lib')}", "-Xlinker", "--as-needed", "-ltorch_cpu"])
        linker = "$cxx" if library == "_C" else f"$nvcc -ccbin {self.compiler_command[-1]} -cudart=static"
        return text + f"build {file_name}: link {' '.join(objects)}\n  linker = {linker}\n  flags = {flags}\n"

    def torch_path(self, name: str) -> Path:
        return Path(self.torch.__file__).parent / name

    def cxx_flags(self, group: dict[str, Any]) -> list[str]:
        flags = [*SOURCES["flags"], *group.get("flags", []), *OPTIMIZE]
        headers = {}  # what their paths are called in messages: path
        if group.get("torch"):
            headers["torch"] = self.torch_path("include")
            flags += STABLE_ABI
        if group.get("pybind11"):
            headers |= {"pybind11": Path(required("pybind11").get_include()), "python": find_python_headers()}
            versions = {"MT2O_VERSION": self.distribution.get_version(), "MT2O_TORCH_VERSION": self.torch.__version__}
            flags += [f'-D{name}="{version}"' for name, version in versions.items()]
        if group.get("cuda") and self.cuda:
            headers["cuda"] = self.cuda.include
            flags += ["-DUSE_CUDA", f'-DMT2O_CUDA_VERSION="{self.cuda.version}"', f'-DMT2O_CUDA_ARCHS="{self.cuda.archs}"']
        for name, path in headers.items():
            flags += ["-isystem", str(path), f"-ffile-prefix-map={path}={name}"]
        return [*flags, f"-ffile-prefix-map={ROOT}=."]

    def nvcc_flags(self, group: dict[str, Any]) -> list[str]:
        host = f"-fPIC,-fvisibility=hidden,-ffile-prefix-map={ROOT}=."
        archs = self.cuda.arch_flags() if self.cuda else []
        return [*group.get("flags", []), *OPTIMIZE, *archs, "-ccbin", self.compiler_command[-1], "-Xcompiler", host]


def command_line(arguments: list[str]) -> str:
    return shlex.join(arguments).replace("$", "$$")


setup(
    license="MIT",  # pyproject's key for it changed its form with setuptools 77
    ext_modules=[] if is_set("MT2O_NO_EXT") else [Extension(f"mt2o_ext.{name}", []) for name in SOURCES["libraries"]],
    cmdclass={"build_ext": NinjaBuild},
)
