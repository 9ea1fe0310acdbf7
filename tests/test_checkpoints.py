"""Checkpoints: everything comes back, a killed process leaves the last one whole, surprises are refused by name."""

from __future__ import annotations

import doctest
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mt2o_ext
from mt2o_ext import WeightedBackward, checkpoints, load_checkpoint, save_checkpoint
from support.clients.loops import LOOPS, Net, assert_same, everything, loader, losses

ROOT = Path(__file__).parents[1]


def train(loop: Any, batches: Any) -> None:
    for x, y in batches:
        loop.step(loop.optimizer, lambda x=x, y=y: losses(loop.model, x, y))


@pytest.mark.parametrize("name", LOOPS)
def test_a_run_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    batches = list(loader())
    loop, fresh = LOOPS[name](Net()), LOOPS[name](Net())
    train(loop, batches[:4])
    extra = {"weigh": loop.weigh} if hasattr(loop, "weigh") else {}
    save_checkpoint(tmp_path / "run.pt", model=loop.model, optimizer=loop.optimizer, step=4, **extra)
    train(loop, batches[4:])
    objects = {"model": fresh.model, "optimizer": fresh.optimizer}
    saved = load_checkpoint(tmp_path / "run.pt", **objects, **({"weigh": fresh.weigh} if extra else {}))
    assert saved["step"] == 4
    train(fresh, batches[4:])
    assert_same(everything(fresh), everything(loop))


def test_other_objects_and_values(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steps = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])  # which counts its milestones in a Counter
    cycle = torch.optim.lr_scheduler.OneCycleLR(torch.optim.SGD(model.parameters(), lr=0.1), 0.5, total_steps=10)
    backward = WeightedBackward(model.parameters(), num_tasks=2, weighting="famo")
    scaler = torch.amp.GradScaler("cpu")
    values = {"epoch": 3, "best": 0.5, "names": ["a", ("b", None)], "rng": torch.get_rng_state(), "on": {1: True}}
    save_checkpoint(tmp_path / "run.pt", steps=steps, cycle=cycle, backward=backward, scaler=scaler, **values)
    saved = load_checkpoint(tmp_path / "run.pt", steps=steps, cycle=cycle, backward=backward, scaler=scaler)
    assert torch.equal(saved.pop("rng"), values.pop("rng"))
    assert {key: saved[key] for key in values} == values
    assert saved["steps"]["milestones"] == Counter([3, 5])
    content = torch.load(tmp_path / "run.pt", weights_only=True)
    assert content["objects"]["epoch"] == 3
    assert os.listdir(tmp_path) == ["run.pt"]


# ---------------------------------------------------------------- processes that are killed
CHILD = """
import os, sys, time
import torch
from mt2o_ext import save_checkpoint

path, where = sys.argv[1:]
big = torch.full((300_000,), 1.0)
save_checkpoint(path, number=1, big=big)

def stop(*args, **kwargs):
    print("here", flush=True)
    time.sleep(600)

if where == "half":
    def half(content, file):
        file.write(b"x" * 500_000)
        file.flush()
        stop()
    torch.save = half
elif where == "before it is on the disk":
    os.fsync = stop
elif where == "before the new name":
    os.replace = stop
elif where == "after it":
    replace = os.replace
    os.replace = lambda *names: (replace(*names), stop())
save_checkpoint(path, number=2, big=2 * big)
"""


@pytest.mark.parametrize("where", ["half", "before it is on the disk", "before the new name", "after it"])
def test_a_killed_process_leaves_a_whole_file(where: str, tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), where], stdout=subprocess.PIPE, env=environment, text=True
    )
    watch = threading.Timer(120.0, process.kill)  # a process that does not come so far
    watch.start()
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "here\n"
        process.kill()
    process.wait()
    watch.cancel()
    expected = 2 if where == "after it" else 1
    saved = load_checkpoint(path)
    assert saved["number"] == expected and torch.equal(saved["big"], torch.full((300_000,), float(expected)))
    left = [name for name in os.listdir(tmp_path) if name != "run.pt"]
    assert len(left) == (where != "after it") and all(name.endswith(".partial") for name in left)
    save_checkpoint(path, number=3)
    assert load_checkpoint(path) == {"number": 3}


