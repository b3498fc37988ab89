"""A memory of the sentences of a story, which a question reads."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from metatransfer.batches import Tokens
from metatransfer.checks import check_choice, check_count, check_fraction
from metatransfer.nn.blocks.memory_hops import MemoryHops, Update

Tying = Literal["adjacent", "layerwise", "key-value"]
_UPDATES: dict[str, Update] = {"adjacent": "sum", "layerwise": "mapped query", "key-value": "mapped sum"}


class StoryMemory(nn.Module):
    r"""Reads the sentences of a story in several hops.

    It is the memory of Sukhbaatar et al. 2015 (1503.08895) and of Miller et al. 2016 (1606.03126). A sentence of words
    :math:`x_1, \dots, x_J` is stored as :math:`\sum_j l_j \circ Ex_j + T_i`, with a learned vector :math:`T_i` of its
    age :math:`i` and the position encoding of its words

    .. math:: l_{jk} = (1 - j/J) - (k/d)(1 - 2j/J), \qquad j = 1, \dots, J,\ k = 1, \dots, d.

    ``tying`` says which embeddings :math:`E, T` the hops share:

    - ``"adjacent"``: hop ``h`` has keys of embedding ``h`` and values of embedding ``h + 1``; the question has that of
      the first keys.
    - ``"layerwise"``: one for all keys and the question, one for all values, and a matrix between hops.
    - ``"key-value"``: the same words for keys, values and the question. A key has the age of its sentence, a value does
      not; each hop has a matrix of its own.

    In training, ages have gaps: before each sentence one is left out with probability ``noise``, so that the network
    does not learn the ages by heart.

    Args:
        vocabulary_size: number of words; word 0 is padding.
        size: size ``d`` of the embeddings.
        hops: number of hops.
        tying: ``"adjacent"``, ``"layerwise"`` or ``"key-value"``.
        sentences: number of sentences that are remembered, the last ones of a story.
        noise: probability of a gap between ages.

    Raises:
        UserError: a number out of range, or unknown tying.
    """

    def __init__(
        self,
        vocabulary_size: int,
        size: int = 20,
        hops: int = 3,
        tying: Tying = "adjacent",
        sentences: int = 50,
        noise: float = 0.1,
    ) -> None:
        super().__init__()
        check_count(vocabulary_size=vocabulary_size, size=size, hops=hops, sentences=sentences)
        check_choice("tying", tying, get_args(Tying))
        check_fraction(noise=noise)
        self.tying, self.sentences, self.noise = tying, sentences, noise
        # all embeddings of a word are looked up together
        self.embeddings = {"adjacent": hops + 1, "layerwise": 2, "key-value": 1}[tying]
        self.words = _WordVectors(vocabulary_size, self.embeddings * size, padding_idx=0)
        self.ages = _Vectors(sentences, self.embeddings * size)
        self.hops = MemoryHops(size, hops, _UPDATES[tying])
        self.out_features = size

    def forward(self, x: Tokens, linear: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Reads stories.

        Args:
            x: ``(N, 1 + sentences, words)``, the question first, then the story from its last sentence on.
            linear: see :class:`MemoryHops`.

        Returns:
            What was read ``(N, size)``, and the attention ``(N, hops, sentences)`` of each hop.
        """
        kept = Tokens(*(part[:, : 1 + self.sentences] for part in x))
        keys, values, question = self._memory(kept)
        query, attention = self.hops(question, keys, values, kept.mask[:, 1:].any(-1), linear)
        return query.squeeze(1), attention.squeeze(2)

    def _memory(self, x: Tokens) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Keys and values of each hop ``(N, S, size)``, and the question ``(N, 1, size)``."""
        hops = self.hops.hops
        vectors = self.words(x.ids).unflatten(-1, (self.embeddings, -1))
        weight = position_encoding(x.mask, self.hops.size, vectors.dtype)
        said = (vectors * weight.unsqueeze(-2)).sum(2).unbind(2)
        ages = self.ages(self._ages(x.ids[:, 1:, 0])).unflatten(-1, (self.embeddings, -1)).unbind(2)
        stored = [one[:, 1:] + age for one, age in zip(said, ages, strict=True)]
        if self.tying == "adjacent":
            return stored[:-1], stored[1:], said[0][:, :1]
        values = said[0][:, 1:] if self.tying == "key-value" else stored[1]
        return [stored[0]] * hops, [values] * hops, said[0][:, :1]

    def _ages(self, sentences: Tensor) -> Tensor:
        """Ages of sentences ``(N, S)``, the last one has age 0; with random gaps in training."""
        ages = torch.arange(sentences.shape[1], device=sentences.device).expand_as(sentences)
        if self.training and self.noise:
            ages = ages + (torch.rand(sentences.shape, device=sentences.device) < self.noise).cumsum(1)
        return ages.clamp(max=self.sentences - 1)


def position_encoding(mask: Tensor, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Weights ``(..., W, size)`` of the words of sentences ``(..., W)``, 0 for padding; see :class:`StoryMemory`."""
    places = torch.arange(1, mask.shape[-1] + 1, device=mask.device, dtype=dtype)
    place = (places / mask.sum(-1, keepdim=True).clamp(min=1)).unsqueeze(-1)
    part = torch.arange(1, size + 1, device=mask.device, dtype=dtype) / size
    return ((1 - place) - part * (1 - 2 * place)) * mask.unsqueeze(-1)


class _Vectors(nn.Embedding):
    """Is initialised as in the paper, with a standard deviation of 0.1."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.1)


class _WordVectors(_Vectors):
    def reset_parameters(self) -> None:
        super().reset_parameters()
        with torch.no_grad():
            self.weight[0] = 0
