"""The runs that are wanted, in the order in which they are made: the search of each arm's rate, then its seeds."""

from __future__ import annotations

from collections.abc import Mapping

from .networks import ARMS, WEIGHTINGS
from .runs import Key, Record

DEMONSTRATIONS = 2
"""Of each task. Set by the pilot, before any of the other arms was run."""

PILOT = (2, 5, 10)
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""All of them for every arm: losses over rates have more than one valley, where a search from the middle gets lost."""

SEARCH_SEED = 100
SEEDS = 3


def pilot() -> list[Key]:
    """Separate networks, by the number of demonstrations."""
    return [Key("separate", "sum", count, 3e-3, SEARCH_SEED) for count in PILOT]


def search_keys(arm: tuple[str, str]) -> list[Key]:
    """One for each rate."""
    return [Key(*arm, DEMONSTRATIONS, lr, SEARCH_SEED) for lr in RATES]


def chosen_rate(arm: tuple[str, str], records: Mapping[Key, Record]) -> float | None:
    """The rate of the least held-out loss on the seed of the search; None while the search goes on."""
    keys = search_keys(arm)
    if any(key not in records for key in keys):
        return None
    return min(keys, key=lambda key: records[key].loss).lr


def next_run(records: Mapping[Key, Record], seeds: int = SEEDS) -> Key | None:
    """The pilot, then all searches, then weighting after weighting and seed after seed; None if nothing is missing."""
    wanted = [*pilot(), *(key for arm in ARMS for key in search_keys(arm))]
    for key in wanted:
        if key not in records:
            return key
    for arms in ([arm for arm in ARMS if arm[1] == weighting] for weighting in WEIGHTINGS):
        for seed in range(seeds):
            for arm in arms:
                lr = chosen_rate(arm, records)
                assert lr is not None  # the searches are done
                key = Key(*arm, DEMONSTRATIONS, lr, seed)
                if key not in records:
                    return key
    return None


def needs_episodes(key: Key) -> bool:
    """Whether success is wanted: the search only looks at losses."""
    return key.seed != SEARCH_SEED or key in pilot()
