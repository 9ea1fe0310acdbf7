"""Every problem: its data, its net with several rows, and losses that mean what its reference points say."""

from __future__ import annotations

import pytest
import torch

from bench.pareto.layers import copies
from bench.pareto.problems import PROBLEMS, Problem
from bench.pareto.problems.garments import garment_pools
from bench.pareto.problems.sources import fashion_mnist


def loaded(name: str) -> Problem:
    try:
        assert PROBLEMS[name].data
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return PROBLEMS[name]


@pytest.mark.parametrize("name", PROBLEMS)
def test_rows_are_nets_of_their_own_and_take_preferences(name: str) -> None:
    problem = loaded(name)
    x, y = (part[: 2 * problem.batch] for part in problem.data["train"])
    assert problem.preferences.shape == (problem.rows, problem.num_tasks) and problem.inner
    assert len(problem.main) == len(problem.tight) == problem.num_tasks
    assert all(tight <= main for tight, main in zip(problem.tight, problem.main, strict=True))
    for extra in (0, problem.num_tasks) if problem.conditioned else (0,):
        torch.manual_seed(0)
        one = problem.net(extra)
        two = copies(one, 2)
        with torch.no_grad():
            for parameter in two.parameters():
                parameter[1] += 0.1
        w = [torch.full((2, len(x), extra), 1 / extra)] if extra else []
        losses = problem.losses(two(x.expand(2, *x.shape), *w), x.expand(2, *x.shape), y.expand(2, *y.shape))
        assert losses.shape == (2, problem.num_tasks) and losses.isfinite().all()
        assert not torch.allclose(losses[0], losses[1])
        alone = problem.losses(one(x[None], *(each[:1] for each in w)), x[None], y[None])
        torch.testing.assert_close(losses[:1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["di", "bn8", "text"])
def test_the_constant_predictor_has_a_loss_of_one(name: str) -> None:
    problem = loaded(name)
    x, y = problem.data["train"]
    if name == "bn8":
        outputs = torch.zeros(1, len(x), 10), torch.zeros(1, *x.shape)
        assert problem.losses(outputs, x[None], y[None])[0, 1].item() == pytest.approx(1, abs=1e-4)
        return
    if name == "text":
        y = y[::97]
        shares = [(y.flatten().bincount(minlength=64) / y.numel()).clamp_min(1e-9)] * 2
        outputs = [share.log().expand(1, len(y), 32, 64) for share in shares]
    else:
        outputs = [(y[:, t].bincount() / len(y)).log().expand(1, len(y), -1) for t in range(3)]
    losses = problem.losses(outputs, x[None], y[None])[0]
    assert losses.tolist() == pytest.approx([1] * problem.num_tasks, abs=1e-2 if name == "text" else 1e-4)


def test_no_garment_is_in_two_parts() -> None:
    loaded("mf")
    pools = garment_pools(torch.Generator().manual_seed(1))
    assert [len(pools[part][0]) for part in ("train", "validation", "test")] == [50_000, 10_000, 10_000]
    known = {bytes(image) for image in fashion_mnist()["train"][0].numpy()}
    parts = {part: {bytes(image) for image in images.numpy()} for part, (images, _) in pools.items()}
    assert parts["train"] | parts["validation"] == known
    assert len(parts["train"] & parts["validation"]) < 20  # the data set itself has a few garments twice


def test_images_are_standardized() -> None:
    images = loaded("mf").data["train"][0]
    assert (images.mean().item(), images.std().item()) == pytest.approx((0, 1), abs=1e-4)
