"""ADDA: its two parts, and that what is frozen stays frozen."""

from __future__ import annotations

import copy
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from domain_toys import batch, clouds, fit, module, norms, same, trainer
from torch import nn

from metatransfer.errors import UserError
from metatransfer.methods.domain.adda import ADDAModule
from metatransfer.nn import PerceptronHead

sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
other_sgd = partial(torch.optim.SGD, lr=0.02, momentum=0.5)


def reference(method, batches, change):
    """Both parts with explicit networks and three optimisers."""
    network, head, judge = method.backbone, method.head, method.discriminator
    frozen = None
    learn, move, tell = (sgd([*network.parameters(), *head.parameters()]), other_sgd(network.parameters()),
                         other_sgd(judge.parameters()))  # fmt: skip
    for number, one in enumerate(batches):
        if number < change:
            learn.zero_grad()
            F.cross_entropy(head(network(one.source_x)), one.source_y).backward()
            learn.step()
            continue
        if frozen is None:
            frozen = copy.deepcopy(network).eval()
        target = network(one.target_x)
        with torch.no_grad():
            source = frozen(one.source_x)
        tell.zero_grad()
        mine, other = judge(source), judge(target.detach())
        ones, zeros = torch.ones_like(mine), torch.zeros_like(other)
        loss = F.binary_cross_entropy_with_logits(mine, ones) + F.binary_cross_entropy_with_logits(other, zeros)
        (loss / 2).backward()
        tell.step()
        move.zero_grad()
        told = judge(target)
        F.binary_cross_entropy_with_logits(told, torch.ones_like(told)).backward()
        move.step()
    return frozen


@pytest.mark.parametrize("norm", [False, True])
def test_both_parts_against_an_explicit_reference(norm):
    given = {"optimizer": sgd, "adversarial_optimizer": other_sgd, "pretrain_fraction": 0.5}
    method = module(ADDAModule, norm=norm, **given).double()
    expected = copy.deepcopy(method).train()
    data = clouds()
    batches = [one._replace(source_x=one.source_x.double(), target_x=one.target_x.double())
               for one in data.train_dataloader()]  # fmt: skip
    frozen = reference(expected, batches, change=3)
    fit(method, clouds(), max_epochs=1, limit_val_batches=0, precision="64-true")
    assert method.adapting
    for part, other in (
        (method.backbone, expected.backbone), (method.head, expected.head), (method.source_backbone, frozen),
        (method.discriminator, expected.discriminator),
    ):  # fmt: skip
        for (name, one), two in zip(part.state_dict().items(), other.state_dict().values(), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12, msg=name)


