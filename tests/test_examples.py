"""Every Python block of the pages runs, as a reader would run it: a section from its top, nothing imported for it.

What a page calls the reader's own (a model, a loader, ...) is made here, small.  Names of the package are never given:
a block has to import what it uses, or the section has done so before.
"""

from __future__ import annotations

import importlib
import itertools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from support.clients.foreign import library
from support.documents import ROOT, Page, tracked_pages

Names = dict[str, Any]


def no_norm(channels: int) -> nn.Module:
    return nn.Identity()


class Model(nn.Module):
    """A convolutional trunk and a head for each task."""

    def __init__(self, num_tasks: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(1, 4, 3), norm(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 8))
        self.heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(num_tasks))

    def forward(self, x: Tensor) -> Tensor:
        features = self.trunk(x)
        return torch.cat([head(features) for head in self.heads], 1)


def task_losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """[T], or [K, T] of a bank."""
    return (model(x) - y).square().mean(-2)


def reader(num_tasks: int = 2, norm: Callable[[int], nn.Module] = no_norm) -> Names:
    """What README calls the reader's own."""
    torch.manual_seed(0)
    x, y = torch.randn(24, 1, 8, 8), torch.randn(24, num_tasks)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8, shuffle=True)
    return {
        "model": Model(num_tasks, norm),
        "loader": loader,
        "task_losses": task_losses,
        "steps": 3,
        "epochs": 5,
        "evaluate": lambda model: task_losses(model, x, y).detach(),
    }


def with_batch_norm() -> Names:
    return reader(3, nn.BatchNorm2d)


# ---------------------------------------------------------------------- what is true after a section
def a_front_is_there(names: Names) -> None:
    assert names["losses"].shape == names["front"].losses.shape == (5, 2)
    fresh = Model(2, no_norm)
    fresh.load_state_dict(torch.load("model.pt", weights_only=True))
    assert not torch.equal(fresh.trunk[0].weight, reader()["model"].trunk[0].weight)


def both_loops_have_trained(names: Names) -> None:
    start = reader()["model"].trunk[0].weight
    assert not torch.equal(names["model"].trunk[0].weight, start)
    bank, small = names["bank"], with_a_small_one()["small"]
    assert bank(names["x"]).shape == (5, 8, 2)
    for stacked, one in zip(bank.parameters(), small.parameters(), strict=True):
        assert not any(torch.equal(row, one) for row in stacked)


def every_usage_trains_vertices(names: Names) -> None:
    assert names["losses"].shape == names["front"].losses.shape == (5, 2)
    for optimizer, model in (
        (names["optimizer"], names["model"]),
        (names["stacked"], names["bank"]),
        (names["one"], names["other"]),
    ):
        for p in model.parameters():
            assert len(optimizer.state[p]["vertices"]) == 2 and optimizer.state[p]["exp_avg"].abs().sum() > 0.0
    assert names["one"].points.tolist() == [[0.5, 0.5]], "it still warms up"
    saved, now = torch.load("model.pt", weights_only=True), names["other"].state_dict()
    assert saved.keys() == now.keys() and not torch.equal(saved["trunk.0.weight"], now["trunk.0.weight"])


def the_model_has_trained(names: Names) -> None:
    before = reader()["model"]
    for name, p in names["model"].named_parameters():
        assert not torch.equal(p, before.get_parameter(name)), name


def both_have_trained(names: Names) -> None:
    the_model_has_trained(names)
    assert names["optimizer"].state_dict()["param_groups"][0]["lr"] == 1e-3
    assert names["backward"].state_dict()["steps"] == 3
    assert not torch.equal(names["other"].trunk[0].weight, two_models()["other"].trunk[0].weight)


def priorities_are_learned(names: Names) -> None:
    assert set(names["optimizer"].history().phases.tolist()) == {1, 2}
    assert not torch.equal(names["model"].trunk[0].weight, with_batch_norm()["model"].trunk[0].weight)


def the_update_is_the_combination(names: Names) -> None:
    expected = sum(w * g for w, g in zip(names["weights"].tolist(), names["jacobian"], strict=True))
    torch.testing.assert_close(names["update"], expected)
    assert bool((names["jacobian"] @ names["update"] > 0).all()), "CAGrad's direction lowers both losses here"


