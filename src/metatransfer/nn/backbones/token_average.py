"""The mean of word embeddings, a network for texts without further requirements."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from metatransfer.batches import Inputs, Tokens
from metatransfer.checks import check_fraction, check_positive
from metatransfer.errors import UserError
from metatransfer.nn.backbones.backbone import Backbone, other_network


class TokenAverage(Backbone):
    r"""Averages the embeddings of a text's tokens and passes the mean through fully connected ReLU layers.

    With ``hidden=()`` it is the network of fastText without n-grams (Joulin et al. 2016, 1607.01759). The mean
    :math:`\sum_l m_l e_l / \sum_l m_l` ignores padding. Embeddings are initialised as in fastText, close to zero, so
    that words without training examples hardly matter.

    Args:
        vocabulary_size: number of tokens; defaults to that of the data on the command line.
        embedding_size: size of the embedding of a token.
        hidden: widths of the layers; the last one, or else ``embedding_size``, is ``out_features``.
        dropout: dropout probability of the mean, and after each ReLU.
        weights: file of initial weights, see :func:`metatransfer.nn.load_weights`.

    Raises:
        UserError: ``vocabulary_size`` is missing, or a size is below 1.
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
                "TokenAverage reads texts and needs vocabulary_size, the number of tokens: give that of the data. For "
                "tables use --model.backbone MLP, for images Conv4."
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
        """Texts ``(N, L)`` to ``(N, out_features)``."""
        ids, mask = check_tokens(x, "TokenAverage")
        features: Tensor = self.layers(mean_of_tokens(self.embedding(ids), mask))
        return features


def check_tokens(x: Inputs, network: str) -> Tokens:
    """Texts, unchanged."""
    if isinstance(x, Tensor):
        raise UserError(
            f"{network} reads texts as Tokens, but the samples are a tensor of shape {tuple(x.shape)}: use data of "
            f"texts, such as the collection Texts; {other_network(tuple(x.shape[1:]))}."
        )
    if x.ids.dim() != 2:
        raise UserError(
            f"{network} reads texts, Tokens (N, L), but the samples are stories, Tokens {tuple(x.ids.shape)}: use "
            "MemN2NModule."
        )
    return x


def mean_of_tokens(states: Tensor, mask: Tensor) -> Tensor:
    """Means ``(N, E)`` over the tokens ``(N, L, E)`` that are not padding."""
    weight = mask.to(states.dtype)
    return torch.einsum("nle,nl->ne", states, weight) / weight.sum(1, keepdim=True).clamp(min=1)


class _SmallEmbedding(nn.Embedding):
    """Is initialised uniformly between -1 / size and 1 / size."""

    def reset_parameters(self) -> None:
        bound = 1 / self.embedding_dim
        nn.init.uniform_(self.weight, -bound, bound)
