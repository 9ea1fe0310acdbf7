"""Checks of wheels: what they ask of a machine, what they tell of their builder, their GPUs, and that they run.

python -m tools.check_wheel dist/*.whl [--torch REQUIREMENT]...
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from build_backend import MINIMUM_TORCH
from tools.variants import MATRIX

LARGEST = 10_000_000  # bytes of a wheel
OLDEST_TORCH = MINIMUM_TORCH

# Undefined symbols as `nm -D` names them, by who is there to define them.
ALLOWED = {
    "torch's stable ABI, C functions alone": r"(aoti_torch|torch)_\w+",
    "the interpreter": r"_?Py\w+",
    "libc, libm, libstdc++, libgcc": r"\w+@(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+",
    # of libstdc++ too, but libtorch exports copies without a version, which the linker finds first
    "libstdc++, or libtorch": r"_ZNSt15__exception_ptr13exception_ptr\d+_M_(release|addref)Ev",
    "hooks that the linker leaves weak": r"_ITM_(de)?registerTMCloneTable|__gmon_start__",
}

# An absolute path of a source file, as __FILE__ puts it into messages; "./csrc/x.h" and "torch/x.h" are none.
SOURCE_PATH = re.compile(rb"(?<![\w.+-])/(?:[\w.+-]+/)+[\w.+-]+\.(?:c|cc|cpp|cu|cuh|h|hpp|inl)\b")


def foreign(symbols: Iterable[str]) -> list[str]:
    """The symbols that nobody on the list defines: such a library loads under one torch only, or under none."""
    return sorted(name for name in symbols if not any(re.fullmatch(pattern, name) for pattern in ALLOWED.values()))


def source_paths(data: bytes) -> list[str]:
    return sorted({match.decode() for match in SOURCE_PATH.findall(data)})


def newer_than(oldest: tuple[int, int], headers: str) -> set[str]:
    """The functions that torch's C headers declare only for a torch newer than ``oldest``."""
    found, conditions = set(), [(0, 0)]
    for line in headers.splitlines():
        if re.match(r"\s*#\s*if", line):
            version = re.search(r"TORCH_FEATURE_VERSION >= TORCH_VERSION_(\d+)_(\d+)", line)
            conditions.append((int(version[1]), int(version[2])) if version else (0, 0))
        elif re.match(r"\s*#\s*endif", line):
            conditions.pop()
        elif max(conditions) > oldest:
            found |= set(re.findall(r"\b((?:aoti_torch|torch)_\w+)\(", line))
    return found


def label_of(wheel: Path) -> str:
    """cu130, of mt2o_ext-0.1.0+cu130-cp311-...; empty without a label."""
    return wheel.name.split("-")[1].partition("+")[2]


def architectures(listing: str) -> Counter[str]:
    """How many times each architecture is in a list of cuobjdump: "ELF file 1: step.1.sm_90.cubin" is 9.0."""
    found: Counter[str] = Counter()
    for kind, number in re.findall(r"(ELF|PTX) file.*\bsm_(\d+)[af]?\.", listing):
        found[f"{number[:-1]}.{number[-1]}" + ("+PTX" if kind == "PTX" else "")] += 1
    return found


def wanted_architectures(archs: str) -> set[str]:
    """7.5, 9.0 and 9.0+PTX of "7.5;9.0+PTX"."""
    return {form for arch in archs.split(";") for form in {arch, arch.removesuffix("+PTX")}}


def wrong_architectures(found: Counter[str], archs: str) -> str:
    """What differs from the list; every source file must have code for all of it."""
    wanted = wanted_architectures(archs)
    if set(found) == wanted and len(set(found.values())) == 1:
        return ""
    return f"code for {dict(sorted(found.items()))}, not as often for each of {sorted(wanted)}"


def undefined_symbols(library: Path) -> list[str]:
    listing = subprocess.check_output(["nm", "-D", "--undefined-only", str(library)], text=True)
    return [line.split()[-1] for line in listing.splitlines()]


def find_cuobjdump(directory: Path) -> str:
    """cuobjdump of this machine, or the one of the package index (of CUDA 13: it reads older files too)."""
    if found := shutil.which("cuobjdump"):
        return found
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(directory)]
    subprocess.run([*pip, "nvidia-cuda-cuobjdump"], check=True)
    return str(next(directory.glob("nvidia/*/bin/cuobjdump")))


