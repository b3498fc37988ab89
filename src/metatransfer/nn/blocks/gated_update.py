"""The update of the LSTM meta-learner."""

import torch
from torch import Tensor, nn

from metatransfer.functional.meta.gradients import gradient_features

GateState = tuple[Tensor, Tensor, Tensor, Tensor]
"""Hidden state and cell ``(P, H)`` of the first layer, and the input and forget gates ``(P,)``."""


class GatedUpdate(nn.Module):
    r"""A step of the LSTM meta-learner (Ravi, Larochelle 2017): parameters as the cell state of an LSTM.

    .. math:: h_t, s_t = \mathrm{LSTM}\bigl((\nabla_t, \mathcal L_t), h_{t-1}, s_{t-1}\bigr), \qquad
              i_t = \sigma(W_I[h_t, \theta_{t-1}, i_{t-1}] + b_I),\quad
              f_t = \sigma(W_F[h_t, \theta_{t-1}, f_{t-1}] + b_F), \qquad
              \theta_t = f_t\,\theta_{t-1} - i_t\nabla_t

    All coordinates share the weights of the gates and have their own states. Gradients and losses enter as magnitude
    and sign, see :func:`~metatransfer.functional.meta.gradients.gradient_features`.

    Args:
        hidden_size: size ``H`` of the first layer.
        forget: initial value of the forget gate.
        rate: initial value of the input gate, the learning rate.
    """

    def __init__(self, hidden_size: int, forget: float, rate: float) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.initial = torch.tensor([rate, forget]).logit().tolist()
        # written out, because vmap does not support torch's LSTM
        self.cell = nn.Linear(4 + hidden_size, 4 * hidden_size)
        self.gates = nn.ModuleList(_Gate(hidden_size + 2, bias) for bias in self.initial)

    def start(self, values: Tensor) -> GateState:
        """The state before the first step on ``values`` ``(P,)``: zeros, and the initial gates."""
        zeros = values.new_zeros(*values.shape, self.hidden_size)
        rate, forget = (torch.full_like(values, bias).sigmoid() for bias in self.initial)
        return zeros, zeros, rate, forget

    def forward(self, values: Tensor, gradients: Tensor, loss: Tensor, state: GateState) -> tuple[Tensor, GateState]:
        """Moves ``values`` ``(P,)`` by their gradients ``(P,)`` at a loss, a scalar."""
        hidden, cell, rate, forget = state
        seen = torch.cat([gradient_features(gradients), gradient_features(loss).expand(*values.shape, 2), hidden], -1)
        let_in, keep, show, new = self.cell(seen).chunk(4, -1)
        cell = keep.sigmoid() * cell + let_in.sigmoid() * new.tanh()
        hidden = show.sigmoid() * cell.tanh()
        rate, forget = (
            gate(torch.cat([hidden, values.unsqueeze(-1), last.unsqueeze(-1)], -1)).squeeze(-1).sigmoid()
            for gate, last in zip(self.gates, (rate, forget), strict=True)
        )
        return forget * values - rate * gradients, (hidden, cell, rate, forget)


class _Gate(nn.Linear):
    """Starts near a constant."""

    def __init__(self, in_features: int, initial_bias: float) -> None:
        self.initial_bias = initial_bias
        super().__init__(in_features, 1)

    def reset_parameters(self) -> None:
        """Draws small weights; the bias decides how the gate starts."""
        nn.init.uniform_(self.weight, -0.01, 0.01)
        nn.init.constant_(self.bias, self.initial_bias)
