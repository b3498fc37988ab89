"""MCD: its three steps against an explicit reference, and its two classifiers."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from domain_toys import batch, clouds, fit, module, same
from lightning.pytorch.plugins import MixedPrecision

from metatransfer.errors import UserError
from metatransfer.methods.domain.mcd import HeadPair, MCDModule
from metatransfer.nn import LinearHead

sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3)


def reference(method, batches, steps, together):
    """Two optimisers, one of the features and one of the classifiers, as in the paper."""
    network, first, second = method.backbone, method.head.first, method.head.second
    generator, classifiers = sgd(network.parameters()), sgd([*first.parameters(), *second.parameters()])

    def features(one):
        if together:
            return network(torch.cat([one.source_x, one.target_x])).split([len(one.source_x), len(one.target_x)])
        return network(one.source_x), network(one.target_x)

    def disagreement(x):
        return (first(x).softmax(-1) - second(x).softmax(-1)).abs().mean()

    def forget():
        generator.zero_grad()
        classifiers.zero_grad()

    for one in batches:
        source, _ = features(one)
        forget()
        (F.cross_entropy(first(source), one.source_y) + F.cross_entropy(second(source), one.source_y)).backward()
        generator.step()
        classifiers.step()
        source, target = features(one)
        forget()
        loss = F.cross_entropy(first(source), one.source_y) + F.cross_entropy(second(source), one.source_y)
        (loss - disagreement(target)).backward()
        classifiers.step()
        for _ in range(steps):
            forget()
            disagreement(features(one)[1]).backward()
            generator.step()


@pytest.mark.parametrize(("norm", "normalization"), [(False, "joint"), (True, "joint"), (True, "separate")])
@pytest.mark.parametrize("steps", [1, 4])
def test_the_three_steps_against_two_optimisers(norm, normalization, steps):
    method = module(MCDModule, norm=norm, normalization=normalization, optimizer=sgd, num_generator_steps=steps)
    method = method.double()
    expected = copy.deepcopy(method).train()
    data = clouds()
    batches = [one._replace(source_x=one.source_x.double(), target_x=one.target_x.double())
               for one in data.train_dataloader()]  # fmt: skip
    reference(expected, batches[:3], steps, together=normalization == "joint")
    fit(method, clouds(), max_epochs=1, limit_train_batches=3, limit_val_batches=0, precision="64-true")
    assert len(list(method.parameters())) > 6
    for (name, one), other in zip(method.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12, msg=name)


def test_the_answer_is_the_mean_of_both_classifiers():
    method, x = module(MCDModule).eval(), torch.randn(5, 3)
    features = method.backbone(x)
    torch.testing.assert_close(method(x), (method.head.first(features) + method.head.second(features)) / 2)
    assert isinstance(method.head, HeadPair)


def test_step_c_lowers_the_discrepancy_and_step_b_raises_it():
    method = module(MCDModule, norm=False, num_generator_steps=1)
    running = fit(method, clouds(), max_epochs=4)
    logged = running.callback_metrics
    assert 0 < logged["train/discrepancy"] < 2
    assert logged["train/largest_discrepancy"] > 0
    target = method.backbone(batch().target_x)
    before = method.discrepancy(target)
    for sign in (1, -1):
        parameters = list(method.head.parameters())
        moved = copy.deepcopy(method)
        for value, gradient in zip(
            moved.head.parameters(), torch.autograd.grad(before, parameters, retain_graph=True), strict=True
        ):
            value.data += sign * 1e-3 * gradient
        assert (moved.discrepancy(target) > before) == (sign == 1)


def test_both_classifiers_start_from_different_weights_also_after_a_restart():
    method = module(MCDModule)
    for one in (method, method.restarted(0), method.restarted(1)):
        for first, second in zip(one.head.first.parameters(), one.head.second.parameters(), strict=True):
            assert not torch.equal(first, second)


def test_a_twin_with_one_classifier_sets_both():
    method, other = module(MCDModule), module(MCDModule)
    single = copy.deepcopy(method.unadapted())
    single.head = single.head.second
    method.take_over(single)
    x = torch.randn(6, 3)
    torch.testing.assert_close(method.eval()(x), single.eval()(x))
    assert same(method.head.first, single.head)
    assert same(method.head.second, single.head)
    other.take_over(module(MCDModule, seed=4))
    assert not same(other.head.first, other.head.second)


def test_heads_with_batch_normalisation_and_frozen_parts_train():
    method = module(MCDModule, head=LinearHead)
    method.backbone.layers[1].weight.requires_grad_(False)
    before = method.backbone.layers[1].weight.clone()
    fit(method, clouds(), max_epochs=1)
    assert torch.equal(before, method.backbone.layers[1].weight)
    assert all(value.requires_grad for value in method.head.parameters())


def test_scaled_gradients_make_the_same_steps():
    """Every loss is stepped by one optimiser, so that the scale that it was given is the one that is taken off."""
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", 64.0, growth_interval=3))
    scaled.autocast_context_manager = lambda: torch.autocast("cpu", enabled=False)
    found = []
    for plugins in ([], [scaled]):
        method = module(MCDModule, norm=False, optimizer=sgd)
        fit(method, clouds(), max_epochs=1, plugins=plugins)
        found.append(method)
    assert scaled.scaler.get_scale() > 64
    for one, other in zip(*(method.parameters() for method in found), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_refusals():
    with pytest.raises(UserError, match="num_generator_steps must be a number above 0, but is 0"):
        module(MCDModule, num_generator_steps=0)
