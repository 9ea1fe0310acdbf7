"""Schedules of the chance of phase 1: functions of progress in [0, 1]; any other one serves as well."""

from __future__ import annotations

__all__ = ["mixed", "phase_one", "phase_two", "sequential"]


def mixed(progress: float) -> float:
    """Phase 1 with probability 1 - e / E (the paper's rule)."""
    return 1.0 - progress


def sequential(progress: float) -> float:
    """Phase 1 in the first half, phase 2 in the second (an ablation of the paper)."""
    return 1.0 if progress < 0.5 else 0.0


def phase_one(progress: float) -> float:
    """Phase 1 only."""
    return 1.0


def phase_two(progress: float) -> float:
    """Phase 2 only."""
    return 0.0
