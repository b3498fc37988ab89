"""Prototypical networks as Gaussian classifiers."""

import math
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from metatransfer.checks import check_choice, check_positive
from metatransfer.functional.meta.gaussian import class_variances, diagonal_log_densities, full_log_densities
from metatransfer.functional.meta.prototypes import class_count, class_prototypes
from metatransfer.methods.embedding import EmbeddingModule
from metatransfer.nn import Backbone

Covariance = Literal["shared", "diagonal", "class"]


class GaussianClasses(NamedTuple):
    """State of ``T`` tasks.

    Attributes:
        means: ``(T, W, E)``.
        variances: ``(T, W, E)``, of ``covariance="class"``; ``None`` where the covariance does not depend on the task.
    """

    means: Tensor
    variances: Tensor | None


class GaussianProtoNetModule(EmbeddingModule[GaussianClasses]):
    r"""Prototypical networks (Snell et al. 2017, 1703.05175) with a learned covariance.

    With squared Euclidean distances, ProtoNet is the classifier of normal distributions around the prototypes whose
    covariance is half the identity. Here the covariance is learned in the outer loop, and the logits are

    .. math:: z_k = \log N(f(x);\, c_k, \Sigma_k)

    - ``"shared"``: one matrix for all tasks and classes, by the Cholesky factor of its inverse;
    - ``"diagonal"``: the same, but diagonal;
    - ``"class"``: a diagonal for each class, estimated from its support samples and shrunk towards a learned one:
      :math:`\sigma^2_k = (\kappa\sigma^2_0 + \sum_{i\in S_k}(f(x_i) - c_k)^2) / (\kappa + |S_k|)` with a learned
      :math:`\kappa`. With one sample, all classes have the learned diagonal. Gaussian prototypical networks (Fort 2017,
      1708.02735) predict a diagonal from each sample instead.

    All start from ProtoNet: half the identity. Ways and shots may differ between training and test.

    Args:
        backbone: the embedding ``f``.
        covariance: ``"shared"``, ``"diagonal"`` or ``"class"``.
        shrinkage: initial value of :math:`\kappa`, of ``covariance="class"``: the number of samples that the learned
            diagonal counts as.
        optimizer: creates the optimiser.
        lr_scheduler: creates its scheduler.

    Raises:
        UserError: ``covariance`` is unknown, or ``shrinkage`` is not positive.
    """

    def __init__(
        self,
        backbone: Backbone,
        covariance: Covariance = "diagonal",
        shrinkage: float = 5.0,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(backbone, optimizer, lr_scheduler)
        check_choice("covariance", covariance, ("shared", "diagonal", "class"))
        check_positive(shrinkage=shrinkage)
        self.covariance, self.initial_shrinkage = covariance, shrinkage
        size = backbone.out_features
        if covariance == "shared":
            self.lower = nn.Parameter(torch.empty(size, size))  # only what is below the diagonal is used
        if covariance == "class":
            self.log_shrinkage = nn.Parameter(torch.empty(()))
        self.log_variance = nn.Parameter(torch.empty(size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Resets the covariance to half the identity, and the shrinkage."""
        nn.init.constant_(self.log_variance, math.log(0.5))
        if self.covariance == "shared":
            nn.init.zeros_(self.lower)
        if self.covariance == "class":
            nn.init.constant_(self.log_shrinkage, math.log(self.initial_shrinkage))

    def precision_factor(self) -> Tensor:
        """The Cholesky factor ``(E, E)`` of the inverse of the shared covariance."""
        return self.lower.tril(-1) + torch.diag(torch.exp(-0.5 * self.log_variance))

    def fit_embeddings(self, support: Tensor, labels: Tensor) -> GaussianClasses:
        """The mean of each class, and its variances where they depend on the task."""
        ways = class_count(labels)
        means, variances = class_prototypes(support, labels, ways), None
        if self.covariance == "class":
            prior, weight = self.log_variance.exp(), self.log_shrinkage.exp()
            variances = class_variances(support, labels, ways, prior, weight)
        return GaussianClasses(means, variances)

    def predict_embeddings(self, state: GaussianClasses, queries: Tensor) -> Tensor:
        """Logarithms ``(T, Q, W)`` of the densities of the classes."""
        if self.covariance == "shared":
            return full_log_densities(queries, state.means, self.precision_factor())
        variances = self.log_variance.exp() if state.variances is None else state.variances
        return diagonal_log_densities(queries, state.means, variances)

    def protocol(self) -> dict[str, Any]:
        """Adds the kind of the covariance."""
        return super().protocol() | {"covariance": self.covariance}
