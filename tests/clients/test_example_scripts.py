"""Each script in examples/ runs, and its models have learned both tasks."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.clients.foreign import NOISE, library

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"

pytestmark = [pytest.mark.filterwarnings(text) for text in NOISE]

NEEDS = {"in_lightning": "lightning", "in_accelerate": "accelerate", "in_hf_trainer": "transformers", "lora": "peft"}
SHORTER: dict[str, dict[str, Any]] = {
    "plain": {"epochs": 6},
    "own_batches": {"epochs": 12},
    "amp": {"epochs": 6},
    "serve_front": {"steps": 120},
    "front_on_vertices": {"epochs": 10},
    "in_lightning": {"epochs": 6},
    "in_accelerate": {"epochs": 6},
    "in_hf_trainer": {"epochs": 2},
    "lora": {"steps": 100},
}
LONGER = ("yeast", "few_for_many", "variational", "masks", "robots")  # with a test of its own each
TORCHRUN = ("ddp", "fsdp", "subproblems_over_ranks")
RANKS = (*TORCHRUN, "in_lightning")


@pytest.fixture
def _importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    for name in ("problem", *LONGER, *SHORTER):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("_importable")
@pytest.mark.parametrize("name", SHORTER)
def test_in_this_process(name: str) -> None:
    if name in NEEDS:
        library(NEEDS[name])
    first, second = importlib.import_module(name).main(**SHORTER[name])
    assert first > 0.6 and second > 0.6  # 0.1 by chance


@pytest.mark.usefixtures("_importable")
def test_few_models_serve_many_labels_better_than_the_sum_does() -> None:
    """On the training data, which is what it minimises."""
    example = importlib.import_module("few_for_many")
    if example.yeast_file() is None:
        pytest.skip("the data of river are not here (pip install --no-deps river)")
    for seed in range(2):
        (worst, mean), (worst_of_sum, mean_of_sum) = example.main(seed=seed).values()
        assert worst < worst_of_sum - 0.02 and mean < mean_of_sum - 0.02


@pytest.mark.usefixtures("_importable")
def test_tasks_with_little_data_learn_from_one_another() -> None:
    """The numbers of the page, less a seed: heads with a prior of the others against heads without."""
    pytest.importorskip("sklearn", reason="scikit-learn is not here, whose digits are a picture in four postures")
    [(alone, shared, _, variational)] = importlib.import_module("variational").main(seeds=2, pictures=(1,))
    assert variational > max(alone, shared) + 0.05


@pytest.mark.usefixtures("_importable")
def test_masks_keep_tasks_apart_that_contradict_each_other() -> None:
    found = importlib.import_module("masks").main(seeds=1, steps=800)
    assert min(found["random masks"], found["masks that change"]) > found["no masks"] + 0.3


@pytest.mark.usefixtures("_importable")
def test_one_policy_of_modules_moves_three_robots(capsys: pytest.CaptureFixture[str]) -> None:
    example = importlib.import_module("robots")
    if importlib.util.find_spec("metaworld") is None:
        with pytest.raises(SystemExit, match=r"expected the package metaworld: pip install metaworld==3\.1\.1"):
            example.main()
        pytest.skip("metaworld is not here (pip install metaworld==3.1.1 mujoco==3.3.0)")
    _, drawer, window = example.main(episodes=2)
    assert drawer == window == 1.0
    assert "drawer-close-v3: 100% of 2 new goals" in capsys.readouterr().out


def accuracies_of_ranks(*command: str) -> list[float]:
    """The smaller one of each pair that a command has printed."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.findall(r"accuracies ([\d.]+)(?: and|,) ([\d.]+)", done.stdout)
    return [min(map(float, pair)) for pair in found]


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHRUN)
def test_under_torchrun(name: str) -> None:
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(EXAMPLES / f"{name}.py")]
    [found] = accuracies_of_ranks(*command)
    assert found > 0.6


@pytest.mark.slow
def test_in_two_processes_of_lightning() -> None:
    library("lightning")
    [found] = accuracies_of_ranks(str(EXAMPLES / "in_lightning.py"), "2")
    assert found > 0.6


def test_scripts_are_short_and_listed() -> None:
    scripts = {file.stem for file in EXAMPLES.glob("*.py")}
    assert scripts == {"problem", *LONGER, *SHORTER, *RANKS}
    page = (EXAMPLES / "README.md").read_text()
    for name in scripts:
        assert f"`{name}.py`" in page
        assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 80
