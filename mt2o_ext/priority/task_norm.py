"""Normalisation with parameters and statistics of its own for every task; the other parameters stay shared.

Every module here holds T ordinary torch modules in ``norms`` and passes its input to the one of the active task: state
dicts, autocast, ``torch.compile`` and ``torch.func`` see nothing but those.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..checks import check_count

__all__ = [
    "TaskBatchNorm",
    "TaskBatchNorm1d",
    "TaskBatchNorm2d",
    "TaskBatchNorm3d",
    "TaskGroupNorm",
    "TaskLayerNorm",
    "TaskNorm",
    "TaskRMSNorm",
    "select_task",
]


class TaskNorm(nn.Module):
    """T copies of a normalisation module, one for each task.

    A forward pass goes through the copy of the active task, and in training mode updates that copy's statistics only.
    The task is chosen with :func:`select_task`, or for one call by ``norm(x, task=1)``.

    Args:
        norm: the module that is copied, with its parameters, statistics and mode.
        num_tasks: T.

    Raises:
        TypeError: for another kind of module.
        ValueError: for less than one task.

    Example:
        >>> model = TaskNorm.convert(torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.LayerNorm(4)), num_tasks=3)
        >>> type(model[1]).__name__, model[1].num_tasks
        ('TaskLayerNorm', 3)
        >>> TaskNorm.revert(model, task=0)[1]
        LayerNorm((4,), eps=1e-05, elementwise_affine=True, bias=True)
    """

    kinds: ClassVar[tuple[type[nn.Module], ...]]

    def __init__(self, norm: nn.Module, num_tasks: int) -> None:
        super().__init__()
        if type(self) is TaskNorm:
            raise TypeError(
                "expected one of the per-task norms, got TaskNorm, their base class: take TaskBatchNorm, "
                "TaskLayerNorm, ..."
            )
        if not isinstance(norm, self.kinds):
            expected = ", ".join(kind.__name__ for kind in self.kinds)
            raise TypeError(f"expected {expected}, got {type(norm).__name__}: take the per-task norm of its kind")
        check_count("num_tasks", num_tasks)
        self.norms = nn.ModuleList(copy.deepcopy(norm) for _ in range(num_tasks))
        self.task: int | None = None
        self.training = norm.training

    @property
    def num_tasks(self) -> int:
        """T."""
        return len(self.norms)

    def of_task(self, task: int | None) -> nn.Module:
        """The module of this task.

        Raises:
            RuntimeError: where no task is chosen.
            IndexError: where it is not there.
        """
        if task is None:
            raise RuntimeError(
                f"{type(self).__name__} expected a task, got None: run the model in `with select_task(model, task):`, "
                "or pass task="
            )
        if not 0 <= task < self.num_tasks:
            raise IndexError(f"expected a task 0 .. {self.num_tasks - 1}, got {task}: choose one of these")
        return self.norms[task]

    def forward(self, input: Tensor, task: int | None = None) -> Tensor:
        output: Tensor = self.of_task(self.task if task is None else task)(input)
        return output

    @property
    def channels(self) -> int:
        """The number of affine parameters of one task."""
        norm: Any = self.norms[0]
        if isinstance(norm, (nn.LayerNorm, nn.RMSNorm)):
            return torch.Size(norm.normalized_shape).numel()
        return int(norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features)

    def scales(self) -> Tensor:
        """float64 [T, C]: the affine factors gamma, ones where there are none."""
        weights = [getattr(norm, "weight", None) for norm in self.norms]
        if weights[0] is None:
            return torch.ones(self.num_tasks, self.channels, dtype=torch.float64)
        return torch.stack([weight.detach().flatten() for weight in weights if weight is not None]).double()

    def gains(self) -> Tensor:
        """float64 [T, C]: gamma^2, the squared factor of each task between the layer before and the norm's output.

        Only what differs between channels counts.
        """
        return self.scales().square()

    @classmethod
    def convert(cls, model: nn.Module, num_tasks: int) -> nn.Module:
        """Puts this class in the place of every module that it can copy, as ``SyncBatchNorm.convert_sync_batchnorm``.

        :class:`TaskNorm` itself can copy all batch, layer, group and RMS norms.  Every task begins with the parameters
        and statistics that are there.  A module that stands in several places stays one module.

        Returns:
            The model; another object only where it is a norm itself.
        """
        return _replaced(model, lambda module: _task_norm(cls, module, num_tasks), {})

    @classmethod
    def revert(cls, model: nn.Module, task: int) -> nn.Module:
        """Puts the ordinary norm of one task in the place of every per-task norm: a model for this task alone."""

        def ordinary(module: nn.Module) -> nn.Module | None:
            return module.of_task(task) if isinstance(module, cls) else None

        return _replaced(model, ordinary, {})


class TaskBatchNorm(TaskNorm):
    """BatchNorm1d, 2d or 3d with affine parameters and running statistics for each task (Jeong & Yoon, CVPR 2024).

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
        >>> model = TaskBatchNorm.convert(model, num_tasks=2)
        >>> with select_task(model, 1):
        ...     model(torch.zeros(4, 3, 5, 5)).shape
        torch.Size([4, 8, 3, 3])
    """

    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

    def gains(self) -> Tensor:
        """float64 [T, C]: gamma^2 / (running variance + eps), the square of Eq. 5.

        Raises:
            ValueError: where there are no running statistics.
        """
        variances = [norm.running_var for norm in self.norms]
        if variances[0] is None:
            raise ValueError(
                "expected running statistics, which connection strength reads, got None: make the norms with "
                "track_running_stats=True"
            )
        eps: float = self.norms[0].eps  # type: ignore[assignment]
        return super().gains() / (torch.stack(variances).double() + eps)  # type: ignore[arg-type]


class TaskBatchNorm1d(TaskBatchNorm):
    """T times ``nn.BatchNorm1d(num_features, **options)``.

    Example:
        >>> norm = TaskBatchNorm1d(8, num_tasks=2)
        >>> with select_task(norm, 1):
        ...     norm(torch.zeros(4, 8)).shape
        torch.Size([4, 8])
    """

    def __init__(self, num_features: int, num_tasks: int, **options: Any) -> None:
        super().__init__(nn.BatchNorm1d(num_features, **options), num_tasks)


class TaskBatchNorm2d(TaskBatchNorm):
    """T times ``nn.BatchNorm2d(num_features, **options)``.

    Example:
        >>> norm = TaskBatchNorm2d(8, num_tasks=2)
        >>> with select_task(norm, 1):
        ...     norm(torch.zeros(4, 8, 5, 5)).shape
        torch.Size([4, 8, 5, 5])
    """

    def __init__(self, num_features: int, num_tasks: int, **options: Any) -> None:
        super().__init__(nn.BatchNorm2d(num_features, **options), num_tasks)


class TaskBatchNorm3d(TaskBatchNorm):
    """T times ``nn.BatchNorm3d(num_features, **options)``.

    Example:
        >>> norm = TaskBatchNorm3d(8, num_tasks=2)
        >>> with select_task(norm, 1):
        ...     norm(torch.zeros(4, 8, 5, 5, 5)).shape
        torch.Size([4, 8, 5, 5, 5])
    """

    def __init__(self, num_features: int, num_tasks: int, **options: Any) -> None:
        super().__init__(nn.BatchNorm3d(num_features, **options), num_tasks)


class TaskLayerNorm(TaskNorm):
    """LayerNorm with affine parameters for each task.  Its variance is the same for all channels.

    Example:
        >>> norm = TaskLayerNorm(torch.nn.LayerNorm(8), num_tasks=2)
        >>> with select_task(norm, 1):
        ...     norm(torch.zeros(4, 8)).shape
        torch.Size([4, 8])
    """

    kinds = (nn.LayerNorm,)


class TaskRMSNorm(TaskNorm):
    """RMSNorm with affine parameters for each task.  Its mean square is the same for all channels.

    Example:
        >>> norm = TaskRMSNorm(torch.nn.RMSNorm(8), num_tasks=2)
        >>> with select_task(norm, 1):
        ...     norm(torch.zeros(4, 8)).shape
        torch.Size([4, 8])
    """

    kinds = (nn.RMSNorm,)


class TaskGroupNorm(TaskNorm):
    """GroupNorm with affine parameters for each task, and a running mean of each group's variance.

    That mean, ``group_var`` [T, groups], has the momentum of BatchNorm (0.1); it serves the strengths only and does not
    change the output.

    Example:
        >>> norm = TaskGroupNorm(torch.nn.GroupNorm(2, 8), num_tasks=2)
        >>> with select_task(norm, 1):
        ...     norm(torch.zeros(4, 8, 5, 5)).shape
        torch.Size([4, 8, 5, 5])
    """

    kinds = (nn.GroupNorm,)
    group_var: Tensor

    def __init__(self, norm: nn.Module, num_tasks: int) -> None:
        super().__init__(norm, num_tasks)
        groups: int = norm.num_groups  # type: ignore[assignment]
        device = next((p.device for p in norm.parameters()), None)
        self.register_buffer("group_var", torch.ones(num_tasks, groups, dtype=torch.float32, device=device))

    def forward(self, input: Tensor, task: int | None = None) -> Tensor:
        task = self.task if task is None else task
        output = super().forward(input, task)
        if self.training:
            with torch.no_grad():
                groups = input.detach().float().unflatten(1, (self.group_var.shape[1], -1)).flatten(2)
                self.group_var[task].lerp_(groups.var(dim=2, unbiased=False).mean(0), 0.1)
        return output

    def gains(self) -> Tensor:
        """float64 [T, C]: gamma^2 / (mean variance of the channel's group + eps)."""
        variances = self.group_var.double() + self.norms[0].eps  # type: ignore[operator]
        return super().gains() / variances.repeat_interleave(self.channels // variances.shape[1], dim=1)


TaskNorm.kinds = tuple(kind for cls in (TaskBatchNorm, TaskLayerNorm, TaskRMSNorm, TaskGroupNorm) for kind in cls.kinds)


def _task_norm(cls: type[TaskNorm], module: nn.Module, num_tasks: int) -> nn.Module | None:
    """The per-task norm that takes the place of this module, if there is one."""
    if isinstance(module, cls.kinds):
        for candidate in (TaskBatchNorm, TaskLayerNorm, TaskRMSNorm, TaskGroupNorm):
            if isinstance(module, candidate.kinds):
                return candidate(module, num_tasks)
    return None


def _replaced(module: nn.Module, replace: Any, done: dict[nn.Module, nn.Module]) -> nn.Module:
    """The module with what ``replace`` gives (None: nothing) in the place of its parts, each once."""
    if module not in done:
        other = replace(module)
        done[module] = module if other is None else other
        if other is None and not isinstance(module, TaskNorm):
            for name, child in module._modules.items():  # (named_children() names a module once, wherever it stands)
                if child is not None:
                    setattr(module, name, _replaced(child, replace, done))
    return done[module]


@contextmanager
def select_task(model: nn.Module, task: int) -> Iterator[None]:
    """In this context all per-task norms of the model are those of ``task``; afterwards what they were before.

    Under ``torch.compile`` every task is compiled once.

    Raises:
        IndexError: before anything is changed, where a norm has no such task.
    """
    norms = [module for module in model.modules() if isinstance(module, TaskNorm)]
    for norm in norms:
        norm.of_task(task)
    before = [norm.task for norm in norms]
    try:
        for norm in norms:
            norm.task = task
        yield
    finally:
        for norm, previous in zip(norms, before, strict=True):
            norm.task = previous
