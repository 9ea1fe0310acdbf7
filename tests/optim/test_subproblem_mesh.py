"""K subproblems over two and four processes (gloo): the front of one process, and the same on all of them."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributed as dist

from mt2o_ext import MT2OFused
from mt2o_ext.ranks import RanksError
from support.optim import mesh_checks
from support.optim.mesh_checks import BOTH, DIFFERENT, REFUSALS, SAME, checks_of, different_of, kinds_of, same_of
from support.optim.problems import assert_same
from support.sharded_worlds import of_all_ranks
from support.worlds import SILENCE, once, world

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")

Results = list[dict[str, Any]]
BOTH_SIZES = pytest.mark.parametrize("ranks", [2, 4], ids=["two ranks", "four ranks"])
WAIT = SILENCE.total_seconds() / 2  # an error within it has not waited for the timeout
ROUNDED = {"16 bits, rows", "16 bits, vertices"}


class Worlds:
    """The results of two and of four ranks, made when somebody asks for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cache  # noqa: B019  (lives as long as the module)
    def of(self, ranks: int) -> Results:
        found = once(self.folder, f"mesh{ranks}", lambda: world(checks_of(ranks, self.folder), ranks))
        if isinstance(found, Exception):
            raise found
        results: Results = found
        return results


@pytest.fixture(scope="module")
def worlds(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Worlds:
    folder = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):  # of pytest-xdist, whose workers have one folder in common
        folder = folder.parent
    return Worlds(folder)


def near(actual: Any, expected: Any, tolerance: float, where: str) -> None:
    """Equal to rounding, through dicts and lists; what one process alone has (None) is not compared."""
    if isinstance(expected, dict):
        for key in expected:
            near(actual[key], expected[key], tolerance, f"{where} {key}")
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected), where
        for index, (one, other) in enumerate(zip(actual, expected, strict=True)):
            near(one, other, tolerance, f"{where} {index}")
    elif isinstance(expected, Tensor) and expected.is_floating_point():
        torch.testing.assert_close(
            actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda text: f"{where}: {text}"
        )
    elif isinstance(expected, Tensor):
        assert torch.equal(actual, expected) or "weighting generator" in where, where  # each rank has its own
    else:
        assert actual == expected, where


@cache
def in_one_process(name: str) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of the ranks are looked at
        found: dict[str, Any] = {**SAME, **BOTH}[name](0, 1)
    return found


def check_same(results: Results, name: str, expected: dict[str, Any], tolerance: float) -> None:
    """The same front on all ranks, and the front and the state of one process."""
    parts = ("calls", "here", "state", "states", "evaluated", "own losses", "skipped", "columns", "moved")
    found = of_all_ranks(results, name)
    for one in found:
        assert_same(one["losses"], found[0]["losses"])
        near({key: one[key] for key in expected if key not in parts}, {
            key: value for key, value in expected.items() if key not in parts
        }, tolerance, name)  # fmt: skip
    for key in ("state", "states", "evaluated"):
        if key in expected:
            near(found[0][key], expected[key], tolerance, f"{name} {key}")
            assert not any(one[key] for one in found[1:])  # the first rank alone has it


@pytest.mark.parametrize(
    ("name", "ranks"), [(name, ranks) for ranks in (2, 4) for name in same_of(ranks) if name not in BOTH]
)
def test_the_front_and_the_state_of_one_process(name: str, ranks: int, worlds: Worlds) -> None:
    check_same(worlds.of(ranks), name, in_one_process(name), 2e-2 if name in ROUNDED else 1e-9)


@pytest.mark.parametrize("name", BOTH)
def test_copies_of_each_share_on_parts_of_the_batches(name: str, worlds: Worlds) -> None:
    first, *_ = found = of_all_ranks(worlds.of(4), name)
    expected = in_one_process(name)
    for place, one in enumerate(found):
        near(one["losses"], expected["losses"], 1e-9, name)
        assert (one["state"] is None) == (place % 2 == 1)
    near(first["state"], expected["state"], 1e-9, name)


@BOTH_SIZES
def test_each_rank_has_its_subproblems_and_evaluates_these_alone(ranks: int, worlds: Worlds) -> None:
    shares = {2: [[0, 1, 2], [3, 4]], 4: [[0, 1], [2], [3], [4]]}[ranks]
    for front in ("rows", "vertices"):
        expected = in_one_process(f"{front}, closure")
        for own, one in zip(shares, of_all_ranks(worlds.of(ranks), f"{front}, closure"), strict=True):
            assert one["here"] == own
            assert one["calls"] == len(own)
            torch.testing.assert_close(one["own losses"], expected["own losses"][own], rtol=1e-9, atol=1e-9)
            assert one["skipped"].tolist() == [0] * len(own)
            if own != [0]:
                for key, column in one["columns"].items():
                    torch.testing.assert_close(column, expected["columns"][key], rtol=1e-9, atol=1e-9)


@BOTH_SIZES
def test_no_parameter_or_moment_of_others_lies_here(ranks: int, worlds: Worlds) -> None:
    sizes = {2: [3, 2], 4: [2, 1, 1, 1]}[ranks]
    for size, one in zip(sizes, of_all_ranks(worlds.of(ranks), "resumed: rows"), strict=True):
        assert {len(value) for value in one["expected"].values()} == {size}


