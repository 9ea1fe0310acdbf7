"""Every kind of layer: rows, both ways to the Gram matrix, and the sum, beside autograd sample by sample."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext.gradients.layers import Dense, LayerKind, Outer, kind_of, register
from mt2o_ext.gradients.layers import picked as picked_module
from mt2o_ext.gradients.layers import terms as terms_module
from mt2o_ext.gradients.layers.terms import joined


def words(*shape: int) -> Tensor:
    return torch.randint(0, 6, shape, generator=torch.Generator().manual_seed(1), dtype=torch.int64)


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def evaluated(layer: nn.Module) -> nn.Module:
    layer.running_mean.uniform_(-1, 1)
    layer.running_var.uniform_(0.5, 2)
    return layer.eval()


LAYERS = {
    "linear": (nn.Linear(4, 3), numbers(5, 4)),
    "linear without bias": (nn.Linear(4, 3, bias=False), numbers(5, 4)),
    "linear of positions": (nn.Linear(4, 3), numbers(5, 7, 4)),
    "linear of few positions": (nn.Linear(30, 40), numbers(5, 2, 30)),
    "linear of a grid": (nn.Linear(4, 3), numbers(5, 2, 3, 4)),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2), numbers(5, 4, 9)),
    "conv2d": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0)), numbers(5, 4, 7, 6)),
    "conv2d of groups": (nn.Conv2d(4, 6, 3, groups=2, dilation=(1, 2)), numbers(5, 4, 7, 6)),
    "conv2d of each channel": (nn.Conv2d(4, 4, 3, groups=4, bias=False), numbers(5, 4, 7, 6)),
    "conv2d same": (nn.Conv2d(4, 6, (4, 3), padding="same"), numbers(5, 4, 7, 6)),
    "conv2d valid": (nn.Conv2d(4, 6, 3, padding="valid"), numbers(5, 4, 7, 6)),
    "conv2d reflected": (nn.Conv2d(4, 6, 3, padding=(2, 1), padding_mode="reflect"), numbers(5, 4, 7, 6)),
    "conv2d circular same": (nn.Conv2d(4, 6, (2, 3), padding="same", padding_mode="circular"), numbers(5, 4, 7, 6)),
    "conv2d of few places": (nn.Conv2d(16, 24, 3), numbers(5, 16, 3, 4)),
    "conv2d channels last": (nn.Conv2d(4, 6, 3), numbers(5, 4, 7, 6).to(memory_format=torch.channels_last)),
    "conv3d": (nn.Conv3d(2, 3, 2, stride=(1, 2, 1), padding=(0, 1, 1)), numbers(5, 2, 4, 5, 4)),
    "embedding": (nn.Embedding(6, 3, padding_idx=2), words(5, 8)),
    "embedding of one": (nn.Embedding(6, 3), words(5)),
    "embedding of a grid": (nn.Embedding(6, 3, padding_idx=-1), words(5, 2, 4)),
    "layer norm": (nn.LayerNorm(4), numbers(5, 7, 4)),
    "layer norm of two dimensions": (nn.LayerNorm((7, 4)), numbers(5, 7, 4)),
    "layer norm without bias": (nn.LayerNorm(4, bias=False), numbers(5, 4)),
    "rms norm": (nn.RMSNorm(4), numbers(5, 7, 4)),
    "group norm": (nn.GroupNorm(2, 4), numbers(5, 4, 6)),
    "group norm of channels": (nn.GroupNorm(2, 4), numbers(5, 4)),
    "batch norm 1d": (evaluated(nn.BatchNorm1d(4)), numbers(5, 4)),
    "batch norm 2d": (evaluated(nn.BatchNorm2d(4)), numbers(5, 4, 3, 2)),
}
EACH = pytest.mark.parametrize("name", LAYERS)


def by_autograd(layer: nn.Module, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """The gradient of each sample by each parameter, flat."""
    rows = [
        torch.autograd.grad((layer(x[i : i + 1]) * grad[i : i + 1]).sum(), list(layer.parameters()))
        for i in range(len(x))
    ]
    return {
        name: torch.stack([row[at].flatten() for row in rows]) for at, (name, _) in enumerate(layer.named_parameters())
    }


@EACH
@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")
def test_rows_products_and_sums(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = LAYERS[name]
    layer = layer.double()
    kind = kind_of(layer)
    assert kind is not None and kind.fits(layer, x)
    grad = numbers(*layer(x).shape)
    expected = by_autograd(layer, x, grad)
    wanted = list(expected)
    found = kind.terms(layer, x, grad, wanted)
    assert sorted(found) == sorted(expected)
    for workspace in (1 << 20, 1):  # at once, and in the smallest pieces
        for module in (terms_module, picked_module):
            monkeypatch.setattr(module, "WORKSPACE", workspace)
        for key, rows in expected.items():
            torch.testing.assert_close(found[key].rows().view_as(rows), rows)
            torch.testing.assert_close(found[key].total().view_as(rows[0]), rows.sum(0))
            for by_rows in (True, False):
                if isinstance(found[key], Outer):
                    found[key]._by_rows = by_rows
                torch.testing.assert_close(found[key].gram(), rows @ rows.T)
            total = kind.combined(layer, x, grad, wanted)[key]
            torch.testing.assert_close(total.reshape(-1), rows.sum(0))
            assert sorted(kind.terms(layer, x, grad, (key,))) == [key]
            torch.testing.assert_close(kind.combined(layer, x, grad, (key,))[key], total)


@EACH
def test_twice_the_same_layer(name: str) -> None:
    layer, x = LAYERS[name]
    layer = layer.double()
    kind = kind_of(layer)
    assert kind is not None
    grads = [numbers(*layer(x).shape) * factor for factor in (1.0, -0.3)]
    flipped = x.flip(0).contiguous()
    expected = [by_autograd(layer, one, grad) for one, grad in zip((x, flipped), grads, strict=True)]
    found = [kind.terms(layer, one, grad, expected[0]) for one, grad in zip((x, flipped), grads, strict=True)]
    for key in expected[0]:
        rows = expected[0][key] + expected[1][key]
        term = joined([found[0][key], found[1][key]])
        torch.testing.assert_close(term.rows().view_as(rows), rows)
        torch.testing.assert_close(term.gram(), rows @ rows.T)


@pytest.mark.parametrize("name", ["linear", "linear of positions", "conv2d of groups", "conv1d"])
def test_losses_of_a_whole_batch(name: str) -> None:
    layer, x = LAYERS[name]
    layer, tasks = layer.double(), 3
    kind = kind_of(layer)
    assert kind is not None and kind.separable
    grads = numbers(tasks, *layer(x).shape)
    expected = torch.stack([by_autograd(layer, x, grad)["weight"].sum(0) for grad in grads])
    [term] = kind.terms(layer, x, grads.flatten(0, 1), ("weight",)).values()
    assert isinstance(term, Outer)
    shared = term.shared_by(tasks)
    for by_rows in (True, False):
        shared._by_rows = by_rows
        torch.testing.assert_close(shared.gram(), expected @ expected.T)
    torch.testing.assert_close(shared.total(), expected.sum(0))


def test_the_cheaper_way_is_taken() -> None:
    assert Outer(torch.ones(8, 1, 1, 500), torch.ones(8, 1, 1, 500), 500).way == "pairs"
    assert Outer(torch.ones(8, 1, 60, 10), torch.ones(8, 1, 60, 10), 10).way == "rows"
    assert Outer(torch.ones(1, 1, 4, 500), torch.ones(8, 1, 4, 500), 500).way == "pairs"
    assert Outer(torch.ones(1, 1, 600, 10), torch.ones(8, 1, 600, 10), 10).way == "rows"


def test_many_numbers_of_an_embedding() -> None:
    """Frequent and rare numbers are in blocks of different sizes."""
    layer, x = nn.Embedding(40, 3, padding_idx=0).double(), (numbers(9, 30).abs() * 15).long().clamp(max=39)
    grad = numbers(9, 30, 3)
    kind = kind_of(layer)
    assert kind is not None
    rows = by_autograd(layer, x, grad)["weight"]
    torch.testing.assert_close(kind.terms(layer, x, grad, ("weight",))["weight"].gram(), rows @ rows.T)


def test_what_no_kind_knows() -> None:
    class Derived(nn.Linear):
        pass

    replaced = nn.Linear(2, 2)
    replaced.forward = lambda x: 2 * x  # type: ignore[method-assign]
    assert kind_of(Derived(2, 2)) is kind_of(replaced) is kind_of(nn.Bilinear(2, 2, 2)) is None
    kind = kind_of(nn.Embedding(3, 2))
    assert kind is not None
    for options in ({"sparse": True}, {"max_norm": 1.0}, {"scale_grad_by_freq": True}):
        assert not kind.fits(nn.Embedding(3, 2, **options), words(2, 2))
    with pytest.raises(TypeError, match="LayerKind"):
        register("nothing")(Dense)
    assert repr(kind) == "EmbeddingKind()" and isinstance(kind, LayerKind)
