"""A transformer that reads the support set as a prompt."""

from typing import Any, NamedTuple

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from metatransfer.checks import check_positive
from metatransfer.functional.meta.prototypes import class_count, class_members, class_prototypes, prototype_scores
from metatransfer.methods.embedding import EmbeddingModule
from metatransfer.nn import Backbone
from metatransfer.nn.blocks import ContextTransformer, ZeroLinear


class Prompt(NamedTuple):
    """Support sets that were read.

    Attributes:
        prototypes: ``(T, W, E)`` mean embedding of each class.
        seen: what each layer shows to the queries, ``(T, W, S, width)``, once from the view of each class.
    """

    prototypes: Tensor
    seen: list[Tensor]


class InContextModule(EmbeddingModule[Prompt]):
    r"""An in-context learner: a transformer reads embedded support samples with their classes and answers the queries.

    It follows CAML (Fifty et al. 2024, 2310.10971) and GPICL (Kirsch et al. 2022, 2212.04458). Two things differ from
    CAML. First, the answer is a correction of cosine similarities to the class means,

    .. math:: z_k = s\cos(f(x), c_k) + h\big(f(x);\ \{(f(x_i), [y_i = k])\}_i\big),

    where the last layer of :math:`h` starts at 0, so that training starts from class means. Second, CAML numbers the
    classes by fixed codes, so that its answer depends on their order. Here the support set is read once from the view
    of each class: its samples have the code "this class", and all others "another class". Renaming the classes
    therefore permutes the logits exactly, and there may be any number of classes. The time grows with the number of
    ways times that of samples.

    Args:
        backbone: the embedding ``f``.
        width: size of a token of the transformer.
        layers: number of layers.
        heads: number of attention heads.
        scale: initial value of the learned factor ``s``.
        freeze_backbone: whether only the transformer is trained, as in CAML; BatchNorm layers then keep their
            statistics. Give ``backbone`` pretrained weights.
        optimizer: creates the optimiser.
        lr_scheduler: creates its scheduler.

    Raises:
        UserError: a number that is not positive, or a width that the heads do not divide.
    """

    def __init__(
        self,
        backbone: Backbone,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        scale: float = 10.0,
        freeze_backbone: bool = False,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(backbone, optimizer, lr_scheduler)
        check_positive(scale=scale)
        self.initial_scale, self.freeze_backbone = scale, freeze_backbone
        self.scale = nn.Parameter(torch.empty(()))
        self.project = nn.Sequential(nn.LayerNorm(backbone.out_features), nn.Linear(backbone.out_features, width))
        self.codes = nn.Embedding(2, width)
        self.reader = ContextTransformer(width, layers, heads)
        self.readout = ZeroLinear(width, 1)
        self.reset_parameters()
        if freeze_backbone:
            backbone.requires_grad_(False)

    def reset_parameters(self) -> None:
        """Resets the scale."""
        nn.init.constant_(self.scale, self.initial_scale)

    def train(self, mode: bool = True) -> "InContextModule":
        """Keeps a frozen backbone in evaluation mode."""
        super().train(mode)
        if self.freeze_backbone:
            self.backbone.eval()
        return self

    def fit_embeddings(self, support: Tensor, labels: Tensor) -> Prompt:
        """Reads the support sets."""
        ways = class_count(labels)
        own = class_members(labels, ways).transpose(1, 2).long()
        tokens = self.project(support).unsqueeze(1) + self.codes(own)
        return Prompt(class_prototypes(support, labels, ways), self.reader.read(tokens))

    def predict_embeddings(self, state: Prompt, queries: Tensor) -> Tensor:
        """Logits ``(T, Q, W)``."""
        views = self.project(queries).unsqueeze(1).expand(-1, state.prototypes.shape[1], -1, -1)
        correction = self.readout(self.reader.answer(state.seen, views)).squeeze(-1).transpose(1, 2)
        scores = prototype_scores(queries, state.prototypes, "cosine", self.scale)
        logits: Tensor = scores + correction.to(scores.dtype)
        return logits

    def protocol(self) -> dict[str, Any]:
        """Adds whether the backbone is frozen."""
        return super().protocol() | {"freeze_backbone": self.freeze_backbone}
