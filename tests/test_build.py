"""The build: what is compiled, what the library exports and imports, what is said when something is missing."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from tools import toolkit

ROOT = Path(__file__).resolve().parents[1]
SOURCES = json.loads((ROOT / "sources.json").read_text())
GROUPS = [group for library in SOURCES["libraries"].values() for group in library.values()]
LIBRARY = ROOT / "mt2o_ext" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
LEVELS = [level for level in ("default", "avx2", "avx512") if level == "default" or platform.machine() == "x86_64"]

CUDA_LIBRARY = ROOT / "build" / "cuda" / "mt2o_ext" / f"_C_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"  # .ci/run

needs_cuda_library = pytest.mark.skipif(
    not CUDA_LIBRARY.exists(), reason=f"{CUDA_LIBRARY.relative_to(ROOT)} is not built: .ci/run does, where nvcc is"
)
needs_library = pytest.mark.skipif(not LIBRARY.exists(), reason=f"{LIBRARY.name} is not built (MT2O_NO_EXT)")


def run(
    *command: str | Path, cwd: Path = ROOT, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=os.environ | (env or {}), capture_output=True, text=True, timeout=900
    )


def output(*command: str | Path, **options) -> str:
    done = run(*command, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what is needed to build, and of nothing that was built."""
    copy = tmp_path / "checkout"
    files = ["setup.py", "build_backend.py", "sources.json", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"]
    for name in ["csrc", "mt2o_ext"]:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in files:
        shutil.copy(ROOT / name, copy)
    return copy


def test_sources_on_disk_are_the_sources_listed():
    listed = [source for group in GROUPS for source in group["sources"]]
    on_disk = [str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".cu")]
    assert sorted(listed) == sorted(on_disk)


@needs_library
@pytest.mark.parametrize("level", LEVELS)
def test_a_level_shares_nothing_but_its_table(level: str):
    """Otherwise the linker might take an inline function compiled for AVX-512 and give it to everybody."""
    compiled = ROOT / "build" / sysconfig.get_config_var("SOABI") / "csrc" / "cpu" / f"kernels_{level}.cpp.o"
    if not compiled.exists():
        pytest.skip(f"{compiled.relative_to(ROOT)} is not there: not built in place, or with MT2O_DEBUG=1")
    symbols = re.findall(r"([A-Zuvw]) (\w+)", output("nm", compiled))
    undefined = {name for kind, name in symbols if kind == "U"}
    assert [name for kind, name in symbols if kind != "U"] == [f"_ZN4mt2o{len('isa_' + level)}isa_{level}7kernelsE"]
    assert undefined <= {"memcpy", "memmove", "memset"} | ({"fma", "fmaf"} if level == "default" else set())


@needs_library
def test_library_needs_only_what_every_torch_has():
    symbols = output("nm", "-D", "-C", "--undefined-only", LIBRARY).splitlines()
    names = [re.sub(r"^\s*[Uvw] ", "", line) for line in symbols]
    of_torch = [name for name in names if re.match(r"(aoti_torch|torch)_\w+$", name)]
    of_python = [name for name in names if re.match(r"_?Py\w+$", name)]
    of_system = [name for name in names if re.search(r"^std::|@(GLIBC|GLIBCXX|CXXABI|GCC)_", name)]
    of_toolchain = [name for name in names if re.match(r"(_ITM_\w+|__gmon_start__)$", name)]
    assert of_torch
    assert of_python
    assert set(names) == {*of_torch, *of_python, *of_system, *of_toolchain}


@needs_library
def test_library_links_no_torch_library_but_the_stable_one():
    needed = re.findall(r"NEEDED.*\[(.*)\]", output("readelf", "-d", LIBRARY))
    assert [name for name in needed if name.startswith(("libtorch", "libc10"))] == ["libtorch_cpu.so"]
    assert "RUNPATH" not in output("readelf", "-d", LIBRARY)


@needs_library
def test_no_path_of_the_builder_in_the_library():
    library = LIBRARY.read_bytes()
    for path in (ROOT, sysconfig.get_path("purelib"), sysconfig.get_path("include")):
        assert str(path).encode() not in library


def test_nvcc_keeps_the_bits_and_refuses_spills():
    (group,) = (group for group in GROUPS if any(source.endswith(".cu") for source in group["sources"]))
    flags = " ".join(group["flags"])
    assert "-fmad=false" in flags
    assert "-Werror all-warnings" in flags
    assert "-warn-spills" in flags and "-warn-lmem-usage" in flags
    assert "fast" not in flags


