"""ANIL."""

from typing import Any

from torch import Tensor, nn

from metatransfer.batches import Inputs
from metatransfer.functional.meta import Forward, Params, concatenated, over_tasks, sample_axes, stateless
from metatransfer.methods.gradient.base import AdaptedTasks
from metatransfer.methods.gradient.maml import MAMLModule


class ANILModule(MAMLModule):
    r"""ANIL (Raghu, Raghu, Bengio, Vinyals 2020, 1909.09157): MAML whose inner loop adapts only the head.

    .. math:: \psi_i = \psi - \alpha\nabla_\psi \mathcal L_{S_i}(\phi, \psi), \qquad
              \min_{\phi,\psi} \frac1T\sum_i \mathcal L_{Q_i}(\phi, \psi_i)

    The outer loop trains the features :math:`\phi` too. Since no inner step changes them, they are computed once, for
    support and queries, and an inner step costs no more than the head does. The arguments are those of
    :class:`MAMLModule`.
    """

    def adapted_parameters(self) -> Params:
        """The parameters of the head."""
        return {name: value for name, value in super().adapted_parameters().items() if name.startswith("head.")}

    def features(self, x: Inputs, statistics_rows: int | None = None) -> Tensor:
        """Features ``(T, N, E)`` of samples, with BatchNorm statistics of the leading rows of each task."""
        forward = stateless(self.backbone, running=self.batch_norm == "running" and not self.training)

        def of_task(x: Inputs) -> Tensor:
            return forward({}, x, statistics_rows)  # type: ignore[no-any-return]

        way = self.execution.batching_for(self.network, x)
        return over_tasks(of_task, x, batching=way, chunk_size=self.execution.chunk_size)

    def predict_tasks(self, state: AdaptedTasks, query_x: Inputs) -> Any:  # noqa: ANN401
        """Outputs of the adapted heads."""
        if self.batch_norm != "support":
            return super().predict_tasks(state, self.features(query_x))
        # every layer normalises queries by the statistics of the support set
        shots = sample_axes(state.support_x, 2)[1]
        features = self.features(concatenated(state.support_x, query_x, 1), shots)
        return super().predict_tasks(state._replace(support_x=features[:, :shots]), features[:, shots:])

    def adapt_through(
        self, support_x: Inputs, support_y: Tensor, trajectory: bool = False, rows: Tensor | None = None
    ) -> list[AdaptedTasks]:
        """Runs the inner loop of every task on its features."""
        states = super().adapt_through(self.features(support_x), support_y, trajectory, rows)
        return [state._replace(support_x=support_x) for state in states]

    def _forward(self, x: Inputs) -> Forward:
        readout = nn.Sequential()
        readout.add_module("head", self.head)  # with the parameter names of the whole network
        return stateless(readout, running=self.batch_norm == "running" and not self.training)
