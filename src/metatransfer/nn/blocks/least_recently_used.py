"""An external memory that is written where it was used least recently, with an LSTM as its controller."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metatransfer.nn.blocks.recurrent import Recurrent, in_full_precision, lstm_step

__all__ = ["LeastRecentlyUsedMemory", "MemoryState"]

Controller = Literal["lstm", "feed-forward"]
_STRENGTH = 5.0  # the smallest strength: where training starts, a sample should find what resembles it
_EPSILON = 1e-3  # added to the norm of a row, so that an empty one resembles nothing


class MemoryState(NamedTuple):
    """What the network remembers after some samples.

    Attributes:
        hidden: ``(N, H)``, with ``cell`` ``(N, H)`` the state of the controller.
        cell: see ``hidden``.
        read: ``(N, heads * W)`` what was read last.
        memory: ``(N, slots, W)``.
        weights: ``(N, heads, slots)`` where it was read last; rows sum to 1.
        usage: ``(N, slots)`` decayed sum of all that was read and written.
    """

    hidden: Tensor
    cell: Tensor
    read: Tensor
    memory: Tensor
    weights: Tensor
    usage: Tensor


class LeastRecentlyUsedMemory(Recurrent):
    r"""Least-recently-used access (Santoro et al. 2016, 1605.06065).

    At each step the controller, which also sees what was read last, gives for each head a key :math:`k`, a content
    :math:`a`, a gate :math:`\alpha` and a strength :math:`\beta`:

    .. math:: w^w &= \sigma(\alpha)\, w^r_{t-1} + (1 - \sigma(\alpha))\, w^{lu}_{t-1}, \qquad
              M_t(i) = M_{t-1}(i)\,[i \text{ not least used}] + \sum_h w^w_h(i)\, a_h \\
              w^r &= \mathrm{softmax}\bigl(\beta \cos(k, M_t(i))\bigr), \qquad r = \sum_i w^r(i) M_t(i), \qquad
              u_t = \gamma u_{t-1} + \sum_h (w^r_h + w^w_h)

    :math:`w^{lu}` gives each head one of the slots with the smallest usage :math:`u`. Two things are as in neural
    Turing machines and not as in the paper, where :math:`a = k` and :math:`\beta = 1`. With a content of its own, a
    sample can be written together with its label, which comes one step later, while the key already looks for the next
    sample. Without a strength, attention over many slots cannot be sharp. Both save most of the training.

    The projections of all inputs are computed at once before the first step, and all sequences take a step together.
    The usage only chooses slots and has no gradient.

    Args:
        in_features: size of the input.
        hidden: size of the controller.
        slots: rows of the memory.
        width: size ``W`` of a row.
        heads: number of heads, which read and write.
        decay: the decay :math:`\gamma` of the usage.
        controller: ``"lstm"``, or ``"feed-forward"`` for one layer with tanh, which remembers nothing itself.
    """

    def __init__(
        self,
        in_features: int,
        hidden: int = 200,
        slots: int = 128,
        width: int = 40,
        heads: int = 4,
        decay: float = 0.95,
        controller: Controller = "lstm",
    ) -> None:
        super().__init__()
        self.hidden, self.slots, self.width, self.heads, self.decay = hidden, slots, width, heads, decay
        self.controller: Controller = controller
        recalled, projected = (hidden + heads * width, 4 * hidden) if controller == "lstm" else (heads * width, hidden)
        self.inputs = nn.Linear(in_features, projected)
        self.recurrent = nn.Linear(recalled, projected, bias=False)
        self.access = nn.Linear(hidden, heads * (2 * width + 2))
        self.out_features = hidden + heads * width

    def initial(self, count: int, like: Tensor) -> MemoryState:
        """An empty memory for each of some sequences; unused slots are filled in order."""
        zeros = like.new_zeros
        usage = torch.linspace(0, 1e-6, self.slots, dtype=like.dtype, device=like.device).expand(count, -1)
        return MemoryState(
            zeros(count, self.hidden), zeros(count, self.hidden), zeros(count, self.heads * self.width),
            zeros(count, self.slots, self.width), zeros(count, self.heads, self.slots), usage,
        )  # fmt: skip

    def forward(self, x: Tensor, state: MemoryState | None = None) -> tuple[Tensor, MemoryState]:
        """``(N, S, C)`` to the hidden states and what was read, ``(N, S, out_features)``."""
        x, full = in_full_precision(self.inputs, x)
        state, features = self.initial(len(x), x) if state is None else state, []
        with full:
            for projected in self.inputs(x).unbind(1):
                state = self.step(projected, state)
                features += [state.hidden, state.read]
        return torch.cat(features, -1).view(*x.shape[:2], self.out_features), state

    def step(self, projected: Tensor, state: MemoryState) -> MemoryState:
        """The state after one more input of each sequence, given by its projection ``(N, 4H)``."""
        hidden, cell = self._controlled(projected, state)
        keys, contents, gate, strength = self._access(hidden)
        least = self._least_used(state.usage)
        written = torch.lerp(least, state.weights, gate)
        kept = state.memory * (1 - least.sum(1)).unsqueeze(-1)
        memory = torch.baddbmm(kept, written.mT, contents)
        weights = (strength * _cosines(keys, memory)).softmax(-1)
        used = (weights + written).detach().sum(1)
        return MemoryState(
            hidden, cell, (weights @ memory).flatten(1), memory, weights, self.decay * state.usage + used
        )

    def _controlled(self, projected: Tensor, state: MemoryState) -> tuple[Tensor, Tensor]:
        """The next hidden state and cell of the controller."""
        if self.controller == "feed-forward":
            return (projected + self.recurrent(state.read)).tanh(), state.cell
        recalled = torch.cat([state.hidden, state.read], -1)
        return lstm_step(projected + self.recurrent(recalled), state.cell)

    def _access(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Keys and contents ``(N, heads, W)``, gates and strengths ``(N, heads, 1)``."""
        found = self.access(hidden).view(-1, self.heads, 2 * self.width + 2)
        keys, contents = found[..., :-2].tanh().chunk(2, -1)
        return keys, contents, found[..., -2:-1].sigmoid(), _STRENGTH + F.softplus(found[..., -1:])

    def _least_used(self, usage: Tensor) -> Tensor:
        """A slot of small usage for each head, one-hot ``(N, heads, slots)``."""
        places = usage.topk(self.heads, largest=False).indices
        return usage.new_zeros(*places.shape, self.slots).scatter_(-1, places.unsqueeze(-1), 1.0)


def _cosines(keys: Tensor, memory: Tensor) -> Tensor:
    """Cosines ``(N, heads, slots)`` of keys with the rows of memories."""
    rows = memory.norm(dim=-1).unsqueeze(1) + _EPSILON
    cosines: Tensor = F.normalize(keys, dim=-1) @ memory.mT / rows
    return cosines
