"""Relation networks."""

from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from metatransfer.batches import Episode, Inputs
from metatransfer.checks import check_choice
from metatransfer.functional.losses import mask_absent_classes
from metatransfer.functional.meta.prototypes import class_count, class_members, class_prototypes
from metatransfer.functional.meta.replicas import replica
from metatransfer.functional.meta.stateless import batch_norm_layers
from metatransfer.methods.embedding import EmbeddingModule
from metatransfer.methods.evaluation.on_episodes import SupportScores
from metatransfer.nn import Backbone
from metatransfer.nn.blocks import RelationHead

Network = TypeVar("Network", bound=nn.Module)


class RelationNetModule(EmbeddingModule[Tensor]):
    r"""Relation networks (Sung et al. 2018, 1711.06025).

    A network :math:`g` scores how well the feature maps of a query fit those of a class, the sum over its support set:

    .. math:: r_k = \sigma\Bigl(g\bigl(\textstyle\sum_{i:\, y_i = k} f(x_i),\; f(x)\bigr)\Bigr), \qquad
              \min \sum_k (r_k - 1[y = k])^2.

    The outputs are the scores before the sigmoid. The paper has 5x5 maps on Omniglot: use a backbone with two poolings,
    ``Conv4(pools=2)``.

    Args:
        backbone: a convolutional network, whose feature maps are ``f``.
        channels: channels of ``g``, see :class:`~metatransfer.nn.RelationHead`.
        pooling: ``"sum"`` as in the paper, or ``"mean"``, for tests with other numbers of shots than in training.
        batch_norm: statistics of BatchNorm in evaluation: ``"running"`` averages, or ``"transductive"``, those of the
            support set, of the queries and of their pairs in each task, as in the code of the authors.
        optimizer: creates the optimiser (Adam at 1e-3 in the paper, with gradients clipped at a norm of 0.5).
        lr_scheduler: creates its scheduler.

    Raises:
        UserError: the backbone has no feature maps, or a choice is unknown.
    """

    cannot_export = (
        "torch.export cannot trace a relation head whose number of classes follows from the labels: adapt it, and "
        "export the predictor"
    )

    def __init__(
        self,
        backbone: Backbone,
        channels: int = 64,
        pooling: Literal["sum", "mean"] = "sum",
        batch_norm: Literal["running", "transductive"] = "running",
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(backbone, optimizer, lr_scheduler)
        check_choice("pooling", pooling, ("sum", "mean"))
        check_choice("batch_norm", batch_norm, ("running", "transductive"))
        self.pooling, self.batch_norm = pooling, batch_norm
        self.relation = RelationHead(_map_channels(backbone), channels)
        self.transductive = batch_norm == "transductive"

    def embed(self, x: Inputs) -> Tensor:
        """Feature maps ``(T, N, C, H, W)``."""
        assert isinstance(x, Tensor)  # checked by the backbone
        if self.training or not self.transductive:
            return torch.unflatten(self.backbone.feature_maps(x.flatten(0, 1)), 0, x.shape[:2])
        backbone = _of_each_batch(self.backbone)
        return torch.stack([backbone.feature_maps(task) for task in x])

    def fit_embeddings(self, support: Tensor, labels: Tensor) -> Tensor:
        """The sum or mean of the maps of each class, ``(T, W, C, H, W)``."""
        ways = class_count(labels)
        pooled = class_prototypes(support.flatten(2), labels, ways)
        if self.pooling == "sum":
            pooled = pooled * class_members(labels, ways).sum(1).unsqueeze(-1)
        return torch.unflatten(pooled, 2, support.shape[2:])

    def predict_embeddings(self, state: Tensor, queries: Tensor) -> Tensor:
        """Scores before the sigmoid, ``(T, Q, W)``."""
        if self.training or not self.transductive:
            return self.relation(state, queries)  # type: ignore[no-any-return]
        relation = _of_each_batch(self.relation)
        tasks = zip(state.unsqueeze(1), queries.unsqueeze(1), strict=True)
        return torch.cat([relation(classes, asked) for classes, asked in tasks])

    def forward(self, episode: Episode) -> Tensor:
        """Scores of the queries; with transductive statistics support and queries are embedded separately."""
        if self.training or not self.transductive:
            return super().forward(episode)  # type: ignore[no-any-return]
        outputs = self.predict_tasks(self.fit_tasks(episode.support_x, episode.support_y), episode.query_x)
        return mask_absent_classes(outputs, episode.support_y)  # type: ignore[no-any-return]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error of the relation scores towards 1 for the right class and 0 for the others."""
        return self.task_losses(outputs, targets).mean()

    def task_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each task ``(T,)``."""
        wide = outputs.float() if outputs.dtype.itemsize < 4 else outputs
        return (wide.sigmoid() - F.one_hot(targets, outputs.shape[-1])).square().flatten(1).mean(1)

    def support_scores(self, episode: Episode) -> SupportScores:
        """The relation score of each query with each class."""
        state = self.fit_tasks(episode.support_x, episode.support_y)
        return SupportScores(self.predict_tasks(state, episode.query_x).sigmoid(), "relation scores of classes", True)

    def protocol(self) -> dict[str, Any]:
        """Adds the pooling and the statistics of BatchNorm."""
        return super().protocol() | {"pooling": self.pooling, "batch_norm": self.batch_norm}


def _map_channels(backbone: Backbone) -> int:
    """The number of channels of the feature maps."""
    if backbone.in_shape is None and type(backbone).feature_maps is not Backbone.feature_maps:
        return backbone.out_features  # networks for images of any size average their last maps
    network = replica(backbone).eval()
    with torch.no_grad():
        return network.feature_maps(torch.zeros(1, *(backbone.in_shape or (1,)))).shape[1]


def _of_each_batch(network: Network) -> Network:
    """A copy whose BatchNorm layers use the statistics of each batch and leave the averages as they are."""
    found = replica(network)
    for layer in batch_norm_layers(found).values():
        layer.running_mean = layer.running_var = None
    return found
