"""Two processes train as one does: they share the samples of both sides without overlap."""

from __future__ import annotations

from functools import partial

import lightning.pytorch as pl
import pytest
import torch

from metatransfer import MLP, Arrays, DomainDataModule, LabelledDataModule, UserError
from metatransfer.methods.domain import ADDAModule, CDANModule, DANNModule, DeepCORALModule, MCDModule
from processes import in_two

# statistics over a batch are of each process's share, which no averaged gradient makes those of the whole
SAMPLE_BY_SAMPLE = {"dann": DANNModule, "cdan": CDANModule, "mcd": MCDModule, "adda": ADDAModule}
STATISTICS = {"deep coral": DeepCORALModule}


def trained(kind, devices, **settings):
    draw = torch.Generator().manual_seed(0)
    sides = []
    for offset in (0.0, 1.0):
        x = torch.randn(64, 6, generator=draw, dtype=torch.float64) + offset
        sides.append(LabelledDataModule(Arrays.from_arrays(x.numpy(), (x[:, 0] > offset).long().numpy())))
    data = DomainDataModule({"source": sides[0]}, {"target": sides[1]}, batch_size=16 // devices)
    torch.manual_seed(0)
    module = kind(MLP(in_shape=(6,), hidden=(8,)), 2, optimizer=partial(torch.optim.SGD, lr=0.1)).double()
    trainer = pl.Trainer(
        accelerator="cpu", devices=devices, max_epochs=2, precision="64-true", logger=False, num_sanity_val_steps=0,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **settings,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return dict(module.state_dict()), {name: float(value) for name, value in trainer.callback_metrics.items()}


def train_as_one_of_two(rank, name, folder):
    kind = (SAMPLE_BY_SAMPLE | STATISTICS)[name]
    torch.save(trained(kind, 2, strategy="ddp_find_unused_parameters_true"), f"{folder}/{rank}.pt")


def both(name, folder):
    in_two(train_as_one_of_two, name, str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "mcd" else pytest.mark.slow) for name in SAMPLE_BY_SAMPLE]
)
def test_two_processes_train_as_one(name, tmp_path):
    expected, metrics = trained(SAMPLE_BY_SAMPLE[name], 1)
    for weights, numbers in both(name, tmp_path):
        for key, value in expected.items():
            torch.testing.assert_close(weights[key], value, rtol=1e-9, atol=1e-12)
        for key in ("val/source_accuracy", "val/selection", "oracle/accuracy"):
            assert numbers[key] == pytest.approx(metrics[key], rel=1e-6)


@pytest.mark.slow
def test_statistics_of_a_batch_are_those_of_a_process(tmp_path):
    (one, _), (two, _) = both("deep coral", tmp_path)
    assert all(torch.equal(value, two[key]) for key, value in one.items())


@pytest.mark.parametrize("kind", [MCDModule, ADDAModule])
def test_several_processes_must_know_of_the_parts(kind):
    from lightning.pytorch.strategies import DDPStrategy

    with pytest.raises(UserError, match="ddp_find_unused_parameters_true"):
        trained(kind, 1, strategy=DDPStrategy())
