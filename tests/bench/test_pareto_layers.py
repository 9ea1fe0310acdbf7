"""Layers with several rows are torch's layers, row by row."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bench.pareto.layers import BatchNorm, Conv2d, FlatRows, LayerNorm, Linear, MaxPool2d, copies, flat_rows

pytestmark = pytest.mark.filterwarnings("ignore:grad and param do not obey")  # told once in a process


def test_layers_are_those_of_torch_row_by_row() -> None:
    torch.manual_seed(0)
    x, images = torch.randn(3, 5, 4), torch.randn(3, 5, 2, 9, 9)
    linear, conv, norm = copies(Linear(4, 7), 3), copies(Conv2d(2, 6, 3), 3), copies(BatchNorm(2), 3)
    for parameter in (*linear.parameters(), *conv.parameters(), *norm.parameters()):
        nn.init.normal_(parameter)
    for k in range(3):
        torch.testing.assert_close(linear(x)[k], F.linear(x[k], linear.weight[k], linear.bias[k]))
        torch.testing.assert_close(conv(images)[k], F.conv2d(images[k], conv.weight[k], conv.bias[k]))
        expected = F.batch_norm(images[k], None, None, norm.weight[k], norm.bias[k], training=True)
        torch.testing.assert_close(norm(images)[k], expected)
    one = Conv2d(2, 6, 3)
    torch.testing.assert_close(one(images[:1])[0], F.conv2d(images[0], one.weight[0], one.bias[0]))
    torch.testing.assert_close(MaxPool2d(2)(images)[1], F.max_pool2d(images[1], 2))
    torch.testing.assert_close(LayerNorm(4)(x[:1, :, None]), F.layer_norm(x[:1, :, None], (4,)))


def test_flat_rows_hold_parameters_and_gradients() -> None:
    net = nn.Sequential(Linear(4, 3), nn.ReLU(), Linear(3, 2))
    models = FlatRows(net, 2)
    models.values.normal_()
    torch.testing.assert_close(flat_rows(models.net), models.values)
    models.net(torch.randn(2, 5, 4)).square().sum().backward()
    gradients = torch.cat([parameter.grad.flatten(1) for parameter in models.net.parameters()], 1)
    torch.testing.assert_close(gradients, models.gradients)
    assert models.gradients.abs().sum() > 0
