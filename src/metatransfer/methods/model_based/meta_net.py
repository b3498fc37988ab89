"""Meta networks."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from metatransfer.checks import check_count, check_positive
from metatransfer.functional.losses import episode_losses
from metatransfer.functional.meta.gradients import gradient_of
from metatransfer.functional.meta.prototypes import class_count, class_members, class_prototypes, prototype_scores
from metatransfer.methods.embedding import EmbeddingModule
from metatransfer.nn import Backbone, CoordinateNetwork


class FastWeights(NamedTuple):
    """What a meta network keeps of ``T`` tasks.

    Attributes:
        representation: fast weights ``(T, H, E)`` of the representation.
        keys: representations ``(T, S, H)`` of the support samples.
        values: fast weights ``(T, S, W, E)`` of the output layer, for each support sample.
    """

    representation: Tensor
    keys: Tensor
    values: Tensor


class MetaNetModule(EmbeddingModule[FastWeights]):
    r"""Meta networks (Munkhdalai, Yu 2017, 1703.00837): weights for a task are generated from loss gradients.

    .. math:: Q^* = d(\nabla_Q\mathcal L_{emb}), \qquad r(x) = \mathrm{relu}(Qf(x)) + \mathrm{relu}(Q^*f(x)), \qquad
              W_i^* = m(\nabla_W\mathcal L_i)

    .. math:: z(x) = \Bigl(\sum_i a_i(x)\,W_i^*\Bigr) f(x), \qquad
              a(x) = \mathrm{softmax}_i\bigl(s\cos(r(x), r(x_i))\bigr)

    The representation :math:`r` has slow weights :math:`Q`, learned over tasks, and fast weights :math:`Q^*` for the
    task, generated from the gradient of an embedding loss on the support set (layer augmentation). Each support sample
    stores its representation as a key, and as value the output weights :math:`W_i^*` that are generated from the
    gradient of its cross-entropy. A query reads its output weights by attention over the keys. The meta learners
    :math:`d` and :math:`m` are perceptrons for single coordinates.

    Simplifications: the backbone has slow weights only; fast weights belong to one layer above it and to the output
    layer. The output layer has no slow weights, since class names mean nothing across tasks; its gradients are those
    at :math:`W=0`. :math:`d` reads the mean gradient over the support set instead of a sequence of samples, so that
    their order does not matter. The embedding loss compares samples with the means of their classes, with any number of
    shots. The attention has a learned scale :math:`s`. As inputs of :math:`d` and :math:`m`, gradients are constants.

    Args:
        backbone: the features ``f``.
        hidden_size: size ``H`` of the representation.
        meta_hidden_size: size of the hidden layers of :math:`d` and :math:`m`.
        scale: initial value of :math:`s`.
        optimizer: creates the optimiser.
        lr_scheduler: creates its scheduler.

    Raises:
        UserError: a size or the scale is out of range.
    """

    cannot_export = (
        "it takes gradients for as many classes as the labels name, which torch.export cannot trace: adapt it, and "
        "export the predictor"
    )

    def __init__(
        self,
        backbone: Backbone,
        hidden_size: int = 64,
        meta_hidden_size: int = 20,
        scale: float = 10.0,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(backbone, optimizer, lr_scheduler)
        check_count(hidden_size=hidden_size, meta_hidden_size=meta_hidden_size)
        check_positive(scale=scale)
        self.slow = nn.Linear(backbone.out_features, hidden_size, bias=False)
        self.representation_learner = CoordinateNetwork(meta_hidden_size)
        self.output_learner = CoordinateNetwork(meta_hidden_size)
        self.initial_scale = scale
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def reset_parameters(self) -> None:
        """Resets the scale."""
        nn.init.constant_(self.scale, self.initial_scale)

    def fit_embeddings(self, support: Tensor, labels: Tensor) -> FastWeights:
        """Generates the fast weights and fills the memory."""
        with torch.autocast(support.device.type, enabled=False):
            support, ways = support.to(self.slow.weight.dtype), class_count(labels)
            fast = self.representation_learner(self._embedding_gradient(support, labels, ways))
            # the gradient of the cross-entropy of each sample at equal probabilities
            errors = 1 / ways - class_members(labels, ways).to(support.dtype)
            gradients = (errors.unsqueeze(-1) * support.unsqueeze(2)).detach()
            return FastWeights(fast, self._represented(fast, support), self.output_learner(gradients))

    def predict_embeddings(self, state: FastWeights, queries: Tensor) -> Tensor:
        """Logits ``(T, Q, W)`` by the output weights that each query reads from the memory."""
        with torch.autocast(queries.device.type, enabled=False):
            queries = queries.to(self.slow.weight.dtype)
            asked = self._represented(state.representation, queries)
            attention = prototype_scores(asked, state.keys, "cosine", self.scale).softmax(-1)
            weights = torch.einsum("tqs,tswe->tqwe", attention, state.values)
            return (weights @ queries.unsqueeze(-1)).squeeze(-1)

    def _represented(self, fast: Tensor, x: Tensor) -> Tensor:
        """Representations ``(T, N, H)`` of features ``(T, N, E)``."""
        return F.relu(self.slow(x)) + F.relu(x @ fast.transpose(1, 2))

    def _embedding_gradient(self, support: Tensor, labels: Tensor, ways: int) -> Tensor:
        """Gradients ``(T, H, E)`` of the embedding loss with respect to the slow weights."""

        def loss(weights: Tensor, support: Tensor, labels: Tensor) -> Tensor:
            found = F.relu(support @ weights.transpose(1, 2))
            scores = prototype_scores(found, class_prototypes(found, labels, ways), "euclidean")
            return episode_losses(scores, labels).sum()

        weights = self.slow.weight.detach().expand(len(support), -1, -1)
        return gradient_of(loss, weights, support.detach(), labels).detach()

    def protocol(self) -> dict[str, Any]:
        """Adds the size of the representation."""
        return super().protocol() | {"hidden_size": self.slow.out_features}
