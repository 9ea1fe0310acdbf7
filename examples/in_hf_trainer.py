"""The Trainer of transformers: a training step of one's own, everything else is the Trainer's.

The model is a small BERT of random weights, which reads words of rows of pixels; the tasks are the two digits.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
import transformers
from problem import CLASSES, accuracies, pairs
from torch import Tensor, nn

from mt2o_ext import WeightedFused


class Reader(transformers.BertPreTrainedModel):
    """A picture as 36 words, each a patch of 2 x 2 pixels; a head for each digit."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.bert = transformers.BertModel(config, add_pooling_layer=False)
        self.words = nn.Linear(4, config.hidden_size)
        self.heads = nn.ModuleList(nn.Linear(36 * config.hidden_size, CLASSES) for _ in range(2))
        self.bert.embeddings.word_embeddings.requires_grad_(False)  # not used: the words are given as vectors
        self.post_init()

    def forward(self, pixels: Tensor) -> list[Tensor]:
        patches = pixels.view(-1, 6, 2, 6, 2).transpose(2, 3).reshape(-1, 36, 4)
        z = self.bert(inputs_embeds=self.words(patches)).last_hidden_state.flatten(1)
        return [head(z) for head in self.heads]


class TwoLosses(transformers.Trainer):
    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        model.train()
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():  # autocast, if the arguments ask for it
            losses = [
                nn.functional.cross_entropy(out, inputs["digits"][:, task])
                for task, out in enumerate(model(inputs["pixels"]))
            ]
        self.optimizer.optimizer.backward(losses)  # Accelerate's wrapper is around ours
        return torch.stack(losses).detach().sum()  # for the log


def main(epochs: int = 4) -> list[float]:
    torch.manual_seed(0)
    train, test = pairs()
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=1,
        max_position_embeddings=36,
    )  # fmt: skip
    model = Reader(config)
    optimizer = WeightedFused(model.parameters(), num_tasks=2, weighting="upgrad", lr=3e-3)
    with tempfile.TemporaryDirectory() as folder:
        args = transformers.TrainingArguments(
            folder, num_train_epochs=epochs, per_device_train_batch_size=32, max_grad_norm=1.0, logging_steps=20,
            remove_unused_columns=False, save_strategy="no", report_to=[], disable_tqdm=True,
            dataloader_pin_memory=False,  # the data are on the GPU, where there is one
        )  # fmt: skip
        rows = [{"pixels": x, "digits": y} for x, y in train]
        TwoLosses(model, args, train_dataset=rows, optimizers=(optimizer, None)).train()
        model.save_pretrained(folder)
    model.eval()
    found = accuracies(model, test)
    print(f"accuracies {found[0]:.2f} and {found[1]:.2f}")
    return found


if __name__ == "__main__":
    main()
