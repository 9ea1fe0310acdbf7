"""Five small models for the fourteen labels of yeast genes, each label served by the model that suits it best.

The data are a file in the package river (`pip install --no-deps river`), which is read without importing the package.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from yeast import LABELS, yeast, yeast_file

from mt2o_ext import MT2OFused, SubproblemBank
from mt2o_ext.scalarization import FewForMany, Linear, Scalarization

MODELS, TRAIN = 5, 1500


def losses(bank: SubproblemBank, x: Tensor, y: Tensor) -> Tensor:
    """Cross entropies [K, T]."""
    logits = bank(x, shared=True)
    targets = y.expand_as(logits)
    return nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)


def trained(scalarization: Scalarization, x: Tensor, y: Tensor, steps: int, seed: int) -> SubproblemBank:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(x.shape[1], 2), nn.Tanh(), nn.Linear(2, LABELS))  # too small for all labels
    with torch.no_grad():
        model[2].bias.copy_(torch.logit(y.mean(0)))
        bank = SubproblemBank(model, MODELS)
        for p in bank.parameters():
            p += 0.1 * torch.randn_like(p)  # models that are equal would stay equal
    optimizer = MT2OFused(
        bank.parameters(),
        num_tasks=LABELS,
        num_subproblems=MODELS,
        scalarization=scalarization,
        preferences=torch.full((MODELS, LABELS), 1 / LABELS),
        transfer=None,
        stacked=True,
        lr=1e-2,
    )
    for _ in range(steps):
        batch = torch.randint(len(x), (256,))
        optimizer.step(lambda batch=batch: losses(bank, x[batch], y[batch]))  # type: ignore[misc]
    return bank


def main(steps: int = 300, seed: int = 0) -> dict[str, tuple[float, float]]:
    """The worst and the mean loss of the labels on the training data, each at its best model."""
    path = yeast_file()
    if path is None:
        raise SystemExit("expected the file datasets/yeast.csv.gz of river: pip install --no-deps river")
    x, y = yeast(path, TRAIN)
    rate = y[:TRAIN].mean(0)
    constant = -(rate * rate.log() + (1 - rate) * (1 - rate).log())  # the losses of the best constant predictor
    scale = constant.tolist()
    found = {}
    for name, scalarization in {
        "few for many": FewForMany(mu=0.01, loss_scale=scale),
        "sum of losses": Linear(loss_scale=scale),
    }.items():
        bank = trained(scalarization, x[:TRAIN], y[:TRAIN], steps, seed)
        with torch.no_grad():
            train, test = (losses(bank, x[part], y[part]) / constant for part in (slice(TRAIN), slice(TRAIN, None)))
        server = train.argmin(0)  # the model of each label
        served = test.gather(0, server[None])
        found[name] = (train.amin(0).max().item(), train.amin(0).mean().item())
        print(
            f"{name}: labels of each model {server.bincount(minlength=MODELS).tolist()}; losses over those of a "
            f"constant, training: worst {found[name][0]:.3f}, mean {found[name][1]:.3f}; "
            f"test: worst {served.max():.3f}, mean {served.mean():.3f}"
        )
    return found


if __name__ == "__main__":
    main()
