"""Siamese networks."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from metatransfer.batches import Episode, Inputs, map_inputs
from metatransfer.checks import check_positive
from metatransfer.errors import UserError
from metatransfer.functional.meta.inputs import concatenated, sample_axes
from metatransfer.functional.meta.prototypes import class_count, class_members
from metatransfer.functional.meta.replicas import replica
from metatransfer.methods.embedding import EmbeddingModule
from metatransfer.methods.evaluation.on_episodes import SupportScores
from metatransfer.methods.given import Samples, as_inputs
from metatransfer.nn import Backbone


class Compared(NamedTuple):
    """What is kept of the support sets of ``T`` tasks.

    Attributes:
        embeddings: ``(T, S, E)``.
        members: ``(T, W, S)`` bool, whether a support sample belongs to a class.
    """

    embeddings: Tensor
    members: Tensor


class SiameseModule(EmbeddingModule[Compared]):
    r"""Siamese networks for verification (Koch, Zemel, Salakhutdinov 2015, without arXiv id).

    Matching networks (1606.04080) were compared with them.

    The network learns whether two samples are of the same class:

    .. math:: P(\text{same} \mid x, x') = \sigma(z(x, x')), \qquad z(x, x') = b + \sum_j w_j |h_j(x) - h_j(x')|.

    Training uses all pairs of samples of an episode, support and queries; pairs of the same class and of different
    classes have the same total weight. A query is compared with every support sample, and the logit of a class is the
    **maximum** over its samples: the softmax over these is the probability of each class, given that the query shows
    one of them.

    Args:
        backbone: the features.
        hidden_size: size of a fully connected layer with a sigmoid between the features and ``h`` (4096 in the paper).
            Features of any scale are normalised before it. If ``None``, ``h`` are the features themselves, whose
            standard deviation should then be near 1.
        optimizer: creates the optimiser.
        lr_scheduler: creates its scheduler.

    Raises:
        UserError: ``hidden_size`` is not positive.
    """

    def __init__(
        self,
        backbone: Backbone,
        hidden_size: int | None = 256,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(backbone, optimizer, lr_scheduler)
        check_positive(hidden_size=hidden_size)
        self.hidden: nn.Module = nn.Identity()
        if hidden_size is not None:
            features = backbone.out_features
            self.hidden = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, hidden_size), nn.Sigmoid())
        self.weight = nn.Parameter(torch.empty(hidden_size or backbone.out_features))
        self.bias = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws negative weights, so that distant samples are unlike, with undecided logits for most pairs."""
        size = len(self.weight) ** 0.5
        nn.init.uniform_(self.weight, -2 / size, 0.0)
        # Without the bias, all pairs start as clearly different, and training takes long to correct that. The distance
        # of two samples is about 0.15 per unit after the sigmoid, and 0.7 of rectified features of deviation 1.
        nn.init.constant_(self.bias, size * (0.7 if isinstance(self.hidden, nn.Identity) else 0.15))

    def embed(self, x: Inputs) -> Tensor:
        """Embeddings ``h`` of samples, ``(T, N, E)``."""
        return self.hidden(super().embed(x))  # type: ignore[no-any-return]

    def pair_logits(self, first: Tensor, second: Tensor) -> Tensor:
        """The logits ``z`` of embeddings ``(..., E)`` and ``(..., E)``, which are broadcast: ``(...)``."""
        return (first - second).abs() @ self.weight + self.bias

    def fit_embeddings(self, support: Tensor, labels: Tensor) -> Compared:
        """Keeps the embeddings and the class of each."""
        return Compared(support, class_members(labels, class_count(labels)).transpose(1, 2))

    def predict_embeddings(self, state: Compared, queries: Tensor) -> Tensor:
        """Logits ``(T, Q, W)``: of each class that of its most similar sample."""
        return _of_classes(self.pair_logits(queries.unsqueeze(2), state.embeddings.unsqueeze(1)), state.members)

    def training_loss(self, episode: Episode) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy of all pairs, balanced in each task, and the logits ``(T, Q, W)`` of the queries."""
        embedded, shots = self.embed(concatenated(episode.support_x, episode.query_x, 1)), episode.support_y.shape[1]
        labels = torch.cat([episode.support_y, episode.query_y], 1)
        logits = self.pair_logits(embedded.unsqueeze(2), embedded.unsqueeze(1))
        first, second = torch.triu_indices(labels.shape[1], labels.shape[1], 1, device=labels.device)
        same = (labels[:, first] == labels[:, second]).to(logits.dtype)
        losses = F.binary_cross_entropy_with_logits(logits[:, first, second], same, reduction="none")
        parts = [(losses * kind).sum(1) / kind.sum(1).clamp(min=1) for kind in (same, 1 - same)]
        members = self.fit_embeddings(embedded[:, :shots], episode.support_y).members
        return torch.stack(parts).mean(), _of_classes(logits[:, shots:, :shots], members)

    def verify(self, x1: Samples | Inputs, x2: Samples | Inputs) -> Tensor:
        """The probabilities ``(N,)`` that pairs of samples show the same class, which need not be known.

        Args:
            x1: ``(N, *shape)`` samples, or texts.
            x2: the other sample of each pair.

        Raises:
            UserError: different numbers of samples, or samples of a wrong shape.
        """
        given = [as_inputs(self, x, name) for x, name in ((x1, "x1"), (x2, "x2"))]
        counts = [sample_axes(x, 1)[0] for x in given]
        if counts[0] != counts[1]:
            raise UserError(f"verify compares pairs, but x1 has {counts[0]} samples and x2 has {counts[1]}.")
        module = replica(self).eval()  # a copy, since other threads may use the module
        with torch.no_grad():
            for x in given:
                module.check_samples(x)
            embedded = [module.embed(map_inputs(lambda part: part.unsqueeze(0), x)) for x in given]
            return module.pair_logits(*embedded).squeeze(0).sigmoid()

    def support_scores(self, episode: Episode) -> SupportScores:
        """The probability that each query and each support sample show the same class."""
        support, queries = self.embed(episode.support_x), self.embed(episode.query_x)
        logits = self.pair_logits(queries.unsqueeze(2), support.unsqueeze(1))
        return SupportScores(logits.sigmoid(), "probability of showing the same class")

    def protocol(self) -> dict[str, Any]:
        """Adds how a class is scored."""
        return super().protocol() | {"class_score": "maximum over its samples"}


def _of_classes(logits: Tensor, members: Tensor) -> Tensor:
    """The maximum ``(T, Q, W)`` of logits ``(T, Q, S)`` over the samples of each class."""
    lowest = torch.finfo(logits.dtype).min
    return logits.unsqueeze(2).masked_fill(~members.unsqueeze(1), lowest).amax(-1)
