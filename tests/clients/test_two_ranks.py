"""Two processes through everybody's data parallelism: the same bits on both, and one process on joint batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import distributed

from support.clients.foreign import NOISE, library
from support.clients.loops import BATCH, assert_same, everything, run
from support.clients.two_ranks import JOBS, NEEDS, WAYS
from support.worlds import once, world

pytestmark = [
    pytest.mark.skipif(not distributed.is_available(), reason="torch was built without torch.distributed"),
    *(pytest.mark.filterwarnings(text) for text in NOISE),
]

Results = list[dict[str, Any]]


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):  # of pytest-xdist, whose workers have one folder in common
        folder = folder.parent
    found: Results = once(folder, "clients", lambda: world(JOBS, 2))
    if isinstance(found, Exception):
        raise found
    return found


def of_all(results: Results, way: str, name: str) -> list[Any]:
    if way in NEEDS:
        library(NEEDS[way])
    for rank, result in enumerate(results):
        if isinstance(error := result[f"{way}: {name}"], Exception):
            raise AssertionError(f"failed on rank {rank}") from error
    return [result[f"{way}: {name}"] for result in results]


AVERAGED = ("plain", "lightning", "fabric", "accelerate", "wrapper")


@pytest.mark.parametrize(("way", "name"), [(way, name) for way in AVERAGED for name in WAYS[way][1]])
def test_one_process_on_the_joint_batches(way: str, name: str, results: Results) -> None:
    """Through ``process_group=True``, or (wrapper) DistributedDataParallel where that is enough."""
    first, second = of_all(results, way, name)
    assert_same(first, second)
    expected = run(name, 4, 2 * BATCH)
    models = [key for key in expected if key.startswith(("model.", "optimizer.state"))]
    assert_same({key: first[key] for key in models}, {key: expected[key] for key in models}, 1e-6)


@pytest.mark.parametrize("name", WAYS["trainer"][1])
def test_the_trainer_of_transformers(name: str, results: Results) -> None:
    first, second = of_all(results, "trainer", name)
    from support.clients.trainer import plain

    assert_same(first, second)

    expected = everything(plain(name, clip=0.0))
    models = [key for key in expected if key.startswith(("model.", "optimizer.state"))]
    assert_same({key: first[key] for key in models}, {key: expected[key] for key in models}, 1e-5)


@pytest.mark.parametrize("name", WAYS["wrapper in vain"][1])
def test_a_wrapper_that_cannot_average_is_told_of(name: str, results: Results) -> None:
    """``process_group=False`` around DistributedDataParallel, and a weighting: an error or a warning, or equal bits."""
    for result in results:
        told = result[f"wrapper in vain: {name}: warnings"]
        found = result[f"wrapper in vain: {name}"]
        if not isinstance(found, Exception) and not any("DistributedDataParallel" in text for text in told):
            other = results[0][f"wrapper in vain: {name}"]
            assert_same(found, other)


def test_owners_and_phases_are_the_same_on_both(results: Results) -> None:
    """Running statistics are each rank's own, parameters are not."""
    first, second = of_all(results, "priority", "connection strength")
    weights = [key for key in first if key.startswith("model.") and "running" not in key]
    assert_same({key: first[key] for key in weights}, {key: second[key] for key in weights})


@pytest.mark.parametrize("name", WAYS["no group"][1])
def test_ranks_that_drift_are_warned_of(name: str, results: Results) -> None:
    first, second = of_all(results, "no group", name)
    assert not torch.equal(first["model.trunk.0.weight"], second["model.trunk.0.weight"])
    for result in results:
        told = [text for text in result[f"no group: {name}: warnings"] if "process_group=" in text]
        assert len(told) == 1


@pytest.mark.parametrize("name", WAYS["sharded"][1])
def test_sharded_parameters_are_trained(name: str, results: Results) -> None:
    for found in of_all(results, "sharded", name):
        assert found["moved"]