def test_the_content_is_on_the_disk_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    sync, replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("name"), replace(*names)))
    save_checkpoint(tmp_path / "run.pt", number=1)
    assert done == ["file", "name", "folder"]


def test_a_save_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.pt"
    save_checkpoint(path, number=1)

    def full(content: Any, file: Any) -> None:
        file.write(b"x" * 1000)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, number=2)
    assert os.listdir(tmp_path) == ["run.pt"] and load_checkpoint(path) == {"number": 1}


def test_files_have_the_usual_rights(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "run.pt", number=1)
    (tmp_path / "other").touch()
    assert (tmp_path / "run.pt").stat().st_mode == (tmp_path / "other").stat().st_mode


# ---------------------------------------------------------------- what is refused
class Own:
    pass


class Sub(torch.Tensor):
    pass


SURPRISES: dict[str, tuple[Any, str]] = {
    "object": (Own(), r"test_checkpoints.Own at extra\['deep'\]\[1\]: leave it out"),
    "function": (len, r"builtin_function_or_method at extra\['deep'\]\[1\]: leave it out"),
    "subclass": (torch.zeros(1).as_subclass(Sub), r"test_checkpoints.Sub at extra"),
    "set": ({1}, r"builtins.set at extra"),
    "path": (Path("x"), r"Path at extra"),
    "named tuple": (torch.zeros(2, 2).max(0), r"at extra\['deep'\]\[1\]: make it a list or tuple first"),
}


@pytest.mark.parametrize("name", SURPRISES)
def test_surprises_are_refused_by_name(name: str, tmp_path: Path) -> None:
    value, text = SURPRISES[name]
    with pytest.raises(TypeError, match=text):
        save_checkpoint(tmp_path / "run.pt", model=nn.Linear(1, 1), extra={"deep": [1, value]})
    assert not os.listdir(tmp_path)


def test_numbers_of_numpy_are_refused_with_the_remedy(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    with pytest.raises(TypeError, match=r"numpy.float64 at loss: make it a number first \(value.item\(\)\)"):
        save_checkpoint(tmp_path / "run.pt", loss=numpy.float64(1.0))


def test_a_surprise_in_a_state_dict_is_found(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    optimizer = mt2o_ext.WeightedFused(model.parameters(), num_tasks=1)
    optimizer.param_groups[0]["note"] = Own()
    with pytest.raises(TypeError, match=r"at optimizer\['param_groups'\]\[0\]\['note'\]"):
        save_checkpoint(tmp_path / "run.pt", optimizer=optimizer)


def test_nothing_to_save(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected objects to save"):
        save_checkpoint(tmp_path / "run.pt")


def test_files_that_are_not_whole_or_not_ours(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "run.pt", model=nn.Linear(1, 1))
    (tmp_path / "half.pt").write_bytes((tmp_path / "run.pt").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"expected a whole file of save_checkpoint, got .*half.pt"):
        load_checkpoint(tmp_path / "half.pt")
    torch.save({"model": 1}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="was not written by save_checkpoint"):
        load_checkpoint(tmp_path / "other.pt")
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "none.pt")


def test_names_and_objects_are_checked_before_anything_is_loaded(tmp_path: Path) -> None:
    model, other = nn.Linear(1, 1), nn.Linear(1, 1)
    save_checkpoint(tmp_path / "run.pt", model=model, epoch=1)
    before = other.weight.detach().clone()
    with pytest.raises(ValueError, match=r"expected ema in .*run.pt, got \['epoch', 'model'\]"):
        load_checkpoint(tmp_path / "run.pt", model=other, ema=other)
    with pytest.raises(TypeError, match=r"expected epoch with a load_state_dict\(\), got int"):
        load_checkpoint(tmp_path / "run.pt", model=other, epoch=1)
    assert torch.equal(other.weight, before)


def test_the_example_runs() -> None:
    names = {"torch": torch, "mt2o_ext": mt2o_ext}
    [example] = [
        one for one in doctest.DocTestFinder(exclude_empty=True).find(checkpoints, globs=names) if one.examples
    ]
    assert doctest.DocTestRunner(verbose=False).run(example).failed == 0
