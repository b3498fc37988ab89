"""Two processes train as one does: they share the samples of both sides without overlap."""

from __future__ import annotations

import os
import socket
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch.multiprocessing import spawn

from metatransfer import MLP, Arrays, DomainDataModule, LabelledDataModule, UserError
from metatransfer.methods.domain import ADDAModule, CDANModule, DANNModule, DeepCORALModule, MCDModule

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


def worker(rank, name, port, folder):
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0",
        "LOCAL_RANK": str(rank), "RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    torch.set_num_threads(1)
    kind = (SAMPLE_BY_SAMPLE | STATISTICS)[name]
    torch.save(trained(kind, 2, strategy="ddp_find_unused_parameters_true"), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def in_two(name, folder):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    spawn(worker, args=(name, port, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", SAMPLE_BY_SAMPLE)
def test_two_processes_train_as_one(name, tmp_path):
    expected, metrics = trained(SAMPLE_BY_SAMPLE[name], 1)
    for weights, numbers in in_two(name, tmp_path):
        for key, value in expected.items():
            torch.testing.assert_close(weights[key], value, rtol=1e-9, atol=1e-12)
        for key in ("val/source_accuracy", "val/selection", "oracle/accuracy"):
            assert numbers[key] == pytest.approx(metrics[key], rel=1e-6)


def test_statistics_of_a_batch_are_those_of_a_process(tmp_path):
    (one, _), (two, _) = in_two("deep coral", tmp_path)
    assert all(torch.equal(value, two[key]) for key, value in one.items())


@pytest.mark.parametrize("kind", [MCDModule, ADDAModule])
def test_several_processes_must_know_of_the_parts(kind):
    from lightning.pytorch.strategies import DDPStrategy

    with pytest.raises(UserError, match="ddp_find_unused_parameters_true"):
        trained(kind, 1, strategy=DDPStrategy())
