"""Memory networks on stories: linear start, labels that reach nothing, new stories, the whole command."""

from __future__ import annotations

import json

import lightning.pytorch as pl
import pytest
import torch

import messages
from conftest import ROOT, results
from metatransfer import Babi, LabelledDataModule, MemN2NModule, UserError

BABI = ROOT / "configs" / "babi" / "mem_n2n.yaml"


@pytest.fixture(scope="module")
def data():
    served = LabelledDataModule(Babi(stories=10), batch_size=10)
    served.setup("fit")
    return served


def made(**arguments):
    torch.manual_seed(0)
    return MemN2NModule(6, 21, size=6, **arguments)


@pytest.mark.parametrize("tying", ["adjacent", "layerwise", "key-value"])
def test_every_parameter_is_trained(data, tying):
    module, batch = made(tying=tying), next(iter(data.train_dataloader()))
    module.training_step(batch, 0).backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in module.parameters())


def test_the_linear_start_ends_and_belongs_to_the_weights(data, tmp_path):
    module, seen = made(linear_start=2), []

    class Look(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            seen.append(bool(module.linear))

    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, callbacks=[Look()], enable_progress_bar=False,
        enable_checkpointing=False, limit_val_batches=0, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(tmp_path / "linear.ckpt")
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module, datamodule=data)
    assert seen == [True, True, False, False]
    assert bool(MemN2NModule.load_from_checkpoint(tmp_path / "linear.ckpt").linear)
    assert bool(module.restarted(1).linear)
    x, module = next(iter(data.val_dataloader())).x, module.eval()
    with torch.no_grad():
        after = module(x)
        module.linear.fill_(True)
        assert not torch.allclose(module(x), after)


def test_stories_of_your_own_are_answered(data):
    found = made().predictions(["Mary went to the office. Where is Mary?"], data)
    assert found.probabilities.shape == (1, 6)


def test_wrong_data_is_one_sentence(data):
    with pytest.raises(UserError, match="vocabulary_size") as error:
        MemN2NModule(6)
    messages.keep(str(error.value))
    with pytest.raises(UserError, match="use the collection Babi") as error:
        made().check_samples(torch.zeros(2, 3))
    messages.keep(str(error.value))
    with pytest.raises(UserError, match="linear_start must be"):
        made(linear_start=-1)


@pytest.mark.slow
def test_fit_and_test(cli):
    small = ["--data.source.stories=200", "--trainer.max_epochs=8", "--model.linear_start=2"]
    run = cli("fit", BABI, *small, "--trainer.accelerator=cpu", small=False)
    fit = results(run)
    assert set(fit["baselines"]) == {"most frequent class"}
    assert fit["metrics"]["accuracy"]["value"] > 0.5
    assert (run / "figures" / "val_attention.png").exists()
    checkpoint = next((run / "checkpoints").glob("epoch*.ckpt"))
    tested = results(cli("test", run / "config.yaml", "--ckpt_path", checkpoint, small=False))
    assert tested["protocol_differences"] == []
    assert json.loads(json.dumps(tested["protocol"]["data"]))["task"] == 1
    asked = run / "asked.txt"
    asked.write_text("1 Mary went to the office.\n2 Where is Mary?\n")
    predicted = cli("predict", run / "config.yaml", "--ckpt_path", checkpoint, "--data.predict", asked, small=False)
    assert (predicted / "predictions.csv").read_text().splitlines()[1].startswith("asked.txt:2,")
