"""PaLoRA: one model, and for each task a change of low rank; a preference blends the changes."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...checks import check_count, check_real
from ...scalarization import Scalarization
from ..values import Numbers
from .base import Fixed, LearnedFront

__all__ = ["LowRankFront"]

ADAPTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class LowRankFront(LearnedFront):
    """PaLoRA (Dimitriadis, Frossard and Fleuret, ICLR 2025): a front around one model, by one low-rank change per task.

    Each weight W_0 [out, ...] of a linear or convolutional layer becomes, at the preference u,

        W(u) = W_0 + (scale / rank) sum_t u_t B_t A_t,     B_t [out, rank], A_t [rank, in],

    where `in` is what is left of the weight's shape, flattened. All other parameters (biases, norms, embeddings) and
    the buffers are the model's own, one of each for all preferences. Memory: the model, and T rank (out + in) numbers
    for each adapted layer. Model and changes are trained together, by any optimizer; freeze the model
    (``model.requires_grad_(False)``) to train the changes only.

    The paper's, from an account of its published code: the formula, a model that is trained too, preferences from a
    Dirichlet distribution and the weighted sum of the losses. Inferred: A_t begins at random (as in LoRA, Hu et al.,
    ICLR 2022) and B_t at zero, so that all models begin as the model; all linear and convolutional layers are adapted,
    their biases are not. Ours: other scalarizations, tied weights.

    Args:
        model: trained as it is, not copied. Weights that several layers share get one change, in all of them.
        num_tasks: T.
        rank: of each change.
        scale: of the changes; 0 leaves the model alone.
        modules: the layers to adapt, by their names in ``model.named_modules()``; None: all nn.Linear and nn.Conv
            layers.
        concentration: of the Dirichlet distribution.
        scalarization: an instance or its name.

    Raises:
        TypeError: or ValueError for arguments that do not fit together.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> network = LowRankFront(model, num_tasks=2, rank=1)
        >>> x, generator = torch.ones(5, 3), torch.Generator().manual_seed(0)
        >>> optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     preference = network.sample(generator)
        ...     losses = (network(x, preference=preference) - 1.0).square().mean(0)
        ...     network.loss(losses, preference).backward()
        ...     optimizer.step()
        >>> torch.allclose(network.merged([0.3, 0.7])(x), network(x, preference=[0.3, 0.7]))
        True
        >>> front = network.front(lambda model: (model(x) - 1.0).square().mean(0), rays=5)
    """

    def __init__(
        self,
        model: nn.Module,
        num_tasks: int,
        *,
        rank: int = 4,
        scale: float = 1.0,
        modules: Sequence[str] | None = None,
        concentration: float | Sequence[float] = 1.0,
        scalarization: Scalarization | str = "linear",
    ) -> None:
        super().__init__(num_tasks, concentration, scalarization)
        if not isinstance(model, nn.Module):
            raise TypeError(f"expected model as an nn.Module, got {type(model).__name__}: give the network to train")
        self.rank = check_count("rank", rank)
        self.scale = check_real("scale", scale)
        self.names = _names_of_weights(model, modules)
        self.model = model
        left, right = [], []
        for names in self.names:
            weight = _weight(model, names[0])
            rows, columns = weight.shape[0], weight[0].numel()
            bound = 1.0 / math.sqrt(columns)  # of nn.Linear's own start
            left.append(nn.Parameter(weight.new_zeros(num_tasks, rows, rank)))
            right.append(nn.Parameter(weight.new_empty(num_tasks, rank, columns).uniform_(-bound, bound)))
        self.left, self.right = nn.ParameterList(left), nn.ParameterList(right)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}, scale={self.scale}"

    def _anchor(self) -> Tensor:
        first: Tensor = self.left[0]  # the model's own may be frozen, and of any dtype
        return first

    def weights(self, preference: Numbers) -> dict[str, Tensor]:
        """Return the adapted weights for the preference [T], by their names in the model and with their graph."""
        shares = self._checked(preference)
        found: dict[str, Tensor] = {}
        for names, left, right in zip(self.names, self.left, self.right, strict=True):
            weight = _weight(self.model, names[0])
            blended = shares.to(left).view(-1, 1, 1) * left
            change = blended.transpose(0, 1).flatten(1) @ right.flatten(0, 1)  # the sum over tasks in one product
            found |= dict.fromkeys(names, weight + (self.scale / self.rank) * change.view_as(weight))
        return found

    def forward(self, *inputs: Any, preference: Numbers, **named: Any) -> Any:
        """Return the model's output for the preference [T].

        Args:
            *inputs: of the model.
            preference: [T].
            **named: keywords of the model.
        """
        return functional_call(self.model, self.weights(preference), inputs, named, tie_weights=False)

    def at(self, preference: Numbers) -> nn.Module:
        """Return this network with the preference [T] fixed: a module that takes inputs only and shares its weights."""
        return Fixed(self, self._chosen(preference))

    @torch.no_grad()
    def merged(self, preference: Numbers) -> nn.Module:
        """Return an ordinary model for the preference [T]: a copy of the model that shares nothing and has no changes.

        It is as large and as fast as the model.
        """
        model = copy.deepcopy(self.model)
        for name, weight in self.weights(self._chosen(preference)).items():
            _weight(model, name).copy_(weight)
        return model


def _weight(model: nn.Module, name: str) -> Tensor:
    module, _, last = name.rpartition(".")
    weight: Tensor = getattr(model.get_submodule(module), last)
    return weight


def _names_of_weights(model: nn.Module, modules: Sequence[str] | None) -> list[list[str]]:
    """The names of each weight to adapt: several of one that several modules share.

    Raises:
        TypeError: for one name instead of several.
        ValueError: for layers that are not there, or have no weight to adapt.
    """
    if isinstance(modules, str):
        raise TypeError(f"expected modules as a list of names, got {modules!r}: put it into a list")
    layers = {name: layer for name, layer in model.named_modules(remove_duplicate=False) if _fits(layer)}
    if wrong := [name for name in modules or () if name not in layers]:
        raise ValueError(
            f"expected modules as names of nn.Linear or nn.Conv layers with a weight of floating point, got {wrong}: "
            f"take some of {list(layers)}"
        )
    chosen = {id(layers[name].weight) for name in (layers if modules is None else modules)}
    if not chosen:
        raise ValueError("expected a model with nn.Linear or nn.Conv layers, got none to adapt: name some, or add one")
    names: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        if id(p) in chosen:
            names.setdefault(id(p), []).append(name)
    return list(names.values())


def _fits(layer: nn.Module) -> bool:
    """It is a layer of a kind that is adapted, whose weight is a parameter (not computed from others, not late)."""
    weight = layer._parameters.get("weight")
    late = isinstance(weight, nn.parameter.UninitializedParameter)
    return isinstance(layer, ADAPTED) and weight is not None and not late and weight.is_floating_point()
