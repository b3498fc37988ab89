"""SNAIL and what it reads its support set with, against a network written out over the whole sequence."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import messages
from contract import episode, small
from metatransfer import Conv4, RawFeatures, SNAILModule, UserError
from metatransfer.nn import CausalAttention, CausalDense


def sequence(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense_by_hand(layer, x):
    out = []
    for place, now in enumerate(x):
        earlier = x[place - layer.dilation] if place >= layer.dilation else torch.zeros_like(now)
        value, gate = (layer.gates.weight @ torch.cat([now, earlier]) + layer.gates.bias).chunk(2)
        out.append(torch.cat([now, value.tanh() * gate.sigmoid()]))
    return torch.stack(out)


def attention_by_hand(layer, x):
    query, key, value = (x @ layer.projections.weight.T + layer.projections.bias).split(layer.sizes, -1)
    out = []
    for place, now in enumerate(x):
        weights = ((key[: place + 1] @ query[place]) / math.sqrt(layer.sizes[0])).softmax(0)
        out.append(torch.cat([now, weights @ value[: place + 1]]))
    return torch.stack(out)


LAYERS = [
    *((CausalDense(3, 4, dilation), dense_by_hand) for dilation in (1, 2, 4, 9)),
    (CausalAttention(3, 5, 2), attention_by_hand),
]


@pytest.mark.parametrize(("layer", "by_hand"), LAYERS)
def test_layers_equal_a_loop_over_positions(layer, by_hand):
    layer, x = layer.double(), sequence(2, 6, 3)
    for given, found in zip(x, layer(x), strict=True):
        torch.testing.assert_close(found, by_hand(layer, given), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("layer", "by_hand"), LAYERS)
def test_alternatives_after_a_past_equal_whole_sequences(layer, by_hand):
    layer, past, asked = layer.double(), sequence(2, 5, 3), sequence(2, 4, 3, seed=1)
    found = layer.following(past, asked)
    for task in range(2):
        for query in range(4):
            whole = by_hand(layer, torch.cat([past[task], asked[task, query : query + 1]]))
            torch.testing.assert_close(found[task, query], whole[-1], rtol=1e-12, atol=1e-12)


def test_one_pass_equals_one_sequence_for_each_query_and_order():
    module = SNAILModule(RawFeatures((3,)), num_outputs=3, length=8, filters=8, orders=3).double().eval()
    x, y = sequence(2, 6, 3), torch.tensor([[0, 1, 2, 2, 1, 0], [1, 1, 0, 2, 2, 2]])
    queries = sequence(2, 4, 3, seed=1)
    with torch.no_grad():
        found = module.predict_tasks(module.fit_tasks(x, y), queries)
        orders = module.in_orders(torch.arange(6).unsqueeze(0))
        assert len({tuple(order) for order in orders.tolist()}) == 3
        for task in range(2):
            for query in range(4):
                chances = []
                for order in orders:
                    labelled = torch.cat([x[task, order], F.one_hot(y[task, order], 3).double()], -1)
                    whole = torch.cat([labelled, F.pad(queries[task, query], (0, 3)).unsqueeze(0)])
                    for layer in module.layers:
                        whole = (dense_by_hand if isinstance(layer, CausalDense) else attention_by_hand)(layer, whole)
                    chances.append(module.head(whole[-1]).softmax(-1))
                mean = torch.stack(chances).mean(0)
                torch.testing.assert_close(found[task, query].exp(), mean, rtol=1e-10, atol=1e-12)


def test_training_reads_the_order_that_it_is_given():
    module, x = SNAILModule(RawFeatures((3,)), num_outputs=3), sequence(2, 6, 3)
    assert torch.equal(module.train().in_orders(x), x)


def test_the_spread_between_orders_is_reported_and_the_outputs_are_those_of_forward():
    module, batch = small(SNAILModule, orders=3).double().eval(), episode().map(
        lambda part: part.double() if part.is_floating_point() else part
    )  # fmt: skip
    with torch.no_grad():
        outputs, more = module.evaluated(batch)
        torch.testing.assert_close(outputs, module(batch))
        state = module.fit_tasks(batch.support_x, batch.support_y)
        by_order = module.by_order(state, module.embed(batch.query_x))
        own = (by_order.argmax(-1) == batch.query_y.unsqueeze(1)).double().mean(-1)
    torch.testing.assert_close(more["order_spread"].double(), own.std(1), rtol=1e-6, atol=1e-6)
    module.evaluation.step(module, batch, "val")
    numbers = module.evaluation.metrics["val"].compute()
    assert numbers["order_spread"] == pytest.approx(own.std(1).mean().item(), rel=1e-5)
    assert "%" in module.evaluation.told("order_spread", {"value": 0.1})


def test_wrong_arguments_are_one_sentence():
    with pytest.raises(UserError, match="its evaluation needs orders of 2 or more, but orders=1") as error:
        SNAILModule(Conv4(), num_outputs=5, orders=1)
    messages.keep(str(error.value))
    with pytest.raises(UserError, match="needs num_outputs, the number of ways") as error:
        SNAILModule(Conv4())
    messages.keep(str(error.value))
    with pytest.raises(UserError, match="learns classes, but the targets are floats") as error:
        SNAILModule(RawFeatures((3,)), num_outputs=2).fit_tasks(torch.rand(1, 4, 3), torch.rand(1, 4, 2))
    messages.keep(str(error.value))
