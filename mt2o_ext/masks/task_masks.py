"""Masks of tasks over shared parameters: the view of a task, and steps that move nothing outside of a mask."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from ..checks import check_choice, check_count, check_index
from ..gradients.options import own_generator
from .arguments import check_words, checked_parameters, chosen_tasks
from .bits import pack, unpack
from .channels import Channels
from .holding import entries, hold_entries, models_of
from .sparsity import erk_counts

__all__ = ["TaskMasks"]


class TaskMasks(nn.Module):
    """A binary mask of each task over the same parameters, one bit for each element and task (HarmoDT's masks).

    Of HarmoDT (harmony multi-task decision transformer, ICML 2024, arXiv 2405.18080), read in an account of its
    published code: a task runs the shared parameters with zeros outside of its mask, its gradient is masked, and after
    a step everything outside gets its old value back. Each task's first mask is random, with as many elements in each
    tensor as `erk_counts` says. `Harmony` changes masks in training. Ours: masks as packed bits, exact counts, and what
    is held in a step beside the parameters.

        with masks.shown(task):
            loss_of(model, task).backward()
        with masks.held(task, optimizer):
            optimizer.step()

    It is a module, whose state dict has the masks; the parameters stay the model's.

    Args:
        named_parameters: the parameters that have masks, ``model.named_parameters()`` or those of a part. All others
            are what they were without masks.
        num_tasks: K.
        density: the share of all elements that each task has.
        whole: words; parameters with one of them in their name are shown and get gradients as they are, and their mask
            only says what moves. The published code does so for names with "embed" and "predict".
        generator: of the first masks; None: torch's default one.
        granularity: "element"; or "channel": masks have whole slices of the first dimension of a tensor (output
            channels, units), with weight and bias of a module together, and as many as come next to `density`.

    Raises:
        TypeError: for things that are no named parameters, or not of floating point.
        ValueError: for none, for one that comes twice, is sharded or has no size yet, and for numbers out of range.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        >>> masks = TaskMasks(model.named_parameters(), num_tasks=5, density=0.8)
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        >>> for task in range(5):
        ...     with masks.shown(task):
        ...         model(torch.ones(7, 3)).square().mean().backward()
        ...     with masks.held(task, optimizer):
        ...         optimizer.step()
        ...     optimizer.zero_grad()
        >>> masks.counts()  # of the 26 elements
        tensor([21, 21, 21, 21, 21])
        >>> masks.bits.shape, masks.bits.dtype
        (torch.Size([5, 4]), torch.uint8)
    """

    bits: Tensor

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, Tensor]],
        num_tasks: int,
        *,
        density: float = 0.8,
        whole: Sequence[str] = (),
        generator: torch.Generator | None = None,
        granularity: str = "element",
    ) -> None:
        super().__init__()
        self.granularity = check_choice("granularity", granularity, ("element", "channel"))
        self.num_tasks = check_count("num_tasks", num_tasks)
        words = check_words(whole)
        named = checked_parameters(named_parameters)
        self.names: list[str] = []
        self.parameters_with_masks: list[Tensor] = []
        self.whole: list[bool] = []
        self.sizes: list[int] = []
        self._words = words
        self._task_shown: int | None = None
        device = next(iter(named.values())).device
        self.register_buffer("bits", torch.zeros(num_tasks, 0, dtype=torch.uint8, device=device))
        self._add(named, density, own_generator(generator))

    def extra_repr(self) -> str:
        return f"num_tasks={self.num_tasks}, parameters={len(self.names)}, elements={sum(self.sizes)}"

    # ------------------------------------------------------------------ the masks
    def add(
        self,
        named_parameters: Iterable[tuple[str, Tensor]],
        *,
        density: float = 0.8,
        generator: torch.Generator | None = None,
    ) -> None:
        """Adds parameters, with random masks of their own; those that are there keep theirs.

        Raises:
            TypeError: as the constructor.
            ValueError: as the constructor, and for a parameter or a name that is there already.
        """
        self._check_not_shown()
        named = checked_parameters(named_parameters)
        there = {*self.names, *map(id, self.parameters_with_masks)}
        for name, p in named.items():
            if name in there or id(p) in there:
                raise ValueError(f"expected parameters without masks, got {name}, which has some: leave it out")
        self._add(named, density, own_generator(generator))

    def _add(self, named: dict[str, Tensor], density: float, source: torch.Generator) -> None:
        sizes = [p.numel() for p in named.values()]
        shapes = [p.shape for p in named.values()]
        counts, channels = erk_counts(shapes, density), None
        if self.granularity == "channel":
            channels = Channels(list(named), shapes)
            sizes_of, counts_of = zip(*channels.shares(counts), strict=True)
        else:
            sizes_of, counts_of = tuple(sizes), tuple(counts)
        masks = [
            torch.cat([_random_mask(size, count, source) for size, count in zip(sizes_of, counts_of, strict=True)])
            for _ in range(self.num_tasks)
        ]
        if channels is not None:
            masks = list(torch.cat(channels.spread(torch.stack(masks)), 1))
        old = unpack(self.bits, sum(self.sizes))
        self.bits = pack(torch.cat([old, torch.stack(masks).to(old.device)], 1))
        self.names += named
        self.parameters_with_masks += named.values()
        self.whole += [any(word in name for word in self._words) for name in named]
        self.sizes += sizes
        if self.granularity == "channel":  # a bias that comes after its weight has the weight's channels
            self.bits = pack(self._whole_channels(unpack(self.bits, sum(self.sizes))))

    def _whole_channels(self, flat: Tensor) -> Tensor:
        """Masks bool [n, P] of whole channels: what the first element of each channel has, all of it has."""
        channels = self.channels
        return torch.cat(channels.spread(channels.firsts(flat.split(self.sizes, 1))), 1)

    def check_bits(self, bits: Tensor) -> None:
        """Checks that packed masks uint8 [n, ceil(P / 8)] are of whole channels, where these are.

        Raises:
            ValueError: for a part of a channel.
        """
        if self.granularity != "channel":
            return
        flat = unpack(bits, sum(self.sizes))
        if not torch.equal(self._whole_channels(flat), flat):
            raise ValueError(
                'expected masks of whole channels for granularity="channel", got a part of one: set all elements of a '
                "channel, of weight and bias"
            )

    @property
    def channels(self) -> Channels:
        """The channels of all parameters that have masks."""
        return Channels(self.names, [p.shape for p in self.parameters_with_masks])

    def flat(self, task: int) -> Tensor:
        """Return the mask of a task over all elements, bool [P]."""
        return unpack(self.bits[self._checked_task(task)], sum(self.sizes))

    def of(self, task: int) -> list[Tensor]:
        """Return the mask of a task for each parameter, bool, of their shapes."""
        return self._split(self.flat(task))

    def set_flat(self, task: int, mask: Tensor) -> None:
        """Replaces the mask of a task by bool [P]; not while a task is shown."""
        self._check_not_shown()
        task = self._checked_task(task)
        if not isinstance(mask, Tensor) or mask.device.type == "meta":
            kind = "one on meta" if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"expected a mask as a tensor of bool, got {kind}: give all elements")
        if tuple(mask.shape) != (sum(self.sizes),):
            raise ValueError(f"expected a mask of shape [{sum(self.sizes)}], got {list(mask.shape)}: give all elements")
        bits = pack(mask)
        self.check_bits(bits[None])
        self.bits[task] = bits.to(self.bits.device)

    def counts(self) -> Tensor:
        """Return the elements that each task has, int64 [K]."""
        return torch.stack([self.flat(task).sum() for task in range(self.num_tasks)])

    def overlaps(self) -> Tensor:
        """Return the elements that each pair of tasks has in common, int64 [K, K]."""
        masks = [self.flat(task) for task in range(self.num_tasks)]
        return torch.stack([torch.stack([(one & other).sum() for other in masks]) for one in masks])

    # ------------------------------------------------------------------ the view of a task
    @contextmanager
    def shown(self, task: int, *, gradients: str = "masked") -> Iterator[None]:
        """Shows the model to a task: zeros outside of its mask, and masked gradients.

        On leaving, everything outside of the mask has its old value again, bit for bit, whatever happened to it; what
        happened inside of the mask stays. Run forward and backward inside: torch refuses a backward afterwards.

        Args:
            task: 0 .. K - 1.
            gradients: "masked"; or "dense": gradients of all elements at the masked parameters.

        Raises:
            RuntimeError: inside of another such context.
        """
        check_choice("gradients", gradients, ("masked", "dense"))
        masks = self.of(task)
        self._check_not_shown()
        seen = [
            (p, mask) for p, mask, whole in zip(self.parameters_with_masks, masks, self.whole, strict=True) if not whole
        ]
        with ExitStack() as stack:
            stack.callback(self._put_back, self._values_of(masks))
            self._task_shown = task
            with torch.no_grad():
                for p, mask in seen:
                    p.masked_fill_(~mask, 0.0)
            if gradients == "masked":
                for p, mask in seen:
                    if p.requires_grad:
                        stack.callback(p.register_hook(_Masked(mask)).remove)
            yield

    @contextmanager
    def held(
        self, tasks: int | Sequence[int] | None, optimizer: torch.optim.Optimizer, *, moments: str = "decay"
    ) -> Iterator[None]:
        """Holds everything outside of the masks of some tasks during a step: neither decay nor momentum moves it.

        With the parameters are held float32 masters and running averages of parameters that the optimizer keeps.

        Args:
            tasks: those whose gradients the step has, one or several; None: all.
            optimizer: makes the step, inside of the context.
            moments: "decay": moments outside of the masks go on, towards 0; "hold": they stay, too.

        Raises:
            TypeError: for something that is no optimizer, and for anything but tasks.
            ValueError: for an optimizer of several models, of which only one can be shown, and for no task.
            RuntimeError: inside of `shown`, which shows other values outside of the mask than those to hold.
        """
        check_choice("moments", moments, ("decay", "hold"))
        if not hasattr(optimizer, "state"):
            raise TypeError(f"expected an optimizer, got {type(optimizer).__name__}: pass the one that makes the step")
        if (several := models_of(optimizer)) > 1:
            raise ValueError(
                f"expected an optimizer of one model, got {type(optimizer).__name__} of {several}: take WeightedFused"
            )
        self._check_not_shown()
        chosen = range(self.num_tasks) if tasks is None else chosen_tasks(tasks)
        if not chosen:
            raise ValueError("expected at least one task, got none: name those whose gradients the step has")
        union = self.flat(chosen[0])
        for task in chosen[1:]:
            union = union | self.flat(task)
        masks = self._split(union)
        values = self._values_of(masks)
        states = [entries(optimizer, p, moments) for p in self.parameters_with_masks]
        try:
            yield
        finally:
            self._put_back(values)
            for p, mask, old in zip(self.parameters_with_masks, masks, states, strict=True):
                hold_entries(optimizer, p, mask, old, moments)

    def _values_of(self, masks: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """The mask and a copy of each parameter."""
        return [(mask, p.detach().clone()) for p, mask in zip(self.parameters_with_masks, masks, strict=True)]

    @torch.no_grad()
    def _put_back(self, values: list[tuple[Tensor, Tensor]]) -> None:
        for p, (mask, old) in zip(self.parameters_with_masks, values, strict=True):
            p.copy_(torch.where(mask, p, old))
        self._task_shown = None

    def _split(self, flat: Tensor) -> list[Tensor]:
        parts = zip(flat.split(self.sizes), self.parameters_with_masks, strict=True)
        return [part.view(p.shape).to(p.device) for part, p in parts]

    def _checked_task(self, task: int) -> int:
        return check_index("task", task, self.num_tasks)

    def _check_not_shown(self) -> None:
        if self._task_shown is not None:
            raise RuntimeError(f"expected no task to be shown, got task {self._task_shown}: leave its `shown` first")


class _Masked:
    """A hook that leaves out what is outside of a mask."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def __call__(self, gradient: Tensor) -> Tensor:
        return gradient.masked_fill(~self.mask, 0.0)


def _random_mask(size: int, count: int, generator: torch.Generator) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[torch.randperm(size, generator=generator, device=generator.device)[:count].cpu()] = True
    return mask
