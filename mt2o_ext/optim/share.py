"""The part of the K subproblems that one rank trains."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..checks import check_index

__all__ = ["Share"]


class Share(NamedTuple):
    """Consecutive subproblems of one rank of R: all have as many, or the first ones have one more.

    total: K.  place: of this rank, 0 .. R - 1.  ranks: their numbers among all processes; empty: there is one only.
    """

    total: int
    place: int = 0
    ranks: tuple[int, ...] = ()

    @property
    def is_part(self) -> bool:
        """True if other ranks have subproblems too."""
        return len(self.ranks) > 1

    def of(self, place: int) -> range:
        """The subproblems of the rank at this place."""
        size, more = divmod(self.total, max(1, len(self.ranks)))
        first = place * size + min(place, more)
        return range(first, first + size + (place < more))

    @property
    def own(self) -> range:
        """The subproblems of this rank."""
        return self.of(self.place)

    @property
    def sizes(self) -> list[int]:
        """The number of subproblems of each rank."""
        return [len(self.of(place)) for place in range(max(1, len(self.ranks)))]

    def rows(self, table: Tensor) -> Tensor:
        """The rows of this rank of a table [K, ...], the same memory; the table itself, if it has all."""
        return table[self.own.start : self.own.stop] if self.is_part else table

    def placed(self, rows: Tensor) -> Tensor:
        """A table [K, ...] of zeros with these rows in the places of this rank's."""
        table = rows.new_zeros((self.total, *rows.shape[1:]))
        table[self.own.start : self.own.stop] = rows
        return table

    def row_of(self, k: int) -> int:
        """The row in which this rank has subproblem k.

        Raises:
            TypeError, IndexError: as of `check_index`.
            ValueError: for a subproblem of another rank.
        """
        k = check_index("subproblem", k, self.total)
        if k not in self.own:
            rank = next(rank for place, rank in enumerate(self.ranks) if k in self.of(place))
            raise ValueError(
                f"expected a subproblem of this rank ({self}), got {k}, which rank {rank} trains: do this on that "
                "rank, or call front(evaluate, model=model) on all ranks, which gathers losses and models"
            )
        return k - self.own.start

    def __str__(self) -> str:
        own = self.own
        if not self.is_part:
            return str(self.total)
        return f"{own.start} .. {own.stop - 1} of {self.total}" if len(own) > 1 else f"{own.start} of {self.total}"
