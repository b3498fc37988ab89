"""MAML++: its gradient against an explicit loop, its schedules against the paper's code written out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from test_maml import double, sinusoids
from torch.func import functional_call

from contract import episode
from metatransfer import MLP, Conv4, Episode, MAMLModule, MAMLPlusPlusModule, UserError
from metatransfer.methods.gradient.maml_plus_plus import OuterSchedule
from metatransfer.methods.options import Execution, InnerLoop


def at_epoch(module, epoch):
    """The module as the Trainer shows it the epoch."""
    module._trainer = SimpleNamespace(current_epoch=epoch, barebones=False)
    return module


def spread(module):
    """Makes rates and per-step values differ, so that taking the wrong ones shows."""
    with torch.no_grad():
        for value in module.rates.parameters():
            value.uniform_(0.01, 0.2)
        for part in module.per_step.values():
            for value in part.parameters():
                value.add_(torch.rand_like(value) * 0.5)
    return module


def explicit_loss(module, batch, weights, first_order):
    network, steps = module.network, module.inner.steps_in(True)
    losses = []
    for support_x, support_y, query_x, query_y in zip(*batch[:4], strict=True):
        params, total = module.adapted_parameters(), 0.0
        rates = module.rates()
        for step in range(steps):
            fixed = {name: value[step] for part in module.per_step.values() for name, value in part().items()}
            loss = F.cross_entropy(functional_call(network, {**fixed, **params}, (support_x,)), support_y)
            gradients = torch.autograd.grad(loss, list(params.values()), create_graph=not first_order)
            params = {
                n: value - rates[n][step] * gradient
                for (n, value), gradient in zip(params.items(), gradients, strict=True)
            }
            outputs = functional_call(network, {**fixed, **params}, (query_x,))
            total = total + weights[step] * F.cross_entropy(outputs, query_y)
        losses.append(total)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("batching", ["loop", "vmap"])
@pytest.mark.parametrize(
    ("epoch", "weights", "first_order"),
    [(0, [1 / 3] * 3, True), (2, [0.2, 0.2, 0.6], False), (5, [0.0, 0.0, 1.0], False)],
)
def test_everything_learned_gets_the_gradient_of_the_explicit_loop(batching, epoch, weights, first_order):
    module = MAMLPlusPlusModule(
        Conv4(hidden_channels=4),
        3,
        inner=InnerLoop(steps=3, lr=0.1),
        schedule=OuterSchedule(loss_annealing_epochs=5, first_order_epochs=1),
        execution=Execution(batching=batching),
    )
    module, batch = at_epoch(spread(module.double().train()), epoch), double(episode())
    assert module.step_weights() == pytest.approx(weights)
    expected = explicit_loss(module, batch, weights, first_order)
    learned = {name: value for name, value in module.named_parameters() if value.requires_grad}
    gradients = torch.autograd.grad(expected, list(learned.values()))
    loss, _ = module.training_loss(batch)
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-10, atol=1e-12)
    for (name, value), gradient in zip(learned.items(), gradients, strict=True):
        torch.testing.assert_close(value.grad, gradient, rtol=1e-8, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")
    assert any(name.startswith("per_step") for name in learned)


@pytest.mark.parametrize("epoch", [0, 1, 7, 9, 10, 50])
def test_step_weights_are_those_of_the_papers_code(epoch):
    steps, epochs = 5, 10
    module = at_epoch(
        MAMLPlusPlusModule(
            MLP((1,), (4,)),
            1,
            inner=InnerLoop(steps=steps, lr=0.1),
            schedule=OuterSchedule(loss_annealing_epochs=epochs),
        ),
        epoch,
    )
    weights = [1.0 / steps] * steps
    decay = 1.0 / steps / epochs
    for index in range(steps - 1):
        weights[index] = max(weights[index] - epoch * decay, 0.03 / steps)
    weights[-1] = min(weights[-1] + epoch * (steps - 1) * decay, 1.0 - (steps - 1) * 0.03 / steps)
    if epoch >= epochs:
        weights = [0.0] * (steps - 1) + [1.0]
    assert module.step_weights() == pytest.approx(weights)
    assert sum(module.step_weights()) == pytest.approx(1)


def test_with_none_of_its_parts_it_is_maml():
    ours = MAMLPlusPlusModule(
        Conv4(hidden_channels=4),
        3,
        inner=InnerLoop(steps=2, lr=0.1),
        schedule=OuterSchedule(loss_annealing_epochs=0),
        per_step_batch_norm=False,
    )
    theirs = MAMLModule(Conv4(hidden_channels=4), 3, inner=InnerLoop(steps=2, lr=0.1)).double().train()
    ours = ours.double().train()
    ours.rates.reset_parameters()  # 0.1 in float64: it was made in float32
    theirs.load_state_dict({n: value for n, value in ours.state_dict().items() if not n.startswith("rates.")})
    batch = double(episode())
    torch.testing.assert_close(ours.training_loss(batch)[0], theirs.training_loss(batch)[0], rtol=1e-10, atol=1e-12)


def test_batch_norm_of_each_step_starts_where_the_network_is():
    backbone = Conv4(hidden_channels=4)
    with torch.no_grad():
        backbone.layers[1].weight.fill_(3.0)
    module = MAMLPlusPlusModule(backbone, 3, inner=InnerLoop(steps=4, lr=0.1))
    values = module.per_step["weight"]()["backbone.layers.1.weight"]
    assert values.shape == (4, 4)
    assert (values == 3).all()
    assert not backbone.layers[1].weight.requires_grad
    assert "backbone.layers.1.weight" not in module.adapted_parameters()
    twin = module.untrained_twin()
    assert (twin.per_step["weight"]()["backbone.layers.1.weight"] == 1).all()


def test_the_per_step_values_reach_evaluation_and_further_steps_repeat_the_last():
    module, batch = (
        spread(MAMLPlusPlusModule(Conv4(hidden_channels=4), 3, inner=InnerLoop(steps=2, lr=0.1))).double().eval(),
        episode(),
    )
    batch = double(batch)
    before = module(batch)
    longer = (
        MAMLPlusPlusModule(Conv4(hidden_channels=4), 3, inner=InnerLoop(steps=3, lr=0.1, train_steps=2)).double().eval()
    )
    longer.load_state_dict(module.state_dict())
    two, three = longer.adapt_through(batch.support_x, batch.support_y, trajectory=True)[2:]
    torch.testing.assert_close(longer.predict_tasks(two, batch.query_x), before)
    last = module.parameters_at(1)
    assert all(torch.equal(value, last[name]) for name, value in longer.parameters_at(2).items())
    assert not torch.equal(two.params["head.linear.weight"], three.params["head.linear.weight"])
    with torch.no_grad():
        for part in module.per_step.values():
            for value in part.parameters():
                value[1] += 0.1
    assert not torch.allclose(module(batch), before)


def test_running_statistics_are_collected_with_the_values_of_the_first_step():
    module = spread(
        MAMLPlusPlusModule(Conv4(hidden_channels=4), 3, inner=InnerLoop(steps=2, lr=0.1), batch_norm="running")
    ).train()
    batch, buffer = episode(), module.backbone.layers[5].running_mean
    before = buffer.clone()
    module.training_loss(batch)
    found = buffer.clone()
    x = batch.support_x.flatten(0, 1)
    with torch.no_grad():
        buffer.copy_(before)
        functional_call(module.network, module.parameters_at(0), (x,))
    torch.testing.assert_close(found, buffer)


def test_networks_without_batch_norm_and_regression():
    module, batch = MAMLPlusPlusModule(MLP((1,), (8,)), 1, inner=InnerLoop(steps=2, lr=0.01)), sinusoids(3, 5, 0)
    assert not len(module.per_step)
    assert not module.protocol()["per_step_batch_norm"]
    module.train().training_loss(batch)[0].backward()
    assert all(value.grad.abs().max() > 0 for value in module.parameters())


def test_wrong_arguments():
    with pytest.raises(UserError, match="needs at least 1 inner step in training, but has 0"):
        MAMLPlusPlusModule(MLP((1,), (8,)), 1, inner=InnerLoop(steps=0, lr=0.1))
    with pytest.raises(UserError, match="loss_annealing_epochs"):
        MAMLPlusPlusModule(MLP((1,), (8,)), 1, schedule=OuterSchedule(loss_annealing_epochs=-1))
    with pytest.raises(UserError, match="first_order_epochs"):
        MAMLPlusPlusModule(MLP((1,), (8,)), 1, schedule=OuterSchedule(first_order_epochs=-1))


@pytest.mark.parametrize(
    ("epoch", "earlier", "last"),
    [(0, 0.2, 0.2), (50, 0.1, 0.6), (98, 0.006, 0.976), (99, 0.006, 0.976), (100, 0.0, 1.0)],
)
def test_step_weights_fall_to_a_floor_until_only_the_last_counts(epoch, earlier, last):
    schedule = OuterSchedule(loss_annealing_epochs=100)
    module = MAMLPlusPlusModule(MLP((1,), (4,)), 1, inner=InnerLoop(steps=5, lr=0.1), schedule=schedule)
    assert at_epoch(module, epoch).step_weights() == pytest.approx([earlier] * 4 + [last])
    assert OuterSchedule().loss_annealing_epochs == 10


@pytest.mark.parametrize("kind", [MAMLModule, MAMLPlusPlusModule])
def test_classes_that_a_task_does_not_have_are_masked_in_training(kind):
    module = at_epoch(kind(MLP((4,), (8,)), 3, inner=InnerLoop(steps=2, lr=0.1)).train(), 0)
    labels = (torch.arange(6) % 2).unsqueeze(0)
    batch = Episode(torch.randn(1, 6, 4), labels, torch.randn(1, 6, 4), labels)
    loss, outputs = module.training_loss(batch)
    assert (outputs[..., 2] == torch.finfo(torch.float32).min).all()
    assert (module(batch)[..., 2] == torch.finfo(torch.float32).min).all()
    if kind is MAMLModule:
        torch.testing.assert_close(loss.detach(), F.cross_entropy(outputs[0, :, :2], labels[0]))
