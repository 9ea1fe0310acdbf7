from __future__ import annotations

import copy

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn

from mt2o_ext.priority import (
    TaskBatchNorm,
    TaskBatchNorm1d,
    TaskBatchNorm2d,
    TaskBatchNorm3d,
    TaskGroupNorm,
    TaskLayerNorm,
    TaskNorm,
    TaskRMSNorm,
    select_task,
)


def batch_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Sequential(nn.BatchNorm2d(4)))


def images(seed: int = 1) -> Tensor:
    return torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


def test_every_task_is_an_ordinary_norm() -> None:
    """T runs of one ordinary model each, on the mini-batches of their task, leave the same model."""
    plain = [batch_net() for _ in range(3)]
    model = TaskBatchNorm.convert(batch_net(), 3)
    for step in range(4):
        task = step % 3
        with select_task(model, task):
            output = model(images(step))
        assert torch.equal(output, plain[task](images(step)))
    for task, other in enumerate(plain):
        reverted = TaskNorm.revert(copy.deepcopy(model), task)
        assert reverted.state_dict().keys() == other.state_dict().keys()
        for value, expected in zip(reverted.state_dict().values(), other.state_dict().values(), strict=True):
            assert torch.equal(value, expected)


def test_only_the_active_task_gets_a_gradient_and_statistics() -> None:
    model = TaskBatchNorm.convert(batch_net(), 2)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with select_task(model, 1):
        model(images()).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (".norms.0." in name), name
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]) == (".norms.0." in name), name


def test_state_dicts_hold_all_tasks() -> None:
    model, other = (TaskBatchNorm.convert(batch_net(), 2) for _ in range(2))
    with select_task(model, 0):
        model(images())
    other.load_state_dict(model.state_dict())
    other.eval()
    model.eval()
    for task in range(2):
        with select_task(model, task), select_task(other, task):
            assert torch.equal(model(images(2)), other(images(2)))
    assert "1.norms.1.running_var" in model.state_dict()


def test_conversion_keeps_values_modes_and_shared_modules() -> None:
    norm = nn.BatchNorm1d(3, eps=0.1, momentum=None, affine=False).double().eval()
    model = TaskBatchNorm.convert(nn.ModuleList([norm, norm, nn.Linear(3, 3)]), 2)
    assert model[0] is model[1]
    assert isinstance(model[0], TaskBatchNorm)
    assert not model[0].training
    assert all(
        one.eps == 0.1 and one.momentum is None and one.running_var.dtype == torch.float64 for one in model[0].norms
    )
    assert type(TaskLayerNorm.convert(nn.BatchNorm1d(3), 2)) is nn.BatchNorm1d
    again = TaskBatchNorm.convert(model, 2)
    assert again[0] is model[0]


@pytest.mark.parametrize(
    ("kind", "ordinary", "shape"),
    [
        (TaskBatchNorm1d, nn.BatchNorm1d, (4, 3)),
        (TaskBatchNorm2d, nn.BatchNorm2d, (4, 3, 2, 2)),
        (TaskBatchNorm3d, nn.BatchNorm3d, (4, 3, 2, 2, 2)),
    ],
)
def test_made_directly(kind: type[TaskBatchNorm], ordinary: type[nn.Module], shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    norm = kind(3, 2, momentum=0.3)  # type: ignore[call-arg, arg-type]
    assert torch.equal(norm(x, task=1), ordinary(3, momentum=0.3)(x))
    assert torch.equal(norm.norms[0].running_mean, torch.zeros(3))


@pytest.mark.parametrize(
    ("norm", "kind"),
    [(nn.LayerNorm(6), TaskLayerNorm), (nn.RMSNorm(6), TaskRMSNorm), (nn.GroupNorm(3, 6), TaskGroupNorm)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_other_norms(norm: nn.Module, kind: type[TaskNorm]) -> None:
    x = torch.randn(4, 6)
    tasks = TaskNorm.convert(norm, 2)
    assert isinstance(tasks, kind)
    assert torch.equal(tasks(x, task=1), norm(x))
    assert tasks.gains().shape == (2, 6)
    assert len(list(tasks.parameters())) == 2 * len(list(norm.parameters()))


def test_group_variance_is_followed_per_task() -> None:
    norm = TaskGroupNorm(nn.GroupNorm(2, 4), 2)
    x = torch.randn(3, 4, 5) * torch.tensor([1.0, 1.0, 4.0, 4.0])[:, None]
    for _ in range(200):
        norm(x, task=1)
    expected = x.reshape(3, 2, -1).var(2, unbiased=False).mean(0)
    torch.testing.assert_close(norm.group_var, torch.stack([torch.ones(2), expected]), rtol=1e-5, atol=0)
    norm.eval()(10 * x, task=1)
    torch.testing.assert_close(norm.group_var[1], expected, rtol=1e-5, atol=0)
    gains = 1 / (norm.group_var[1].double() + 1e-5)
    torch.testing.assert_close(norm.gains()[1], gains.repeat_interleave(2))


def test_selection_is_nested_and_undone() -> None:
    model = TaskBatchNorm.convert(batch_net(), 3)
    with select_task(model, 2):
        with select_task(model, 0):
            assert model[1].task == 0
        assert model[1].task == 2
        with pytest.raises(KeyError), select_task(model, 1):
            raise KeyError
        assert model[1].task == 2
    assert model[1].task is None


def test_what_is_missing_is_said() -> None:
    model = TaskBatchNorm.convert(batch_net(), 2)
    with pytest.raises(RuntimeError, match=r"expected a task, got None: run the model in `with select_task"):
        model(images())
    with pytest.raises(IndexError, match=r"expected a task 0 \.\. 1, got 2"), select_task(model, 2):
        pass
    with pytest.raises(IndexError, match=r"expected a task 0 \.\. 1, got -1"):
        TaskNorm.revert(model, -1)
    with pytest.raises(ValueError, match="expected num_tasks >= 1, got 0"):
        TaskBatchNorm.convert(batch_net(), 0)
    with pytest.raises(TypeError, match=r"expected BatchNorm1d, .*, got LayerNorm"):
        TaskBatchNorm(nn.LayerNorm(3), 2)
    with pytest.raises(TypeError, match="take TaskBatchNorm"):
        TaskNorm(nn.LayerNorm(3), 2)


def test_compiles_once_for_each_task() -> None:
    model = TaskBatchNorm.convert(batch_net(), 2)
    expected = copy.deepcopy(model)
    frames = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(model, backend=frames, fullgraph=True)
    for step in range(4):
        with select_task(model, step % 2):
            output = compiled(images(step))
        with select_task(expected, step % 2):
            assert torch.equal(output, expected(images(step)))
    assert frames.frame_count == 2


def test_autocast_and_functional_calls() -> None:
    model = TaskBatchNorm.convert(batch_net(), 2).eval()
    with select_task(model, 1):
        with torch.autocast("cpu", torch.bfloat16):
            assert model(images()).dtype == torch.bfloat16
        parameters = dict(model.named_parameters())

        def loss(values: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(model, values, (images(),)).square().mean()

        gradients = torch.func.grad(loss)(parameters)
        loss(parameters).backward()
    for name, parameter in parameters.items():
        if parameter.grad is None:
            assert not bool(gradients[name].any())
        else:
            torch.testing.assert_close(gradients[name], parameter.grad)


def test_statistics_of_data_parallel_training() -> None:
    """Ordinary modules inside: torch's own conversion to SyncBatchNorm finds them, and back again."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(TaskBatchNorm.convert(batch_net(), 2))
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in model[1].norms)
    assert model[1].gains().shape == (2, 4)
