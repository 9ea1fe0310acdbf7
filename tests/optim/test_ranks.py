"""Two and four processes (gloo), each with its part of the batch: the same bits on all of them, equal to one process on
the whole batch; an error on all of them where one is not like the others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist

from mt2o_ext.ranks import RanksError, checksums
from mt2o_ext.weighting import CAGrad
from support.optim.problems import assert_same
from support.optim.rank_checks import CALLS, CHECKS, DIFFERENT, KINDS, RUNS, one_batch_less
from support.optim.towers import Towers, weighted
from support.worlds import SILENCE, once, world

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")

Results = list[dict[str, Any]]
WAIT = SILENCE.total_seconds() / 2  # an error within it has not waited for the timeout


@pytest.fixture(scope="module", params=[2, 4], ids=["two ranks", "four ranks"])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):  # of pytest-xdist, whose workers have one folder in common
        folder = folder.parent
    found: Results = once(folder, f"ranks{request.param}", lambda: world(CHECKS, request.param))
    if isinstance(found, Exception):
        raise found
    return found


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """The same runs in this process, on the joined batches."""
    return {name: run(0, 1) for name, run in RUNS.items()}


def of_all(results: Results, name: str) -> list[Any]:
    for rank, result in enumerate(results):
        if isinstance(result[name], Exception):
            raise AssertionError(f"{name} failed on rank {rank}") from result[name]
    return [result[name] for result in results]


@pytest.mark.parametrize("name", RUNS)
def test_ranks_agree_bit_for_bit_and_are_one_run_on_the_joint_batch(
    name: str, results: Results, alone: dict[str, Any]
) -> None:
    first, *others = of_all(results, name)
    for other in others:
        assert_same(other, first)
    for what in alone[name].keys() - {"state"}:
        torch.testing.assert_close(first[what], alone[name][what], rtol=1e-7, atol=1e-9, msg=lambda m: f"{what}: {m}")  # noqa: B023


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("mt2o")])
def test_all_subproblems_are_those_of_one_run_on_the_joint_batch(
    name: str, results: Results, alone: dict[str, Any]
) -> None:
    """With their running averages and moments."""
    found, expected = (one["state"]["state"] for one in (of_all(results, name)[0], alone[name]))
    keys = [key for key in expected if key != "mt2o"]
    assert keys
    torch.testing.assert_close({k: found[k] for k in keys}, {k: expected[k] for k in keys}, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_one_rank_does_in_another_way_is_an_error_on_all(name: str, results: Results) -> None:
    last = len(results) - 1
    for rank, result in enumerate(results):
        error = result[name]
        assert isinstance(error, Exception), f"no error on rank {rank}"
        assert result[f"{name}: seconds"] < WAIT
        _, parts = DIFFERENT[name]
        if parts[0].startswith("failed") and rank == last:  # which has its own error
            assert parts[0].removeprefix("failed: ") in f"{type(error).__name__}: {error}"
            continue
        for text in [*parts, f"rank {last}"]:
            assert text in str(error), str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_a_nan_on_one_rank_skips_the_step_of_all(kind: str, results: Results) -> None:
    for before, after, later in of_all(results, f"nan, {kind}"):
        assert_same(after, before)
        if kind == "backward":  # has no steps, and hides nothing
            assert all(grad.isnan().any() for grad in later)
        else:
            assert not any(map(torch.equal, later, after))
            assert_same(later, results[0][f"nan, {kind}"][2])


def test_an_infinity_on_one_rank_is_told_to_the_scaler_of_all(results: Results) -> None:
    for result in of_all(results, "infinite"):
        assert_same(result["values"], result["before"])
        assert result["scale"] == 512.0


def test_a_parameter_unused_on_other_ranks(results: Results) -> None:
    first, *others = of_all(results, "unused")
    for other in others:
        assert_same(other, first)
    weight = first["weights"] @ torch.tensor([1.0, 2.0], dtype=torch.float64)
    p, q, never = first["values"]
    torch.testing.assert_close(p, (1 - weight).float().expand(3))
    torch.testing.assert_close(q, (1 - weight / len(results)).float().expand(3))
    assert_same(never, torch.ones(3))


def test_owners_are_those_of_the_first_rank(results: Results) -> None:
    first, *others = of_all(results, "owners")
    for other in others:
        assert not any(map(torch.equal, other.pop("strengths"), first["strengths"]))
        assert_same(other["shares"], first["shares"])
        assert_same(other["values"], first["values"])


@pytest.mark.parametrize("kind", CALLS)
def test_without_a_group_there_is_one_warning(kind: str, results: Results) -> None:
    of_all(results, f"no group, {kind}")
    for result in results:
        [warning] = [text for text in result[f"no group, {kind}: warnings"] if "drift" in text]
        assert f"{len(results)} ranks" in warning
        assert "process_group=True" in warning
        assert ("DistributedDataParallel" in warning) == (kind in ("mt2o", "priority"))


@pytest.mark.parametrize("kind", CALLS)
def test_who_takes_care_of_the_ranks_is_not_warned(kind: str, results: Results) -> None:
    of_all(results, f"taken care of, {kind}")
    for result in results:
        assert not [text for text in result[f"taken care of, {kind}: warnings"] if "drift" in text]


def test_points_that_each_rank_draws_for_itself_are_told_of_or_refused(results: Results) -> None:
    of_all(results, "own draws")
    of_all(results, "the same draws")
    for result in results:
        [warning] = [text for text in result["own draws: warnings"] if "random points of its own" in text]
        assert "process_group=True" in warning and 'front="rows"' in warning
        assert not [text for text in result["the same draws: warnings"] if "random points" in text]
    for text in of_all(results, "points in a wrapper"):
        assert "cannot average the gradients of MT2OFused at random points" in text and 'front="rows"' in text


def test_a_group_of_some_ranks(results: Results) -> None:
    first, *between, last = of_all(results, "own group")
    assert_same(last, first)
    for text in between:
        assert "expected a process_group with this rank in it" in text


ENDING = """
import contextlib, os, pathlib, time, torch
import mt2o_ext
from torch import distributed as dist

