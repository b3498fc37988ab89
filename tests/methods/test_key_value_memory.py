"""Key-value memory of a support set: hops against a loop, uneven shots, labels as values."""

from __future__ import annotations

import pytest
import torch

from contract import episode
from metatransfer import Conv4, KeyValueMemoryModule, UserError


def doubles(**arguments):
    return episode(**arguments).map(lambda t: t.double() if t.is_floating_point() else t)


def made(**arguments):
    torch.manual_seed(0)
    module = KeyValueMemoryModule(Conv4(hidden_channels=4), **arguments).double().eval()
    torch.nn.init.normal_(module.hops.maps)
    return module


def by_hand(module, support, labels, query):
    keys = [module.length * one / one.norm() for one in support]
    codes = [
        torch.stack([key for key, label in zip(keys, labels, strict=True) if label == way]).mean(0)
        for way in range(int(labels.max()) + 1)
    ]
    query = module.length * query / query.norm()
    for matrix in module.hops.maps:
        attention = torch.stack([query @ key for key in keys]).softmax(0)
        read = sum(weight * codes[label] for weight, label in zip(attention, labels.tolist(), strict=True))
        query = matrix @ (query + read)
    return torch.stack([query @ code for code in codes]), attention


def test_logits_and_attention_equal_a_loop():
    module, batch = made(hops=3), doubles()
    keep = [0, 1, 2, 4, 5]  # the second class has one shot, the others two
    batch = batch._replace(support_x=batch.support_x[:, keep], support_y=batch.support_y[:, keep])
    with torch.no_grad():
        found, attention = module(batch), module.support_scores(batch).values
        for task in range(2):
            support, queries = module.backbone(batch.support_x[task]), module.backbone(batch.query_x[task])
            for place, query in enumerate(queries):
                expected, last = by_hand(module, support, batch.support_y[task], query)
                torch.testing.assert_close(found[task, place], expected, rtol=1e-9, atol=1e-9)
                torch.testing.assert_close(attention[task, place], last, rtol=1e-9, atol=1e-9)


def test_one_query_equal_to_a_key_reads_its_label():
    module = KeyValueMemoryModule(Conv4(hidden_channels=4), hops=1, scale=1000.0).double().eval()
    batch = doubles(tasks=1, shots=1)
    with torch.no_grad():
        found = module(batch._replace(query_x=batch.support_x, query_y=batch.support_y))
        attention = module.support_scores(batch._replace(query_x=batch.support_x)).values
    assert torch.equal(attention[0].argmax(-1), torch.arange(3))
    assert torch.equal(found[0].argmax(-1), batch.support_y[0])


def test_wrong_arguments_are_one_sentence():
    with pytest.raises(UserError, match="hops must be"):
        KeyValueMemoryModule(Conv4(), hops=0)
    with pytest.raises(UserError, match="scale must be"):
        KeyValueMemoryModule(Conv4(), scale=0.0)