@pytest.mark.parametrize(
    ("name", "ranks"), [(name, ranks) for ranks in (2, 4) for name in same_of(ranks) if name.startswith("not finite")]
)
def test_what_one_rank_finds_skips_what_it_skips_in_one_process(name: str, ranks: int, worlds: Worlds) -> None:
    found = of_all_ranks(worlds.of(ranks), name)
    together = name not in ("not finite, rows", "not finite, scaled rows")
    for rank, one in enumerate(found):
        last = rank == len(found) - 1
        counts = [0] * (len(one["here"]) - 1) + [1]
        expected = [1] * len(one["here"]) if together else counts if last else [0] * len(one["here"])
        assert one["skipped"].tolist() == expected
        whole_step = together or (last and len(one["here"]) == 1)
        assert one["moved"] == [True, True, not whole_step, True]
        assert one["scale"] == (512.0 if "scaled" in name else None)
        warned = worlds.of(ranks)[rank][f"{name}: warnings"]
        if "scaled" not in name:
            assert any("subproblem 4 was infinite or NaN" in text for text in warned) == last, warned
            assert any("another rank could not make its step" in text for text in warned) == (together and not last)


@pytest.mark.parametrize(("name", "ranks"), [(name, ranks) for ranks in (2, 4) for name in different_of(ranks)])
def test_what_one_rank_does_in_another_way_is_an_error_on_all(name: str, ranks: int, worlds: Worlds) -> None:
    _, text = DIFFERENT[name]
    for rank, result in enumerate(worlds.of(ranks)):
        error = result[f"differs: {name}"]
        assert isinstance(error, Exception), f"no error on rank {rank}"
        assert result[f"differs: {name}: seconds"] < WAIT
        if text.startswith("failed") and rank == ranks - 1:
            assert not isinstance(error, RanksError)  # what happened there
            continue
        assert isinstance(error, RanksError), repr(error)
        assert text in str(error) and f"rank {ranks - 1}" in str(error), str(error)


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_is_refused_with_a_remedy(name: str, worlds: Worlds) -> None:
    _, kind, text = REFUSALS[name]
    for result in worlds.of(2):
        with pytest.raises(kind, match=text):
            raise result[f"refused: {name}"]


@pytest.mark.parametrize(("kind", "ranks"), [(kind, ranks) for ranks in (2, 4) for kind in kinds_of(ranks)])
def test_a_run_goes_on_bit_for_bit_and_on_any_number_of_ranks(kind: str, ranks: int, worlds: Worlds) -> None:
    of_all = of_all_ranks(worlds.of(ranks), f"resumed: {kind}")
    for one in of_all:
        assert_same(one["again"], one["expected"])
        assert_same(one["from the whole"], one["expected"])
        assert one["copied"]
        if ranks == 4:
            near(one["on two"]["losses"], one["losses"], 1e-9, kind)
    near(mesh_checks.alone(kind, worlds.folder, ranks)["losses"], of_all[0]["losses"], 1e-9, kind)


@BOTH_SIZES
def test_one_mini_batch_for_all_is_told_of(ranks: int, worlds: Worlds) -> None:
    for texts in of_all_ranks(worlds.of(ranks), "shared batch"):
        assert any("all 5 subproblems started with exactly the same losses" in text for text in texts)


def test_copies_that_nobody_averages_are_told_of(worlds: Worlds) -> None:
    for result in worlds.of(4):
        assert result["copies"] is None
        [text] = result["copies: warnings"]
        assert "runs with 4 ranks, of which subproblem_mesh= has 2" in text and 'mesh["data"].get_group()' in text


def test_a_part_that_is_saved_as_if_it_were_all_is_told_of(worlds: Worlds) -> None:
    for result, share in zip(worlds.of(2), ("0 .. 2 of 5", "3 .. 4 of 5"), strict=True):
        assert result["saved part"] is None
        [text] = result["saved part: warnings"]
        assert share in text and "optimizer=optimizer.whole_state_dict()" in text


def test_between_transfers_bits_are_those_of_one_process(worlds: Worlds) -> None:
    first, second = of_all_ranks(worlds.of(2), "bits")
    assert_same(first["state"]["state"], mesh_checks.bits(0, 1)["state"]["state"])
    assert second["state"] is None


@BOTH_SIZES
def test_nothing_else_is_warned_of(ranks: int, worlds: Worlds) -> None:
    names = [name for name in same_of(ranks) if not name.startswith(("not finite", "batch norm"))]
    assert {name: text for result in worlds.of(ranks) for name in names for text in result[f"{name}: warnings"]} == {}


def test_one_process_needs_no_group() -> None:
    p = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(RuntimeError, match=r"init_process_group\(...\) before the optimizer is made"):
        MT2OFused([p], num_tasks=2, subproblem_mesh=True)
    optimizer = MT2OFused([p], num_tasks=2, num_subproblems=3, subproblem_mesh=None)
    assert optimizer.subproblems_here == range(3)
    assert_same(optimizer.whole_state_dict(), optimizer.state_dict())