def threads():
    names = []
    for path in pathlib.Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # of a thread that has ended meanwhile
            names.append(path.read_text().strip())
    return names

dist.init_process_group("gloo", init_method="file://" + os.environ["STORE"], rank=0, world_size=1)
while not any("gloo" in name for name in threads()):  # each names itself when it runs
    time.sleep(0.01)
p = torch.nn.Parameter(torch.ones(3))
optimizer = mt2o_ext.WeightedFused([p], num_tasks=2, weighting="upgrad", process_group=True)
optimizer.step(lambda: [p.sum(), p.square().sum()])
dist.destroy_process_group()
assert not any("gloo" in name for name in threads()), threads()
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the threads of a process are looked up in /proc")
def test_a_destroyed_group_leaves_no_threads(tmp_path: Path) -> None:
    """Else they abort the process at its end, in a race with Python."""
    environment = {**os.environ, "STORE": str(tmp_path / "store")}
    done = subprocess.run(
        [sys.executable, "-c", ENDING],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=SILENCE.total_seconds(),
    )
    assert done.returncode == 0, done.stderr


def test_a_rank_that_has_ended_is_an_error_on_the_others() -> None:
    """One mini-batch less: where its process ends nobody waits for it until the timeout."""
    first, last = world({"steps": one_batch_less}, 2)
    assert last["steps"] == 2
    assert isinstance(first["steps"], RanksError) and first["steps: seconds"] < WAIT
    assert "did one of them end, or get fewer mini-batches?" in str(first["steps"])


def test_checksums_are_of_the_bits() -> None:
    tensors = [torch.tensor([1.0, -2.0], dtype=dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16)]
    strange = [torch.arange(6, dtype=torch.uint8), torch.zeros(0), torch.ones(2, 3).T, torch.ones(1).expand(4)]
    sums = checksums([*tensors, *strange])
    assert sums == checksums([tensor.clone() for tensor in [*tensors, *strange]]) and len(set(sums[:3])) == 3
    assert checksums([torch.tensor([0.0])]) != checksums([torch.tensor([-0.0])])
    assert checksums([]) == []


def test_without_torch_distributed_there_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="init_process_group"):
        weighted(Towers(), CAGrad(), process_group=True)
