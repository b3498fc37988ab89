"""What a reading of the family found, each as a user would meet it."""

from __future__ import annotations

from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping

from metatransfer import (
    MLP,
    AdaBNModule,
    Adaptation,
    ADDAModule,
    Arrays,
    DANNModule,
    DomainAdaptationModule,
    DomainDataModule,
    DomainDivision,
    Entropy,
    LabelledDataModule,
    SourceOnlyModule,
    UserError,
)
from metatransfer.experiments.comparing import measure_twins
from metatransfer.experiments.training import Budget
from metatransfer.nn.blocks.domain_norm import DomainBatchNorm
from serving_by_names import labelled


def arrays(offset=0.0, scale=1.0, count=200, seed=0, in_order=False, **arguments):
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (count,), generator=draw)
    y = y.sort().values if in_order else y
    x = torch.randn(count, 4, generator=draw) + 3 * torch.nn.functional.one_hot(y, 4)
    return labelled(Arrays.from_arrays((x * scale + offset).numpy(), y.numpy()), **arguments)


def network(norm=False):
    return MLP(in_shape=(4,), hidden=(16,), norm=norm)


def fit(module, data, **settings):
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **{"max_epochs": 3} | settings,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return trainer


@pytest.mark.parametrize(
    "standardize", ["domain", *(pytest.param(one, marks=pytest.mark.slow) for one in ("none", "source"))]
)
def test_the_oracle_sees_the_target_as_the_run_does(standardize):
    data = DomainDataModule({"a": arrays()}, {"b": arrays(20.0, 3.0, seed=1)}, batch_size=20, standardize=standardize)
    module = DANNModule(network(), 3, optimizer=partial(torch.optim.Adam, lr=0.02))
    budget = Budget(30, settings={"accelerator": "cpu"})
    assert measure_twins(module, data, seed=0, budget=budget).values["target-trained"] > 0.8


def test_the_targets_statistics_do_not_depend_on_the_order_of_its_file():
    """Nor on the size of the last batch, nor on a validation."""
    # 200 samples, all of them trained on; batches of 66 leave two over
    data = DomainDataModule(
        {"a": arrays()},
        {"b": arrays(5.0, in_order=True)},
        batch_size=20,
        eval_batch_size=66,
        division=DomainDivision(transductive=True),
    )
    module = AdaBNModule(network(norm=True), 3)
    fit(module, data, limit_val_batches=0)
    layer = next(part for part in module.backbone.modules() if isinstance(part, DomainBatchNorm))
    seen = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module.eval()(torch.cat([part.x for part in data.target_samples()]))
    handle.remove()
    whole = torch.cat(seen)
    torch.testing.assert_close(layer.target.running_mean, whole.mean(0), rtol=1e-4, atol=1e-4)
    assert ((layer.target.running_var / whole.var(0) - 1).abs() < 0.1).all()


def test_a_state_below_the_floor_does_not_end_a_run_that_may_stop_early():
    class Strict(Entropy):
        """Allows nothing."""

        def allows(self, source_accuracy, best_source_accuracy):
            return False

    data = DomainDataModule({"a": arrays()}, {"b": arrays(seed=1)}, batch_size=20)
    stopping = EarlyStopping("val/selection", mode="max", patience=20)
    module = SourceOnlyModule(network(), 3, adaptation=Adaptation(validator=Strict()))
    trainer = fit(module, data, max_epochs=4, callbacks=[stopping])
    assert trainer.current_epoch == 4
    assert float(trainer.callback_metrics["val/selection"]) < -1e8


def test_loaders_alone_are_refused_where_all_samples_are_needed():
    data = DomainDataModule({"a": arrays()}, {"b": arrays(seed=1)}, batch_size=20)
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False)
    with pytest.raises(UserError, match="needs all samples of a domain: give it a DomainDataModule"):
        trainer.fit(AdaBNModule(network(norm=True), 3), data.train_dataloader())


def test_a_loss_of_other_features_has_no_ratio():
    class Decay(DomainAdaptationModule):
        """Arxiv 0000.00000."""

        def transfer_loss(self, pair):
            return 0.01 * sum(value.square().sum() for value in self.backbone.parameters())

    data = DomainDataModule({"a": arrays()}, {"b": arrays(seed=1)}, batch_size=20)
    trainer = fit(Decay(network(), 3), data, log_every_n_steps=1)
    assert "train/transfer_loss" in trainer.callback_metrics
    assert "train/gradient_ratio" not in trainer.callback_metrics


def test_a_second_fit_of_adda_begins_with_its_first_part():
    data = DomainDataModule({"a": arrays()}, {"b": arrays(seed=1)}, batch_size=20)
    module = ADDAModule(network(), 3)
    fit(module, data)
    assert module.adapting
    before = module.head.linear.weight.clone()
    fit(module, data)
    assert not torch.equal(before, module.head.linear.weight)


def test_few_labels_of_a_target_need_not_have_all_classes():
    x, y = torch.randn(40, 4).numpy(), [0, 1] * 20
    unlabelled = torch.randn(100, 4).numpy()
    target = LabelledDataModule(Arrays.from_arrays(unlabelled, None, test=(x, y)))
    data = DomainDataModule({"a": arrays()}, {"b": target}, batch_size=20)
    module = DANNModule(network(), 3)
    trainer = fit(module, data)
    numbers = trainer.test(module, datamodule=data, verbose=False)[0]
    right = module.eval()(torch.from_numpy(x)).argmax(-1) == torch.tensor(y)
    assert numbers["test/accuracy"] == pytest.approx(float(right.float().mean()))
    assert numbers["test/samples"] == 40
