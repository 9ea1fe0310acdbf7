"""Scores of the elements of masks, against the reference in float64 and against `Harmony` itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext.masks import Harmony, TaskMasks
from mt2o_ext.masks.tables import MaskTables
from mt2o_ext.ops import reference_mask
from support.backends import Backend
from support.ops.scattered import scattered
from support.samplers import FLOATS, HALVES, LAYOUTS, Layout, Sampler, assert_within, same_bits

OPTIONS = [
    {"gamma": 10.0, "magnitude": False, "dense": True},
    {"gamma": 2.0, "magnitude": True, "dense": False},
]


def run(
    backend: Backend, layout: Layout, grads: Tensor, values: Tensor, factors: Tensor, masks: Tensor, whole: Tensor,
    addresses: Tensor | None = None, **options: object,
) -> Tensor:  # fmt: skip
    scores = torch.full((grads.shape[1], layout.row), torch.nan)
    backend.harmony_(scores, grads, values, factors, masks, whole, layout.chunks, addresses, **options)
    assert layout.padding_kept(scores)
    return scores


@pytest.mark.parametrize("options", OPTIONS, ids=["fisher, dense", "magnitude, masked"])
@pytest.mark.parametrize("dtype", FLOATS + HALVES, ids=str)
@pytest.mark.parametrize("numels", LAYOUTS, ids=str)
def test_equals_the_oracle(
    backend: Backend, numels: tuple[int, ...], dtype: torch.dtype, options: dict[str, object]
) -> None:
    layout = Layout(numels)
    sampler = Sampler(layout)
    for tasks in (1, 2, 5):
        grads, values = sampler.rows(1, tasks, dtype=dtype), sampler.rows(1, dtype=dtype)
        factors, masks = 0.5 + sampler.uniform(tasks), sampler.masks(tasks)
        whole = torch.arange(len(numels)) == 2
        found = run(backend, layout, grads, values, factors, masks, whole, **options)
        exact = torch.full((tasks, layout.row), torch.nan, dtype=torch.float64)
        reference_mask.harmony_(exact, grads.double(), values.double(), factors, masks, whole, layout.chunks, **options)
        sizes = (grads[0].double().abs() * factors[:, None])[:, layout.inside]
        size = sizes.square() + values.double().abs()[:, layout.inside] + 12 * sizes.mean(0) * sizes
        assert_within(found[:, layout.inside], exact[:, layout.inside], (tasks + 6) * 2**-24 * size + 1e-38)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_behind_addresses(backend: Backend, dtype: torch.dtype) -> None:
    layout = Layout((300, 5000, 17))
    sampler = Sampler(layout)
    grads, values, masks = sampler.rows(1, 3, dtype=dtype), sampler.rows(1, dtype=dtype), sampler.masks(3)
    missing = torch.zeros(1, 3, 3)
    missing[0, 1, 1] = 1
    grads[0, 1, layout.segment_of == 1] = 0.0
    apart = scattered(grads, layout, missing, backend.device)
    whole, factors = torch.tensor([False, False, True]), sampler.uniform(3)
    together = run(backend, layout, grads, values, factors, masks, whole, **OPTIONS[0])
    found = run(backend, layout, apart.like, values, factors, masks, whole, apart.addresses, **OPTIONS[0])
    assert same_bits(together, found)


@pytest.mark.parametrize("grow_grad", ["dense", "masked"])
@pytest.mark.parametrize("importance", ["fisher", "magnitude"])
def test_equals_harmony(backend: Backend, importance: str, grow_grad: str) -> None:
    model = nn.Linear(6, 4, bias=False).double()
    masks = TaskMasks(model.named_parameters(), 3, density=0.5, generator=torch.Generator().manual_seed(0))
    harmony = Harmony(2.0, importance=importance, grow_grad=grow_grad)
    layout = Layout((24,))
    sampler = Sampler(layout)
    gradients = sampler.normal(3, 24)
    grads = torch.zeros(1, 3, layout.row, dtype=torch.float64)
    grads[0, :, :24] = gradients
    values = torch.zeros(1, layout.row, dtype=torch.float64)
    values[0, :24] = model.weight.detach().flatten()
    scores = torch.zeros(3, layout.row)
    table = torch.zeros(3, layout.row // 8, dtype=torch.uint8)
    table[:, :3] = masks.bits
    options = {"gamma": 2.0, "magnitude": importance == "magnitude", "dense": grow_grad == "dense"}
    backend.harmony_(scores, grads, values, torch.ones(3).double(), table, None, layout.chunks, None, **options)
    for task, (mask, (inside, outside)) in enumerate(harmony.scores(masks, gradients)):
        expected = torch.where(mask, inside, outside)
        torch.testing.assert_close(scores[task, :24].double(), expected, rtol=1e-6, atol=1e-7)


def test_tables_follow_the_masks_and_back() -> None:
    """Layouts with padding, another order of memory, and a tensor without masks."""
    from mt2o_ext.gradients.layout import Layout as Places

    model = nn.Sequential(nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last), nn.Linear(7, 3))
    named = [(n, p) for n, p in model.named_parameters() if n != "1.bias"]
    masks = TaskMasks(named, 4, density=0.4)
    tables = MaskTables(masks, [Places(list(model.parameters()))])
    before = masks.bits.clone()
    tables.write_back()
    assert torch.equal(masks.bits, before)
    tables.bits ^= 255
    tables.write_back()
    for task in range(4):
        flipped = ~TaskMasks.flat(masks, task)
        again = TaskMasks(named, 4)
        again.bits.copy_(before)
        assert torch.equal(flipped, again.flat(task))
