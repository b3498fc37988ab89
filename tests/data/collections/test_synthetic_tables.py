"""Tables from random causal models: pure functions of their keys, with the promised classes, columns and signal."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import messages
from metatransfer import Episodes, EpisodicDataModule, SyntheticTables, Task, UserError
from metatransfer.data.collections.synthetic_tables import class_shares, curved, intervals, largest
from metatransfer.functional.random import stream_keys

CPU = torch.device("cpu")


def generated(count=200, shots=6, queries=3, **arguments):
    generator = SyntheticTables(**{"max_features": 8, "max_classes": 4, **arguments}).parts()["train"]
    return generator.generate(stream_keys(0, 0, np.arange(count)), shots, queries, CPU)


def test_every_class_has_a_support_sample_and_numbers_vary():
    batch = generated()
    assert batch.support_x.shape == (200, 24, 8)
    assert batch.query_x.shape == (200, 12, 8)
    assert batch.support_x.dtype == torch.float32
    assert batch.support_x.isfinite().all()
    assert batch.query_x.isfinite().all()
    for support, query in zip(batch.support_y, batch.query_y, strict=True):
        assert set(query.tolist()) <= set(support.tolist())
    assert set((batch.support_y.amax(1) + 1).tolist()) == {2, 3, 4}
    columns = batch.support_x.ne(0).any(1)
    assert set(columns.sum(1).tolist()) >= {2, 4, 6, 8}
    assert (columns.long().diff(dim=1) <= 0).sum() > 0.99 * 200 * 7  # the columns of 0 are the last


def test_a_task_depends_on_its_key_alone():
    together, keys = generated(20), stream_keys(0, 0, np.array([7]))
    alone = SyntheticTables(8, 4).parts()["val"].generate(keys, 6, 3, CPU)
    for whole, part in zip(together[:4], alone[:4], strict=True):
        torch.testing.assert_close(whole[7:8], part)
    assert not torch.equal(together.support_x[0], together.support_x[1])


def test_columns_say_something_about_the_class():
    """Nearest class means of standardised columns are right more often than the most frequent class."""
    batch = generated(300, shots=12)
    mean, deviation = batch.support_x.mean(1, keepdim=True), batch.support_x.std(1, keepdim=True).clamp(min=1e-6)
    support, queries = (batch.support_x - mean) / deviation, (batch.query_x - mean) / deviation
    members = torch.nn.functional.one_hot(batch.support_y, 4).float()
    means = members.transpose(1, 2) @ support / members.sum(1).clamp(min=1).unsqueeze(-1)
    distance = torch.cdist(queries, means).masked_fill(members.sum(1).eq(0).unsqueeze(1), torch.inf)
    right = (distance.argmin(-1) == batch.query_y).float().mean()
    frequent = (members.sum(1).argmax(-1, keepdim=True) == batch.query_y).float().mean()
    assert right > frequent + 0.05


def test_classes_by_hand():
    shares = class_shares(torch.tensor([[0.25, 0.25, 0.9], [0.75, 0.25, 0.0]]).double(), torch.tensor([2, 3]))
    torch.testing.assert_close(shares, torch.tensor([[0.5, 0.5, 0.0], [4 / 7, 2 / 7, 1 / 7]]).double())
    values = torch.tensor([[3.0, 1.0, 2.0, 0.0]]).double()
    assert intervals(values, shares[:1]).tolist() == [[1, 0, 1, 0]]
    scores = torch.tensor([[[0.0, 0.1, 9.0], [0.2, 0.1, 9.0]]]).double()
    assert largest(scores, shares[:1]).tolist() == [[1, 0]]  # never the class without a share


def test_some_columns_are_rounded_binary_or_skewed():
    class Chosen:
        def uniform(self, *shape):
            return torch.tensor([[[0.1, 0.2, 0.5, 0.95]]]).double()

        def normal(self, *shape):
            return torch.zeros(1, *shape).double()

    x = torch.tensor([[[1.4] * 4, [-0.6] * 4]]).double()
    expected = [[[1.0, 1.0, 1.4, np.exp(1.4)], [-1.0, 0.0, -0.6, np.exp(-0.6)]]]
    torch.testing.assert_close(curved(x, Chosen()), torch.tensor(expected).double())


def test_served_with_numbers_of_shots_that_vary():
    data = EpisodicDataModule(
        SyntheticTables(5, 3, min_shots=2), Task(num_shots=4, num_queries=1), episodes=Episodes(64, 8, 8, 8)
    )
    data.setup("fit")
    shots = {one.support_y.shape[1] for one in data.open("train").batch(np.arange(320), CPU)}
    assert shots == {6, 9, 12}
    assert data.info().sample_shape == (5,)


def test_more_features_than_the_model_has_nodes():
    with pytest.raises(UserError, match="at most 72 features and 32 classes, but max_features=81") as error:
        SyntheticTables(81)
    messages.keep(str(error.value))
    with pytest.raises(UserError, match="max_classes"):
        SyntheticTables(max_classes=1)