def static_faults(wheel: Path, archs: str, scratch: Path) -> Iterator[str]:
    """What is wrong with a wheel as it lies there."""
    if wheel.stat().st_size >= LARGEST:
        yield f"{wheel.stat().st_size / 1e6:.1f} MB, allowed {LARGEST / 1e6:.0f}"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(scratch / "unpacked")
    libraries = {path.name.partition(".")[0]: path for path in (scratch / "unpacked").rglob("*.so")}
    expected = {"_C", "_C_cuda"} if archs else {"_C"}
    if set(libraries) != expected:
        yield f"libraries {sorted(libraries)}, not {sorted(expected)}"
    for name, library in libraries.items():
        if symbols := foreign(undefined_symbols(library)):
            yield f"{name} needs {', '.join(symbols[:5])} ({len(symbols)} symbols that no list allows)"
        if paths := source_paths(library.read_bytes()):
            yield f"{name} names its builder's files: {', '.join(paths[:5])}"
    if archs and "_C_cuda" in libraries:
        command = [find_cuobjdump(scratch / "cuobjdump"), "--list-elf", "--list-ptx", str(libraries["_C_cuda"])]
        if fault := wrong_architectures(architectures(subprocess.check_output(command, text=True)), archs):
            yield fault


def fresh_environment(directory: Path, torch: str) -> Path:
    """The interpreter of an environment that has this torch and what the package needs beside it."""
    venv.create(directory, with_pip=True)
    python = directory / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", torch, "numpy"], check=True)
    return python


def needs_newer_torch(wheel: Path, python: Path) -> list[str]:
    """The symbols that the oldest torch does not have, by the headers of the one in this environment."""
    root = subprocess.check_output([python, "-c", "import torch; print(torch.__path__[0])"], text=True).strip()
    headers = [path.read_text() for path in Path(root, "include", "torch", "csrc").rglob("c/shim.h")]
    newer = set().union(*(newer_than(OLDEST_TORCH, header) for header in headers))
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(wheel) as archive:
        libraries = [archive.extract(name, scratch) for name in archive.namelist() if name.endswith(".so")]
        return sorted({name for library in libraries for name in undefined_symbols(Path(library))} & newer)


def running_faults(wheel: Path, python: Path) -> Iterator[str]:
    """What goes wrong when the wheel is installed, its libraries are loaded, and its kernels checked."""
    pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--force-reinstall", wheel]
    subprocess.run(list(map(str, pip)), check=True)
    with zipfile.ZipFile(wheel) as archive:
        libraries = sorted(
            {Path(name).name.partition(".")[0] for name in archive.namelist() if ".so" in Path(name).name}
        )
    if names := needs_newer_torch(wheel, python):
        yield f"needs what torch {'.'.join(map(str, OLDEST_TORCH))} has not: {', '.join(names)}"
    yield from program_faults(["env", "-u", "PYTHONPATH", str(python)], libraries)


def program_faults(python: Sequence[str], libraries: Iterable[str]) -> Iterator[str]:
    """What an interpreter says against the package that it finds: its libraries are loaded, and its kernels checked."""
    imports = "; ".join(["import torch, mt2o_ext", *(f"import mt2o_ext.{name}" for name in libraries)])
    for arguments in (["-c", imports], ["-m", "mt2o_ext"]):  # away from any checkout
        command = [*python, *arguments]
        environment = os.environ | {"MT2O_REQUIRE_NATIVE": "1"}
        done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True)
        if done.returncode:
            yield f"`{' '.join(command)}` failed: {(done.stdout + done.stderr).strip()[-2000:]}"


def archs_of(wheel: Path) -> str:
    return next((variant.archs for variant in MATRIX if variant.label == label_of(wheel)), "")


def check(wheels: Sequence[Path], torches: Sequence[str]) -> bool:
    """Prints a line for each check of each wheel; True if any of them failed."""
    failed = False

    def report(wheel: Path, check: str, faults: Iterable[str]) -> None:
        nonlocal failed
        lines = list(faults)
        failed |= bool(lines)
        print(f"{wheel.name}  {wheel.stat().st_size / 1e6:.2f} MB  {check}: {'; '.join(lines) or 'ok'}", flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        for number, wheel in enumerate(wheels):
            (directory := Path(scratch, str(number))).mkdir()
            report(wheel, "symbols, paths, size, GPUs", static_faults(wheel, archs_of(wheel), directory))
        for number, torch in enumerate(torches):
            python = fresh_environment(Path(scratch, f"environment{number}"), torch)
            version = subprocess.check_output([python, "-c", "import torch; print(torch.__version__)"], text=True)
            for wheel in wheels:
                report(wheel, f"import and kernels under torch {version.strip()}", running_faults(wheel, python))
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", nargs="+", type=Path)
    parser.add_argument("--torch", action="append", default=[], help="to import them with; may be repeated")
    chosen = parser.parse_args()
    return 1 if check([wheel.resolve() for wheel in chosen.wheels], chosen.torch) else 0


if __name__ == "__main__":
    sys.exit(main())
