"""A tiny BERT of random weights with a head for each of two tasks, and the loops of the pages around it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from support.clients.foreign import library
from support.clients.loops import LOOPS, Loop

transformers: Any = library("transformers")

# The loops that need neither a closure nor norms of each task.
NAMES = [
    "weighted", "weighting of losses", "mt2o", "mt2o, weighting", "weighted backward", "one task", "one subproblem",
]  # fmt: skip
STEPS, BATCH, LENGTH, WORDS = 6, 4, 7, 40


class TwoHeads(transformers.BertPreTrainedModel):
    """Predicts two labels of a sequence."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.bert = transformers.BertModel(config, add_pooling_layer=False)
        self.first, self.second = nn.Linear(config.hidden_size, 3), nn.Linear(config.hidden_size, 3)
        self.post_init()

    def forward(self, input_ids: Tensor, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        z = self.bert(input_ids).last_hidden_state.mean(1)
        cross_entropy = nn.functional.cross_entropy
        return {"losses": torch.stack([cross_entropy(self.first(z), a), 2 * cross_entropy(self.second(z), b)])}


def model() -> TwoHeads:
    config = transformers.BertConfig(
        vocab_size=WORDS, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=LENGTH, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    return TwoHeads(config)


def rows(count: int = STEPS * BATCH) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    words = torch.randint(WORDS, (count, LENGTH), generator=generator)
    return [{"input_ids": row, "a": row.sum() % 3, "b": row[0] % 3} for row in words]


def batches() -> list[dict[str, Tensor]]:
    return [
        {key: torch.stack([row[key] for row in part]) for key in part[0]}
        for part in (rows()[at : at + BATCH] for at in range(0, STEPS * BATCH, BATCH))
    ]


def losses(net: nn.Module, batch: dict[str, Tensor]) -> list[Tensor]:
    return list(net(**batch)["losses"].unbind())


def loop_of(name: str, net: nn.Module, **options: Any) -> Loop:
    return LOOPS[name](net, **{"lr": 1e-2, **options})
