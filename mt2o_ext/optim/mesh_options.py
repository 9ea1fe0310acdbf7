"""Options of `MT2OFused` on several ranks that share its subproblems: their checks, and the exchange that they make."""

from __future__ import annotations

from ..ranks import Ranks, SubproblemRanks
from .asked import Asked
from .exchange import Exchange
from .share import Share

__all__ = ["check_copies", "exchange_of"]


def exchange_of(peers: SubproblemRanks | None, num_models: int, asked: Asked, name: str) -> Exchange | None:
    """Divides the models of a step over ranks.

    name: of the option that says how many there are.

    Raises:
        ValueError: for fewer models than ranks, and for options that know all models on one rank.
    """
    if peers is None:
        return None
    if num_models < peers.size:
        raise ValueError(
            f"expected {name} >= {peers.size} with subproblem_mesh= of so many ranks, got {num_models}: some ranks "
            "would have nothing to do; take more, or a smaller mesh and process_group= for copies of it"
        )
    if asked.stacked:
        raise ValueError(
            "expected stacked=False with subproblem_mesh=, because a bank has all models in one process: pass the "
            "plain model"
        )
    if asked.scalarization is not None and asked.scalarization.whole_table:
        raise ValueError(
            "expected a scalarization of single subproblems with subproblem_mesh=, got "
            f"{type(asked.scalarization).__name__}, which goes by the losses of those on other ranks too, in each "
            "backward: leave subproblem_mesh= out"
        )
    return Exchange(Share(num_models, peers.place, tuple(peers.members)), peers)


def check_copies(ranks: Ranks | None, exchange: Exchange | None) -> None:
    """Checks that the ranks of data parallelism train the same subproblems.

    Raises:
        RanksError: on all of them, if they do not.
    """
    if ranks is not None:
        share = None if exchange is None else str(exchange.share)
        ranks.agree({"call": "subproblem_mesh=", "the subproblems of subproblem_mesh=": share})
