"""Masks of tasks over one shared model: each task has a part of the parameters, sees it alone, and trains it.

* `TaskMasks` holds a mask for each task, one bit for each element, and shows the model as a task sees it.
* `Harmony` changes masks while the model trains: elements on which a task disagrees with the others leave its mask.
* `CosineBudget` says how many elements change at a time.
* `group_tasks` joins tasks whose gradients point the same way, for one mask of each group.

They are plain torch and go with any optimizer, of torch or of this package:

    with masks.shown(task):                          # the model with zeros outside of the task's mask
        loss_of(model, task).backward()              # gradients are masked too
    with masks.held(task, optimizer):                # nothing outside of the mask moves
        optimizer.step()
"""

from .bits import pack as pack
from .bits import unpack as unpack
from .groups import group_tasks as group_tasks
from .harmony import CosineBudget as CosineBudget
from .harmony import Harmony as Harmony
from .sparsity import erk_counts as erk_counts
from .task_masks import TaskMasks as TaskMasks

__all__ = ["CosineBudget", "Harmony", "TaskMasks", "erk_counts", "group_tasks", "pack", "unpack"]
