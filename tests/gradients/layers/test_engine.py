"""The engine that goes by layers gives the Gram matrix, the weights and the gradient of stored rows."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext import WeightedBackward, weighted_backward
from mt2o_ext.gradients.layers import LayerEngine
from mt2o_ext.weighting import Needs, UPGrad, Weighting, WeightingContext, register
from support.layer_models import MODELS, Perceptron, batch_of, model_of

SIZE = 7
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "samples": ({"batch_dim": 0}, {}),
    "samples, batched": ({"batch_dim": 0}, {"collect": "batched"}),
    "sequential": ({}, {}),
    "batched": ({}, {"collect": "batched"}),
}
BY_WAY = pytest.mark.parametrize("way", WAYS)
BY_SAMPLES = ["samples", "samples, batched"]


class Watched(Weighting):
    """Keeps the Gram matrix that it was given; weights that are different for all tasks."""

    needs = Needs.GRAM
    gram: Tensor

    def _weights(self, context: WeightingContext) -> Tensor:
        assert context.gram is not None
        self.gram = context.gram[0].clone()
        return torch.linspace(-1, 2, context.gram.shape[-1], dtype=torch.float64).expand_as(context.preferences)


def single(model: nn.Module, size: int = SIZE) -> Tensor:
    """A loss of each sample."""
    x, y = batch_of(size, next(model.parameters()).dtype)
    return (model(x) - y).square()


def several(model: nn.Module) -> list[Tensor]:
    """Three losses of the whole batch; one of them does not go through all of the model."""
    each = single(model)
    return [each.mean(), (each[1:] * each[:-1]).sum().sqrt(), next(model.parameters()).sin().sum()]


def outcome(
    model: nn.Module, losses: Callable[[nn.Module], Any], engine: LayerEngine | None, **options: Any
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    model.zero_grad()
    given, watched = losses(model), Watched()
    weights = weighted_backward(given, model.parameters(), weighting=watched, engine=engine, **options)
    return watched.gram, weights, [p.grad for p in model.parameters()]


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of a weight norm under vmap
@BY_WAY
@pytest.mark.parametrize("name", MODELS)
def test_as_stored_rows(name: str, way: str) -> None:
    arguments, options = WAYS[way]
    model = model_of(name)
    engine = LayerEngine(model, **arguments)
    getattr(model, "hook", lambda: None)()
    expected = outcome(model, single, None)
    for _ in range(2):
        torch.testing.assert_close(outcome(model, single, engine, **options), expected, rtol=1e-10, atol=1e-10)
    if "batch_dim" not in arguments:
        expected = outcome(model, several, None)
        torch.testing.assert_close(outcome(model, several, engine, **options), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_float32(name: str) -> None:
    model = model_of(name, torch.float32)
    engine = LayerEngine(model, batch_dim=0)
    getattr(model, "hook", lambda: None)()
    expected = outcome(model, single, None)
    torch.testing.assert_close(outcome(model, single, engine), expected, rtol=1e-4, atol=1e-5)


def test_ways_tell_what_was_done() -> None:
    ways = {}
    for name in MODELS:
        model = model_of(name)
        engine = LayerEngine(model, batch_dim=0)
        getattr(model, "hook", lambda: None)()
        outcome(model, single, engine)
        ways[name] = engine.ways
    assert ways["perceptron"] == {
        "first.weight": "pairs", "first.bias": "rows", "last.weight": "pairs", "last.bias": "rows"
    }  # fmt: skip
    assert sorted(ways["partly frozen"]) == ["first.bias", "last.weight"]
    assert "autograd" not in {way for name in ("recurrent", "convolutional", "keywords") for way in ways[name].values()}
    assert "autograd" not in ways["checkpointed"].values()
    outside = ways["weights used outside"]
    assert [key for key, way in outside.items() if way == "autograd"] == ["first.weight", "last.weight"]
    assert [key for key, way in ways["words"].items() if way == "autograd"] == ["own"]
    assert ways["words"]["table.weight"] == "picked rows" and ways["words, tied"]["table.weight"] == "rows"
    assert ways["hooked"]["first.bias"] == "autograd" and ways["hooked"]["first.weight"] == "pairs"
    for name in ("parametrized", "hooked first", "forward replaced"):
        found = ways[name]
        assert {way for key, way in found.items() if key.startswith("first")} == {"autograd"}, name
        assert found["last.weight"] == "pairs"
    assert {ways["by a parameter"][key] for key in ("query", "layer.weight", "layer.bias")} == {"autograd"}


def test_losses_of_a_batch_by_pairs() -> None:
    """Few samples and large layers: no gradients by the weights of single losses."""
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 30), nn.Flatten(0)).double()
    x, _ = batch_of(3)

    def losses(model: nn.Module) -> list[Tensor]:
        z = model(x)
        return [z.square().sum(), (z[:50] * z[-50:]).sum(), z.sin().mean(), z.max()]

    expected = outcome(model, losses, None)
    for options in ({}, {"collect": "batched"}):
        engine = LayerEngine(model)
        torch.testing.assert_close(outcome(model, losses, engine, **options), expected, rtol=1e-10, atol=1e-10)
        assert engine.ways["2.weight"] == "pairs" and "autograd" not in engine.ways.values()


def gram_weightings() -> list[str]:
    return [
        name
        for name, cls in register.items()
        if Needs.GRAM in cls().needs and not cls().per_segment and not cls().needs & (Needs.ROWS | Needs.CROSS)
    ]


@BY_WAY
@pytest.mark.parametrize("method", gram_weightings())
def test_all_weightings_of_the_gram_matrix(method: str, way: str) -> None:
    arguments, options = WAYS[way]
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 2e-3)):
        results = []
        model = model_of("perceptron", dtype)
        for engine in (None, LayerEngine(model, **arguments)):
            model.zero_grad()
            backward = WeightedBackward(
                model.parameters(), num_tasks=SIZE, weighting=method, engine=engine,
                generator=torch.Generator().manual_seed(0), **options,
            )  # fmt: skip
            weights = backward(single(model) + 0.1)
            results.append((weights, [p.grad for p in model.parameters()]))
        torch.testing.assert_close(results[1], results[0], rtol=tolerance, atol=tolerance)


@BY_WAY
def test_gradients_are_added_and_the_graph_is_kept_if_asked(way: str) -> None:
    arguments, options = WAYS[way]
    model = model_of("convolutional")
    engine = LayerEngine(model, **arguments)
    backward = WeightedBackward(model.parameters(), num_tasks=SIZE, weighting=UPGrad(), engine=engine, **options)
    losses = single(model)
    backward(losses, retain_graph=True)
    once = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    kept = [p.grad for p in model.parameters()]
    backward(losses)
    assert [p.grad for p in model.parameters()] == kept or all(
        p.grad is old for p, old in zip(model.parameters(), kept, strict=True)
    )
    torch.testing.assert_close(kept, [2 * grad for grad in once])
    with pytest.raises(RuntimeError, match="second time"):
        backward(losses)


@BY_WAY
def test_absent_tasks_and_a_smaller_batch(way: str) -> None:
    arguments, options = WAYS[way]
    model = model_of("perceptron")
    own = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def losses(model: nn.Module) -> Sequence[Tensor | None]:
        each: list[Tensor | None] = list((single(model, 5) * own).unbind())
        return [each[0], None, *each[2:], None, None]

    results = []
    for engine in (None, LayerEngine(model, **arguments)):
        own.grad = None
        model.zero_grad()
        weights = weighted_backward(
            losses(model), [*model.parameters(), own], weighting=UPGrad(), engine=engine, **options
        )
        assert weights[[1, 5, 6]].tolist() == [0, 0, 0]
        results.append((weights, own.grad, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("way", BY_SAMPLES)
def test_heads_scalers_and_hooks(way: str) -> None:
    """All that wants a backward pass of torch's own gets one."""
    arguments, options = WAYS[way]
    results: list[Any] = []
    for by_layers in (False, True):
        model = model_of("perceptron", torch.float32)
        engine = LayerEngine(model, **arguments) if by_layers else None
        seen: list[Tensor] = []
        model.last.weight.register_hook(lambda grad, seen=seen: seen.append(grad.clone()))  # type: ignore[misc]
        groups = [{"params": model.last.parameters()}, {"params": model.first.parameters(), "task": 1}]
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        backward = WeightedBackward(groups, num_tasks=SIZE, weighting=UPGrad(), engine=engine, **options)
        weights = backward(single(model), scaler=scaler)
        results.append((weights, [p.grad for p in model.parameters()]))
        assert seen
        if by_layers:
            torch.testing.assert_close(seen[-1], model.last.weight.grad)
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)


