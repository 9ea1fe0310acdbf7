"""Sharded parameters (FSDP2, tensor parallelism): the weights and the step of one process on the joined batch."""

from __future__ import annotations

import pytest
import torch
from torch import distributed as dist

from support.optim.problems import assert_same
from support.sharded_runs import REFUSED, RUNS, Net
from support.sharded_worlds import Results, of_all_ranks, results_of

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")


@pytest.fixture(scope="module", params=[2, 4], ids=["two ranks", "four ranks"])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    return results_of(request.param, request, tmp_path_factory)[0]


@pytest.mark.parametrize("name", RUNS)
def test_sharded_is_one_process_on_the_joined_batch(name: str, results: Results) -> None:
    if name not in results[0]:
        assert len(results) == 4  # see `sharded_runs.checks_of`
        return
    alone = RUNS[name](0, 1)
    first, *others = of_all_ranks(results, name)
    for other in others:
        assert_same(other["weights"], first["weights"])
        assert_same(other["values"], first["values"])
    assert len(torch.unique(alone["weights"])) > 1
    torch.testing.assert_close(first["weights"], alone["weights"], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(first["values"], alone["values"], rtol=1e-7, atol=1e-9)
    total = sum(p.numel() for p in Net().parameters())
    if name.startswith(("root", "layers")):  # nobody holds more than its shards
        assert sum(result[name]["held"] for result in results) == total


@pytest.mark.parametrize("name", REFUSED)
def test_ways_without_an_ordinary_backward_are_refused(name: str, results: Results) -> None:
    for result in results if len(results) == 2 else ():
        assert isinstance(result[name], ValueError)
        assert "sharded" in str(result[name])
