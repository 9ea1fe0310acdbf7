"""The runs that are wanted, in the order in which they are made: the search of each arm's rate, then its seeds."""

from __future__ import annotations

from collections.abc import Mapping

from .networks import ARMS
from .runs import Key, Record

DEMONSTRATIONS = 2
"""Of each task. Set by the pilot, before any of the other arms was run."""

PILOT = (2, 5, 10)
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
FIRST_RATES = (3e-4, 1e-3, 3e-3)
"""The search begins with these, and goes on while its edge is best."""

SEARCH_SEED = 100
SEEDS = 8


def pilot() -> list[Key]:
    """Separate networks, by the number of demonstrations."""
    return [Key("separate", "sum", count, 3e-3, SEARCH_SEED) for count in PILOT]


def search_keys(arm: tuple[str, str]) -> dict[float, Key]:
    """By rate."""
    return {lr: Key(*arm, DEMONSTRATIONS, lr, SEARCH_SEED) for lr in RATES}


def chosen_rate(arm: tuple[str, str], records: Mapping[Key, Record]) -> float | None:
    """The rate of the least held-out loss on the seed of the search; None while the search goes on."""
    return None if next_search(arm, records) else best_rate(arm, records)


def best_rate(arm: tuple[str, str], records: Mapping[Key, Record]) -> float:
    """Of those that were tried."""
    losses = {lr: records[key].loss for lr, key in search_keys(arm).items() if key in records}
    return min(losses, key=lambda lr: losses[lr])


def next_search(arm: tuple[str, str], records: Mapping[Key, Record]) -> Key | None:
    """The run that the search of an arm needs next."""
    keys = search_keys(arm)
    wanted = list(FIRST_RATES)
    while all(keys[lr] in records for lr in wanted):
        losses = {lr: records[keys[lr]].loss for lr in wanted}
        best = RATES.index(min(losses, key=lambda lr: losses[lr]))
        beyond = [RATES[place] for place in (best - 1, best + 1) if 0 <= place < len(RATES)]
        new = [lr for lr in beyond if lr not in wanted]
        if not new:
            return None
        wanted += new
    return next(keys[lr] for lr in wanted if keys[lr] not in records)


def next_run(records: Mapping[Key, Record], seeds: int = SEEDS) -> Key | None:
    """The pilot, then all searches, then seed after seed of all arms; None if nothing is missing."""
    for key in pilot():
        if key not in records:
            return key
    for arm in ARMS:
        if (key := next_search(arm, records)) is not None:
            return key
    for seed in range(seeds):
        for arm in ARMS:
            key = Key(*arm, DEMONSTRATIONS, best_rate(arm, records), seed)
            if key not in records:
                return key
    return None


def needs_episodes(key: Key) -> bool:
    """Whether success is wanted: the search only looks at losses."""
    return key.seed != SEARCH_SEED or key in pilot()