def the_first_head_has_made_the_last_step(names: Names) -> None:
    optimizer, net = names["optimizer"], names["net"]
    assert (optimizer.weights[0] == 0).tolist() == [False, True]
    assert [int(optimizer.state[head.weight]["step"]) for head in net.heads] == [3, 2]


def own_loss(net: Any, task: int, x: Tensor, y: Tensor) -> Tensor:
    return (net.heads[task](net.trunk(x)) - y[:, task : task + 1]).square().mean()


def a_stream_of_each_task() -> Names:
    mine = reader()
    streams = [iter(mine["loader"]) for _ in range(2)]
    return {"net": mine["model"], "streams": streams, "own_loss": own_loss}


def two_models() -> Names:
    return reader() | {"other": Model(2, no_norm)}


def with_a_small_one() -> Names:
    return reader() | {"small": Model(2, no_norm)}


def with_two_more() -> Names:
    return two_models() | with_a_small_one()


def the_model_came_back_from_the_file(names: Names) -> None:
    assert torch.equal(names["best"].weight, names["models"][1].weight)


def the_network_has_a_front(names: Names) -> None:
    assert names["front"].losses.shape == (25, 2)
    x, _ = next(iter(names["loader"]))
    assert names["best"](x).shape == names["model"](x).shape
    assert not torch.equal(names["best"](x), names["model"](x))


def the_points_are_different_models(names: Names) -> None:
    assert names["front"].losses.shape == (5, 2)
    first, second = names["optimizer"].state[names["model"].trunk[0].weight]["vertices"]
    assert not torch.equal(first, second)
    between = torch.load("between.pt", weights_only=True)["trunk.0.weight"]
    torch.testing.assert_close(between, 0.8 * first + 0.2 * second)


def the_changes_are_merged(names: Names) -> None:
    x, _ = next(iter(names["loader"]))
    best, network = names["best"], names["network"]
    torch.testing.assert_close(best(x), network(x, preference=[0.8, 0.2]))
    assert type(best) is Model and all(part.abs().sum() > 0.0 for part in network.left)
    assert names["front"].losses.shape == (25, 2)


def with_five_tasks() -> Names:
    return reader(5) | {"small": Model(5, no_norm)}


def each_task_has_a_model(names: Names) -> None:
    assert names["losses"].shape == (2, 5) and names["served_by"].shape == (5,)
    for stacked in names["bank"].parameters():
        assert not torch.equal(*stacked)


def both_towers_have_trained(names: Names) -> None:
    assert names["small"][0][0].out_features == 8
    for p in [*names["heads"].parameters(), *names["small"].parameters()]:
        assert names["optimizer"].state[p]["exp_avg"].abs().sum() > 0.0
    assert not torch.equal(names["model"].trunk[0].weight, reader()["model"].trunk[0].weight)


def every_module_has_trained(names: Names) -> None:
    assert names["optimizer"].weights.tolist() == [[1.0, 1.0]]
    for p in names["network"].parameters():
        assert names["optimizer"].state[p]["exp_avg"].abs().sum() > 0.0


