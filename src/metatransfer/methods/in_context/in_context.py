"""A transformer that reads the support set as a prompt."""

from typing import Any, NamedTuple

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from metatransfer.checks import check_positive
from metatransfer.functional.meta.columns import Columns, columns_by_class, fit_columns, standardised
from metatransfer.functional.meta.prototypes import class_count, class_members, class_prototypes, prototype_scores
from metatransfer.methods.embedding import EmbeddingModule
from metatransfer.nn import Backbone
from metatransfer.nn.blocks import ContextTransformer, ZeroLinear


class Prompt(NamedTuple):
    """Support sets that were read.

    Attributes:
        prototypes: ``(T, W, E)`` mean embedding of each class.
        seen: what each layer shows to the queries, ``(T, W, S, width)``, once from the view of each class.
        columns: statistics of the support sets, with ``align``.
    """

    prototypes: Tensor
    seen: list[Tensor]
    columns: Columns | None = None


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

    With ``align``, features need no common meaning between tasks, as the columns of tables. They are standardised by
    the support set, and in the view of a class sorted by their correlation with it, see
    :func:`~metatransfer.functional.meta.columns.columns_by_class`. The answer then does not depend on the order, the
    units or the signs of the columns. The similarity to a class mean is the negative squared distance, as a mean over
    the columns, since a class in the middle of the others has no direction. TabPFN (Hollmann et al. 2023, 2207.01848),
    which also learns tables from tasks of a prior, averages over orders of columns and classes instead.

    Args:
        backbone: the embedding ``f``.
        width: size of a token of the transformer.
        layers: number of layers.
        heads: number of attention heads.
        scale: initial value of the learned factor ``s`` of the similarities to class means.
        freeze_backbone: whether only the transformer is trained, as in CAML; BatchNorm layers then keep their
            statistics. Give ``backbone`` pretrained weights.
        align: whether features are standardised and sorted in each task; for tables, with the backbone ``PaddedRows``.
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
        align: bool = False,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(backbone, optimizer, lr_scheduler)
        check_positive(scale=scale)
        self.initial_scale, self.freeze_backbone = scale, freeze_backbone
        self.scale = nn.Parameter(torch.empty(()))
        self.align, size = align, backbone.out_features
        self.project = (
            nn.Linear(2 * size, width) if align else nn.Sequential(nn.LayerNorm(size), nn.Linear(size, width))
        )
        self.codes = nn.Embedding(2, width)
        self.reader = ContextTransformer(width, layers, heads)
        self.readout = ZeroLinear(width, 1)
        self.reset_parameters()
        if freeze_backbone:
            backbone.requires_grad_(False)

    def reset_parameters(self) -> None:
        """Resets the scale."""
        nn.init.constant_(self.scale, self.initial_scale)

    def fit_embeddings(self, support: Tensor, labels: Tensor) -> Prompt:
        """Reads the support sets."""
        ways = class_count(labels)
        own = class_members(labels, ways).transpose(1, 2).long()
        columns = fit_columns(support, labels, ways) if self.align else None
        rows, views = self._views(support, columns)
        return Prompt(class_prototypes(rows, labels, ways), self.reader.read(views + self.codes(own)), columns)

    def predict_embeddings(self, state: Prompt, queries: Tensor) -> Tensor:
        """Logits ``(T, Q, W)``."""
        rows, views = self._views(queries, state.columns)
        views = views.expand(-1, state.prototypes.shape[1], -1, -1)
        correction = self.readout(self.reader.answer(state.seen, views)).squeeze(-1).transpose(1, 2)
        scores = self._similarities(rows, state)
        logits: Tensor = scores + correction.to(scores.dtype)
        return logits

    def _similarities(self, rows: Tensor, state: Prompt) -> Tensor:
        """Similarities ``(T, Q, W)`` to the class means."""
        if state.columns is None:
            return prototype_scores(rows, state.prototypes, "cosine", self.scale)
        varying = state.columns.scale.ne(0).sum(-1, keepdim=True).clamp(min=1)
        return self.scale / varying * prototype_scores(rows, state.prototypes, "euclidean")

    def _views(self, x: Tensor, columns: Columns | None) -> tuple[Tensor, Tensor]:
        """Embeddings ``(T, N, E)`` as they are compared, and their tokens ``(T, W, N, width)`` or for all classes."""
        if columns is None:
            return x, self.project(x).unsqueeze(1)
        rows = standardised(x, columns)
        return rows, self.project(columns_by_class(rows, columns).to(x.dtype))

    def protocol(self) -> dict[str, Any]:
        """Adds whether the backbone is frozen and the features are aligned."""
        return super().protocol() | {"freeze_backbone": self.freeze_backbone, "align": self.align}
