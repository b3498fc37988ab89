"""Self-attention of sets against a written-out loop."""

from __future__ import annotations

import math

import torch

from metatransfer.nn import SetAttention


def by_loop(block, members, related):
    adapted = []
    for place, member in enumerate(members):
        others = [other for other in range(len(members)) if related[place][other]]
        query = block.query.weight @ member
        scores = torch.stack([query @ (block.key.weight @ members[other]) / math.sqrt(len(member)) for other in others])
        values = torch.stack([block.value.weight @ members[other] for other in others])
        x = member + block.output.weight @ (scores.softmax(0) @ values) + block.output.bias
        x = (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()
        adapted.append(block.norm.weight * x + block.norm.bias)
    return torch.stack(adapted)


def test_each_member_attends_to_its_set():
    torch.manual_seed(0)
    block, x = SetAttention(4).double(), torch.randn(2, 5, 4, dtype=torch.float64)
    labels = torch.tensor([[0, 1, 0, 2, 1], [0, 0, 0, 1, 1]])
    within = labels.unsqueeze(2) == labels.unsqueeze(1)
    with torch.no_grad():
        for related in (None, within):
            found = block(x, related)
            for task in range(2):
                chosen = torch.ones(5, 5, dtype=torch.bool) if related is None else related[task]
                torch.testing.assert_close(found[task], by_loop(block, x[task], chosen), rtol=1e-9, atol=1e-10)
        order = torch.randperm(5)
        torch.testing.assert_close(block(x[:, order]), block(x)[:, order], rtol=1e-9, atol=1e-10)
