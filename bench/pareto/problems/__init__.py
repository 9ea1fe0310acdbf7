"""The problems by name. A new one: a file here that makes a `Problem`, and its name below."""

from __future__ import annotations

from .analytic import DTLZ2, VLMOP2, ZDT1, ZDT2
from .base import Problem
from .diamonds import DI, DI4
from .digits import DIGITS
from .garments import MF, NORM
from .reconstruction import BN, BN8
from .text import TEXT

PROBLEMS: dict[str, Problem] = {
    problem.name: problem for problem in (BN8, DI, BN, MF, DI4, NORM, TEXT, DIGITS, VLMOP2, ZDT1, ZDT2, DTLZ2)
}

__all__ = ["PROBLEMS", "Problem"]
