"""Almost no inner loop."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metatransfer.functional.meta.batching import over_tasks
from metatransfer.functional.meta.stateless import Forward, stateless
from metatransfer.functional.meta.update_rules import Params
from metatransfer.methods.gradient.base import AdaptedTasks
from metatransfer.methods.gradient.maml import MAMLModule


class ANILModule(MAMLModule):
    r"""ANIL (Raghu, Raghu, Bengio, Vinyals 2020, 1909.09157): MAML whose inner loop adapts the head alone.

    .. math:: \psi_i = \psi - \alpha\nabla_\psi \mathcal L_{S_i}(\phi, \psi), \qquad
              \min_{\phi,\psi} \frac1T\sum_i \mathcal L_{Q_i}(\phi, \psi_i)

    The outer loop trains the features :math:`\phi` too. Since no inner step changes them, they are computed once, for
    support and queries, and an inner step costs no more than the head does. The arguments are those of
    :class:`MAMLModule`.
    """

    def adapted_parameters(self) -> Params:
        """Those of the head."""
        return {name: value for name, value in super().adapted_parameters().items() if name.startswith("head.")}

    def features(self, x: Tensor, statistics_rows: int | None = None) -> Tensor:
        """What the head learns from.

        Args:
            x: ``(T, N, *shape)``.
            statistics_rows: take BatchNorm statistics from the leading rows of each task, instead of all.

        Returns:
            ``(T, N, out_features)``.
        """
        forward = stateless(self.backbone, running=self.batch_norm == "running" and not self.training)

        def of_task(x: Tensor) -> Tensor:
            return forward({}, x, statistics_rows)

        return over_tasks(of_task, x, batching=self._batching(x), chunk_size=self.chunk_size)

    def predict_tasks(self, state: AdaptedTasks, query_x: Tensor) -> Tensor:
        """Outputs of the adapted heads."""
        if self.batch_norm != "support":
            return super().predict_tasks(state, self.features(query_x))
        # queries need the statistics of the support set in every layer, so that it goes along
        shots = state.support_x.shape[1]
        features = self.features(torch.cat([state.support_x, query_x], dim=1), shots)
        return super().predict_tasks(state._replace(support_x=features[:, :shots]), features[:, shots:])

    def _run(
        self, support_x: Tensor, support_y: Tensor, trajectory: bool, rows: Tensor | None = None
    ) -> list[AdaptedTasks]:
        states = super()._run(self.features(support_x), support_y, trajectory, rows)
        return [state._replace(support_x=support_x) for state in states]

    def _forward(self, x: Tensor) -> Forward:
        readout = nn.Sequential()
        readout.add_module("head", self.head)  # under the name that its parameters have in the whole network
        return stateless(readout, running=self.batch_norm == "running" and not self.training)
