"""Optimizers of sharded parameters (FSDP2, tensor parallelism): the steps of one process on the joined batch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributed as dist

from mt2o_ext.ranks import RanksError
from support import sharded_checkpoints
from support.optim.problems import assert_same
from support.sharded_optimizers import ALONE, DIFFERENCES, REFUSALS, RUNS, TWO_MESHES, checks_of
from support.sharded_worlds import Results, of_all_ranks, results_of

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")

World = tuple[Results, Path]
SINGLE = {"scaled"}  # of float32 parameters


@pytest.fixture(scope="module")
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    return results_of(2, request, tmp_path_factory)[0]


@pytest.fixture(scope="module")
def four(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return results_of(4, request, tmp_path_factory)


def leaves(found: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All values in dicts and lists, and where they are."""
    if isinstance(found, (dict, list, tuple)):
        for key, value in found.items() if isinstance(found, dict) else enumerate(found):
            yield from leaves(value, f"{path} {key}")
    else:
        yield path, found


def assert_near(actual: Any, expected: Any, tolerance: float) -> None:
    actual, expected = dict(leaves(actual)), dict(leaves(expected))
    assert actual.keys() == expected.keys()
    for path, value in expected.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            torch.testing.assert_close(
                actual[path], value, rtol=tolerance, atol=tolerance, msg=partial("{} {}".format, path)
            )
        elif not isinstance(value, Tensor):
            assert actual[path] == value or "kinds" in path


def check_run(results: Results, name: str, alone: Any) -> None:
    first, *others = of_all_ranks(results, name)
    for other in others:
        assert_same(other, first)
    assert_near(first, alone, 1e-5 if name in SINGLE else 1e-9)
    assert results[0][f"{name}: warnings"] == []


@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_are_one_process_on_the_joined_batch(name: str, two: Results) -> None:
    check_run(two, name, RUNS[name](0, 1))


@pytest.mark.parametrize("name", [name for name in checks_of(4) if name in {**RUNS, **TWO_MESHES}])
def test_four_ranks_are_one_process_on_the_joined_batch(name: str, four: World) -> None:
    check_run(four[0], name, checks_of(4)[name](0, 1))


def test_what_is_shown_is_sharded_like_the_parameters(two: Results) -> None:
    for found in of_all_ranks(two, "shown"):
        assert found["kinds"] == [(True, True)]


def test_what_one_rank_finds_skips_the_step_of_all(two: Results, four: World) -> None:
    for results in (two, four[0]):
        for found in of_all_ranks(results, "not finite"):
            assert found["skipped"].tolist() == [3]
            assert_same(found["after"], found["before"])


def test_masters_of_sixteen_bits_go_on_from_their_state(two: Results) -> None:
    first, second = of_all_ranks(two, "sixteen bits")
    assert_same(first, second)
    assert_same(first["resumed"], first["values"])
    assert first["master"].dtype == torch.float32
    assert_same(first["master"].bfloat16(), first["values"]["trunk.0.weight"])
    assert_near(first["values"], ALONE["sixteen bits"](0, 1)["values"], 2e-2)


@pytest.mark.parametrize("kind", sharded_checkpoints.OPTIMIZERS)
def test_checkpoints_go_on_on_as_many_ranks_bit_for_bit_and_on_fewer(kind: str, four: World) -> None:
    results, folder = four
    first, *others = of_all_ranks(results, f"checkpoint: {kind}")
    assert_same(first["resumed"], first["values"])
    for other in others:
        assert_same(other, first)
    assert_near(first["on two"], first["values"], 1e-9)
    assert_near(sharded_checkpoints.alone(folder, kind, 4), first["values"], 1e-9)


@pytest.mark.parametrize("what", DIFFERENCES)
def test_ranks_that_differ_are_an_error_on_all_of_them(what: str, two: Results) -> None:
    for rank, result in enumerate(two):
        error = result[f"differs: {what}"]
        if what == "failure" and rank == 1:
            assert isinstance(error, TypeError)  # what happened there
            continue
        assert isinstance(error, RanksError)
        assert DIFFERENCES[what] in str(error)


def test_parameters_that_nobody_averages_are_told_of(two: Results) -> None:
    for result in two:
        assert result["partly sharded"] is None
        [text] = result["partly sharded: warnings"]
        assert "not sharded differ between the ranks" in text


@pytest.mark.parametrize("what", REFUSALS)
def test_what_cannot_be_is_refused_with_a_remedy(what: str, two: Results) -> None:
    kind, text = REFUSALS[what]
    for result in two:
        with pytest.raises(kind, match=text):
            raise result[f"refused: {what}"]
