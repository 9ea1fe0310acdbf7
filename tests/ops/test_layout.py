from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt2o_ext.ops import cut_chunks, plan_layout, reference

Planner = Callable[[list[int]], tuple[list[int], int, list[tuple[int, int, int]]]]
PLANNERS = pytest.mark.parametrize("plan", [plan_layout, reference.plan_layout], ids=["plan_layout", "reference"])
NUMELS = st.lists(st.one_of(st.integers(0, 100), st.integers(0, 3_000_000)), max_size=8)


@PLANNERS
@given(numels=NUMELS)
def test_tensors_lie_side_by_side_on_multiples_of_sixteen(plan: Planner, numels: list[int]) -> None:
    offsets, row, _ = plan(numels)
    assert len(offsets) == len(numels)
    for offset, following, numel in zip(offsets, [*offsets, row][1:], numels, strict=True):
        assert offset % 16 == 0
        assert numel <= following - offset
    assert row % 16 == 0
    assert row <= sum(-(-numel // 16) * 16 for numel in numels) + 16


@PLANNERS
@given(numels=NUMELS)
def test_chunks_cover_every_tensor_once_in_order(plan: Planner, numels: list[int]) -> None:
    offsets, _, chunks = plan(numels)
    covered = [0] * len(numels)
    last = 0
    for segment, begin, end in chunks:
        assert begin == offsets[segment] + covered[segment]
        assert begin % 16 == 0
        assert last <= begin < end <= begin + 16384
        covered[segment] += end - begin
        last = end
    assert covered == list(numels)


@PLANNERS
def test_rows_are_never_a_multiple_of_a_page_apart(plan: Planner) -> None:
    for numel in (1024, 1024 * 7, 1 << 20):
        assert plan([numel])[1] == numel + 16
    assert plan([]) == ([], 0, [])
    assert plan([0, 0]) == ([0, 0], 0, [])


@given(numels=st.lists(st.integers(0, 50_000), max_size=5))
def test_pieces_cover_what_their_chunks_cover(numels: list[int]) -> None:
    chunks = reference.plan_layout(numels)[2]
    pieces = cut_chunks(chunks, 2048)
    assert all(0 < end - begin <= 2048 and begin % 16 == 0 for _, begin, end in pieces)
    columns = [
        [(s, column) for s, begin, end in table for column in range(begin, end, 16)] for table in (chunks, pieces)
    ]
    assert columns[0] == columns[1]