class Watch(pl.Callback):
    def __init__(self):
        self.phases, self.modes, self.frozen = [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.phases.append(bool(pl_module.adapting))
        parts = (pl_module.head, pl_module.source_backbone, pl_module.discriminator)
        self.modes.append([{part.training for part in network.modules()} for network in parts])
        self.modes[-1].append({part.training for part in norms(pl_module.backbone)})
        self.modes[-1].append({part.training for part in pl_module.backbone.modules() if isinstance(part, nn.Dropout)})
        self.frozen.append(copy.deepcopy([pl_module.source_backbone.state_dict(), pl_module.head.state_dict()]))


@pytest.mark.grid(3)
@pytest.mark.parametrize(("fraction", "change"), [(0.5, 6), (0.25, 3), (0.3, 4), (0.0, 0)])
def test_the_second_part_begins_when_its_time_has_come(fraction, change):
    watching = Watch()
    method = module(ADDAModule, pretrain_fraction=fraction, head=partial(PerceptronHead, dropout=0.1), dropout=0.1)
    fit(method, clouds(), max_epochs=2, callbacks=[watching])
    assert watching.phases == [k >= change for k in range(12)]
    for adapting, modes in zip(watching.phases, watching.modes, strict=True):
        assert modes == [{not adapting}, {False}, {True}, {True}, {not adapting}]
    kept = watching.frozen[change]
    for now in watching.frozen[change:]:
        for one, other in zip(kept, now, strict=True):
            assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert not same(method.backbone, method.source_backbone)


def test_before_it_one_encoder_answers_for_both():
    method, x = module(ADDAModule, pretrain_fraction=0.9), torch.randn(5, 3)
    fit(method, clouds(), max_epochs=2, limit_train_batches=4)
    assert not method.adapting
    method.eval()
    assert torch.equal(method.encode(x, "source"), method.encode(x, "target"))
    method.start_adapting()
    assert torch.equal(method.encode(x, "source"), method.encode(x, "target"))
    assert same(method.backbone, method.source_backbone)
    with torch.no_grad():
        next(method.backbone.parameters()).add_(1)
    assert not torch.equal(method.encode(x, "source"), method.encode(x, "target"))
    assert torch.equal(method(x), method.head(method.encode(x, "target")))


def test_train_leaves_frozen_statistics_alone():
    method = module(ADDAModule)
    method.start_adapting()
    before = copy.deepcopy(method.source_backbone.state_dict())
    method.eval().train()
    assert all(norm.training for norm in norms(method.backbone))
    assert not any(part.training for part in method.source_backbone.modules())
    method.encode(torch.randn(9, 3) + 5, "source")
    method.encode(torch.randn(9, 3) + 5, "target")
    assert all(torch.equal(value, before[name]) for name, value in method.source_backbone.state_dict().items())
    assert not torch.equal(norms(method.backbone)[0].running_mean, norms(method.source_backbone)[0].running_mean)
    assert not any(value.requires_grad for value in method.source_backbone.parameters())


def test_each_loss_reaches_its_own_parameters_alone():
    method, given = module(ADDAModule), batch()
    method.start_adapting()
    source, target = method.encode(given.source_x, "source"), method.encode(given.target_x, "target")
    method.discriminator_loss(source, target).backward()
    assert all(value.grad is not None for value in method.discriminator.parameters())
    assert all(value.grad is None for value in method.backbone.parameters())
    method.zero_grad()
    method.encoder_loss(target).backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in method.backbone.parameters())
    others = (method.discriminator, method.head, method.source_backbone)
    assert all(value.grad is None for part in others for value in part.parameters())
    assert all(value.requires_grad for value in method.discriminator.parameters())


def test_a_resume_in_the_second_part_keeps_what_is_frozen(tmp_path):
    class Saves(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if pl_module.adapting and not (tmp_path / "second.ckpt").exists():
                trainer.save_checkpoint(tmp_path / "second.ckpt")

    given = {"head": partial(PerceptronHead, dropout=0.4), "dropout": 0.2}
    fit(module(ADDAModule, **given), clouds(), max_epochs=2, callbacks=[Saves()])
    watching, again = Watch(), module(ADDAModule, seed=9, **given)
    trainer(max_epochs=2, callbacks=[watching]).fit(again, datamodule=clouds(), ckpt_path=tmp_path / "second.ckpt")
    assert watching.phases == [True] * 5
    assert watching.modes == [[{False}, {False}, {True}, {True}, {False}]] * 5


def test_a_restart_begins_with_the_first_part():
    method = module(ADDAModule)
    fit(method, clouds(), max_epochs=1)
    assert method.adapting
    twin = method.restarted(0)
    assert not twin.adapting
    assert method.adapting
    assert same(twin.backbone, twin.source_backbone)
    assert twin.head.training
    assert method.adapting.dtype == torch.bool


def test_another_of_its_kind_is_taken_over_whole():
    one, other = module(ADDAModule), module(ADDAModule, seed=1)
    fit(other, clouds(), max_epochs=1)
    fit(one, clouds(), max_epochs=1)
    one.take_over(other)
    assert same(one.backbone, other.backbone)
    assert same(one.source_backbone, other.source_backbone)
    twin = module(ADDAModule, seed=2).unadapted()
    one.take_over(twin)
    assert same(one.backbone, twin.backbone)
    assert same(one.source_backbone, twin.backbone)


def test_its_protocol_and_refusals():
    card = module(ADDAModule, pretrain_fraction=0.25).protocol()
    assert (card["train_pretrain_fraction"], card["normalization"]) == (0.25, "separate")
    with pytest.raises(UserError, match="pretrain_fraction must be a fraction from 0 to below 1, but is 1"):
        module(ADDAModule, pretrain_fraction=1.0)
    method = module(ADDAModule)
    method.discriminator.requires_grad_(False)
    with pytest.raises(UserError, match="ADDAModule trains its discriminator"):
        fit(method, clouds())
