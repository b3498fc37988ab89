"""The mean of word embeddings: the network for texts that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from metatransfer.batches import Inputs
from metatransfer.checks import check_fraction, check_positive
from metatransfer.errors import UserError
from metatransfer.nn.backbones.backbone import Backbone


class TokenAverage(Backbone):
    r"""Embeds each token, averages over the text and passes the mean through fully connected ReLU layers.

    With ``hidden=()`` it is the network of fastText without n-grams (Joulin et al. 2016, 1607.01759). The mean is that
    of the tokens, :math:`\sum_l m_l e_l / \sum_l m_l`, however much is padded. Embeddings start as small as fastText's,
    so that words which the training does not have say next to nothing.

    Args:
        vocabulary_size: how many tokens there are; on the command line that of the data.
        embedding_size: numbers for each token.
        hidden: widths of the layers; the last one is ``out_features``. ``embedding_size`` is, where there are none.
        dropout: probability of dropping a number of the mean, and a feature after each ReLU.
        weights: file of weights to start from: a checkpoint of any method with this backbone, a ``state_dict`` or
            ``.safetensors``; see :func:`metatransfer.nn.load_weights`.

    Raises:
        UserError: ``vocabulary_size`` missing, or a size below 1.
    """

    def __init__(
        self,
        vocabulary_size: int | None = None,
        embedding_size: int = 64,
        hidden: Sequence[int] = (64,),
        dropout: float = 0.0,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if vocabulary_size is None:
            raise UserError(
                "TokenAverage needs vocabulary_size, the number of tokens: give that of the data module, "
                "data.vocabulary_size after its setup."
            )
        check_positive(vocabulary_size=vocabulary_size, embedding_size=embedding_size)
        check_fraction(dropout=dropout)
        if any(width < 1 for width in hidden):
            raise UserError(f"TokenAverage needs hidden widths of 1 or more, but got {list(hidden)}.")
        self.vocabulary_size = vocabulary_size
        self.embedding = _SmallEmbedding(vocabulary_size, embedding_size)
        layers: list[nn.Module] = [nn.Dropout(dropout)] if dropout else []
        for fan_in, fan_out in pairwise([embedding_size, *hidden]):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
        self.layers = nn.Sequential(*layers)
        self.out_features = [embedding_size, *hidden][-1]
        self.load_weights(weights)

    def forward(self, x: Inputs) -> Tensor:
        """Texts ``(N, L)`` to ``(N, out_features)``.

        Raises:
            UserError: samples that are no texts.
        """
        if isinstance(x, Tensor):
            raise UserError(
                f"TokenAverage reads texts as Tokens, but the samples are a tensor of shape {tuple(x.shape)}: give it "
                "a data module of texts, such as TextDataModule."
            )
        ids, mask = x
        embedded: Tensor = self.embedding(ids)
        weight = mask.to(embedded.dtype)
        mean = torch.einsum("nle,nl->ne", embedded, weight) / weight.sum(1, keepdim=True).clamp(min=1)
        features: Tensor = self.layers(mean)
        return features


class _SmallEmbedding(nn.Embedding):
    """Starts within 1 / size of zero."""

    def reset_parameters(self) -> None:
        bound = 1 / self.embedding_dim
        nn.init.uniform_(self.weight, -bound, bound)
