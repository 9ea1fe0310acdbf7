"""LoRA of peft: all parameters given, frozen ones among them, with and without checkpoints."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from support.clients.bert import NAMES, batches, loop_of, losses, model
from support.clients.foreign import NOISE, library
from support.clients.loops import Loop, assert_same

peft: Any = library("peft")

pytestmark = [pytest.mark.filterwarnings(text) for text in NOISE]

KINDS = ["lora", "dora"]


def adapted(kind: str = "lora", *, checkpoints: bool | None = None) -> nn.Module:
    """A frozen BERT with adapters in its attention; the heads are trained whole.  checkpoints: reentrant or not."""
    net = model()
    torch.manual_seed(1)
    config = peft.LoraConfig(
        r=2, lora_alpha=4, target_modules=["query", "value"], modules_to_save=["first", "second"], lora_dropout=0.0,
        use_dora=kind == "dora",
    )  # fmt: skip
    wrapped: Any = peft.get_peft_model(net, config)
    for name, p in wrapped.named_parameters():
        if "lora_B" in name:  # zeros at first, from which lora_A has no gradient
            nn.init.normal_(p, std=0.3)
    if checkpoints is not None:
        net.gradient_checkpointing_enable({"use_reentrant": checkpoints})
        net.enable_input_require_grads()
    wrapped.train()
    return wrapped


def train(name: str, net: nn.Module, *, only_trainable: bool = False) -> Loop:
    given = [p for p in net.parameters() if p.requires_grad] if only_trainable else list(net.parameters())

    class Given(nn.Module):
        """What the loop takes parameters from."""

        def parameters(self, recurse: bool = True) -> Any:
            return iter(given)

        def state_dict(self, *args: Any, **options: Any) -> Any:
            return net.state_dict()

    loop = loop_of(name, Given())
    for batch in batches():
        loop.step(loop.optimizer, lambda batch=batch: losses(net, batch))
    return loop


def trainable(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in net.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_all_parameters_given_or_those_that_train(name: str, kind: str) -> None:
    """The same steps, and frozen parameters stay, bit for bit."""
    every, some = adapted(kind), adapted(kind)
    before = {key: p.detach().clone() for key, p in every.named_parameters()}
    train(name, every)
    train(name, some, only_trainable=True)
    assert_same(trainable(every), trainable(some))
    for key, p in every.named_parameters():
        assert torch.equal(p, before[key]) != p.requires_grad, key


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_checkpoints(name: str, reentrant: bool) -> None:
    """``enable_input_require_grads`` and checkpoints of either kind: every adapter trains, as without checkpoints."""
    net, plain = adapted(checkpoints=reentrant), adapted()
    before = trainable(net)
    train(name, net)
    train(name, plain)
    assert_same(trainable(net), trainable(plain), 1e-6)
    assert not any(torch.equal(p, before[key]) for key, p in trainable(net).items())


def memory() -> int:
    """Bytes of all tensors that tests have made and that are alive, counted once where storages overlap."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)]
    spans = sorted({(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()) for t in tensors})
    total, end = 0, 0
    for begin, size in spans:
        total += max(0, begin + size - max(begin, end))
        end = max(end, begin + size)
    return total


@pytest.mark.parametrize("name", ["weighted", "weighting of losses", "mt2o", "mt2o, weighting", "one task"])
def test_frozen_parameters_cost_nothing(name: str) -> None:
    """What an optimizer allocates for an adapted model, given all of its parameters or the trainable ones."""
    extra = []
    for only_trainable in (True, False):
        net = adapted()
        before = memory()
        loop = train(name, net, only_trainable=only_trainable)
        extra.append(memory() - before)
        del loop
    frozen = sum(p.numel() * p.element_size() for p in adapted().parameters() if not p.requires_grad)
    assert extra[1] - extra[0] < 0.1 * frozen


@pytest.mark.parametrize("name", ["mt2o", "mt2o, weighting"])
def test_frozen_parameters_have_no_state(name: str) -> None:
    sizes = []
    for only_trainable in (True, False):
        loop = train(name, adapted(), only_trainable=only_trainable)
        state = loop.optimizer.state_dict()["state"]
        sizes.append(sum(t.numel() for entry in state.values() for t in entry.values() if isinstance(t, torch.Tensor)))
    assert sizes[1] == sizes[0]


@pytest.mark.parametrize("name", ["weighted", "mt2o"])
def test_adapters_are_saved_and_loaded(name: str, tmp_path: Path) -> None:
    net: Any = adapted()
    loop: Any = train(name, net)
    net.save_pretrained(tmp_path / "shown")
    again = peft.PeftModel.from_pretrained(model(), tmp_path / "shown")
    assert_same(
        {k.replace(".default", ""): v for k, v in again.state_dict().items()},
        {k.replace(".default", ""): v for k, v in net.state_dict().items()},
    )
    if name == "mt2o":
        with loop.optimizer.subproblem(2):
            net.save_pretrained(tmp_path / "third")
            expected = {key: value.clone() for key, value in net.state_dict().items()}
        third = peft.PeftModel.from_pretrained(model(), tmp_path / "third")
        assert_same(dict(third.state_dict()), expected)
        size = sum(file.stat().st_size for file in (tmp_path / "third").glob("*.safetensors"))
        assert size < 4 * sum(p.numel() for p in trainable(net).values()) + 8192


@pytest.mark.parametrize("name", ["weighted", "mt2o"])
def test_merging_and_unmerging_between_steps(name: str) -> None:
    """``merge_adapter`` writes into the frozen weights, and ``unmerge_adapter`` takes it back: an evaluation."""
    net: Any
    net, plain = adapted(), adapted()
    loop, twin = loop_of(name, net), loop_of(name, plain)
    for batch in batches():
        loop.step(loop.optimizer, lambda batch=batch: losses(net, batch))
        net.merge_adapter()
        with torch.no_grad():
            losses(net, batch)
        net.unmerge_adapter()
        twin.step(twin.optimizer, lambda batch=batch: losses(plain, batch))
    assert_same(trainable(net), trainable(plain), 1e-5)


@pytest.mark.parametrize("name", ["weighted", "mt2o"])
def test_frozen_integers_among_the_parameters(name: str) -> None:
    """As quantised bases have them: frozen, of a dtype that nothing could train."""
    net = adapted()
    base: Any = net
    base.base_model.model.register_parameter(
        "quantised", nn.Parameter(torch.arange(12, dtype=torch.uint8), requires_grad=False)
    )
    plain = adapted()
    train(name, net)
    train(name, plain)
    assert_same(trainable(net), trainable(plain))
