"""DANN: its loss, its schedule, and the sign and scale of the reversed gradient."""

from __future__ import annotations

import math
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from domain_toys import CLASSES, batch, clouds, fit, module, trainer

from metatransfer.errors import UserError
from metatransfer.methods.domain.dann import DANNModule
from metatransfer.nn import DomainDiscriminator, LinearHead

tiny = {
    "norm": False,
    "hidden": (4,),
    "head": LinearHead,
    "discriminator": partial(DomainDiscriminator, hidden_sizes=(3,)),
}


def losses(method, given):
    """The loss of the labels and that of the domains, sample by sample, with nothing reversed."""
    label, domain = 0.0, [0.0, 0.0]
    for x, y in zip(given.source_x, given.source_y, strict=True):
        features = method.backbone(x[None])
        outputs = method.head(features)[0]
        label = label + (outputs.exp().sum().log() - outputs[y]) / len(given.source_y)
    for place, (side, sign) in enumerate(((given.source_x, 1), (given.target_x, -1))):
        for x in side:
            logit = method.discriminator(method.backbone(x[None]))[0]
            domain[place] = domain[place] + torch.log1p(torch.exp(-sign * logit)) / len(side)
    return label, (domain[0] + domain[1]) / 2


def test_the_loss_is_that_of_both():
    method, given = module(DANNModule, **tiny).double(), batch(dtype=torch.float64)
    loss, outputs = method.training_loss(given)
    label, domain = losses(method, given)
    torch.testing.assert_close(loss, label + domain)
    torch.testing.assert_close(outputs, method.head(method.backbone(given.source_x)))


@pytest.mark.parametrize("max_lambda", [0.0, 0.4, 2.0])
def test_gradients_against_finite_differences_of_both_losses(max_lambda):
    method, given = module(DANNModule, max_lambda=max_lambda, **tiny).double(), batch(dtype=torch.float64)
    assert method.strength == pytest.approx(max_lambda * (2 / (1 + math.exp(-10)) - 1))
    method.training_loss(given)[0].backward()
    step, looked_at = 1e-5, 0
    for name, parameter in method.named_parameters():
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        for i in range(len(flat)):
            ends = []
            for move in (step, -2 * step):
                flat[i] += move
                with torch.no_grad():
                    ends.append(losses(method, given))
            flat[i] += step
            label, domain = ((up - down) / (2 * step) for up, down in zip(*ends, strict=True))
            expected = {"backbone": label - method.strength * domain, "head": label, "discriminator": domain}
            torch.testing.assert_close(gradient[i], expected[name.partition(".")[0]], rtol=1e-5, atol=1e-8)
            looked_at += 1
    assert looked_at == sum(value.numel() for value in method.parameters()) > 40


def test_lambda_rises_with_the_steps_of_the_run_and_over_a_resume(tmp_path):
    class Watch(pl.Callback):
        def __init__(self):
            self.seen, self.logged = [], []

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.seen.append(pl_module.strength)

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.logged.append(float(trainer.callback_metrics["train/lambda"]))
            if trainer.global_step == 8:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    expected = [0.5 * (2 / (1 + math.exp(-4 * k / 18)) - 1) for k in range(18)]
    first, second = Watch(), Watch()
    fit(module(DANNModule, max_lambda=0.5, gamma=4), clouds(), max_epochs=3, callbacks=[first])
    assert first.seen == pytest.approx(expected)
    assert first.logged == pytest.approx(expected)
    running = trainer(max_epochs=3, callbacks=[second])
    running.fit(module(DANNModule, max_lambda=0.5, gamma=4), datamodule=clouds(), ckpt_path=tmp_path / "middle.ckpt")
    assert second.seen == pytest.approx(expected[8:])


def test_the_discriminators_accuracy_is_over_both_domains_alike():
    logged, method = {}, module(DANNModule, **tiny)
    method.log_dict = lambda numbers, **_: logged.update(numbers)
    with torch.no_grad():
        for value in method.discriminator.parameters():
            value.zero_()
        method.discriminator.network[-1].bias.fill_(1.0)  # all are taken for source samples
    method.training_loss(batch(source=9, target=3))
    assert float(logged["train/discriminator_accuracy"]) == 0.5
    assert logged["train/lambda"] == method.strength


def test_its_protocol_and_refusals():
    card = module(DANNModule, max_lambda=0.3, gamma=5.0).protocol()
    assert (card["train_max_lambda"], card["train_gamma"], card["normalization"]) == (0.3, 5.0, "joint")
    with pytest.raises(UserError, match="max_lambda must be 0 or more, but is -1"):
        module(DANNModule, max_lambda=-1)
    with pytest.raises(UserError, match="gamma must be 0 or more"):
        module(DANNModule, gamma=-0.1)


def test_the_discriminator_looks_at_the_features():
    method = module(DANNModule)
    assert method.discriminator.network[0].in_features == method.backbone.out_features
    assert method.head.out_features == CLASSES
