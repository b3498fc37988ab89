"""Matching networks: attention against loops, with and without the context of the support set."""

import numpy as np
import pytest
import torch

from contract import episode
from metatransfer import Conv4, Episode, MatchingNetModule, UserError
from metatransfer.functional.random import random_permutations, stream_keys
from metatransfer.methods.evaluation.on_episodes import episode_figures
from metatransfer.nn.blocks import FullContextEmbedding


def doubles(**arguments):
    return episode(**arguments).map(lambda t: t.double() if t.is_floating_point() else t)


def attention_to_classes(queries, support, labels, similarity):
    found = torch.zeros(len(queries), int(labels.max()) + 1, dtype=queries.dtype)
    for row, query in enumerate(queries):
        weights = torch.stack([similarity(query, one) for one in support]).softmax(0)
        for weight, label in zip(weights, labels, strict=True):
            found[row, label] += weight
    return found


SIMILARITIES = {
    "cosine": lambda a, b: 7 * a @ b / (a.norm() * b.norm()),
    "euclidean": lambda a, b: -(a - b).square().sum(),
}


@pytest.mark.parametrize("distance", SIMILARITIES)
def test_probabilities_are_the_attention_to_the_samples_of_a_class(distance):
    module, batch = MatchingNetModule(Conv4(hidden_channels=4), distance, scale=7.0).double().eval(), doubles()
    with torch.no_grad():
        found = module(batch).softmax(-1)
        for task in range(2):
            support, queries = module.backbone(batch.support_x[task]), module.backbone(batch.query_x[task])
            expected = attention_to_classes(queries, support, batch.support_y[task], SIMILARITIES[distance])
            torch.testing.assert_close(found[task], expected, rtol=1e-9, atol=1e-12)


def cell(module, x, state):
    """An LSTM cell by its equations."""
    hidden, memory = state
    gates = module.weight_ih @ x + module.bias_ih + module.weight_hh @ hidden + module.bias_hh
    let_in, forget, new, out = gates.chunk(4)
    memory = forget.sigmoid() * memory + let_in.sigmoid() * new.tanh()
    return out.sigmoid() * memory.tanh(), memory


def test_full_context_embeddings_against_a_loop():
    torch.manual_seed(0)
    block = FullContextEmbedding(3, processing_steps=4).double()
    support, queries = torch.randn(2, 5, 3).double(), torch.randn(2, 4, 3).double()
    with torch.no_grad():
        read = block.support(support)
        found = block.queries(queries, read)
        for task in range(2):
            one = {}
            for suffix, order in (("", range(5)), ("_reverse", reversed(range(5)))):
                weights = {name: getattr(block.reader, f"{name}_l0{suffix}") for name in
                           ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}  # fmt: skip
                part, state = type("Cell", (), weights), (torch.zeros(3).double(),) * 2
                for place in order:
                    state = cell(part, support[task, place], state)
                    one[suffix, place] = state[0]
            expected = torch.stack([one["", i] + one["_reverse", i] + support[task, i] for i in range(5)])
            torch.testing.assert_close(read[task], expected)
            for query, answer in zip(queries[task], found[task], strict=True):
                hidden = memory = seen = torch.zeros(3).double()
                for _ in range(4):
                    hidden, memory = cell(block.cell, torch.cat([query, seen]), (hidden, memory))
                    hidden = hidden + query
                    seen = (expected @ hidden).softmax(0) @ expected
                torch.testing.assert_close(answer, hidden)


def test_with_full_context_the_order_matters_and_is_declared():
    plain = MatchingNetModule(Conv4(hidden_channels=4))
    module, batch = MatchingNetModule(Conv4(hidden_channels=4), full_context=True).double().eval(), doubles()
    assert module.order_sensitive
    assert not plain.order_sensitive
    assert module.protocol()["processing_steps"] == 5
    other = batch._replace(query_x=torch.cat([batch.query_x[:, :1], torch.rand_like(batch.query_x[:, 1:])], 1))
    flipped = batch._replace(support_x=batch.support_x.flip(1), support_y=batch.support_y.flip(1))
    with torch.no_grad():
        torch.testing.assert_close(module(batch)[:, 0], module(other)[:, 0])
        assert not torch.allclose(module(batch), module(flipped))
    module.train().training_loss(batch)[0].backward()
    assert all(value.grad.isfinite().all() for value in module.parameters())
    assert module.untrained_twin() is not None


def test_with_full_context_probabilities_are_averaged_over_orders():
    module, batch = MatchingNetModule(Conv4(hidden_channels=4), full_context=True, orders=3).double().eval(), doubles()
    places = random_permutations(stream_keys(np.arange(3)), batch.support_y.shape[1])
    assert len({tuple(order) for order in places.tolist()}) == 3
    with torch.no_grad():
        support, queries = module.embed(batch.support_x), module.embed(batch.query_x)
        alone = [
            module.answer(module.read(support[:, order], batch.support_y[:, order]), queries).softmax(-1)
            for order in places
        ]
        outputs, scores = module.evaluated(batch)
        torch.testing.assert_close(outputs.exp(), sum(alone) / 3)
        torch.testing.assert_close(outputs, module(batch))
        own = torch.stack([(one.argmax(-1) == batch.query_y).float().mean(1) for one in alone])
        torch.testing.assert_close(scores["order_spread"], own.std(0))
    assert module.protocol()["orders"] == 3
    assert MatchingNetModule(Conv4(hidden_channels=4)).eval().evaluated(episode())[1] == {}


def test_a_class_without_samples_has_no_share_and_no_gradient():
    module = MatchingNetModule(Conv4(hidden_channels=4)).train()
    x = torch.rand(1, 3, 1, 28, 28)
    batch = Episode(x, torch.tensor([[0, 2, 2]]), x, torch.tensor([[0, 2, 2]]))
    loss, outputs = module.training_loss(batch)
    loss.backward()
    assert outputs.softmax(-1)[..., 1].eq(0).all()
    assert all(value.grad.isfinite().all() for value in module.parameters())


@pytest.mark.parametrize("full_context", [False, True])
def test_support_scores_are_the_attention(full_context):
    module = MatchingNetModule(Conv4(hidden_channels=4), full_context=full_context, orders=3).double().eval()
    batch = doubles(shots=2)
    with torch.no_grad():
        scores = module.support_scores(batch).values
        members = torch.nn.functional.one_hot(batch.support_y).double()
        torch.testing.assert_close(scores @ members, module(batch).softmax(-1))


def test_wrong_arguments():
    with pytest.raises(UserError, match="distance must be one of cosine, euclidean"):
        MatchingNetModule(Conv4(), distance="manhattan")
    with pytest.raises(UserError, match="scale must be a number above 0"):
        MatchingNetModule(Conv4(), scale=0)
    with pytest.raises(UserError, match="processing_steps"):
        MatchingNetModule(Conv4(), full_context=True, processing_steps=0)
    with pytest.raises(UserError, match="orders of 2 or more, but orders=1"):
        MatchingNetModule(Conv4(), full_context=True, orders=1)
    MatchingNetModule(Conv4(), orders=1)  # has no order


def test_the_figure_shows_queries_against_the_support_set():
    module = MatchingNetModule(Conv4(hidden_channels=4)).eval()
    figure = episode_figures(module, episode(shots=2), "val", "accuracy")["val_support_scores"]
    axis = figure.axes[0]
    assert "attention" in figure.get_suptitle()
    assert len(axis.texts) == 9 * 6  # up to ten queries, the same number of each class
    assert len(axis.patches) == 9 * 2  # two shots of the query's own class
