"""Matching networks."""

from typing import Any, NamedTuple

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from metatransfer.batches import Episode
from metatransfer.checks import check_choice, check_positive
from metatransfer.functional.meta.prototypes import Distance, class_count, class_members, prototype_scores
from metatransfer.methods.embedding import OrderedModule
from metatransfer.methods.evaluation.on_episodes import SupportScores
from metatransfer.nn import Backbone
from metatransfer.nn.blocks import FullContextEmbedding


class Memory(NamedTuple):
    """What is kept of the support sets of ``T`` tasks; with full context, of each in several orders.

    Attributes:
        embeddings: ``(T, S, E)``.
        members: ``(T, W, S)`` bool, whether a support sample belongs to a class.
    """

    embeddings: Tensor
    members: Tensor


class MatchingNetModule(OrderedModule[Memory]):
    r"""Matching networks (Vinyals et al. 2016, 1606.04080).

    The probability of a class is the attention of the query to the support samples of this class:

    .. math:: P(k \mid x) = \sum_{i:\, y_i = k} a_i(x), \qquad
              a(x) = \mathrm{softmax}_i\; s\cos(f(x), g(x_i)) \quad\text{or}\quad
              a(x) = \mathrm{softmax}_i\; -\lVert f(x) - g(x_i)\rVert^2.

    The paper has the cosine without the factor ``s``, which makes the attention almost uniform. With one sample per
    class and ``"euclidean"`` the method is equal to a prototypical network.

    Args:
        backbone: the embedding, ``f`` and ``g`` without full context.
        distance: ``"cosine"`` or ``"euclidean"`` (squared).
        scale: initial value of the learned factor ``s`` of the cosine.
        full_context: embed each sample in the context of the support set, see
            :class:`~metatransfer.nn.FullContextEmbedding`. Predictions then depend on the order of the support set,
            and evaluation averages them over several orders.
        processing_steps: number of steps in which a query attends to the support set, with ``full_context``.
        orders: number of orders of a support set in evaluation with ``full_context``, see
            :class:`~metatransfer.methods.embedding.OrderedModule`.
        optimizer: creates the optimiser.
        lr_scheduler: creates its scheduler.

    Raises:
        UserError: ``distance`` is unknown, ``scale`` is not positive, ``processing_steps`` is below 1, or a single
            order with ``full_context``.
    """

    def __init__(
        self,
        backbone: Backbone,
        distance: Distance = "cosine",
        scale: float = 10.0,
        full_context: bool = False,
        processing_steps: int = 5,
        orders: int = 4,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(backbone, orders, full_context, optimizer, lr_scheduler)
        check_choice("distance", distance, ("cosine", "euclidean"))
        check_positive(scale=scale)
        self.distance, self.initial_scale = distance, scale
        if distance == "cosine":
            self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.context = FullContextEmbedding(backbone.out_features, processing_steps) if full_context else None

    def reset_parameters(self) -> None:
        """Resets the scale."""
        if self.distance == "cosine":
            nn.init.constant_(self.scale, self.initial_scale)

    def read(self, support: Tensor, labels: Tensor) -> Memory:
        """Keeps the embeddings, in their context if so configured, and the class of each."""
        members = class_members(labels, class_count(labels)).transpose(1, 2)
        return Memory(support if self.context is None else self.context.support(support), members)

    def similarities(self, state: Memory, queries: Tensor) -> Tensor:
        """Similarities ``(T, Q, S)`` of query embeddings to the support samples, whose softmax is the attention."""
        if self.context is not None:
            queries = self.context.queries(queries, state.embeddings)
        scale = self.scale if self.distance == "cosine" else 1.0
        return prototype_scores(queries, state.embeddings, self.distance, scale)

    def answer(self, state: Memory, queries: Tensor) -> Tensor:
        """Logits ``(T, Q, W)``: the logarithm of the attention to each class, up to a constant."""
        similarities = self.similarities(state, queries).unsqueeze(2)
        # a finite number, so that the gradient is not NaN for a class without samples
        lowest = torch.finfo(similarities.dtype).min
        of_class = similarities.masked_fill(~state.members.unsqueeze(1), lowest)
        highest = of_class.detach().amax(-1, keepdim=True)
        # not by logsumexp, which torch.export cannot trace with a number of classes that follows from the labels
        return (of_class - highest).exp().sum(-1).log() + highest.squeeze(-1)

    def support_scores(self, episode: Episode) -> SupportScores:
        """The attention of each query to each support sample, averaged over the orders."""
        state = self.fit_tasks(episode.support_x, episode.support_y)
        queries = self.for_orders(self.embed(episode.query_x))
        return SupportScores(self.as_given(self.similarities(state, queries).softmax(-1)), "attention")

    def protocol(self) -> dict[str, Any]:
        """Adds the distance and the context."""
        steps = {} if self.context is None else {"processing_steps": self.context.processing_steps}
        return super().protocol() | {"distance": self.distance, "full_context": self.context is not None} | steps
