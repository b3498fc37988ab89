"""MANN: what it remembers against a loop over tasks and slots, the offset of the labels, accuracy by instance."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import messages
from contract import episode
from metatransfer import Conv4, MANNModule, RawFeatures, UserError
from metatransfer.methods.memory.mann import instances
from metatransfer.nn import LSTM, LeastRecentlyUsedMemory


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def by_hand(network, x):
    """The features of one sequence ``(S, C)``, one step, head and slot at a time, from the formulas of the paper."""
    hidden, cell = torch.zeros(network.hidden).double(), torch.zeros(network.hidden).double()
    rows = [torch.zeros(network.width).double() for _ in range(network.slots)]
    usage, read = (
        [1e-6 * i / (network.slots - 1) for i in range(network.slots)],
        [[0.0] * network.slots] * network.heads,
    )
    known, features = torch.zeros(network.heads * network.width).double(), []
    for sample in x:
        gates = network.inputs(sample) + network.recurrent.weight @ torch.cat([hidden, known])
        i, f, o, g = gates.chunk(4)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()
        access = network.access(hidden).view(network.heads, -1)
        least = sorted(range(network.slots), key=lambda slot: usage[slot])[: network.heads]
        rows = [row * (slot not in least) for slot, row in enumerate(rows)]
        written = []
        for head in range(network.heads):
            gate = sigmoid(float(access[head, -2]))
            own = [gate * read[head][slot] + (1 - gate) * (slot == least[head]) for slot in range(network.slots)]
            written.append(own)
            rows = [row + own[slot] * access[head, network.width : -2].tanh() for slot, row in enumerate(rows)]
        read = []
        for head in range(network.heads):
            key, strength = access[head, : network.width].tanh(), 5 + float(F.softplus(access[head, -1]))
            cosines = [float(key @ row / (key.norm() * (row.norm() + 1e-3))) for row in rows]
            scores = [math.exp(strength * cosine) for cosine in cosines]
            read.append([score / sum(scores) for score in scores])
        known = torch.cat([sum(w * row for w, row in zip(own, rows, strict=True)) for own in read])
        used = [sum(one[slot] for one in read + written) for slot in range(network.slots)]
        usage = [network.decay * old + new for old, new in zip(usage, used, strict=True)]
        features.append(torch.cat([hidden, known]))
    return torch.stack(features)


def test_scan_equals_a_loop_over_sequences_heads_and_slots():
    network, x = LeastRecentlyUsedMemory(5, hidden=6, slots=7, width=4, heads=2).double(), 3 * drawn(3, 9, 5)
    with torch.no_grad():
        network.access.weight.mul_(4)  # gates and keys that differ
        found, _ = network(x)
        for sequence, features in zip(x, found, strict=True):
            torch.testing.assert_close(features, by_hand(network, sequence), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("network", [LeastRecentlyUsedMemory(5, 6, 7, 4, 2), LSTM(5, 6)])
def test_a_sequence_may_be_continued(network):
    network, x = network.double(), drawn(3, 9, 5)
    whole, end = network(x)
    first, state = network(x[:, :4])
    rest, found = network(x[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, rest], 1), whole)
    for one, two in zip(found, end, strict=True):
        torch.testing.assert_close(one, two)


def test_autocast_does_not_round_the_memory():
    network, x = LeastRecentlyUsedMemory(5, 6, 7, 4, 2), drawn(3, 9, 5).float()
    expected, _ = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        found, state = network(x)
    assert torch.equal(found, expected)
    assert state.memory.dtype == torch.float32


def module(**arguments):
    torch.manual_seed(0)
    return MANNModule(RawFeatures((4,)), num_outputs=3, hidden=8, shape=(9, 5), heads=2, **arguments).double()


@pytest.mark.parametrize("memory", [True, False])
def test_a_label_reaches_no_prediction_up_to_its_own(memory):
    """The leak test: whoever sees a label at its own sample is right at the first instance."""
    method, x, y = module(memory=memory).train(), drawn(1, 8, 4), torch.tensor([[0, 1, 2, 0, 1, 2, 0, 1]])
    said = method.read(x, y).said
    for place in range(8):
        other = y.clone()
        other[0, place] = (other[0, place] + 1) % 3
        changed = (method.read(x, other).said - said).abs().amax((0, 2)) > 0
        assert changed.tolist() == [at > place for at in range(8)]


@pytest.mark.parametrize("memory", [True, False])
def test_a_query_is_the_next_sample_of_the_stream(memory):
    method, x, y = module(memory=memory).train(), drawn(2, 6, 4), torch.tensor([[0, 1, 2, 0, 1, 2], [2, 2, 1, 0, 1, 0]])
    queries = drawn(2, 3, 4, seed=1)
    found = method.answer(method.read(x, y), queries)
    for place in range(3):
        longer = torch.cat([x, queries[:, place : place + 1]], 1)
        unknown = torch.cat([y, torch.zeros(2, 1, dtype=torch.long)], 1)
        torch.testing.assert_close(found[:, place], method.read(longer, unknown).said[:, -1])


def test_accuracy_by_instance_is_that_of_the_stream():
    assert instances(torch.tensor([[0, 1, 0, 0, 1, 2]])).tolist() == [[1, 1, 2, 3, 2, 1]]
    method = module(orders=2).eval()
    batch = episode(shots=2).map(lambda t: t.double() if t.is_floating_point() else t)
    batch = batch._replace(support_x=drawn(2, 6, 4), query_x=drawn(2, 12, 4, seed=1))
    with torch.no_grad():
        _, more = method.evaluated(batch)
        said = method.fit_tasks(batch.support_x, batch.support_y).said
    labels = method.in_orders(batch.support_y)
    for number in (1, 2):
        right = [[], []]
        for row in range(4):
            seen = [0, 0, 0]
            for place, label in enumerate(labels[row].tolist()):
                seen[label] += 1
                if seen[label] == number:
                    right[row // 2].append(float(said[row, place].argmax() == label))
        assert more[f"accuracy_at_instance_{number}"].tolist() == pytest.approx([sum(one) / 6 for one in right])
    assert more["accuracy_at_instance_5"].isnan().all()
    method.evaluation.step(method, batch, "val")
    numbers = method.evaluation.metrics["val"].compute()
    assert numbers["accuracy_at_instance_2"] == pytest.approx(more["accuracy_at_instance_2"].double().mean().item())
    assert "accuracy_at_instance_5" not in numbers
    assert method.evaluation.told("accuracy_at_instance_2", {"value": 0.5}) == "50.00 %"


def test_the_stream_and_the_queries_are_trained():
    method, batch = module().train(), episode(shots=2)
    batch = batch._replace(support_x=drawn(2, 6, 4), query_x=drawn(2, 12, 4, seed=1))
    loss, outputs = method.training_loss(batch)
    embedded = method.embed(torch.cat([batch.support_x, batch.query_x], 1))
    said = method.read(embedded[:, :6], batch.support_y).said
    parts = [F.cross_entropy(one.flatten(0, 1), y.flatten(), reduction="sum")
             for one, y in ((said, batch.support_y), (outputs, batch.query_y))]  # fmt: skip
    torch.testing.assert_close(loss, sum(parts) / 36)


def test_wrong_arguments_are_one_sentence():
    with pytest.raises(UserError, match="orders of 2 or more, but orders=1") as error:
        MANNModule(Conv4(), num_outputs=5, orders=1)
    messages.keep(str(error.value))
    with pytest.raises(UserError, match=r"that of the slots \(at least heads=4\) and .* but is \[3, 40\]") as error:
        MANNModule(Conv4(), num_outputs=5, shape=[3, 40], heads=4)
    messages.keep(str(error.value))
    with pytest.raises(UserError, match="4 classes, but this MANNModule was built for 3") as error:
        module().float().adapt(torch.rand(4, 4), list("abcd"))
    messages.keep(str(error.value))
