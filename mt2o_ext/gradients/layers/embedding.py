"""Embeddings."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from .kind import LayerKind, register
from .picked import Picked
from .terms import Term

__all__ = ["EmbeddingKind"]


@register("embedding")
class EmbeddingKind(LayerKind):
    """`nn.Embedding`, with ``padding_idx``.

    Not with ``sparse``, ``max_norm`` and ``scale_grad_by_freq``, which makes a gradient depend on the other samples.

    Example:
        >>> layer, x = torch.nn.Embedding(10, 3), torch.tensor([[1, 1, 2], [2, 4, 5]])
        >>> EmbeddingKind().terms(layer, x, torch.ones(2, 3, 3), ("weight",))["weight"].gram()
        tensor([[15.,  3.],
                [ 3.,  9.]], dtype=torch.float64)
    """

    modules = (nn.Embedding,)
    parameters = ("weight",)
    batch_anywhere = True

    def fits(self, module: nn.Embedding, x: Tensor) -> bool:
        return not (module.sparse or module.scale_grad_by_freq or module.max_norm is not None)

    def terms(self, module: Any, x: Tensor, grad: Tensor, wanted: Collection[str]) -> Mapping[str, Term]:
        index, values = x.reshape(len(x), -1).long(), grad.reshape(len(grad), -1, grad.shape[-1])
        return {"weight": Picked(index, values, module.num_embeddings, module.padding_idx)}
