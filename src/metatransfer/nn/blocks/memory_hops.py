"""Repeated reading of a memory of keys and values."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metatransfer.checks import check_choice, check_count

Update = Literal["sum", "mapped query", "mapped sum"]


class MemoryHops(nn.Module):
    r"""Reads a memory in several hops, each of which changes the query.

    A hop reads :math:`o = \sum_i a_i v_i` from the values with the attention :math:`a = \mathrm{softmax}_i(q^\top k_i)`
    to the keys. The next query is

    - ``"sum"``: :math:`q + o`, and keys and values are given for each hop (adjacent weight tying of Sukhbaatar et al.
      2015, 1503.08895);
    - ``"mapped query"``: :math:`Hq + o` (their layer-wise weight tying);
    - ``"mapped sum"``: :math:`R_h(q + o)` with a matrix for each hop (key-value memory, Miller et al. 2016,
      1606.03126).

    The matrices start as the identity.

    Args:
        size: size ``E`` of queries, keys and values.
        hops: number of hops.
        update: how a query changes.

    Raises:
        UserError: ``hops`` is below 1, or the update is unknown.
    """

    def __init__(self, size: int, hops: int, update: Update) -> None:
        super().__init__()
        check_count(size=size, hops=hops)
        check_choice("update", update, get_args(Update))
        self.size, self.hops, self.update = size, hops, update
        count = {"sum": 0, "mapped query": 1, "mapped sum": hops}[update]
        self.maps = nn.Parameter(torch.empty(count, size, size)) if count else torch.empty(0, size, size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Makes all matrices the identity."""
        with torch.no_grad():
            self.maps.copy_(torch.eye(self.size))

    def forward(
        self,
        query: Tensor,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        mask: Tensor | None = None,
        linear: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        r"""Reads a memory of ``S`` slots for ``Q`` queries.

        Args:
            query: ``(N, Q, E)``.
            keys: ``(N, S, E)`` for each hop.
            values: ``(N, S, E)`` for each hop.
            mask: ``(N, S)`` bool, which slots are in use; all if ``None``. Nothing is read from an empty memory.
            linear: scalar bool, whether the attention is :math:`q^\top k_i` without softmax (linear start).

        Returns:
            The queries after the last hop ``(N, Q, E)``, and the attention of all hops ``(N, hops, Q, S)``.
        """
        found = []
        for hop in range(self.hops):
            attention = attend(query, keys[hop], mask, linear)
            query = self._next(hop, query, attention @ values[hop])
            found.append(attention)
        return query, torch.stack(found, 1)

    def _next(self, hop: int, query: Tensor, read: Tensor) -> Tensor:
        if self.update == "sum":
            return query + read
        if self.update == "mapped query":
            return F.linear(query, self.maps[0]) + read
        return F.linear(query + read, self.maps[hop])


def attend(query: Tensor, keys: Tensor, mask: Tensor | None = None, linear: Tensor | None = None) -> Tensor:
    """Attention ``(N, Q, S)`` of queries to keys, arguments as of :class:`MemoryHops`."""
    scores = query @ keys.mT
    if mask is None:
        attention = scores.softmax(-1)
    else:
        used = mask.unsqueeze(1)
        # a finite number and a product, so that an empty memory gives zeros
        attention = scores.masked_fill(~used, torch.finfo(scores.dtype).min).softmax(-1) * used
        scores = scores * used
    return attention if linear is None else torch.where(linear, scores, attention)
