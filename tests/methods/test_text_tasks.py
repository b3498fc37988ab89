"""Few-shot tasks of texts: inputs that are several tensors, in a loop, in threads and mapped."""

import pytest
import torch
from torch import nn

from inner_options import grouped
from metatransfer import (
    ANILModule,
    Backbone,
    Episode,
    MAMLModule,
    ProtoMAMLModule,
    ProtoNetModule,
    ReptileModule,
    TokenAverage,
    Tokens,
)
from metatransfer.functional import nearest_neighbor
from metatransfer.functional.meta.inputs import concatenated

WAYS, VOCABULARY = 3, 12


def texts(tasks, samples, length, draw):
    ids = torch.randint(VOCABULARY, (tasks, samples, length), generator=draw)
    lengths = torch.randint(1, length + 1, (tasks, samples, 1), generator=draw)
    return Tokens(ids, (torch.arange(length) < lengths).long())


def episode(tasks=3):
    draw, labels = torch.Generator().manual_seed(0), torch.arange(WAYS).expand(tasks, -1)
    return Episode(texts(tasks, WAYS, 5, draw), labels, texts(tasks, 2 * WAYS, 7, draw), labels.repeat(1, 2))


def built(kind, **options):
    torch.manual_seed(0)
    outputs = {} if kind in (ProtoMAMLModule, ProtoNetModule) else {"num_outputs": WAYS}
    options = options if kind is ProtoNetModule else grouped(kind, **options)
    return kind(TokenAverage(VOCABULARY, embedding_size=4, hidden=(5,)), **outputs, **options).double().train()


@pytest.mark.parametrize("kind", [MAMLModule, ANILModule, ProtoMAMLModule, ReptileModule])
@pytest.mark.parametrize(
    "options", [{"batching": "vmap"}, {"batching": "vmap", "chunk_size": 2}, {"batching": "threads"}]
)
def test_every_way_through_the_tasks_gives_the_gradients_of_the_loop(kind, options):
    threads, found = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        for chosen in ({"batching": "loop"}, options):
            module = built(kind, inner_steps=2, **chosen)
            loss, outputs = module.training_loss(episode())
            loss.backward()
            found.append([outputs, *(value.grad for value in module.parameters())])
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("kind", [MAMLModule, ANILModule, ProtoMAMLModule, ProtoNetModule])
def test_padding_changes_no_answer(kind):
    module, batch = built(kind).eval(), episode()
    padded = Tokens(*(nn.functional.pad(part, (0, 4)) for part in batch.query_x))
    torch.testing.assert_close(module(batch), module(batch._replace(query_x=padded)))


def test_the_norm_of_the_support_set_takes_its_texts_along():
    class Normed(Backbone):
        def __init__(self):
            super().__init__()
            self.embed, self.norm, self.out_features = TokenAverage(VOCABULARY, 4, ()), nn.BatchNorm1d(4), 4

        def forward(self, x):
            return self.norm(self.embed(x))

    module, batch = MAMLModule(Normed(), WAYS, batch_norm="support").eval(), episode()
    one = batch._replace(query_x=Tokens(*(part[:, :1] for part in batch.query_x)), query_y=batch.query_y[:, :1])
    torch.testing.assert_close(module(batch)[:, :1], module(one))  # the other queries play no part


def test_compiled_steps_take_texts(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda graph, **options: graph)
    losses = [built(MAMLModule, batching="vmap", compile=it).training_loss(episode())[0] for it in (False, True)]
    torch.testing.assert_close(*losses)


def test_the_nearest_text_shares_most_tokens():
    support = Tokens(torch.tensor([[[1, 2, 3], [4, 5, 0]]]), torch.tensor([[[1, 1, 1], [1, 1, 0]]]))
    query = Tokens(torch.tensor([[[5, 9], [3, 7]]]), torch.ones(1, 2, 2, dtype=torch.long))
    assert nearest_neighbor(support, torch.tensor([[0, 1]]), query).argmax(-1).tolist() == [[1, 0]]


def test_texts_of_different_lengths_are_joined():
    joined = concatenated(*(texts(1, 2, length, torch.Generator().manual_seed(0)) for length in (3, 5)), 1)
    assert joined.ids.shape == joined.mask.shape == (1, 4, 5)
    assert not joined.mask[:, :2, 3:].any()


def test_the_samples_of_the_unlabelled_set_travel_along():
    batch = episode()
    given = batch._replace(classes=torch.zeros(3, WAYS, dtype=torch.long), unlabelled_x=batch.query_x)
    seen = []

    class Seeing(MAMLModule):
        def outer_loss(self, states, episode):
            seen.append(episode)
            return super().outer_loss(states, episode)

    built(Seeing, batching="loop").training_loss(given)
    assert [len(one.classes) for one in seen] == [1, 1, 1]
    assert isinstance(seen[0].unlabelled_x, Tokens)
