from __future__ import annotations

import pytest
import torch
from torch import nn

from mt2o_ext.priority import Connection, TaskBatchNorm, TaskLayerNorm, TaskNorm, find_connections
from support.priority_strengths import explicit_strengths, randomised

LAYERS = {
    "convolution": (nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)),
    "convolution 1d": (nn.Conv1d(3, 4, 5), nn.BatchNorm1d(4)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)),
    "depthwise": (nn.Conv3d(4, 4, 3, groups=4), nn.BatchNorm3d(4)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3), nn.BatchNorm2d(6)),
    "transposed and grouped": (nn.ConvTranspose2d(4, 6, 2, groups=2), nn.BatchNorm2d(6)),
    "linear": (nn.Linear(5, 7), nn.BatchNorm1d(7)),
    "linear, layer norm": (nn.Linear(5, 7), nn.LayerNorm(7)),
    "linear, RMS norm without affine": (nn.Linear(5, 7), nn.RMSNorm(7, elementwise_affine=False)),
    "convolution, group norm": (nn.Conv2d(3, 6, 3), nn.GroupNorm(3, 6)),
    "one channel": (nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_strengths_are_the_formulas(name: str) -> None:
    layer, norm = LAYERS[name]
    task_norm = randomised(TaskNorm.convert(norm, 3))
    connection = Connection(name, layer, task_norm)
    expected = explicit_strengths(layer, task_norm)
    torch.testing.assert_close(connection.strengths(), expected, rtol=1e-6, atol=0)
    assert connection.channels == expected.shape[1]


def test_strengths_behind_a_norm() -> None:
    """sum_q gamma_iq^2 W_pq^2."""
    norm = randomised(TaskNorm.convert(nn.LayerNorm(4), 2))
    for layer in (nn.Linear(4, 5), nn.Conv2d(4, 5, 3)):
        strengths = Connection("layer", layer, norm, before=True).strengths()
        weight = layer.weight.detach().double().reshape(5, 4, -1)
        for task in range(2):
            for p in range(5):
                expected = sum(
                    norm.norms[task].weight[q].item() ** 2 * weight[p, q].square().sum().item() for q in range(4)
                )
                assert strengths[task, p].item() == pytest.approx(expected, rel=1e-12)


def test_attention_by_heads() -> None:
    norm = randomised(TaskNorm.convert(nn.LayerNorm(8), 2))
    attention = nn.MultiheadAttention(8, 4)
    connection = Connection("attention", attention, norm, before=True)
    assert connection.channels == 4
    rows = attention.in_proj_weight.detach().double().square() @ norm.scales().square().T  # [3 E, T]
    for head in range(4):
        of_head = [projection * 8 + head * 2 + row for projection in range(3) for row in range(2)]
        torch.testing.assert_close(connection.strengths()[:, head], rows[of_head].sum(0))


def test_strengths_by_hand() -> None:
    layer = nn.Linear(3, 4)
    connection = Connection("layer", layer, None, strength=lambda layer: layer.weight.square().sum(1).expand(2, 4))
    assert connection.strengths().dtype == torch.float64
    assert connection.strengths().shape == (2, 4)


class Block(nn.Module):
    """As in ResNets."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()
        self.conv2, self.bn2 = nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.downsample = nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8))


def test_residual_blocks_are_paired() -> None:
    model = TaskBatchNorm.convert(nn.Sequential(Block(), nn.Flatten(), nn.Linear(8, 2)), 3)
    found = find_connections(model)
    assert [connection.name for connection in found] == ["0.conv1", "0.conv2", "0.downsample.0"]
    assert [connection.norm for connection in found] == [model[0].bn1, model[0].bn2, model[0].downsample[1]]
    assert all(connection.in_the_paper for connection in found)
    assert found.plain == {"2": "no per-task norm beside it"}


def test_what_stays_plain_and_why() -> None:
    conv = nn.Conv2d(4, 4, 1)
    tied = nn.Conv2d(4, 4, 1)
    tied.weight = conv.weight
    model = nn.ModuleDict(
        {
            "relu between": nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)),
            "nothing between": nn.Sequential(nn.Conv2d(4, 4, 1), nn.Identity(), nn.BatchNorm2d(4)),
            "tied": nn.Sequential(conv, nn.BatchNorm2d(4)),
            "tied too": nn.Sequential(tied, nn.BatchNorm2d(4)),
            "other width": nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(6)),
        }
    )
    found = find_connections(TaskBatchNorm.convert(model, 2))
    assert [connection.name for connection in found] == ["nothing between.0"]
    assert found.plain == {
        "tied.0": "its weight is used in several places",
        "tied too.0": "its weight is used in several places",
        "other width.0": "the layer has 4 output channels, its norm 6",
        "relu between.0": "no per-task norm beside it",
    }


@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer_layers(norm_first: bool) -> None:
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, norm_first=norm_first))
    found = find_connections(TaskLayerNorm.convert(model, 2))
    expected = ["0.self_attn", "0.linear1"] if norm_first else ["0.self_attn.out_proj", "0.linear2"]
    assert [connection.name for connection in found] == expected
    assert [connection.before for connection in found] == [norm_first] * 2
    assert [connection.strengths().shape for connection in found] == [
        (2, 2 if norm_first else 8),
        (2, 16 if norm_first else 8),
    ]


def test_the_report_is_a_table() -> None:
    model = TaskBatchNorm.convert(nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Linear(2, 2)), 3)
    assert str(find_connections(model)).splitlines() == [
        "layer  kind    channels  goes with",
        "0      Conv2d  8         before 1 (TaskBatchNorm)",
        "2: plain, no per-task norm beside it",
    ]


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (
            lambda n: Connection("a", nn.Conv2d(2, 5, 1), n),
            ValueError,
            "a: the layer has 5 output channels, its norm 4",
        ),
        (lambda n: Connection("a", nn.Linear(5, 2), n, before=True), ValueError, "5 input channels, its norm 4"),
        (lambda n: Connection("a", nn.ReLU(), n), TypeError, "expected a layer among Linear, Conv1d, .*, got ReLU"),
        (lambda n: Connection("a", nn.Linear(2, 4), nn.BatchNorm1d(4)), TypeError, "expected a per-task norm"),
        (
            lambda n: Connection("a", nn.Linear(2, 4), None),
            ValueError,
            "got None: give one, or strength=",
        ),
        (lambda n: Connection("a", nn.Linear(2, 4), n, num_heads=3), ValueError, r"\[4, 2\] has no rows for 3 heads"),
        (lambda n: Connection("a", nn.MultiheadAttention(4, 2), n), ValueError, "use before=True"),
        (lambda n: Connection("a", nn.Conv2d(4, 4, 1, groups=2), n, before=True), ValueError, "plain convolutions"),
        (lambda n: find_connections(nn.Linear(2, 2)), ValueError, "expected a model with per-task norms"),
    ],
)
def test_bad_pairs_are_named(make: object, error: type[Exception], text: str) -> None:
    norm = TaskBatchNorm(nn.BatchNorm1d(4), 2)
    with pytest.raises(error, match=text):
        make(norm)  # type: ignore[operator]


def test_norms_without_statistics_are_refused() -> None:
    norm = TaskBatchNorm(nn.BatchNorm1d(4, track_running_stats=False), 2)
    with pytest.raises(ValueError, match="track_running_stats=True"):
        Connection("a", nn.Linear(2, 4), norm).strengths()