def pieces_of_ones_own_train(names: Names) -> None:
    """The three recipes keep to the contracts of their kinds, and two optimizers train with them."""
    gram = torch.tensor([[4.0, -1.0], [-1.0, 25.0]])
    assert names["EqualLengths"]()(gram).tolist() == [0.5, 0.2]
    losses, preferences = torch.rand(5, 2, dtype=torch.float64, requires_grad=True), torch.full((5, 2), 0.5).double()
    squares = names["Squares"]()
    (slopes,) = torch.autograd.grad(squares(losses, preferences).sum(), losses)
    torch.testing.assert_close(squares.coefficients(losses, preferences), slopes)
    x, y = next(iter(names["loader"]))
    for optimizer, model in ((names["one"], names["model"]), (names["front"], names["other"])):
        before = [p.clone() for p in model.parameters()]
        optimizer.step(lambda model=model: task_losses(model, x, y))
        assert not any(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


def the_options_are_in_the_groups(names: Names) -> None:
    weight, bias = names["optimizer"].param_groups
    assert (weight["betas"], weight["weight_decay"], bias["weight_decay"], bias["lr"]) == ((0.95, 0.98), 0.1, 0.0, 1e-4)


def the_distributions_have_trained(names: Names) -> None:
    assert names["outputs"].shape == (10, 8, 1) and names["means"].shape == (8, 1)
    assert names["related"].tolist() == [[0.0, 1.0], [1.0, 0.0]], "of two tasks"
    for head in names["heads"]:
        assert all((rho != -3.0).any() for rho in head.rho)
    assert not torch.equal(names["model"].trunk[0].weight, reader()["model"].trunk[0].weight)


def both_rows_have_trained(names: Names) -> None:
    assert names["related"].tolist() == [[0.0, 1.0], [1.0, 0.0]], "of two tasks"
    first, second = names["separate"].state[names["other"].trunk[0].weight]["subproblems"]
    assert not torch.equal(first, second)


def the_loop_has_trained(names: Names) -> None:
    the_model_has_trained(names)
    assert {"loss 0", "weight 1", "cosine 0 1"} <= set(names["columns"]) and len(names["columns"]["loss 0"]) == 15
    assert names["schedule"].last_epoch == 5


def with_lightning() -> Names:
    warnings.simplefilter("ignore")  # the library's own; pytest takes this back
    library("lightning")
    return two_models()


def with_accelerate() -> Names:
    warnings.simplefilter("ignore")
    library("accelerate")
    return reader()


def both_models_have_trained(names: Names) -> None:
    the_model_has_trained(names)
    assert not torch.equal(names["other"].trunk[0].weight, two_models()["other"].trunk[0].weight)
    assert names["trainer"].global_step == 3


def every_second_mini_batch_made_a_step(names: Names) -> None:
    the_model_has_trained(names)
    assert int(names["optimizer"].state[names["model"].trunk[0].weight]["step"]) == 2, "the last one makes one too"
    states = importlib.import_module("accelerate.state")  # which Accelerate keeps for the process
    states.AcceleratorState._reset_state(reset_partial_state=True)
    states.GradientState._reset_state()


def the_run_goes_on_and_a_model_is_served(names: Names) -> None:
    assert names["step"] == 3
    served = Model(2, no_norm)
    served.load_state_dict(torch.load("model.pt", weights_only=True))
    first, second = names["optimizer"].state[names["model"].trunk[0].weight]["ema"]
    torch.testing.assert_close(served.trunk[0].weight, 0.7 * first + 0.3 * second)


def endless_streams() -> Names:
    mine = reader()
    streams = [itertools.cycle(list(mine["loader"])) for _ in range(2)]
    return mine | {"streams": streams, "steps": 501}


def each_task_has_its_part(names: Names) -> None:
    masks, model = names["masks"], names["model"]
    saved = torch.load("masked.pt", weights_only=True)
    assert torch.equal(saved["masks"]["bits"], masks.bits)
    assert masks.counts().tolist() == [round(0.8 * sum(p.numel() for p in model.parameters()))] * 2
    assert torch.equal(saved["model"]["trunk.0.weight"], model.trunk[0].weight)
    nobodys = ~(masks.flat(0) | masks.flat(1))
    before = torch.cat([p.flatten() for p in reader()["model"].parameters()])
    now = torch.cat([p.flatten() for p in model.parameters()])
    assert nobodys.any() and (now[nobodys] == before[nobodys]).float().mean() > 0.9  # but for what has left a mask


def the_masks_have_changed(names: Names) -> None:
    masks, model = names["optimizer"].masks, names["model"]
    assert masks.counts().tolist() == [round(0.8 * sum(p.numel() for p in model.parameters()))] * 2
    alone = torch.load("task1.pt", weights_only=True)
    whole = torch.load("masked.pt", weights_only=True)
    assert torch.equal(alone["trunk.0.weight"], model.trunk[0].weight * masks.of(1)[0])
    assert torch.equal(whole["model"]["trunk.0.weight"], model.trunk[0].weight)
    assert torch.equal(whole["optimizer"]["param_groups"][0]["harmony"]["masks"], masks.bits)
    assert not names["optimizer"].due


def the_layers_had_formulas(names: Names) -> None:
    the_model_has_trained(names)
    assert (
        names["losses"].shape == (8,) and names["engine"].ways.keys() == dict(names["model"].named_parameters()).keys()
    )
    assert "autograd" not in names["engine"].ways.values()


# Of each section with Python: what the reader has, and what is true afterwards.
SECTIONS: dict[tuple[str, str], tuple[Callable[[], Names], Callable[[Names], None]]] = {
    ("CONTRIBUTING.md", "A new weighting, transfer rule or scalarization"): (two_models, pieces_of_ones_own_train),
    ("README.md", "A front of models"): (reader, a_front_is_there),
    ("README.md", "One model: weightings of task gradients"): (reader, the_model_has_trained),
    ("README.md", "One model: the priority of tasks"): (with_batch_norm, priorities_are_learned),
    ("docs/base_rules.md", "Base rules"): (dict, the_options_are_in_the_groups),
    ("docs/connection_strength.md", "Closure or loop"): (with_batch_norm, priorities_are_learned),
    ("docs/learned_fronts.md", "One network for all preferences"): (reader, the_network_has_a_front),
    ("docs/learned_fronts.md", "A model for each task, and all between them"): (
        reader,
        the_points_are_different_models,
    ),
    ("docs/learned_fronts.md", "One model and a small change for each task"): (reader, the_changes_are_merged),
    ("docs/learned_fronts.md", "Few models for many tasks"): (with_five_tasks, each_task_has_a_model),
    ("docs/learned_fronts.md", "Small towers"): (reader, both_towers_have_trained),
    ("docs/learned_fronts.md", "Modules with routes"): (reader, every_module_has_trained),
    ("docs/masks.md", "Masks of tasks"): (endless_streams, the_masks_have_changed),
    ("docs/masks.md", "In plain torch, for any optimizer"): (endless_streams, each_task_has_its_part),
    ("docs/mt2o.md", "A front on vertices"): (with_two_more, every_usage_trains_vertices),
    ("docs/mt2o.md", "The front"): (dict, the_model_came_back_from_the_file),
    ("docs/mt2o.md", "Loops of your own"): (with_a_small_one, both_loops_have_trained),
    ("docs/one_model.md", "One model, T task gradients"): (two_models, both_have_trained),
    ("docs/one_model.md", "Many losses, and the losses of single samples"): (reader, the_layers_had_formulas),
    ("docs/one_model.md", "A mini-batch for each task, and tasks without data"): (
        a_stream_of_each_task,
        the_first_head_has_made_the_last_step,
    ),
    ("docs/variational.md", "Layers that are distributions"): (reader, the_distributions_have_trained),
    ("docs/variational.md", "Without variances, in the optimizer"): (two_models, both_rows_have_trained),
    ("docs/training_loop.md", "A loop of your own"): (reader, the_loop_has_trained),
    ("docs/training_loop.md", "Mixed precision"): (reader, the_model_has_trained),
    ("docs/training_loop.md", "Lightning and Fabric"): (with_lightning, both_models_have_trained),
    ("docs/training_loop.md", "Accelerate, and the Trainer of transformers"): (
        with_accelerate,
        every_second_mini_batch_made_a_step,
    ),
    ("docs/training_loop.md", "Saving, going on, serving"): (reader, the_run_goes_on_and_a_model_is_served),
    ("docs/weightings.md", "Weightings"): (dict, the_update_is_the_combination),
}


def sections() -> Iterator[tuple[str, str, list[tuple[int, str]]]]:
    """(page, heading, [(line, code)]) of every section that has Python in it."""
    for path in tracked_pages():
        page = Page(path.read_text())
        found: dict[str, list[tuple[int, str]]] = {}
        for block in page.blocks:
            if block.language == "python":
                heading = [text for line, _, text in page.headings if line < block.line][-1]
                found.setdefault(heading, []).append((block.line, block.text))
        for heading, blocks in found.items():
            yield path.relative_to(ROOT).as_posix(), heading, blocks


ALL = list(sections())


def test_every_section_with_python_is_known_here() -> None:
    assert {(page, heading) for page, heading, _ in ALL} == set(SECTIONS)


@pytest.mark.parametrize(("page", "heading", "blocks"), ALL, ids=[f"{page}: {heading}" for page, heading, _ in ALL])
def test_python_runs(
    page: str, heading: str, blocks: list[tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    make, check = SECTIONS[page, heading]
    names = make()
    assert not any(getattr(value, "__module__", "").startswith("mt2o_ext") for value in names.values())
    for line, code in blocks:
        exec(compile("\n" * line + code, str(ROOT / page), "exec"), names)  # a traceback shows the page's line
    check(names)
