"""Two processes (gloo), each with half of the batch: the same bits on both, and the run of one on the whole."""

from __future__ import annotations

import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from problems import assert_same
from torch import distributed as dist
from torch import nn
from towers import WEIGHTINGS, Towers, batch_of, values, weighted

from mt2o_ext import SGD, WeightedFused
from mt2o_ext.weighting import CAGrad, PCGrad

STEPS = 3
NAMES = ["sum", "random", "losses", "feedback", "gram", "gram, random order", "rows", "rows, memory", "each tensor"]

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")


def train(name: str, rank: int, ranks: int) -> dict[str, Any]:
    """Some steps on this rank's part of each batch."""
    model = Towers(dtype=torch.float64)
    optimizer = weighted(
        model, WEIGHTINGS[name](), base=SGD(momentum=0.9), process_group=ranks > 1,
        generator=torch.Generator().manual_seed(3 + rank),  # the first rank's numbers count
    )  # fmt: skip
    for seed in range(STEPS):
        batch = batch_of(seed, torch.float64).chunk(ranks)[rank]
        optimizer.step(lambda: model.losses(batch))  # noqa: B023
    state = optimizer.state_dict()
    state["param_groups"][0]["weighted"].pop("generator")
    return {"values": values(model), "weights": optimizer.weights, "state": state}


def unused_on_one_rank(rank: int) -> dict[str, Any]:
    """A parameter that only the second rank uses gets half of its gradient on both; one that none uses gets none."""
    p, q, never = (nn.Parameter(torch.ones(3)) for _ in range(3))
    optimizer = WeightedFused([p, q, never], num_tasks=2, weighting=CAGrad(), base=SGD(), lr=1.0, process_group=True)
    both = p if rank == 0 else p + q
    optimizer.step(lambda: [both.sum(), 2 * both.sum()])
    return {"values": [p.detach().clone(), q.detach().clone(), never.detach().clone()], "weights": optimizer.weights}


def infinite_on_one_rank(rank: int) -> dict[str, Any]:
    model = Towers()
    optimizer = weighted(model, PCGrad(), process_group=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = values(model)
    losses = model.losses(batch_of(rank))
    losses[1] = losses[1] * (float("inf") if rank == 1 else 1.0)
    optimizer.backward(losses, scaler=scaler)
    scaler.step(optimizer)
    scaler.update()
    return {"values": values(model), "before": before, "scale": scaler.get_scale()}


def worker(rank: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks, timeout=timedelta(seconds=60)
    )
    try:
        results: dict[str, Any] = {name: train(name, rank, ranks) for name in NAMES}
        results["unused"] = unused_on_one_rank(rank)
        results["infinite"] = infinite_on_one_rank(rank)
        torch.save(results, Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(worker, (2, folder), nprocs=2, start_method="spawn")
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", NAMES)
def test_ranks_agree_bit_for_bit_and_are_one_run_on_the_joint_batch(name: str, results: list[dict[str, Any]]) -> None:
    first, second = (result[name] for result in results)
    assert_same(second, first)
    alone = train(name, 0, 1)
    torch.testing.assert_close(first["values"], alone["values"], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(first["weights"], alone["weights"], rtol=1e-7, atol=1e-9)


def test_a_parameter_unused_on_one_rank(results: list[dict[str, Any]]) -> None:
    first, second = (result["unused"] for result in results)
    assert_same(second, first)
    weight = first["weights"] @ torch.tensor([1.0, 2.0], dtype=torch.float64)
    p, q, never = first["values"]
    torch.testing.assert_close(p, (1 - weight).float().expand(3))
    torch.testing.assert_close(q, (1 - weight / 2).float().expand(3))
    assert_same(never, torch.ones(3))


def test_an_infinity_on_one_rank_skips_the_step_of_both(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert_same(result["infinite"]["values"], result["infinite"]["before"])
        assert result["infinite"]["scale"] == 512.0


def test_without_a_group_there_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="init_process_group"):
        weighted(Towers(), CAGrad(), process_group=True)
