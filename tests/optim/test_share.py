"""The part of K subproblems that one of R ranks has, alone; and which rows others ask for."""

from __future__ import annotations

import pytest
import torch

from mt2o_ext.optim.share import Share


@pytest.mark.parametrize("total", [1, 2, 5, 8, 9])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_shares_are_consecutive_and_differ_by_one_at_most(total: int, ranks: int) -> None:
    shares = [Share(total, place, tuple(range(ranks))) for place in range(ranks)]
    assert [k for share in shares for k in share.own] == list(range(total))
    sizes = [len(share.own) for share in shares]
    assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)
    assert all(share.sizes == sizes for share in shares)


def test_rows_of_a_table_are_views_and_find_their_places_again() -> None:
    table = torch.arange(10.0).view(5, 2)
    shares = [Share(5, place, (4, 7)) for place in range(2)]
    for share in shares:
        assert share.rows(table).data_ptr() == table[share.own.start].data_ptr()
    assert torch.equal(sum(share.placed(share.rows(table)) for share in shares), table)
    whole = Share(5)
    assert whole.rows(table) is table and torch.equal(whole.placed(table), table)


def test_a_row_of_another_rank_is_an_error_that_names_it() -> None:
    share = Share(5, 1, (4, 7))
    assert [share.row_of(k) for k in share.own] == [0, 1]
    with pytest.raises(ValueError, match=r"this rank \(3 .. 4 of 5\), got 2, which rank 4 trains"):
        share.row_of(2)
    with pytest.raises(IndexError, match=r"expected a subproblem 0 .. 4, got 5"):
        share.row_of(5)
    with pytest.raises(TypeError, match="expected subproblem as an int"):
        share.row_of("1")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("share", "text"), [(Share(5), "5"), (Share(5, 1, (4, 7)), "3 .. 4 of 5"), (Share(2, 1, (0, 1)), "1 of 2")]
)
def test_it_says_what_it_is(share: Share, text: str) -> None:
    assert str(share) == text