@needs_cuda_library
def test_cuda_library_links_no_cuda_and_imports_under_any_torch():
    """The runtime is inside; torch's stream is looked up when it is needed."""
    needed = re.findall(r"NEEDED.*\[(.*)\]", output("readelf", "-d", CUDA_LIBRARY))
    assert not [name for name in needed if re.match(r"lib(cuda|nv|torch_cuda|c10)", name)]
    program = (
        "import importlib.util, torch, mt2o_ext\n"
        f"spec = importlib.util.spec_from_file_location('mt2o_ext._C_cuda', {str(CUDA_LIBRARY)!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "print(module.version, module.cuda_version, module.archs)\n"
    )
    done = run(sys.executable, "-W", "ignore", "-c", program)
    assert done.returncode == 0, done.stderr
    assert re.match(r"\d+\.\d+\.\d+ 1\d\.\d \d+\.\d.*\+PTX\n", done.stdout)


@needs_cuda_library
def test_no_path_of_the_builder_in_the_cuda_library():
    library = CUDA_LIBRARY.read_bytes()
    for path in (ROOT, sysconfig.get_path("purelib"), sysconfig.get_path("include")):
        assert str(path).encode() not in library


def test_metadata_needs_no_torch(checkout: Path):
    (checkout / "torch.py").write_text("raise ImportError('no torch here')\n")
    assert output(sys.executable, "setup.py", "--version", cwd=checkout, env={"PYTHONPATH": "."}).split()[-1] == "0.1.0"


@pytest.mark.parametrize(("no_ext", "torch", "asked"), [("", "2.13.0", 0), ("", "2.9.1", 1), ("", "", 1), ("1", "", 0)])
def test_isolated_build_asks_for_torch_only_if_there_is_none(tmp_path: Path, no_ext: str, torch: str, asked: int):
    if torch:
        (tmp_path / f"torch-{torch}.dist-info").mkdir()
        (tmp_path / f"torch-{torch}.dist-info" / "METADATA").write_text(f"Name: torch\nVersion: {torch}\n")
    program = (
        "import json, build_backend\n"
        f"build_backend.target_paths = lambda: [{str(tmp_path)!r}]\n"
        "print(json.dumps(build_backend.torch_requirement()))\n"
    )
    requirement = json.loads(output(sys.executable, "-c", program, env={"MT2O_NO_EXT": no_ext}))
    assert requirement == ["torch>=2.10"] * asked


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"CXX": "/nonexistent/g++"},
            "mt2o_ext: /nonexistent/g++ not found; needs g++ (Debian: build-essential), or MT2O_NO_EXT=1",
        ),
        ({"FORCE_CUDA": "1", "MT2O_CPU_ONLY": "1"}, "mt2o_ext: FORCE_CUDA=1, but "),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(checkout: Path, variables: dict[str, str], message: str):
    done = run(sys.executable, "setup.py", "build_ext", "--inplace", cwd=checkout, env=variables)
    assert done.returncode != 0
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1


FAKE_COMPILER = """#!/bin/sh
# Says that it is CUDA 13.7 of the directory above, writes what it is asked to, and notes how it was called.
line=$(for argument; do printf '[%s]' "$argument"; done)
printf '%s\n' "$line" >> "$0.log"
case "$1 $2" in
  --version*) echo "Cuda compilation tools, release 13.7, V13.7.1"; exit ;;
  "-x cu") echo "#$ TOP=$(dirname "$0")/.." >&2; exit ;;
esac
while [ $# -gt 0 ]; do
  [ "$1" != -o ] || echo "written by a compiler" > "$2"
  [ "$1" != -MF ] || echo "x.o:" > "$2"
  shift
done
"""


