"""Models that use their layers in all kinds of ways, for the tests of the engine that goes by layers.

Each takes a batch [B, 6] (or words) and gives one number for each sample.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 1)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x))).squeeze(1)


class Frozen(Perceptron):
    def __init__(self) -> None:
        super().__init__()
        self.first.weight.requires_grad_(False)
        self.last.bias.requires_grad_(False)


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(inplace=True), nn.Conv1d(4, 4, 3, groups=2),
            nn.BatchNorm1d(4).eval(), nn.SiLU(inplace=True), nn.Flatten(), nn.Linear(16, 1), nn.Flatten(0),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.unsqueeze(1))


class Recurrent(nn.Module):
    """The same layer at each step, and again on all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(3, 3), nn.Linear(3, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        state = x[:, :3]
        states = [state := torch.tanh(self.inner(state) + x[:, 3:]) for _ in range(3)]
        return self.last(self.inner(torch.stack(states, 1))).sum((1, 2)) * self.last(state).squeeze(1)


class Words(nn.Module):
    """Numbers of words from the batch, an output layer tied to the embedding, and attention."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(9, 8, padding_idx=0), nn.LayerNorm(8)
        self.mixing, self.out = nn.Linear(8, 8), nn.Linear(8, 9, bias=False)
        self.own = nn.Parameter(torch.ones(8))
        if tied:
            self.out.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.table((x * 3).abs().long().clamp(max=8)) + self.table(torch.zeros(len(x), 6, dtype=torch.int64))
        scores = torch.softmax(self.mixing(h) @ h.mT, -1)
        return self.out(self.norm(scores @ h) * self.own).logsumexp(-1).mean(1)


class Outside(Perceptron):
    """A weight that is also used without its layer."""

    def forward(self, x: Tensor) -> Tensor:
        penalty = self.last.weight.square().sum()
        return super().forward(x) + functional.linear(x[:, :1], self.first.weight[:1, :1]).squeeze(1) + penalty


class Parametrized(Perceptron):
    def __init__(self) -> None:
        super().__init__()
        nn.utils.parametrizations.weight_norm(self.first)


class Hooked(Perceptron):
    """A hook that changes what the layer gives, before anybody else sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.first.register_forward_hook(lambda module, args, output: 2 * output + module.bias)


class HookedFirst(Hooked):
    """The same, in front of the hooks that are there."""

    def hook(self) -> None:
        self.first.register_forward_hook(lambda module, args, output: output.sin(), prepend=True)


class Replaced(Perceptron):
    def __init__(self) -> None:
        super().__init__()
        plain = self.first.forward
        self.first.forward = lambda x: plain(x) * x[:, :1]


class Checkpointed(Perceptron):
    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(lambda z: torch.tanh(self.first(z)), x, use_reentrant=False)
        return self.last(h).squeeze(1)


class InPlace(nn.Module):
    """Outputs, and views of them, that are changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 12), nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h[:, ::2] *= 3
        h.add_(1.5)
        h = self.second(h.view(-1, 3, 4)).relu_()
        return self.last(h).sum((1, 2))


class Keywords(Perceptron):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(input=torch.tanh(self.first(input=x))).squeeze(1)


class ByParameter(nn.Module):
    """A layer of a leaf that is trained, without the batch in its input."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.layer = nn.Parameter(torch.randn(6, 6)), nn.Linear(6, 6)
        self.last = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(x @ self.layer(self.query))).squeeze(1)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "perceptron": Perceptron,
    "partly frozen": Frozen,
    "convolutional": Convolutional,
    "recurrent": Recurrent,
    "words, tied": Words,
    "words": lambda: Words(tied=False),
    "weights used outside": Outside,
    "parametrized": Parametrized,
    "hooked": Hooked,
    "hooked first": HookedFirst,
    "forward replaced": Replaced,
    "checkpointed": Checkpointed,
    "in place": InPlace,
    "keywords": Keywords,
    "by a parameter": ByParameter,
}


def model_of(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A model of always the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[name]().to(dtype)


def batch_of(size: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    x, y = torch.randn(size, 6, generator=generator), torch.randn(size, generator=generator)
    return x.to(dtype), 3 * y.to(dtype)
