"""Neural Turing machine: addressing against loops over slots, the copy task, wrong bits per sequence."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import messages
from conftest import ROOT, results
from contract import episode
from metatransfer import CopyTask, NTMModule, UserError
from metatransfer.batches import SequenceBatch
from metatransfer.methods.evaluation.on_sequences import wrong_bits
from metatransfer.nn import LSTM, Addressing, NeuralTuringMachine, address

COPY = ROOT / "configs" / "copy" / "ntm.yaml"


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def address_by_hand(memory, previous, key, strength, gate, shift, sharpness):
    """One head, one slot at a time, from equations 5 to 9 of the paper."""
    slots = len(memory)
    cosines = [float(key @ row / (key.norm() * row.norm() + 1e-8)) for row in memory]
    exps = [math.exp(strength * cosine) for cosine in cosines]
    mixed = [gate * e / sum(exps) + (1 - gate) * float(old) for e, old in zip(exps, previous, strict=True)]
    shifted = [
        sum(float(shift[step + 1]) * mixed[(slot - step) % slots] for step in (-1, 0, 1)) for slot in range(slots)
    ]
    powers = [(one + 1e-8) ** sharpness for one in shifted]
    return [power / sum(powers) for power in powers]


def head(count, heads, width):
    return Addressing(
        drawn(count, heads, width, seed=1), 3 * drawn(count, heads, 1, seed=2).abs(),
        drawn(count, heads, 1, seed=3).sigmoid(), drawn(count, heads, 3, seed=4).softmax(-1),
        1 + drawn(count, heads, 1, seed=5).abs(),
    )  # fmt: skip


def test_addressing_equals_a_loop_over_slots():
    memory, previous, said = drawn(3, 6, 4), drawn(3, 2, 6, seed=6).softmax(-1), head(3, 2, 4)
    found = address(memory, previous, said)
    for one in range(3):
        for place in range(2):
            key, strength, gate, shift, sharpness = (part[one, place] for part in said)
            expected = address_by_hand(
                memory[one], previous[one, place], key, float(strength), float(gate), shift, float(sharpness)
            )
            assert found[one, place].tolist() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("step", "place"), [(0, 5), (1, 0), (2, 1)])
def test_a_shift_moves_along_the_ring(step, place):
    previous = F.one_hot(torch.tensor([[0]]), 6).double()
    shift = F.one_hot(torch.tensor([[step]]), 3).double()
    ones = torch.ones(1, 1, 1).double()
    found = address(drawn(1, 6, 4), previous, Addressing(drawn(1, 1, 4), ones, 0 * ones, shift, 2 * ones))
    assert found.argmax() == place
    assert found.max() > 0.999


def test_machine_equals_the_equations_written_out():
    machine, x = NeuralTuringMachine(3, hidden=5, slots=6, width=4).double(), drawn(1, 7, 3)
    with torch.no_grad():
        machine.heads.weight.mul_(4)
        features, _ = machine(x)
        hidden = cell = torch.zeros(5).double()
        read, memory = torch.zeros(4).double(), torch.full((6, 4), 1e-6).double()
        places = [[1.0, 0, 0, 0, 0, 0]] * 2
        for step, given in enumerate(x[0]):
            i, f, o, g = (machine.inputs(given) + machine.recurrent.weight @ torch.cat([hidden, read])).chunk(4)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
            said = machine.heads(hidden).view(2, 10)
            places = [
                address_by_hand(
                    memory, places[k], one[:4].tanh(), float(F.softplus(one[4])), float(one[5].sigmoid()),
                    one[6:9].softmax(0), 1 + float(F.softplus(one[9])),
                )
                for k, one in enumerate(said)
            ]  # fmt: skip
            erased, added = machine.write(hidden).chunk(2)
            memory = torch.stack(
                [row * (1 - w * erased.sigmoid()) + w * added.tanh() for w, row in zip(places[1], memory, strict=True)]
            )
            read = sum(w * row for w, row in zip(places[0], memory, strict=True))
            torch.testing.assert_close(features[0, step], torch.cat([hidden, read]), rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(
            machine.places(x)[0, -1], torch.tensor(places, dtype=torch.float64), rtol=1e-8, atol=1e-10
        )


def test_reading_may_be_continued_and_its_gradients_are_finite():
    machine, x = NeuralTuringMachine(3, hidden=5, slots=6, width=4).double(), drawn(2, 7, 3)
    whole, _ = machine(x)
    first, state = machine(x[:, :3])
    torch.testing.assert_close(torch.cat([first, machine(x[:, 3:], state)[0]], 1), whole)
    whole.square().sum().backward()
    assert all(value.grad.isfinite().all() for value in machine.parameters())


def test_sharp_addressing_of_an_empty_memory_has_finite_gradients():
    """Weights that underflow to zero are where the copy task has become NaN for many."""
    previous = F.one_hot(torch.tensor([[0]]), 6).float()
    given = [torch.randn(1, 1, 4), torch.full((1, 1, 1), 500.0), torch.zeros(1, 1, 1),
             F.one_hot(torch.tensor([[1]]), 3).float(), torch.full((1, 1, 1), 20.0)]  # fmt: skip
    for part in given:
        part.requires_grad_()
    memory = torch.full((1, 6, 4), 1e-6, requires_grad=True)
    address(memory, previous, Addressing(*given))[0, 0, 0].backward()
    assert all(part.grad.isfinite().all() for part in (*given, memory))


def test_the_lstm_beside_it_has_as_many_parameters():
    sizes = [sum(p.numel() for p in NTMModule(memory=memory).parameters()) for memory in (True, False)]
    assert abs(sizes[0] / sizes[1] - 1) < 0.01
    assert isinstance(NTMModule(memory=False).network, LSTM)


def test_the_copy_task_shows_bits_then_a_mark_and_asks_for_the_bits():
    data = CopyTask(num_bits=3, lengths=(2, 4), batch_size=5, batches=30, eval_batches=3)
    lengths = set()
    for batch in data.train_dataloader():
        length = batch.bits.shape[1]
        lengths.add(length)
        assert batch.x.shape == (5, 2 * length + 1, 4)
        assert torch.equal(batch.x[:, :length, :3], batch.bits)
        assert batch.x[:, :, 3].nonzero()[:, 1].unique().tolist() == [length]
        assert not batch.x[:, length + 1 :].any()
    assert lengths == {2, 3, 4}
    first, again = (next(iter(loader)) for loader in (data.val_dataloader(), data.val_dataloader()))
    assert first.bits.shape == (5, 8, 3)
    assert torch.equal(first.bits, again.bits)
    assert not torch.equal(first.bits, next(iter(data.test_dataloader())).bits)
    assert first.bits.mean().item() == pytest.approx(0.5, abs=0.15)
    sampler = data.train_dataloader().source
    assert not torch.equal(*(sampler.batch(np.array([n]), torch.device("cpu")).x[:, :2] for n in (0, 1)))


def test_wrong_bits_are_counted_by_sequence():
    bits = torch.tensor([[[1.0, 0], [0, 1]], [[1, 1], [0, 0]]])
    outputs = torch.tensor([[[1.0, -1], [1, -1]], [[2, 2], [-1, -1]]])
    assert wrong_bits(outputs, bits).tolist() == [2, 0]
    assert wrong_bits(outputs / 0, bits).isnan().all()


def test_the_bits_are_not_part_of_the_answer():
    module, batch = NTMModule(slots=8).eval(), next(iter(CopyTask(lengths=(2, 3)).train_dataloader()))
    garbage = batch._replace(bits=torch.full_like(batch.bits, torch.nan))
    with torch.no_grad():
        assert torch.equal(module(batch), module(garbage))


def test_wrong_arguments_and_batches_are_one_sentence():
    with pytest.raises(UserError, match=r"the smallest and the largest length, .* but is \[6, 1\]") as error:
        CopyTask(lengths=[6, 1])
    messages.keep(str(error.value))
    with pytest.raises(UserError, match=r"sequences of bits, but .* serves Episode: use CopyTask") as error:
        NTMModule().training_step(episode(), 0)
    messages.keep(str(error.value))
    with pytest.raises(UserError, match="9 channels and answers of 8 bits, but the data has 4 and 3") as error:
        NTMModule().validation_step(SequenceBatch(torch.zeros(1, 5, 4), torch.zeros(1, 2, 3)), 0)
    messages.keep(str(error.value))


SMALL = ["--data.batches=3", "--data.eval_batches=2", "--trainer.max_epochs=2", "--model.slots=10", "--model.hidden=8"]


@pytest.mark.slow
def test_fit_and_test_report_the_wrong_bits(cli):
    run = cli("fit", COPY, *SMALL, "--trainer.accelerator=cpu", small=False)
    fit = results(run)
    assert fit["sequences"] == 32
    assert fit["metrics"]["wrong_bits"]["value"] == pytest.approx(48, abs=8)
    assert set(fit["baselines"]) == {"all zeros", "untrained"}
    assert (run / "figures" / "memory.png").exists()
    checkpoint = next((run / "checkpoints").glob("epoch*.ckpt"))
    tested = results(cli("test", run / "config.yaml", "--ckpt_path", checkpoint, small=False))
    assert tested["protocol_differences"] == []
    assert tested["metrics"]["wrong_bits"]["ci95"] > 0
