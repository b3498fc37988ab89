"""LEO: codes, steps and penalties against a written-out loop in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from contract import episode
from metatransfer import Conv4, LEOModule, LEOPenalties, LEOSteps, UserError

STEPS = LEOSteps(latent_steps=2, latent_lr=0.3, steps=2, lr=0.05)
PENALTIES = LEOPenalties(kl=0.2, encoder=0.3, orthogonality=0.4)


def built(**changes):
    return LEOModule(Conv4(hidden_channels=4), 3, **({"steps": STEPS, "penalties": PENALTIES} | changes)).double()


def double(batch):
    return batch.map(lambda t: t.double() if t.is_floating_point() else t)


def unit(features):
    return features / (features.square().mean(-1, keepdim=True) + torch.finfo(features.dtype).eps).sqrt()


def learned(module, support, labels, code_noise=None, noise=None):
    """Weights, divergence and movement of one task, class by class."""
    support = unit(support)
    codes = module.encoder(support)
    means, deviations = [], []
    for way in range(3):
        related = [
            module.relation(torch.cat([codes[i], codes[j]]))
            for i in range(len(labels))
            for j in range(len(labels))
            if labels[i] == way
        ]
        mean, log_std = torch.stack(related).mean(0).chunk(2)
        means.append(mean)
        deviations.append(log_std.exp())
    mean, deviation = torch.stack(means), torch.stack(deviations)
    start = mean if code_noise is None else mean + deviation * code_noise

    def decoded(z):
        weights, log_std = module.decoder(z).chunk(2, -1)
        return weights if noise is None else weights + (2 / (3 + 4)) ** 0.5 * log_std.exp() * noise

    z = start if start.requires_grad else start.requires_grad_()
    for _ in range(2):
        [gradient] = torch.autograd.grad(F.cross_entropy(support @ decoded(z).T, labels), z, create_graph=True)
        z = z - module.log_rates[0].exp() * gradient
    weights = decoded(z)
    for _ in range(2):
        [gradient] = torch.autograd.grad(F.cross_entropy(support @ weights.T, labels), weights, create_graph=True)
        weights = weights - module.log_rates[1].exp() * gradient
    divergence = kl_divergence(Normal(mean, deviation), Normal(torch.zeros_like(mean), torch.ones_like(mean)))
    return weights, divergence.mean(), (z.detach() - start).square().mean()


def test_evaluation_uses_the_means():
    module, batch = built().eval(), double(episode())
    found = module(batch)
    for task in range(2):
        weights, _, _ = learned(module, module.backbone(batch.support_x[task]), batch.support_y[task])
        expected = unit(module.backbone(batch.query_x[task])) @ weights.T
        torch.testing.assert_close(found[task].detach(), expected.detach(), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(module(batch), found, rtol=0, atol=0)


def test_the_training_loss_and_all_gradients_are_those_of_the_loop():
    module, batch = built().train(), double(episode())
    torch.manual_seed(3)
    own, _ = module.training_loss(batch)
    torch.manual_seed(3)
    code_noise, noise = torch.randn(2, 3, 3, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    together = torch.cat([batch.support_x, batch.query_x], 1)
    embedded = module.backbone(together.flatten(0, 1)).unflatten(0, together.shape[:2])
    losses = []
    for task in range(2):
        support, queries = embedded[task, :6], embedded[task, 6:]
        weights, divergence, moved = learned(module, support, batch.support_y[task], code_noise[task], noise[task])
        loss = F.cross_entropy(unit(queries) @ weights.T, batch.query_y[task])
        losses.append(loss + 0.2 * divergence + 0.3 * moved)
    rows = module.decoder.weight / module.decoder.weight.norm(dim=1, keepdim=True)
    expected = torch.stack(losses).mean() + 0.4 * (rows @ rows.T - torch.eye(8)).square().mean()
    torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-12)
    own.backward()
    wanted = torch.autograd.grad(expected, list(module.parameters()))
    for value, gradient in zip(module.parameters(), wanted, strict=True):
        torch.testing.assert_close(value.grad, gradient, rtol=1e-6, atol=1e-10)


def test_training_draws_and_the_rates_are_reset():
    module, batch = built(), double(episode())
    assert module.training_loss(batch)[0] != module.training_loss(batch)[0]
    with torch.no_grad():
        module.log_rates.fill_(9)
    torch.testing.assert_close(module.untrained_twin().log_rates.detach().exp().float(), torch.tensor([0.3, 0.05]))


def test_support_sets_of_uneven_classes():
    module, batch = built().eval(), double(episode())
    keep = torch.tensor([0, 1, 2, 4])  # two, one and one samples
    few = batch._replace(support_x=batch.support_x[:, keep], support_y=batch.support_y[:, keep])
    weights, _, _ = learned(module, module.backbone(few.support_x[0]), few.support_y[0])
    expected = unit(module.backbone(few.query_x[0])) @ weights.T
    torch.testing.assert_close(module(few)[0].detach(), expected.detach(), rtol=1e-8, atol=1e-10)


def test_a_latent_step_follows_the_finite_differences():
    """One step of rate 1 on the codes moves the weights by the decoder of the negative slope."""
    module = built(steps=LEOSteps(latent_steps=1, latent_lr=1.0, steps=0, lr=1.0)).eval()
    support = unit(torch.randn(1, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    labels = torch.arange(3).repeat(2).unsqueeze(0)
    with torch.no_grad():
        start, _ = module._encoded(support, labels)

        def loss(codes):
            return F.cross_entropy((support @ module._decoded(codes, None).mT).squeeze(0), labels.squeeze(0))

        slope = torch.zeros_like(start)
        for place in range(start.numel()):
            step = torch.zeros_like(start).view(-1).index_fill(0, torch.tensor(place), 1e-6).view_as(start)
            slope.view(-1)[place] = (loss(start + step) - loss(start - step)) / 2e-6
        expected = module._decoded(start - slope, None)
        torch.testing.assert_close(module.fit_embeddings(support, labels).weights, expected, rtol=1e-7, atol=1e-9)


def test_a_frozen_backbone_stays_as_it_is():
    module, batch = built(freeze_backbone=True).train(), double(episode())
    before = {name: value.clone() for name, value in module.backbone.state_dict().items()}
    module.training_loss(batch)[0].backward()
    assert all(value.grad is None for value in module.backbone.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.backbone.state_dict().items())


def test_wrong_arguments():
    with pytest.raises(UserError, match=r"steps\.latent_lr must be a number above 0"):
        LEOSteps(latent_lr=0.0)
    with pytest.raises(UserError, match=r"penalties\.kl must be 0 or more"):
        LEOPenalties(kl=-1.0)
    with pytest.raises(UserError, match="latent_size must be a whole number"):
        LEOModule(Conv4(), latent_size=0)
