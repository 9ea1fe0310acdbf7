"""Data parallelism: what ranks tell one another, and what they average."""

from __future__ import annotations

from .advice import check_not_wrapped, warning_of_draws, warning_of_drift
from .differences import checksums, describe
from .group import Ranks, RanksError, together
from .making import as_ranks
from .shards import RanksOfShards
from .subproblems import SubproblemRanks, as_subproblem_ranks

__all__ = [
    "Ranks",
    "RanksError",
    "RanksOfShards",
    "SubproblemRanks",
    "as_ranks",
    "as_subproblem_ranks",
    "check_not_wrapped",
    "checksums",
    "describe",
    "together",
    "warning_of_draws",
    "warning_of_drift",
]
