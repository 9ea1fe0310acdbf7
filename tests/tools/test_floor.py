"""What is compiled for the oldest torch: tools/floor.py, which .ci/run runs as a whole."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import build_backend
import setup as build_script  # under this name, pytest 7 would call it
from tools import check_wheel, floor

ROOT = Path(__file__).resolve().parents[2]
HEADER = "torch/include/torch/csrc/stable/tensor.h"


def test_the_floor_that_is_declared_is_the_floor_that_is_compiled(tmp_path: Path) -> None:
    """pyproject.toml has the number; everything else follows from it."""
    for name in ("setup.py", "build_backend.py", "sources.json"):
        shutil.copy(ROOT / name, tmp_path)
    declared = (ROOT / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(re.sub(r'"torch>=[\d.]+"', '"torch>=3.17"', declared))
    program = "import build_backend, setup; print(build_backend.MINIMUM_TORCH, *setup.STABLE_ABI)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "(3, 17) -DTORCH_TARGET_VERSION=0x0311000000000000 -DTORCH_STABLE_ONLY\n"
    assert floor.TARGETS[0] == floor.Target("{}.{}".format(*build_backend.MINIMUM_TORCH), floor.HERE)
    assert check_wheel.OLDEST_TORCH == build_backend.MINIMUM_TORCH


def fake_wheel(directory: Path, version: str) -> None:
    info = f"torch-{version}.dist-info"
    with zipfile.ZipFile(directory / f"torch-{version}-cp312-none-macosx_11_0_arm64.whl", "w") as wheel:
        wheel.writestr(HEADER, "// old\n")
        wheel.writestr("torch/lib/libtorch_cpu.dylib", "not unpacked")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp312-none-macosx_11_0_arm64\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A package index on this machine's disk, and an empty place for headers."""
    (directory := tmp_path / "index").mkdir()
    monkeypatch.setattr(floor, "FLOOR", tmp_path / "floor")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    return directory


def test_headers_come_from_a_wheel_of_any_platform_and_are_kept(index: Path, tmp_path: Path) -> None:
    fake_wheel(index, "9.7.1")
    include = floor.torch_headers("9.7")
    assert sorted(path.name for path in (tmp_path / "floor").rglob("*") if path.is_file()) == ["tensor.h"]
    assert (include.parents[1] / "torch-9.7" / Path(HEADER).relative_to("torch")).read_text() == "// old\n"
    (index / "torch-9.7.1-cp312-none-macosx_11_0_arm64.whl").unlink()
    assert floor.torch_headers("9.7") == include


def test_without_an_index_there_is_one_sentence_and_nothing_half_done(
    index: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"no headers of torch 9\.8: pip could not download a wheel"):
        floor.torch_headers("9.8")
    assert "No matching distribution found for torch==9.8.*" in capfd.readouterr().err
    assert not (tmp_path / "floor" / "torch-9.8").exists()


def test_headers_of_other_interpreters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the one that runs, of one in PATH, of pyenv's; none is said to be none."""
    assert floor.python_headers(floor.HERE) is not None
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    assert floor.python_headers("3.99") is None
    for include in (tmp_path / "pyenv/versions/3.99.1/include/python3.99", tmp_path / "include/python3.99"):
        include.mkdir(parents=True)
        (include / "Python.h").touch()
        if include.parents[1] == tmp_path:
            (program := tmp_path / "bin" / "python3.99").parent.mkdir()
            program.touch(mode=0o755)
        assert floor.python_headers("3.99") == include


def test_libraries_are_named_after_their_interpreter() -> None:
    assert re.fullmatch(r"_C_cuda\.cpython-312-\w+-linux-gnu\.so", floor.file_name("_C_cuda", "3.12"))


def sources(file: str) -> list[str]:
    """What a file includes, from the root of the checkout."""
    included = re.findall(r'^#include "(.*)"$', Path(file).read_text(), re.MULTILINE)
    return [str(Path(path).relative_to(ROOT)) for path in included]


def test_every_file_that_sees_torch_is_compiled_with_its_old_headers(tmp_path: Path) -> None:
    """And, for another CPython, what sees that one; nothing else: kernels need neither."""
    headers = {"torch": tmp_path / "old", "python": tmp_path / "python"}
    plan = build_script.Plan(["g++"], headers, tmp_path / "lib", "2.10", "0.1.0", None)
    groups = [g for library in build_script.SOURCES["libraries"].values() for g in library.values() if g.get("torch")]
    of_torch = {source for group in groups for source in group["sources"]}
    for python, of_python in (("3.99", {"csrc/python/module.cpp"}), (floor.HERE, set())):
        text = "".join(floor.statements(plan, python, tmp_path))
        compiled = re.findall(r"^build \S+: compile (\S+)\n.*\n  flags = (.*)$", text, re.MULTILINE)
        assert {
            s for file, flags in compiled if f"-isystem {tmp_path / 'old'} " in flags for s in sources(file)
        } == of_torch
        assert {s for file, _ in compiled for s in sources(file)} - of_torch == of_python
        (linked,) = re.findall(r"^build _C\.\S+: link (.*)$", text, re.MULTILINE)
        groups = build_script.groups_of("_C")
        kept = [group for group in groups if not floor.depends(group, python)]
        assert len(linked.split()) == len(groups) - len(kept) + sum(len(group["sources"]) for group in kept)


def test_files_that_are_one_are_compiled_again_only_if_they_are_others(tmp_path: Path) -> None:
    path = tmp_path / "new" / "all.cpp"
    assert floor.as_one_file({"sources": ["csrc/a.cpp"]}, path)["sources"] == [os.path.relpath(path, ROOT)]
    assert sources(str(path)) == ["csrc/a.cpp"]
    os.utime(path, (1, 1))
    floor.as_one_file({"sources": ["csrc/a.cpp"]}, path)
    assert path.stat().st_mtime == 1
    floor.as_one_file({"sources": ["csrc/a.cpp", "csrc/b.cpp"]}, path)
    assert sources(str(path)) == ["csrc/a.cpp", "csrc/b.cpp"]


def test_what_a_library_needs_and_how_it_runs_is_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / floor.file_name("_C", floor.HERE)).write_bytes(b"no library")
    monkeypatch.setattr(check_wheel, "undefined_symbols", lambda library: ["_ZN2at6TensorD1Ev"])
    needs, *runs = floor.faults(tmp_path)
    assert needs.endswith("needs _ZN2at6TensorD1Ev")
    assert len(runs) == 2 and all("invalid ELF header" in fault or "file too short" in fault for fault in runs)
