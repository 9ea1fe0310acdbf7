"""HarmoDT: masks of tasks over one shared model, as bits in the fused step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..base import AdamW, BaseRule, as_base_rule
from ..checks import check_choice, check_count, check_flag, check_function, check_positive
from ..gradients.options import check_generator, own_generator
from ..gradients.passes import Backward
from ..masks.harmony import CosineBudget, Harmony
from ..masks.tables import MaskTables
from ..masks.task_masks import TaskMasks
from ..ops.limits import MAX_TASKS
from ..ranks import Ranks
from .buffers import Buffers
from .harmony_exchange import MaskExchange, NotFiniteError
from .harmony_rounds import Rounds
from .harmony_state import KeptMasks
from .harmony_step import HarmonySteps
from .history import StepHistory
from .turns import Turns

__all__ = ["HarmonyFused"]


class HarmonyFused(HarmonySteps):
    """Trains one model on T tasks, each of which sees and trains a part of the parameters of its own (HarmoDT).

    After HarmoDT (ICML 2024, arXiv 2405.18080), read in an account of its published code.  Each task has a mask: it
    runs the model with zeros outside, its gradient is masked, and a step moves nothing outside, neither by decay nor
    by momentum.  The readable twin is :class:`mt2o_ext.masks.TaskMasks` in plain torch, for any optimizer.  Here masks
    are bits that the fused step reads, one kernel writes what a task sees beside the parameters, and nothing is copied
    back.

        optimizer = HarmonyFused(model.named_parameters(), num_tasks=5, density=0.8, lr=1e-4, max_norm=0.25,
                                 budget=CosineBudget(steps), interval=500)
        for _ in range(steps):
            optimizer.step(lambda task: task_loss(model, *next(batches[task])))     # one task, then the next one

    The same as a loop:

        for task in optimizer.tasks():
            optimizer.backward(task_loss(model, *next(batches[task])))
        optimizer.step()
        if optimizer.due:
            optimizer.exchange(lambda task: task_loss(model, *next(batches[task])))

    The published step is that of one task, the next in turn.  A step of several tasks takes the mean of their masked
    gradients, which is ours.  Groups with ``task=`` are heads: no mask, and no gradient but that of their own task.

    Args:
        params: named parameters, parameters, or groups of them with options of the base rule.
        num_tasks: T.
        masks: of some of the parameters, made before; all others are whole then.  None: random ones of all trainable
            parameters in groups without ``task``, and of those that are added or thawed later.
        density: the share of all elements that each task has in random masks; None: 0.8.
        whole: words; parameters with one of them in their name are shown and give gradients as they are, and their mask
            only says what moves.  (The published code does so for "embed" and "predict".)
        granularity: "element"; or "channel": masks have whole slices of the first dimension (output channels, units),
            with weight and bias of a module together; then `exchange` counts channels.
        turns: "one": a step has one task, the next in turn; "all": all of them.  ``tasks(chosen)`` takes others.
        lr: learning rate, a float or a one-element tensor; None: that of the base rule.
        base: ``AdamW()`` (default) or another base rule of this package, or a name.
        harmony: the rule by which masks change; None: ``Harmony()``.
        budget: elements that change in an exchange, by the number of the step; None: `exchange` is told.
        interval: steps from one exchange to the next, which ``step(closure)`` makes, with the closure's losses; None:
            whenever `exchange` is called.
        moments: "decay": moments outside of the masks of a step go on, towards 0; "hold": they stay.
        ema: decay of a running average of the parameters (``state[p]["ema"]``), or None.
        max_norm: shortens the gradient of each task to this length, all parameters as one vector, before it is masked,
            as published (0.25 there); ``grad_norm`` tells how long they were, float64 [T].  None: never.
        generator: of the random masks; None: one that begins with a number of torch's default generator.
        skip_nonfinite: skip steps of infinite or NaN gradients or losses (default).
        history: the number of last steps that are recorded for `history`; 0: none.
        process_group: data parallelism, as of :class:`WeightedFused`: gradients and losses are averaged over the ranks,
            also those that change masks; parameters and masks begin as the first rank's.
        backward: a trainer's backward, as of :class:`WeightedFused`.

    Where an error is raised, nothing has been changed.

    Raises:
        TypeError: for options and parameters of the wrong kind.
        ValueError: for options out of range or without effect, sharded parameters, no parameter to mask, and masks of
            other tasks or parameters.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        >>> optimizer = mt2o_ext.HarmonyFused(model.named_parameters(), num_tasks=2, density=0.5, lr=0.01)
        >>> before = model[0].weight.detach().clone()
        >>> losses = optimizer.step(lambda task: (model(torch.ones(7, 3)) - task).square().mean())
        >>> outside = ~optimizer.masks.of(0)[0]
        >>> torch.equal(model[0].weight[outside], before[outside]), torch.equal(model[0].weight, before)
        (True, False)
        >>> with optimizer.shown(task=1):
        ...     int((model[0].weight == 0).sum()) == int((~optimizer.masks.of(1)[0]).sum())
        True
    """

    def __init__(
        self,
        params: Any,
        *,
        num_tasks: int,
        masks: TaskMasks | None = None,
        density: float | None = None,
        whole: Sequence[str] = (),
        granularity: str = "element",
        turns: str = "one",
        lr: float | Tensor | None = None,
        base: BaseRule | str = AdamW(),  # noqa: B008  (frozen)
        harmony: Harmony | None = None,
        budget: CosineBudget | None = None,
        interval: int | None = None,
        moments: str = "decay",
        ema: float | None = None,
        max_norm: float | None = None,
        generator: torch.Generator | None = None,
        skip_nonfinite: bool = True,
        history: int = 0,
        process_group: Any = None,
        backward: Backward | None = None,
    ) -> None:
        check_count("num_tasks", num_tasks)
        if num_tasks > MAX_TASKS:
            raise ValueError(
                f"expected num_tasks <= {MAX_TASKS}, got {num_tasks}: take fewer tasks, because the kernels hold no "
                "more task gradients at once"
            )
        check_flag("skip_nonfinite", skip_nonfinite)
        check_generator(generator)
        check_choice("granularity", granularity, ("element", "channel"))
        _check_masks(masks, num_tasks, density, whole, generator, granularity)
        self._num_tasks = num_tasks
        self._rounds = _rounds(check_choice("turns", turns, ("one", "all")), budget, interval)
        self._hold = check_choice("moments", moments, ("decay", "hold")) == "hold"
        self._longest = None if max_norm is None else check_positive("max_norm", max_norm)
        self._skips = skip_nonfinite
        self._harmony = _instance("harmony", harmony, Harmony) or Harmony()
        self._kept = KeptMasks(masks, 0.8 if density is None else density, whole, own_generator(generator), granularity)
        base = as_base_rule(base)
        super().__init__(
            params,
            {"lr": base.lr if lr is None else lr, **base.defaults()},
            base,
            Buffers(1, num_tasks, stacked=False, masked=True),
            heads_of=num_tasks,
            ema=ema,
            copies=["ema"] * (ema is not None),
            look_for_nonfinite=skip_nonfinite and max_norm is None,
            history=history,
            process_group=process_group,
            backward=backward,
        )

    _family = "harmony"
    _needs_whole = "a mask is of the elements of a whole parameter"

    def __repr__(self) -> str:
        options = f"num_tasks={self._num_tasks}, masks={len(self.masks.names)}, ema={self._ema}"
        return super().__repr__().replace(" (", f" ({options}", 1)

    def _build(self) -> None:
        self._kept.draw(self.param_groups, self._is_held, self._num_tasks)
        super()._build()
        self._kept.masks.to(self._buffers.device)
        self._tables = MaskTables(self._kept.masks, self._buffers.flats)

    def __getstate__(self) -> dict[str, Any]:
        self._check_truth_shown()  # else the copy would take what a task sees for the whole model
        return {key: value for key, value in super().__getstate__().items() if key != "_tables"}

    # ------------------------------------------------------------------ the masks
    @property
    def masks(self) -> TaskMasks:
        """The masks, which may be read and set: ``masks.of(task)``, ``masks.set_flat(task, mask)``."""
        return self._kept.masks

    @property
    def due(self) -> bool:
        """True if masks are to change now, by ``interval=``."""
        return self._rounds.due

    @torch.no_grad()
    def exchange(self, loss_of: Callable[..., Tensor | None], amount: int | None = None) -> None:
        """Exchanges elements of each mask, by the rule of ``harmony=``.

        Changes no parameter and no ``.grad``; keeps T gradients in memory meanwhile.

        Args:
            loss_of: ``task -> loss``, of a new mini-batch; called once for each task, under grad mode, with the model
                as the task sees it.  One that returns None, as the task has no data, leaves all masks as they are.
            amount: of elements (or channels), of each mask; fewer where there are fewer inside or outside of it.  None:
                by ``budget=``.

        Raises:
            TypeError: for an amount that is no whole number.
            ValueError: for no amount and no budget, a loss without a graph, and gradients that are not finite.
            RuntimeError: inside of `shown` and of a loop over `tasks`, and before the step that ends one.
        """
        check_function("loss_of", loss_of, "pass a function task -> loss")
        if amount is None:
            amount = self._rounds.amount()
        check_count("amount", amount, 0)
        self._check_truth_shown()
        if self._now.turns is not None:
            raise RuntimeError("expected exchange() between two steps, got it inside of one: call step() before")
        self._exchange(loss_of, amount, patient=False)

    def _exchange_due(self, closure: Callable[..., Tensor | None]) -> None:
        try:
            self._exchange(closure, self._rounds.amount(), patient=True)
        except NotFiniteError as error:
            if not self._skips:
                raise
            self._warn_once("exchange", f"masks were to change after this step, and do so after a later one: {error}")

    def _exchange(self, loss_of: Callable[..., Tensor | None], amount: int, *, patient: bool) -> None:
        """Exchanges elements, if no task is without data."""
        if amount == 0 or self._exchanged(loss_of, amount, patient=patient):
            self._rounds.exchanged = self._rounds.steps

    @torch.no_grad()
    def _exchanged(self, loss_of: Callable[..., Tensor | None], amount: int, *, patient: bool) -> bool:
        self._prepare()
        turns = self._now.turns = Turns(0, range(self._num_tasks), {}, self._num_tasks)
        try:
            parts = self._buffers.flats, self._tables, self._view, self._harmony, turns, self._ranks
            return MaskExchange(*parts, channels=self.masks.granularity == "channel").run(
                loss_of, amount, patient=patient
            )
        finally:
            self._now.turns = None

    # ------------------------------------------------------------------ data parallelism
    def _works_in_wrapper(self) -> bool:
        return True

    def _description(self) -> dict[str, Any]:
        own: dict[str, Any] = {
            "turns": "all" if self._rounds.every else "one",
            "interval": self._rounds.interval,
            "hold": self._hold,
        }
        own |= {"budget": repr(self._rounds.budget), "max_norm": self._longest, **self._kept.description()}
        return {**super()._description(), **own}

    def _share_draws(self, ranks: Ranks) -> None:
        self._kept.share(ranks)

    def _call(self, name: str) -> dict[str, Any]:
        own = {"number of steps": self._rounds.steps, "checksums of the masks": self._tables.checksums()}
        return {**super()._call(name), **own}

    # ------------------------------------------------------------------ diagnostics and state
    def history(self) -> StepHistory:
        """The last steps, of which ``history=`` says how many are kept.

        Raises:
            RuntimeError: if none are.
        """
        return self._recorded_steps()

    def _export_shared(self) -> dict[str, Any]:
        self._check_truth_shown()  # a checkpoint would have the model of a task beside it
        return self._kept.exported(self._rounds, self._report, self._step_recorder)

    def _loaded_shared(self, shared: Any, state: dict[Any, Any]) -> Callable[[], None]:
        commit = self._kept.loaded(shared, self._rounds, self._report, self._step_recorder)

        def all_of_it() -> None:
            commit()
            self._tables.refresh()

        return all_of_it


def _instance(name: str, value: Any, kind: type) -> Any:
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"expected {name} as a {kind.__name__}, got {type(value).__name__}: pass one, or None")
    return value


def _rounds(turns: str, budget: CosineBudget | None, interval: int | None) -> Rounds:
    _instance("budget", budget, CosineBudget)
    if interval is not None:
        check_count("interval", interval)
        if budget is None:
            raise ValueError("expected budget= beside interval=, got none: pass a CosineBudget, or leave interval= out")
    return Rounds(every=turns == "all", interval=interval, budget=budget)


def _check_masks(
    masks: TaskMasks | None,
    num_tasks: int,
    density: float | None,
    whole: Sequence[str],
    generator: torch.Generator | None,
    granularity: str,
) -> None:
    if _instance("masks", masks, TaskMasks) is None:
        return
    assert masks is not None
    idle: Iterable[tuple[str, bool]] = (
        ("density", density is not None), ("whole", len(whole) > 0), ("generator", generator is not None),
        ("granularity", granularity != "element"),
    )  # fmt: skip
    if given := [f"{name}=" for name, set_ in idle if set_]:
        raise ValueError(f"{', '.join(given)} would have no effect beside masks=: leave it out, or leave out masks=")
    if masks.num_tasks != num_tasks:
        raise ValueError(f"expected masks of {num_tasks} tasks, got some of {masks.num_tasks}: pass num_tasks of them")
