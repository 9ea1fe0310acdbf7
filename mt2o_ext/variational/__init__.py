"""Variational multi-task learning: layers whose weights are distributions, and priors made of the other tasks' layers.

* `MeanField` makes a layer, or any module, a distribution: each use in training draws new weights.
* `MixturePrior` holds each task's layer near a mixture of the other tasks' layers, with learned chances.

They are modules and a loss, so any optimizer trains them:

    heads = torch.nn.ModuleList(MeanField(torch.nn.Linear(64, 10)) for _ in range(num_tasks))
    prior = MixturePrior(num_tasks)
    losses = torch.stack(own_losses) + beta * prior(heads)              # one KL divergence for each task

The same idea for the rows of an optimizer, without variances, is `mt2o_ext.transfer.GumbelPrior`.
"""

from .mean_field import MeanField as MeanField
from .prior import MixturePrior as MixturePrior

__all__ = ["MeanField", "MixturePrior"]