def fake_compiler(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    path.write_text(FAKE_COMPILER)
    path.chmod(0o755)
    return path


def test_compilers_may_lie_in_folders_with_spaces_and_signs(checkout: Path, tmp_path: Path):
    """They are called with lists of arguments, or with each argument quoted: no shell takes a path apart."""
    nvcc = fake_compiler(tmp_path / "CUDA 13 & $HOME; it's" / "bin" / "nvcc")
    cxx = fake_compiler(tmp_path / "my tools" / "g++")
    home = nvcc.parents[1]
    variables = {"FORCE_CUDA": "1", "CUDA_HOME": str(home), "CXX": shlex.quote(str(cxx)), "TORCH_CUDA_ARCH_LIST": "9.0"}
    said = output(sys.executable, "setup.py", "build_ext", "--build-lib", "out", cwd=checkout, env=variables)
    assert f"mt2o_ext: CUDA 13.7 ({nvcc}) for 9.0\n" in said
    assert sorted(path.name.partition(".")[0] for path in (checkout / "out").rglob("*.so")) == ["_C", "_C_cuda"]
    linked = [line for line in Path(f"{cxx}.log").read_text().splitlines() if "[-lcudart_static]" in line]
    assert len(linked) == 1 and f"[-L{nvcc.parent}/../lib64]" in linked[0]
    compiled = [line for line in Path(f"{nvcc}.log").read_text().splitlines() if "[-c]" in line and "[-o]" in line]
    assert len(compiled) == len([s for group in GROUPS for s in group["sources"] if s.endswith(".cu")])
    assert all(f"[-ccbin][{cxx}]" in line for line in compiled)


def test_tools_ask_the_same_nvcc_in_the_same_way(tmp_path: Path):
    nvcc = fake_compiler(tmp_path / "CUDA 13 & $HOME; it's" / "bin" / "nvcc")
    assert toolkit.release(str(nvcc)) == "13.7"
    assert Path(toolkit.home(str(nvcc))).resolve() == nvcc.parents[1]


def test_what_is_no_nvcc_is_named(tmp_path: Path):
    (path := tmp_path / "nvcc").write_text("#!/bin/sh\necho something else\n")
    path.chmod(0o755)
    with pytest.raises(SystemExit, match=r"nvcc --version` does not say release .*: something else"):
        toolkit.release(str(path))


def build_wheel(checkout: Path, env: Mapping[str, str]) -> Path:
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", checkout / "dist"]
    output(sys.executable, "-m", "pip", "wheel", checkout, *options, cwd=checkout.parent, env=env)
    (wheel,) = (checkout / "dist").glob("*.whl")
    return wheel


def test_without_extension_the_wheel_is_pure(checkout: Path):
    wheel = build_wheel(checkout, {"MT2O_NO_EXT": "1"})
    names = zipfile.ZipFile(wheel).namelist()
    assert wheel.name == "mt2o_ext-0.1.0-py3-none-any.whl"
    assert "mt2o_ext/py.typed" in names
    assert not [name for name in names if name.endswith(".so") or name.startswith(("tests", "bench"))]
    packages = {str(path.parent.relative_to(ROOT)) for path in (ROOT / "mt2o_ext").rglob("*.py")}
    assert {str(Path(name).parent) for name in names if name.endswith(".py")} == packages


def test_a_label_is_appended_to_the_version_of_a_wheel_made_from_an_sdist(checkout: Path, tmp_path: Path):
    """Whose setup.cfg says that there is none."""
    output(sys.executable, "-c", "import build_backend; build_backend.build_sdist('dist')", cwd=checkout)
    output("tar", "-xf", checkout / "dist" / "mt2o_ext-0.1.0.tar.gz", "-C", tmp_path)
    wheel = build_wheel(tmp_path / "mt2o_ext-0.1.0", {"MT2O_NO_EXT": "1", "MT2O_LOCAL_VERSION": "cu130"})
    assert wheel.name == "mt2o_ext-0.1.0+cu130-py3-none-any.whl"


def test_a_label_is_letters_and_digits(checkout: Path):
    done = run(sys.executable, "setup.py", "egg_info", cwd=checkout, env={"MT2O_LOCAL_VERSION": "cu-130"})
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == (
        "mt2o_ext: MT2O_LOCAL_VERSION is letters and digits such as cu130, not 'cu-130'"
    )


OBJECTS = ROOT / "build" / sysconfig.get_config_var("SOABI")
COMPILED_BEFORE = """#!/bin/sh
# A compiler that takes the objects of the build in place, and links.
case " $* " in *" -shared "*) exec g++ "$@" ;; esac
for argument; do
  [ "$before" != -o ] || object=$argument
  before=$argument
done
cp "{objects}/$object" "$object" && echo "$object:" > "$object.d"
"""


def compiler_for(sources: Path, directory: Path) -> dict[str, str]:
    """Variables for a build of these sources, in a fraction of the time: objects of the same text are the same."""
    text, here = (
        {path.relative_to(root): path.read_bytes() for path in root.glob("csrc/**/*.*")} for root in (sources, ROOT)
    )
    assert text == here
    if not (OBJECTS / "csrc" / "cpu" / "dispatch.cpp.o").exists():  # built with MT2O_DEBUG=1, or elsewhere
        return {"MT2O_DEBUG": "1"}
    path = directory / "g++"
    path.write_text(COMPILED_BEFORE.format(objects=OBJECTS))
    path.chmod(0o755)
    return {"CXX": shlex.quote(str(path)), "MT2O_CPU_ONLY": "1"}


@needs_library
@pytest.mark.slow
def test_sdist_builds_a_wheel_that_works_away_from_the_checkout(checkout: Path, tmp_path: Path):
    output(sys.executable, "-c", "import build_backend; build_backend.build_sdist('dist')", cwd=checkout)
    output("tar", "-xf", checkout / "dist" / "mt2o_ext-0.1.0.tar.gz", "-C", tmp_path)
    unpacked = tmp_path / "mt2o_ext-0.1.0"
    wheel = build_wheel(unpacked, compiler_for(unpacked, tmp_path))
    assert wheel.stat().st_size < 10e6
    target = tmp_path / "target"
    output(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", target, wheel)
    program = "import mt2o_ext, mt2o_ext._C; print(mt2o_ext.__file__, mt2o_ext._C.version)"
    environment = {"PYTHONPATH": str(target), "MT2O_REQUIRE_NATIVE": "1"}
    assert output(sys.executable, "-c", program, cwd=Path("/"), env=environment).split() == [
        str(target / "mt2o_ext" / "__init__.py"),
        "0.1.0",
    ]
    for path in target.rglob("*.so"):
        assert str(tmp_path).encode() not in path.read_bytes()
