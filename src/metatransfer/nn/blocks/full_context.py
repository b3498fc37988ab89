"""Embeddings of few-shot samples that depend on the whole support set."""

import torch
from torch import Tensor, nn

from metatransfer.checks import check_count


class FullContextEmbedding(nn.Module):
    r"""Full context embeddings of matching networks (Vinyals et al. 2016, 1606.04080, appendix A).

    Support samples are read as a sequence by a bidirectional LSTM, and its two outputs are added to the embeddings:

    .. math:: g_i = \overrightarrow h_i + \overleftarrow h_i + f(x_i).

    A query attends to the support set in ``K`` steps of an LSTM cell, whose recurrent input is the previous output and
    what was read from the support set:

    .. math:: \hat h_k, c_k = \mathrm{LSTM}(f(x), [h_{k-1}, r_{k-1}], c_{k-1}), \quad h_k = \hat h_k + f(x), \quad
              r_k = \sum_i \mathrm{softmax}_i(h_k^\top g_i)\, g_i.

    Args:
        size: size ``E`` of the embeddings.
        processing_steps: number ``K`` of steps of a query.
    """

    def __init__(self, size: int, processing_steps: int) -> None:
        super().__init__()
        check_count(processing_steps=processing_steps)
        self.processing_steps = processing_steps
        self.reader = nn.LSTM(size, size, batch_first=True, bidirectional=True)
        self.cell = nn.LSTMCell(2 * size, size)  # f(x) and r are both inputs, which gives the same function

    def support(self, embeddings: Tensor) -> Tensor:
        """Embeddings ``(T, S, E)`` of the support set in its context."""
        forward, backward = self.reader(embeddings)[0].chunk(2, -1)
        return forward + backward + embeddings  # type: ignore[no-any-return]

    def queries(self, embeddings: Tensor, support: Tensor) -> Tensor:
        """Embeddings ``(T, Q, E)`` of the queries in the context of the support set, from :meth:`support`."""
        flat = embeddings.flatten(0, 1)
        hidden = cell = read = torch.zeros_like(flat)
        for _ in range(self.processing_steps):
            hidden, cell = self.cell(torch.cat([flat, read], -1), (hidden, cell))
            hidden = hidden + flat
            outputs = hidden.view_as(embeddings)
            read = ((outputs @ support.transpose(1, 2)).softmax(-1) @ support).flatten(0, 1)
        return hidden.view_as(embeddings)
