"""Builds the sdist and, from it, every wheel that this machine has the compilers for, and checks each: ``make wheels``.

python -m tools.wheels [cpu cu126 cu130 pypi] [--cuda-home DIR]... [--torch REQUIREMENT]... [--repair PLATFORM]

Which wheels there are, and why: tools/variants.py.  The interpreter that runs this is the one that they are for.
"""

from __future__ import annotations

import argparse
import html
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from tools import check_wheel, toolkit
from tools.variants import EXCLUDED, MATRIX, Variant

ROOT = Path(__file__).resolve().parents[1]

# Without an argument: what a machine is asked to build that publishes nothing.
USUAL = ("cpu", "cu126", "cu130")


def variant(name: str) -> Variant:
    return next(v for v in MATRIX if v.name == name)


def find_toolkits(homes: Iterable[str]) -> dict[str, str]:
    """CUDA_HOME by release: of the directories given, of CUDA_HOME, and of the nvcc on PATH."""
    on_path = shutil.which("nvcc")
    candidates = [*homes, os.environ.get("CUDA_HOME", ""), toolkit.home(on_path) if on_path else ""]
    toolkits: dict[str, str] = {}
    for home in filter(None, candidates):
        toolkits.setdefault(toolkit.release(str(Path(home, "bin", "nvcc"))), home)
    return toolkits


def why_not(wanted: Variant, toolkits: dict[str, str]) -> str:
    """Why a variant cannot be built here; empty if it can."""
    if wanted.cuda is None or wanted.cuda in toolkits:
        return ""
    found = ", ".join(toolkits) or "none"
    return (
        f"needs the compiler of CUDA {wanted.cuda} (found: {found}): --cuda-home DIR. The package index has none for "
        "CUDA 12: nvidia-cuda-nvcc-cu12 is ptxas and libnvvm without nvcc"
    )


def build_environment(wanted: Variant, toolkits: dict[str, str]) -> dict[str, str]:
    """What setup.py reads: nothing of the builder's own settings decides what is in a wheel."""
    ours = ("FORCE_CUDA", "MT2O_CPU_ONLY", "MT2O_NO_EXT", "MT2O_DEBUG", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment["MT2O_LOCAL_VERSION"] = wanted.label
    if wanted.cuda is None:
        return environment | {"MT2O_CPU_ONLY": "1"}
    # FORCE_CUDA: the torch to build with may be a CPU one, since _C_cuda links nothing of torch's CUDA libraries
    cuda = {"FORCE_CUDA": "1", "CUDA_HOME": toolkits[wanted.cuda], "TORCH_CUDA_ARCH_LIST": wanted.archs}
    return environment | cuda


def build_sdist(out: Path) -> Path:
    program = f"import build_backend; print(build_backend.build_sdist({str(out)!r}))"
    output = subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True)
    return out / output.splitlines()[-1]


def build_wheel(sdist: Path, out: Path, environment: dict[str, str]) -> Path:
    """In pip's isolated environment, which has only what pyproject.toml asks for, and away from the checkout."""
    staging = out / "staging"
    shutil.rmtree(staging, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-cache-dir", "--wheel-dir", str(staging), str(sdist)]
    subprocess.run(pip, check=True, env=environment, cwd=out)
    (wheel,) = staging.iterdir()
    return wheel


def repair(wheel: Path, platform: str) -> Path:
    """The wheel under the tag of a platform (manylinux_2_28_x86_64), if it needs nothing newer."""
    excluded = [f"--exclude={name}" for name in EXCLUDED]
    target = wheel.parent / "repaired"
    command = [sys.executable, "-m", "auditwheel", "repair", "--plat", platform, *excluded, "-w", str(target)]
    subprocess.run([*command, str(wheel)], check=True)
    (repaired,) = target.iterdir()
    return repaired


def index_page(names: Iterable[str], base: str) -> str:
    """A page for ``pip install --find-links``, with links to the wheels under the address ``base``."""
    links = (f'<a href="{html.escape(base + quote(name))}">{html.escape(name)}</a><br>' for name in sorted(names))
    return "\n".join(["<!DOCTYPE html>", "<title>mt2o_ext</title>", *links, ""])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=f"of {', '.join(v.name for v in MATRIX)}")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--cuda-home", action="append", default=[], help="a CUDA toolkit; may be repeated")
    parser.add_argument("--torch", action="append", help="to import the wheels with (torch==2.13.0); may be repeated")
    parser.add_argument("--index", metavar="ADDRESS", help="only print a page that links the wheels in --out there")
    parser.add_argument("--repair", metavar="PLATFORM", help="give the wheels the tag of this platform (auditwheel)")
    chosen = parser.parse_args()
    for name in set(chosen.variants) - {v.name for v in MATRIX}:
        parser.error(f"no variant {name!r}: choose from {', '.join(v.name for v in MATRIX)}")
    return chosen


def main() -> int:
    chosen = arguments()
    if chosen.index:
        print(index_page((wheel.name for wheel in chosen.out.glob("*.whl")), chosen.index), end="")
        return 0
    toolkits, names = find_toolkits(chosen.cuda_home), chosen.variants or USUAL
    out = chosen.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    wheels, missing = [], {}
    sdist = build_sdist(out)
    for wanted in map(variant, names):
        if reason := why_not(wanted, toolkits):
            missing[wanted.name] = reason
            continue
        wheel = build_wheel(sdist, out, build_environment(wanted, toolkits))
        wheel = repair(wheel, chosen.repair) if chosen.repair else wheel
        wheels.append(Path(shutil.move(wheel, out / wheel.name)))
    shutil.rmtree(out / "staging", ignore_errors=True)
    wrong = check_wheel.check(wheels, chosen.torch or ["torch"])
    for name, reason in missing.items():
        print(f"{name}: not built: {reason}")
    # A variant that was asked for by name must be there.
    return 1 if wrong or (chosen.variants and missing) else 0


if __name__ == "__main__":
    sys.exit(main())
