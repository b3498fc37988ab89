"""Training on the source alone, and AdaBN."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from domain_toys import batch, clouds, fit, module, norms, same
from torch import nn

from metatransfer.errors import UserError
from metatransfer.methods.domain.adabn import AdaBNModule
from metatransfer.methods.domain.dann import DANNModule
from metatransfer.methods.domain.mcd import MCDModule
from metatransfer.methods.domain.source_only import SourceOnlyModule
from metatransfer.nn import DomainBatchNorm


@pytest.mark.parametrize("kind", [SourceOnlyModule, AdaBNModule])
def test_the_target_is_never_looked_at(kind):
    found = []
    for moved in (0.0, 100.0):
        method = module(kind).double()
        given = batch(dtype=torch.float64)
        loss, outputs = method.training_loss(given._replace(target_x=given.target_x + moved))
        loss.backward()
        gradients = [value.grad for value in method.parameters() if value.grad is not None]
        found.append([loss.detach(), outputs.detach(), *gradients, *method.buffers()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    plain = copy.deepcopy(module(kind)).double()
    logits = plain.head(plain.encode(given.source_x, "source"))
    torch.testing.assert_close(loss.detach(), F.cross_entropy(logits, given.source_y).detach())


def test_the_twin_has_the_same_networks_and_learns_as_a_plain_classifier():
    method = module(DANNModule)
    twin = method.unadapted()
    assert same(twin.backbone, method.backbone)
    assert same(twin.head, method.head)
    assert twin.backbone is not method.backbone
    network, head = copy.deepcopy((twin.backbone, twin.head))
    optimizer = torch.optim.Adam([*network.parameters(), *head.parameters()], lr=0.01)
    data = clouds()
    for one in data.train_dataloader():
        optimizer.zero_grad()
        F.cross_entropy(head(network(one.source_x)), one.source_y).backward()
        optimizer.step()
    fit(twin, clouds(), max_epochs=1)
    for one, other in zip([*network.parameters(), *head.parameters()], twin.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert isinstance(module(MCDModule).unadapted(), SourceOnlyModule)


def test_the_twin_of_domain_specific_layers_answers_by_those_of_the_source():
    twin = module(DANNModule, normalization="domain_specific").unadapted()
    fit(twin, clouds(), max_epochs=1)
    layers = [part for part in twin.backbone.modules() if isinstance(part, DomainBatchNorm)]
    assert len(layers) == 2
    assert all(int(part.target.num_batches_tracked) == 0 and int(part.source.num_batches_tracked) for part in layers)
    x = torch.randn(6, 3)
    assert torch.equal(twin.eval().encode(x, "source"), twin.encode(x, "target"))


def test_adabn_normalises_the_target_by_all_its_samples():
    method, data = module(AdaBNModule), clouds(eval_batch_size=96)
    fit(method, data, max_epochs=2)
    x = torch.cat([part.x for part in data.target_samples()])
    assert len(x) == 96
    first = method.backbone.layers[1](x)
    layer = next(part for part in method.backbone.modules() if isinstance(part, DomainBatchNorm))
    torch.testing.assert_close(layer.target.running_mean, first.mean(0))
    torch.testing.assert_close(layer.target.running_var, first.var(0))
    method.eval()
    # in evaluation the target's outputs are those of normalising its samples themselves
    hidden = x
    for part in method.backbone.layers[1:]:
        if isinstance(part, DomainBatchNorm):
            scale = part.source.weight / (hidden.var(0) + part.source.eps).sqrt()
            hidden = (hidden - hidden.mean(0)) * scale + part.source.bias
            biased = (hidden.var(0) + 0).mean()
            assert biased > 0
        else:
            hidden = part(hidden)
    assert float((method.encode(x, "target") - hidden).abs().max()) < 0.05 * float(hidden.abs().max())
    assert not torch.allclose(method.encode(x, "source"), method.encode(x, "target"), atol=0.1)


def test_adabn_changes_nothing_but_statistics_of_the_target():
    """The weights and the source's statistics are those of training on the source alone."""
    adapted, plain = module(AdaBNModule), module(SourceOnlyModule)
    fit(adapted, clouds(), max_epochs=2)
    fit(plain, clouds(), max_epochs=2)
    known = plain.state_dict()
    for name, value in adapted.state_dict().items():
        if name.startswith(("backbone", "head")) and ".target." not in name:
            assert torch.equal(value, known[name.replace(".source.", ".")]), name


def test_adabn_estimates_in_a_fit_alone():
    method, data = module(AdaBNModule), clouds()
    running = fit(method, data, max_epochs=1)
    before = copy.deepcopy(method.backbone.state_dict())
    with torch.no_grad():
        for part in norms(method.backbone):
            part.running_mean.add_(1)
    moved = copy.deepcopy(method.backbone.state_dict())
    running.validate(method, datamodule=data, verbose=False)
    running.test(method, datamodule=data, verbose=False)
    assert all(torch.equal(value, moved[name]) for name, value in method.backbone.state_dict().items())
    assert not all(torch.equal(value, before[name]) for name, value in moved.items())


def test_adabn_needs_layers_that_keep_statistics():
    with pytest.raises(UserError, match="MLP has no BatchNorm layer"):
        module(AdaBNModule, norm=False)
    assert module(AdaBNModule).protocol()["normalization"] == "adabn"
    assert nn.BatchNorm1d in {type(part) for part in norms(module(AdaBNModule).backbone)}
