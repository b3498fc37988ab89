"""A key-value memory of the support set."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from metatransfer.batches import Episode
from metatransfer.checks import check_count, check_positive
from metatransfer.functional.meta.prototypes import class_count, class_members, class_prototypes
from metatransfer.methods.embedding import EmbeddingModule
from metatransfer.methods.evaluation.on_episodes import SupportScores
from metatransfer.nn import Backbone
from metatransfer.nn.blocks import MemoryHops


class Memory(NamedTuple):
    """What is kept of the support sets of ``T`` tasks.

    Attributes:
        keys: ``(T, S, E)``.
        values: ``(T, S, E)`` the code of the label of each support sample.
        codes: ``(T, W, E)`` the code of each class.
    """

    keys: Tensor
    values: Tensor
    codes: Tensor


class KeyValueMemoryModule(EmbeddingModule[Memory]):
    r"""A key-value memory network (Miller et al. 2016, 1606.03126) whose memory is the support set.

    The keys are the embeddings :math:`k_i = s f(x_i) / \lVert f(x_i)\rVert` of the support samples; the values are
    their labels. The code of a label is the mean key :math:`c_k` of its class, so that there can be any number of
    classes, and their order does not matter. A query reads the memory in several hops,

    .. math:: a = \mathrm{softmax}_i(q^\top k_i), \qquad q \leftarrow R_h\Bigl(q + \sum_i a_i c_{y_i}\Bigr),

    and the logits are :math:`q^\top c_k` after the last one. The matrices :math:`R_h` start as the identity, so
    that a query at first moves towards the classes that it resembles. Unlike the sentences of a story, samples have no
    age, since a support set has no order.

    Args:
        backbone: the embedding ``f``.
        hops: number of hops.
        scale: initial value of :math:`s^2`, the factor of the cosine in the first hop; :math:`s` is learned.
        optimizer: creates the optimiser.
        lr_scheduler: creates its scheduler.

    Raises:
        UserError: ``hops`` is below 1, or ``scale`` is not positive.
    """

    def __init__(
        self,
        backbone: Backbone,
        hops: int = 2,
        scale: float = 10.0,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(backbone, optimizer, lr_scheduler)
        check_count(hops=hops)
        check_positive(scale=scale)
        self.initial_scale = scale
        self.length = nn.Parameter(torch.empty(()))
        self.hops = MemoryHops(backbone.out_features, hops, "mapped sum")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Resets the length of keys and queries."""
        nn.init.constant_(self.length, math.sqrt(self.initial_scale))

    def fit_embeddings(self, support: Tensor, labels: Tensor) -> Memory:
        """Keys and values of the support samples."""
        with torch.autocast(support.device.type, enabled=False):
            keys, ways = self._scaled(support), class_count(labels)
            codes = class_prototypes(keys, labels, ways)
            return Memory(keys, class_members(labels, ways).to(codes.dtype) @ codes, codes)

    def predict_embeddings(self, state: Memory, queries: Tensor) -> Tensor:
        """Logits ``(T, Q, W)``."""
        return self._read(state, queries)[0]

    def support_scores(self, episode: Episode) -> SupportScores:
        """The attention of each query to each support sample in the last hop."""
        state = self.fit_tasks(episode.support_x, episode.support_y)
        return SupportScores(self._read(state, self.embed(episode.query_x))[1][:, -1], "attention")

    def _scaled(self, embeddings: Tensor) -> Tensor:
        """Embeddings of the learned length, in float32 or better."""
        wide = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        return self.length * F.normalize(wide, dim=-1)

    def _read(self, state: Memory, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(T, Q, W)``, and the attention ``(T, hops, Q, S)``."""
        hops = self.hops.hops
        with torch.autocast(queries.device.type, enabled=False):
            found, attention = self.hops(self._scaled(queries), [state.keys] * hops, [state.values] * hops)
            return found @ state.codes.mT, attention

    def protocol(self) -> dict[str, Any]:
        """Adds the number of hops."""
        return super().protocol() | {"hops": self.hops.hops}