def test_a_scaler_and_nothing_else() -> None:
    model = model_of("convolutional", torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    results = []
    for engine in (None, LayerEngine(model, batch_dim=0)):
        model.zero_grad()
        weights = weighted_backward(single(model), model.parameters(), weighting=UPGrad(), engine=engine, scaler=scaler)
        results.append((weights, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-3)


@BY_WAY
@pytest.mark.parametrize("name", ["perceptron", "recurrent", "words, tied", "weights used outside"])
def test_autocast(name: str, way: str) -> None:
    arguments, options = WAYS[way]
    model = model_of(name, torch.float32)

    def losses(model: nn.Module) -> Tensor:
        x, y = batch_of(SIZE, torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            z = model(x)
        return (z.float() - y).square()

    engine = LayerEngine(model, **arguments)
    if "batched" in options.values() and name == "words, tied":
        pytest.skip("vmap has no rule for LayerNorm under autocast, without the engine either")
    gram, weights, grads = outcome(model, losses, None)
    found = outcome(model, losses, engine, **options)
    torch.testing.assert_close(found[0], gram, rtol=2e-2, atol=2e-2 * float(gram.abs().max()))
    torch.testing.assert_close(found[1], weights)
    largest = max(float(grad.abs().max()) for grad in grads if grad is not None)
    torch.testing.assert_close(found[2], grads, rtol=2e-2, atol=3e-2 * largest)
    if way in BY_SAMPLES and name == "perceptron":
        assert "autograd" not in engine.ways.values()


def test_a_training_loop_of_samples() -> None:
    results = []
    for by_layers in (False, True):
        model = model_of("words")
        engine = LayerEngine(model, batch_dim=0) if by_layers else None
        backward = WeightedBackward(model.parameters(), num_tasks=SIZE, weighting=UPGrad(), engine=engine)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(4):
            optimizer.zero_grad()
            backward(single(model))
            optimizer.step()
        results.append(model.state_dict())
    torch.testing.assert_close(results[1], results[0], rtol=1e-8, atol=1e-10)


def test_samples_in_another_dimension() -> None:
    layer = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 4)).double()
    x = torch.randn(3, SIZE, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def losses(model: nn.Module) -> Tensor:
        return model(x).square().sum((0, 2))

    expected = outcome(layer, losses, None)
    engine = LayerEngine(layer, batch_dim=1)
    torch.testing.assert_close(outcome(layer, losses, engine), expected, rtol=1e-10, atol=1e-12)
    assert "autograd" not in engine.ways.values()
    convolution = nn.Conv1d(SIZE, SIZE, 3).double()
    engine = LayerEngine(convolution, batch_dim=1)  # whose samples are always dimension 0
    expected = outcome(convolution, lambda model: model(x).square().sum((0, 2)), None)
    found = outcome(convolution, lambda model: model(x).square().sum((0, 2)), engine)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert set(engine.ways.values()) == {"autograd"}


def test_copies_and_removal() -> None:
    model = Perceptron().double()
    engine = LayerEngine(model, batch_dim=0)
    other = copy.deepcopy(model)  # with the hooks, which have no state
    torch.testing.assert_close(outcome(other, single, LayerEngine(other, batch_dim=0)), outcome(model, single, engine))
    engine.remove()
    assert not model.first._forward_hooks
    outcome(model, single, engine)  # without a warning, because it was asked for
    assert set(engine.ways.values()) == {"autograd"}


def test_engines_of_one_model_end_one_by_one() -> None:
    """The second engine had no hooks of its own, and went on without layers, and without a word."""
    model = Perceptron().double()
    first, second = LayerEngine(model, batch_dim=0), LayerEngine(model, batch_dim=0)
    first.remove()
    outcome(model, single, second)
    assert "autograd" not in second.ways.values()
    copied = copy.deepcopy(model)
    third = LayerEngine(copied, batch_dim=0)
    outcome(copied, single, third)
    assert "autograd" not in third.ways.values()
    for _ in range(3):
        outcome(model, single, LayerEngine(model, batch_dim=0))  # one for each call
    assert len(model.first._forward_hooks) == 1
    del second
    assert not model.first._forward_hooks


def test_an_engine_without_layers_says_so() -> None:
    p = nn.Parameter(torch.tensor([1.0, 2.0]))
    engine = LayerEngine(nn.Tanh(), batch_dim=0)
    with pytest.warns(UserWarning, match="no layers with a formula"):
        weighted_backward([p.square().sum(), p.sum()], [p], weighting=UPGrad(), engine=engine)


def test_a_copy_of_model_and_engine_together() -> None:
    model = Perceptron().double()
    backward = WeightedBackward(
        model.parameters(), num_tasks=SIZE, weighting=UPGrad(), engine=LayerEngine(model, batch_dim=0)
    )
    x, _ = batch_of(SIZE)
    for twin, again in (copy.deepcopy((model, backward)), pickle.loads(pickle.dumps((model, backward)))):
        weights = again(twin(x).square())
        assert twin.first.weight.grad is not None and model.first.weight.grad is None
        engine = again._engine
        assert engine is not None and engine is not backward._engine and "autograd" not in engine.ways.values()
        engine.remove()
        assert not twin.first._forward_hooks and len(model.first._forward_hooks) == 1
        torch.testing.assert_close(weights, backward(model(x).square()))
        model.zero_grad()


def test_inputs_are_freed_with_the_graph() -> None:
    import weakref

    model = Perceptron().double()
    engine = LayerEngine(model, batch_dim=0)
    x, _ = batch_of(SIZE)
    between: list[weakref.ref[torch.UntypedStorage]] = []
    hook = model.last.register_forward_pre_hook(
        lambda module, args: between.append(weakref.ref(args[0].untyped_storage()))
    )
    losses = model(x).square()
    assert between[0]() is not None
    weighted_backward(losses, model.parameters(), weighting=UPGrad(), engine=engine)
    assert between[0]() is None and losses.requires_grad
    hook.remove()
    x, _ = batch_of(SIZE)
    memory = weakref.ref(x.untyped_storage())
    losses = model(x).square()
    del x, losses
    assert memory() is None


def test_scaled_gradients_of_16_bits_do_not_overflow_in_the_check() -> None:
    model = model_of("perceptron", torch.float16)
    x, y = batch_of(SIZE, torch.float16)
    losses = (model(x) - y).square().float()
    [largest] = torch.autograd.grad(losses.sum(), [model.last.bias], retain_graph=True)
    engine = LayerEngine(model, batch_dim=0)
    losses = (model(x) - y).square().float()
    scaler = torch.amp.GradScaler("cpu", init_scale=3e4 / float(largest.abs()))
    weighted_backward(losses, model.parameters(), weighting=Watched(), engine=engine, scaler=scaler)
    assert "autograd" not in engine.ways.values()


def test_the_size_of_a_smaller_batch_is_that_of_most_layers() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.other = nn.Linear(6, 4), nn.Linear(4, 1), nn.Linear(2, 1)
            self.words = torch.ones(6, 2, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.first(x))).squeeze(1) * self.other(self.words).sum()

    model = Model().double()
    expected = outcome(model, lambda model: [*model(batch_of(5)[0]).square(), None, None], None)
    engine = LayerEngine(model, batch_dim=0)
    found = outcome(model, lambda model: [*model(batch_of(5)[0]).square(), None, None], engine)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert engine.ways["first.weight"] == "pairs" and engine.ways["other.weight"] == "autograd"
