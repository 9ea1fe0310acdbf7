"""The masks of an optimizer: how they are drawn, shared over ranks, saved and loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import check_real
from ..entries import member, member_dict
from ..masks.arguments import check_words
from ..masks.task_masks import TaskMasks
from ..ranks import Ranks
from .harmony_rounds import Rounds
from .history import Recorder
from .skips import SkipReport

__all__ = ["KeptMasks"]


class KeptMasks:
    """The masks of an optimizer.

    Args:
        masks: the user's, or None: random ones are drawn.
        density: of random masks.
        whole: words in the names of parameters that are shown whole.
        generator: of random masks.
        granularity: of random masks, "element" or "channel".
    """

    def __init__(
        self,
        masks: TaskMasks | None,
        density: float,
        whole: Sequence[str],
        generator: torch.Generator,
        granularity: str,
    ) -> None:
        self._given = masks is not None
        self._masks = masks
        self._density = check_real("density", density, maximum=1.0)
        self._whole = check_words(whole)
        self._generator = generator
        self._granularity = granularity

    @property
    def masks(self) -> TaskMasks:
        """The masks, which are there since `draw`."""
        assert self._masks is not None
        return self._masks

    def draw(self, groups: Sequence[dict[str, Any]], held: Callable[[Tensor], bool], num_tasks: int) -> None:
        """Draws masks of parameters that have none yet; of the user's masks, checks that they belong to these groups.

        held: whether a parameter is trained, or was.

        Raises:
            ValueError: where no parameter has a mask, and for masks of parameters that are in no group without task.
        """
        shared = {
            id(p): (name, p)
            for group in groups
            if group.get("task") is None
            for name, p in zip(_names(group), group["params"], strict=True)
        }
        if self._given:
            strange = [n for n, p in zip(self.masks.names, self.masks.parameters_with_masks, strict=True)
                       if id(p) not in shared]  # fmt: skip
            if strange:
                raise ValueError(
                    f"expected masks of parameters of this optimizer, got one of {strange[0]}, which is in no group "
                    "without task=: pass it, or make masks of others"
                )
            return
        there = set() if self._masks is None else set(map(id, self._masks.parameters_with_masks))
        new = [(name, p) for key, (name, p) in shared.items() if key not in there and held(p) and p.numel() > 0]
        if not new and self._masks is None:
            raise ValueError(
                "expected at least one trainable parameter in a group without task=, got none: pass "
                "model.named_parameters()"
            )
        if not new:
            return
        named = self._named_apart(new)
        if self._masks is None:
            self._masks = TaskMasks(
                named, num_tasks, density=self._density, whole=self._whole, generator=self._generator,
                granularity=self._granularity,
            )  # fmt: skip
        else:
            self._masks.add(named, density=self._density, generator=self._generator)

    def _named_apart(self, new: list[tuple[str | None, Tensor]]) -> list[tuple[str, Tensor]]:
        """The same with a name for each parameter, which no other one has."""
        names = [] if self._masks is None else list(self._masks.names)
        for name, _ in new:
            name = f"parameter {len(names)}" if name is None else name
            names.append(f"{name} ({len(names)})" if name in names else name)
        return list(zip(names[-len(new) :], (p for _, p in new), strict=True))

    # ------------------------------------------------------------------ ranks
    def description(self) -> dict[str, Any]:
        """Options that are the same on all ranks."""
        names = self.masks.names if self._given else None
        return {"density": self._density, "whole": self._whole, "granularity": self._granularity, "masks": names}

    def share(self, ranks: Ranks) -> None:
        """From now on the masks, and those that are drawn, are the first rank's."""
        self._generator = ranks.generator(self._generator)
        if self._given:
            ranks.share_([self.masks.bits])

    # ------------------------------------------------------------------ state
    def exported(self, rounds: Rounds, report: SkipReport, recorder: Recorder | None) -> dict[str, Any]:
        """Return the state."""
        recorded = {} if recorder is None else {"history": recorder.state_dict()}
        return {
            "masks": self.masks.bits.clone(),
            "steps": rounds.steps,
            "exchanged": rounds.exchanged,
            "generator": self._generator.get_state(),
            "skipped": report.counts.clone(),
            **recorded,
        }

    def loaded(self, shared: Any, rounds: Rounds, report: SkipReport, recorder: Recorder | None) -> Callable[[], None]:
        """Check what `exported` gave.

        Args:
            shared: the state, or None where a dict has none.
            rounds: takes its counts over.
            report: takes the skipped steps over.
            recorder: takes the record over, where both have one.

        Returns:
            A function that takes the state over, and cannot fail.

        Raises:
            TypeError: for an entry of another kind.
            ValueError: for the state of another optimizer.
        """
        if shared is None:
            return lambda: None  # of torch.optim: the masks stay as they are
        where = "the optimizer"
        shared = member_dict({"harmony": shared}, "harmony", "the first group")
        bits = member(shared, "masks", tuple(self.masks.bits.shape), where)
        self.masks.check_bits(bits)
        steps, exchanged = (int(member(shared, key, (), where)) for key in ("steps", "exchanged"))
        numbers = member(shared, "generator", None, where).cpu()
        skipped = member(shared, "skipped", (1,), where)
        record = recorder.loaded(shared["history"]) if recorder is not None and "history" in shared else None

        def commit() -> None:
            self.masks.bits.copy_(bits)
            rounds.steps, rounds.exchanged = steps, exchanged
            self._generator.set_state(numbers)
            report.counts.copy_(skipped)
            if record is not None:
                record()

        return commit

    def __getstate__(self) -> dict[str, Any]:
        """For pickle, which takes the state of a generator, and not itself."""
        return {**self.__dict__, "_generator": self._generator.get_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._generator = torch.Generator()
        self._generator.set_state(state["_generator"])


def _names(group: dict[str, Any]) -> list[str | None]:
    names = group.get("param_names")
    return [None] * len(group["params"]) if names is None else list(names)
