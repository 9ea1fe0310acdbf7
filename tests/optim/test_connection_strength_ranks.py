"""Owners that come from the first rank of a process group."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from priority_model import Batches, network, optimizer_of, same_parameters
from torch import distributed


@pytest.fixture
def group(tmp_path: Path) -> Iterator[distributed.ProcessGroup]:
    """Of this process alone."""
    if not distributed.is_available():
        pytest.skip("this torch was built without torch.distributed")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield distributed.group.WORLD
    distributed.destroy_process_group()


def test_a_group_of_one_changes_nothing(group: distributed.ProcessGroup) -> None:
    models = [network() for _ in range(2)]
    for model, process_group in zip(models, (None, group), strict=True):
        optimizer, batches = optimizer_of(model, process_group=process_group), Batches()
        for _ in range(3):
            optimizer.step(batches.draw().loss(model))
    assert same_parameters(*models)


def test_owners_are_those_of_the_first_rank(group: distributed.ProcessGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the broadcast brings is used, not what this rank would have chosen."""
    model = network()
    optimizer = optimizer_of(model, process_group=group)

    def broadcast(tensor: torch.Tensor, *, group: distributed.ProcessGroup, group_src: int) -> None:
        assert group_src == 0
        tensor.fill_(1)

    monkeypatch.setattr(distributed, "broadcast", broadcast)
    optimizer.step(Batches().loss(model))
    assert torch.equal(optimizer.history().shares[0, :, 1], torch.ones(2))
