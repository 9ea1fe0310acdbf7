"""The arms by name, the most informative first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from mt2o_ext.transfer import (
    MGD,
    CrossLearning,
    DistanceDecrease,
    Guarded,
    GumbelPrior,
    Hat,
    Mean,
    Neighbours,
    Sequence,
    Spectral,
)
from mt2o_ext.weighting import EPO

from .base import Arm, Setting
from .conditioned import Cosmos, Hypernetwork
from .one_point import OnePoint
from .rules import Placebo
from .subproblems import Subproblems

__all__ = ["ARMS", "CONTROL", "Arm", "Entry", "Setting"]

CONTROL = "ind"


@dataclass(frozen=True)
class Entry:
    """An arm in the tables: `tier` 0 is run first; `needs_inputs`: it adds the preference to the inputs of the net."""

    text: str
    make: Callable[[Setting], Arm]
    tier: int = 2
    needs_inputs: bool = False


def _subproblems(text: str, rule: object = None, tier: int = 2, **options: object) -> Entry:
    """`rule` makes a transfer rule, without arguments."""
    make_rule = (lambda steps: None) if rule is None else (lambda steps: rule())  # type: ignore[operator]
    return Entry(text, lambda setting: Subproblems(setting, make_rule, **options), tier)  # type: ignore[arg-type]


def _warm(share: float) -> Entry:
    def rule(steps: int) -> Sequence:
        return Sequence([(Mean(1.0), max(1, round(share * steps))), (Spectral(), None)])

    return Entry(f"full consensus for {share:.0%} of the steps, then Spectral", partial(Subproblems, rule=rule), 1)


ARMS: dict[str, Entry] = {
    CONTROL: _subproblems("K independent runs: transfer=None", tier=0),
    "spec": _subproblems("Spectral", Spectral, 0),
    "vertices": _subproblems(
        'front="vertices": T vertices, K random points side by side in each step', tier=0, vertices=True
    ),
    "vbranch25": _subproblems(
        "one net for 25% of the GE, then vertices that begin there", tier=0, vertices=True, trunk=0.25
    ),
    "vbranch50": _subproblems("as vbranch25, 50%", tier=1, vertices=True, trunk=0.50),
    "pml": Entry("Pareto Manifold Learning: T vertices, one point a step", OnePoint, 0),
    "branch25": _subproblems("one net for 25% of the GE, then K copies of it", tier=0, trunk=0.25),
    "sbranch25": _subproblems("branch25, the copies with Spectral", Spectral, 0, trunk=0.25),
    "mean": _subproblems("Mean(0.1)", lambda: Mean(0.1), 0),
    "placebo": _subproblems("Spectral that is given permuted preferences", Placebo, 0),
    "gspec": _subproblems("Guarded(Spectral())", lambda: Guarded(Spectral())),
    "warm10": _warm(0.10),
    "branch10": _subproblems("as branch25, 10%", tier=1, trunk=0.10),
    "branch50": _subproblems("as branch25, 50%", tier=1, trunk=0.50),
    "wbranch25": _subproblems("as branch25, the one net with K times the batch", tier=1, trunk=0.25, wide=True),
    "cosmos": Entry("COSMOS: one net with the preference as input", Cosmos, 1, needs_inputs=True),
    "vwarm25": _subproblems(
        "vertices, equal for the first 25% of the steps (warm_up)", tier=1, vertices=True, warm_up=0.25
    ),
    "phn": Entry("Pareto hypernetwork, compact: its own products are not counted in GE", Hypernetwork, 1),
    "hat": _subproblems("Hat(1)", Hat),
    "neighbours": _subproblems("Neighbours(0.1, width=0.15)", lambda: Neighbours(0.1, 0.15)),
    "mgd": _subproblems("MGD()", MGD),
    "distance": _subproblems("DistanceDecrease()", DistanceDecrease),
    "cross": _subproblems("CrossLearning(1.0)", lambda: CrossLearning(1.0)),
    "specrel": _subproblems("Spectral(relative=True)", lambda: Spectral(relative=True)),
    "gumbel": _subproblems("GumbelPrior()", GumbelPrior),
    "epo": _subproblems("EPO as weighting: T gradient evaluations for each net and step", weighting=EPO),
}
