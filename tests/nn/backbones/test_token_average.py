"""The mean of word embeddings: against a loop, whatever is padded, and trained on texts that it can tell apart."""

import csv

import numpy as np
import pytest
import torch
from torch import nn

from metatransfer import LabelledDataModule, Texts, UserError
from metatransfer.batches import Tokens
from metatransfer.nn.backbones.token_average import TokenAverage


def tokens(rows, pad=0, length=None):
    length = length or max(map(len, rows))
    ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows])
    return Tokens(ids, torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows]))


ROWS = [[3, 4, 5, 4], [7], [9, 1]]


def test_it_is_the_mean_through_the_layers():
    network = TokenAverage(10, 6, hidden=(5, 4)).double()
    table = network.embedding.weight
    first, second = (layer for layer in network.layers if isinstance(layer, nn.Linear))
    for row, features in zip(ROWS, network(tokens(ROWS)), strict=True):
        mean = sum(table[token] for token in row) / len(row)
        expected = torch.relu(second.weight @ torch.relu(first.weight @ mean + first.bias) + second.bias)
        torch.testing.assert_close(features, expected, rtol=1e-12, atol=1e-12)
    assert network.out_features == 4


def test_padding_changes_nothing_and_learns_nothing():
    network = TokenAverage(10, 6, hidden=())
    assert network.out_features == 6
    short, long = network(tokens(ROWS)), network(tokens(ROWS, pad=8, length=9))
    torch.testing.assert_close(short, long)
    long.sum().backward()
    assert (network.embedding.weight.grad[8] == 0).all()
    empty = network(Tokens(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int64)))
    assert (empty == 0).all()


def test_embeddings_start_small_and_can_be_made_anew():
    network = TokenAverage(50, 20)
    before = network.embedding.weight.detach().clone()
    network.embedding.reset_parameters()
    assert not torch.equal(before, network.embedding.weight)
    for weight in (before, network.embedding.weight):
        assert 0.045 < float(weight.detach().abs().max()) <= 0.05
    assert sum(isinstance(layer, nn.Dropout) for layer in TokenAverage(50, dropout=0.5).layers) == 2


def test_weights_of_a_file(tmp_path):
    network = TokenAverage(10)
    torch.save(network.state_dict(), tmp_path / "w.pt")
    other = TokenAverage(10, weights=str(tmp_path / "w.pt"))
    torch.testing.assert_close(network(tokens(ROWS)), other(tokens(ROWS)))


def test_it_learns(tmp_path):
    generator = np.random.default_rng(0)
    topics = {f"topic {topic}": [f"w{topic}{word}" for word in range(8)] for topic in range(3)}
    with open(tmp_path / "t.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for place in range(240):
            label, words = list(topics.items())[place % 3]
            noise = [f"n{number}" for number in generator.integers(0, 30, 6)]
            writer.writerow([" ".join(generator.permutation([*generator.choice(words, 2), *noise])), label])
    data = LabelledDataModule(Texts(str(tmp_path / "t.csv")), batch_size=16)
    network = nn.Sequential(TokenAverage(data.info().vocabulary_size), nn.Linear(64, 3))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(10):
        for batch in data.train_dataloader():
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(batch.x), batch.y).backward()
            optimizer.step()
    right = [(network(batch.x).argmax(1) == batch.y).float() for batch in data.test_dataloader()]
    assert torch.cat(right).mean() > 0.9


def test_one_sentence():
    for arguments, words in {
        (None,): "needs vocabulary_size",
        (0,): "vocabulary_size must be a number above 0",
        (5, 0): "embedding_size must be a number above 0",
        (5, 4, (3, 0)): "hidden widths of 1 or more",
        (5, 4, (3,), 1.0): "dropout must be a fraction",
    }.items():
        with pytest.raises(UserError, match=words):
            TokenAverage(*arguments)
    with pytest.raises(UserError, match=r"reads texts as Tokens, but the samples are a tensor of shape \(2, 3, 8, 8\)"):
        TokenAverage(5)(torch.zeros(2, 3, 8, 8))
