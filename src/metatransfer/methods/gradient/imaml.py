"""Implicit MAML."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from metatransfer.batches import Episode, Inputs
from metatransfer.checks import check_count, check_not_negative, check_positive
from metatransfer.functional.meta.batching import known_gradients, over_tasks
from metatransfer.functional.meta.inner_loop import all_finite
from metatransfer.functional.meta.inputs import as_precise
from metatransfer.functional.meta.linear_systems import conjugate_gradient
from metatransfer.functional.meta.stateless import BatchNormPolicy
from metatransfer.functional.meta.threads import MATH_ATTENTION
from metatransfer.functional.meta.update_rules import Params, PlainRule, UpdateRule
from metatransfer.methods.gradient.maml import MAMLModule
from metatransfer.methods.options import EXECUTION, Execution, InnerLoop, check_unused
from metatransfer.nn import Backbone, Head, LinearHead

INNER = InnerLoop(steps=16, lr=0.1)


@dataclass(frozen=True)
class ImplicitSolver:
    r"""How the outer gradient of :class:`IMAMLModule` is solved for.

    Attributes:
        steps: number of steps of conjugate gradients (5 in the paper).
        damping: :math:`\delta`, which is added to :math:`\lambda` in the linear system (10 in the implementation of the
            authors). 0 gives the exact gradient of a converged inner loop. The larger it is, the closer the gradient is
            to that of first-order MAML, and the less it is disturbed by large or negative curvatures.

    Raises:
        UserError: an argument is out of range.
    """

    steps: int = 5
    damping: float = 10.0

    def __post_init__(self) -> None:
        check_count(**{"solver.steps": self.steps})
        check_not_negative(**{"solver.damping": self.damping})


SOLVER = ImplicitSolver()


class IMAMLModule(MAMLModule):
    r"""iMAML (Rajeswaran, Finn, Kakade, Levine 2019, 1909.04630): MAML with an implicit outer gradient.

    The inner loop minimises the support loss and a proximal term by gradient descent from :math:`\theta`:

    .. math:: \phi_i = \arg\min_\phi \mathcal L_{S_i}(\phi) + \frac\lambda2\lVert\phi - \theta\rVert^2

    At the minimum, the gradient of the query loss with respect to :math:`\theta` depends on :math:`\phi_i` alone:

    .. math:: \nabla_\theta = \frac1T\sum_i \Bigl(I + \frac1{\lambda+\delta}\nabla^2\mathcal L_{S_i}(\phi_i)\Bigr)^{-1}
              \nabla\mathcal L_{Q_i}(\phi_i), \qquad \delta = 0

    It is computed by a few steps of conjugate gradients, each a product with the Hessian. Time and memory of the outer
    gradient do not grow with the number of inner steps, but it is exact only where the inner loop has converged. As in
    the implementation of the authors, the system is damped by :math:`\delta > 0` unless ``solver.damping`` is 0. The
    steps converge if ``inner.lr`` is below :math:`2/(\lambda + L)`, where :math:`L` is the largest curvature of the
    support loss. The other arguments and the errors are those of :class:`MAMLModule`.

    Args:
        inner: the gradient steps on a support set; its options for gradients through the steps are not available.
        proximity: :math:`\lambda`, how strongly a task stays at the initial weights (2 in the paper).
        solver: how the linear system of the outer gradient is solved.
        execution: how the tasks of a meta-batch are computed; ``compile`` is not available.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_outputs: int | None = None,
        head: Callable[[int, int], Head] = LinearHead,
        inner: InnerLoop = INNER,
        proximity: float = 2.0,
        solver: ImplicitSolver = SOLVER,
        batch_norm: BatchNormPolicy = "transductive",
        execution: Execution = EXECUTION,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        options = {"inner.first_order": inner.first_order, "inner.checkpoint": inner.checkpoint}
        reason = "its outer gradient does not pass through the inner steps"
        check_unused("IMAMLModule", reason, **options, **{"execution.compile": execution.compile})
        check_positive(proximity=proximity)
        super().__init__(backbone, num_outputs, head, inner, batch_norm, execution, optimizer, lr_scheduler)
        self.proximity, self.solver = proximity, solver

    def update_rule(self) -> UpdateRule | PlainRule:
        """Gradient descent on the support loss with the proximal term."""
        rate = self.inner.lr_in(self.training)
        start = {name: value.detach() for name, value in self.adapted_parameters().items()}

        def update(params: Params, gradients: Params, step: int) -> Params:
            return {
                name: value - rate * (gradients[name] + self.proximity * (value - start[name]))
                for name, value in params.items()
            }

        return update

    def takes_constants(self) -> bool:
        """Always true."""
        return True

    def part_loss(self, part: Episode) -> tuple[Tensor, Any, Tensor]:
        """The query loss of some tasks with its implicit gradient, the outputs, and whether all values are finite."""
        with torch.no_grad():
            state = self.adapt_through(part.support_x, part.support_y)[-1]
        if not torch.is_grad_enabled():
            loss, outputs = self.outer_loss([state], part)
            return loss, outputs, all_finite(state.params) & torch.isfinite(loss)
        found = {name: value.detach().requires_grad_() for name, value in state.params.items()}
        loss, outputs = self.outer_loss([state._replace(params=found)], part)
        right = dict(zip(found, torch.autograd.grad(loss, list(found.values()), materialize_grads=True), strict=True))
        product = self._curvature(found, part.support_x, part.support_y)
        solved = conjugate_gradient(product, right, self.solver.steps)
        start = self.adapted_parameters()
        gradients = [solved[name].sum(0) for name in start]  # the loss is a mean over tasks already
        finite = all_finite(state.params) & torch.isfinite(loss)
        return known_gradients(loss.detach(), gradients, list(start.values())), outputs, finite

    def _curvature(self, params: Params, support_x: Inputs, support_y: Tensor) -> Callable[[Params], Params]:
        r"""Products of :math:`I + \nabla^2\mathcal L_{S_i}/\lambda` with vectors, at parameters ``(T, *shape)``."""
        forward, fixed = self._forward(support_x), self.parameters_at(0)

        def support_loss(params: Params, x: Inputs, y: Tensor) -> Tensor:
            return self.inner_loss(forward({**fixed, **params}, x), y)

        # in the precision of the parameters, as the inner loop; the loss of a task depends only on its own parameters
        with torch.autocast(support_y.device.type, enabled=False), MATH_ATTENTION:
            way = self.execution.batching_for(self.network, support_x)
            x = as_precise(support_x, params)
            total = over_tasks(support_loss, params, x, support_y, batching=way).sum()
            leaves = list(params.values())
            slopes = torch.autograd.grad(total, leaves, create_graph=True, materialize_grads=True)

        scale = self.proximity + self.solver.damping

        def product(vector: Params) -> Params:
            if not any(slope.requires_grad for slope in slopes):  # a loss that is linear in its parameters
                return vector
            with torch.enable_grad(), torch.autocast(support_y.device.type, enabled=False):
                moved = torch.stack([(slope * vector[name]).sum() for name, slope in zip(params, slopes, strict=True)])
                found = torch.autograd.grad(moved.sum(), leaves, retain_graph=True, materialize_grads=True)
            return {name: vector[name] + change / scale for name, change in zip(params, found, strict=True)}

        return product

    def protocol(self) -> dict[str, Any]:
        """Adds the proximal term and the solver."""
        return super().protocol() | {
            "proximity": self.proximity, "train_solver_steps": self.solver.steps,
            "train_solver_damping": self.solver.damping,
        }  # fmt: skip
