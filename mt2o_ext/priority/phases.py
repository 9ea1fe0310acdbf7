"""Draws of the phase that a step runs: one generator, the same draws on all ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..checks import check_count, check_flag, check_function
from ..entries import generator_state, member
from ..ranks import Ranks

__all__ = ["PhaseDraw"]


class PhaseDraw:
    """Draws phase 1 or 2, and the order of the tasks, for one step after another.

    Phase 1 if P < schedule(e / E) with P ~ U(0, 1); for the paper's schedule 1 - e / E this is the paper's
    "phase 1 if P >= e / E" with 1 - P in the place of P.

    Args:
        schedule: progress in [0, 1] -> probability of phase 1.
        total_steps: E.
        steps_per_epoch: the phase is drawn at the first of so many steps and kept; None: at every step.
        shuffle: a random order of the tasks in phase 1.
        seed: of the generator, which lives on the host: no draw waits for a device.
    """

    def __init__(
        self,
        schedule: Callable[[float], float],
        total_steps: int,
        steps_per_epoch: int | None,
        *,
        shuffle: bool,
        seed: int,
    ) -> None:
        check_function("schedule", schedule, "pass a function of the progress, mt2o_ext.priority.schedule.mixed, say")
        check_count("total_steps", total_steps)
        if steps_per_epoch is not None:
            check_count("steps_per_epoch", steps_per_epoch)
        check_flag("shuffle", shuffle)
        check_count("seed", seed, -(2**63))
        self.schedule = schedule
        self.total_steps = total_steps
        self.steps_per_epoch = steps_per_epoch or 1
        self.shuffle = shuffle
        self.steps = 0
        self.phase = 0
        self.generator = torch.Generator().manual_seed(seed)

    def next(self, num_tasks: int) -> tuple[int, list[int]]:
        """The phase of the next step, and the order of the tasks.

        Raises:
            ValueError: with nothing drawn, where the schedule does not give a probability.
        """
        if self.steps % self.steps_per_epoch == 0 or self.phase == 0:
            progress = self.steps // self.steps_per_epoch * self.steps_per_epoch / self.total_steps
            probability = float(self.schedule(min(progress, 1.0)))
            if not 0.0 <= probability <= 1.0:
                raise ValueError(f"expected a probability from the schedule, got {probability}: keep it in [0, 1]")
            self.phase = 1 if torch.rand((), dtype=torch.float32, generator=self.generator).item() < probability else 2
        self.steps += 1
        if self.shuffle:
            return self.phase, torch.randperm(num_tasks, generator=self.generator).tolist()
        return self.phase, list(range(num_tasks))

    def share(self, ranks: Ranks) -> None:
        """From now on all ranks draw what the first one would have drawn."""
        self.generator = ranks.generator(self.generator)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps, the phase, and the state of the generator."""
        return {"steps": self.steps, "phase": self.phase, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        self.steps, self.phase = int(state["steps"]), int(state["phase"])
        generator: Tensor = state["generator"]
        self.generator.set_state(generator.cpu())

    def checked(self, state: dict[str, Any]) -> dict[str, Any]:
        """Check what `state_dict` gave, before it goes to `load_state_dict`.

        Raises:
            TypeError: for an entry of another kind.
            ValueError: for numbers out of range, or of another generator.
        """
        numbers = {key: int(member(state, key, (), "`draw`")) for key in ("steps", "phase")}
        return {**numbers, "generator": generator_state(state, self.generator, "`draw`")}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "generator": self.generator.get_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.generator = torch.Generator()
        self.generator.set_state(state["generator"])
