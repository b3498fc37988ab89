"""CDAN: what the discriminator sees, the weights of the entropy, and what gets a gradient."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from domain_toys import CLASSES, batch, clouds, fit, module, same

from metatransfer.errors import UserError
from metatransfer.methods.domain.cdan import CDANModule, entropy_weights
from metatransfer.nn import DomainDiscriminator, LinearHead

tiny = {
    "norm": False,
    "hidden": (4,),
    "head": LinearHead,
    "discriminator": partial(DomainDiscriminator, hidden_sizes=(3,)),
}


def losses(method, given, entropy, constant):
    """Both losses, sample by sample; the predictions of the adversary's part are those of ``constant``."""
    label, domain = 0.0, []
    for x, y in zip(given.source_x, given.source_y, strict=True):
        outputs = method.head(method.backbone(x[None]))[0]
        label = label + (outputs.exp().sum().log() - outputs[y]) / len(given.source_y)
    for side, sign in ((given.source_x, 1), (given.target_x, -1)):
        parts, weights = [], []
        for x in side:
            with torch.no_grad():
                g = constant.head(constant.backbone(x[None]))[0].softmax(-1)
                weights.append(1 + torch.exp((g * g.log()).sum()) if entropy else torch.ones((), dtype=g.dtype))
            f = method.backbone(x[None])[0]
            shown = torch.stack([f[i] * g[c] for i in range(len(f)) for c in range(len(g))])
            parts.append(torch.log1p(torch.exp(-sign * method.discriminator(shown[None])[0])))
        total = sum(weights)
        domain.append(sum(w / total * part for w, part in zip(weights, parts, strict=True)))
    return label, (domain[0] + domain[1]) / 2


@pytest.mark.parametrize("entropy", [False, True])
def test_loss_and_gradients_against_an_explicit_reference(entropy):
    method = module(CDANModule, entropy=entropy, max_lambda=0.6, **tiny).double()
    given = batch(dtype=torch.float64)
    constant = copy.deepcopy(method)
    loss, _ = method.training_loss(given)
    label, domain = losses(method, given, entropy, constant)
    torch.testing.assert_close(loss, label + domain)
    loss.backward()
    parameters = dict(method.named_parameters())
    of_label = torch.autograd.grad(label, parameters.values(), allow_unused=True)
    of_domain = torch.autograd.grad(domain, parameters.values(), allow_unused=True)
    for (name, value), one, other in zip(parameters.items(), of_label, of_domain, strict=True):
        if name.startswith("backbone"):
            expected = one - method.strength * other
        else:
            expected = one if name.startswith("head") else other
            assert (other is None) == name.startswith("head")  # no gradient flows into the predictions
        torch.testing.assert_close(value.grad, expected)


def test_the_weights_of_the_entropy():
    logits = torch.randn(7, CLASSES, dtype=torch.float64, requires_grad=True) * 3
    weights = entropy_weights(logits)
    p = logits.softmax(-1)
    expected = torch.stack([1 + torch.exp((row * row.log()).sum()) for row in p])
    torch.testing.assert_close(weights, (expected / expected.mean()).detach())
    assert not weights.requires_grad
    assert float(weights.mean()) == pytest.approx(1)
    sure = entropy_weights(torch.tensor([[1000.0, 0, 0], [0, 0, 0]]))
    assert sure.tolist() == pytest.approx([2 / (2 + 4 / 3) * 2, (4 / 3) / (2 + 4 / 3) * 2])
    assert entropy_weights(logits.half()).dtype == torch.float32


def test_each_domain_is_weighted_on_its_own():
    method, given = module(CDANModule, entropy=True), batch()
    pairs = []
    method.transfer_loss = pairs.append
    method.training_loss(given)
    for weights, count in zip(method.sample_weights(pairs[0]), (6, 5), strict=True):
        assert weights.shape == (count,)
        assert float(weights.mean()) == pytest.approx(1)
        assert weights.std() > 0
    assert module(CDANModule).sample_weights(pairs[0]) is None


def test_large_products_are_mapped_at_random():
    method = module(CDANModule, hidden=(1500,), random_features=32)
    assert method.discriminator.network[0].in_features == 32
    assert method.protocol()["train_multilinear_map"] == "random, 32"
    assert module(CDANModule).protocol()["train_multilinear_map"] == "outer product"
    names = {"multilinear_map.feature_matrix", "multilinear_map.class_matrix"}
    assert names <= method.state_dict().keys()
    assert not names & dict(method.named_parameters()).keys()
    loss, _ = method.training_loss(batch())
    loss.backward()
    assert all(value.grad.isfinite().all() for value in method.parameters())
    twins = method.restarted(1), method.restarted(1), method.restarted(2)
    assert same(twins[0], twins[1])
    for name in names:
        assert not torch.equal(twins[0].state_dict()[name], twins[2].state_dict()[name])
        assert not torch.equal(twins[0].state_dict()[name], method.state_dict()[name])


def test_the_random_map_survives_a_checkpoint(tmp_path):
    method = module(CDANModule, hidden=(1500,), random_features=16)
    fit(method, clouds(), max_epochs=1, limit_train_batches=2).save_checkpoint(tmp_path / "last.ckpt")
    again = CDANModule.load_from_checkpoint(tmp_path / "last.ckpt")
    assert same(method, again)


def test_refusals():
    with pytest.raises(UserError, match="random_features must be a number above 0"):
        module(CDANModule, random_features=0)
