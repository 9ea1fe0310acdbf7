"""Groups of tasks whose gradients point the same way."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_count

__all__ = ["group_tasks"]

ITERATIONS = 100


def group_tasks(gradients: Tensor, num_groups: int) -> list[list[int]]:
    """Return groups of tasks with similar gradients, for one mask of each group.

    Inferred, not validated, as what is in `mt2o_ext.contrib`: of G-HarmoDT (arXiv 2411.01146) only the abstract was
    read, which says that tasks are put into groups by gradient information, with one mask each, and that a gating
    network finds the group where the task is not known. This is k-means on the rows of the matrix of cosines, from
    centres that are chosen one after another, each farthest from those before, so that nothing is random. There is no
    gating network.

    Args:
        gradients: [T, P], of each task, from `Harmony.gradient`, say.
        num_groups: at most T; groups that stay empty are left out.

    Raises:
        TypeError: for a number of groups that is no whole number, and gradients that are no tensor with values.
        ValueError: for gradients of another shape or that are not finite, and for more groups than tasks.

    Example:
        >>> gradients = torch.tensor([[1.0, 0.1], [-0.2, 1.0], [1.0, -0.1], [0.0, 2.0]])
        >>> group_tasks(gradients, 2)
        [[0, 2], [1, 3]]
    """
    check_count("num_groups", num_groups)
    if not isinstance(gradients, Tensor) or gradients.device.type == "meta":
        raise TypeError(f"expected gradients as a tensor [T, P], got {type(gradients).__name__}: stack them")
    if gradients.dim() != 2 or len(gradients) < num_groups:
        raise ValueError(
            f"expected gradients [T, P] of at least {num_groups} tasks, got {list(gradients.shape)}: give a row for "
            "each task, or take fewer groups"
        )
    if not bool(gradients.isfinite().all()):
        raise ValueError("expected finite gradients, got NaN or infinities: look at the losses")
    unit = torch.nn.functional.normalize(gradients.double(), dim=1)
    cosines = unit @ unit.mT
    centres = cosines[:1]
    while len(centres) < num_groups:
        centres = torch.cat([centres, cosines[torch.cdist(cosines, centres).amin(1).argmax()][None]])
    group = torch.cdist(cosines, centres).argmin(1)
    for _ in range(ITERATIONS):
        members = torch.nn.functional.one_hot(group, num_groups).to(cosines)
        sizes = members.sum(0)[:, None]
        centres = torch.where(sizes > 0, members.mT @ cosines / sizes.clamp(min=1), centres)
        new = torch.cdist(cosines, centres).argmin(1)
        if torch.equal(new, group):
            break
        group = new
    found = [(group == each).nonzero()[:, 0].tolist() for each in range(num_groups)]
    return sorted(tasks for tasks in found if tasks)
