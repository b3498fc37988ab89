"""MAML: against an explicit loop, on regression, and its options."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from contract import episode
from inner_options import grouped
from metatransfer import MLP, Conv4, CosineHead, Episode, MAMLModule, ResNet12, UserError
from metatransfer.methods.options import Execution, InnerLoop


def double(batch):
    return batch.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


def explicit_loss(module, batch, steps, first_order=False):
    """MAML written out: a loop over tasks, torch.autograd.grad, native layers in train mode."""
    network, losses = module.network.train(), []
    for support_x, support_y, query_x, query_y in zip(*batch[:4], strict=True):
        params = dict(network.named_parameters())
        for _ in range(steps):
            loss = F.cross_entropy(functional_call(network, params, (support_x,)), support_y)
            gradients = torch.autograd.grad(loss, list(params.values()), create_graph=not first_order)
            params = {n: p - module.inner.lr * g for (n, p), g in zip(params.items(), gradients, strict=True)}
        losses.append(F.cross_entropy(functional_call(network, params, (query_x,)), query_y))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("batching", ["loop", "vmap"])
@pytest.mark.parametrize("steps", [1, 3])
def test_training_gradient_is_that_of_the_explicit_loop(steps, batching, first_order):
    module = MAMLModule(
        Conv4(hidden_channels=4),
        num_outputs=3,
        inner=InnerLoop(steps=steps, lr=0.4, first_order=first_order),
        execution=Execution(batching=batching),
    ).double()
    batch = double(episode(tasks=3))
    loss, _ = module.train().training_loss(batch)
    ours = torch.autograd.grad(loss, list(module.network.parameters()))
    expected = explicit_loss(module, batch, steps, first_order)
    theirs = torch.autograd.grad(expected, list(module.network.parameters()))
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-11)


def test_steps_and_rate_differ_between_training_and_evaluation():
    batch = episode()
    module = MAMLModule(
        Conv4(hidden_channels=4), num_outputs=3, inner=InnerLoop(steps=3, lr=0.1, train_steps=1, train_lr=0.4)
    )
    weights = module.state_dict()

    def outputs(steps, lr):
        twin = MAMLModule(Conv4(hidden_channels=4), num_outputs=3, inner=InnerLoop(steps=steps, lr=lr))
        twin.load_state_dict(weights)
        return twin.eval()(batch)

    torch.testing.assert_close(module.eval()(batch), outputs(3, 0.1))
    torch.testing.assert_close(module.train()(batch), outputs(1, 0.4))


def sinusoids(tasks, shots, seed):
    generator = torch.Generator().manual_seed(seed)
    uniform = lambda low, high, *shape: low + (high - low) * torch.rand(*shape, generator=generator)  # noqa: E731
    amplitude, phase = uniform(0.1, 5, tasks, 1, 1), uniform(0, torch.pi, tasks, 1, 1)
    x = uniform(-5, 5, tasks, 2 * shots, 1)
    y = amplitude * torch.sin(x - phase)
    return Episode(x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:])


def test_learns_to_regress():
    """Float targets: squared error, and an initialisation that adapts better than the untrained one."""
    torch.manual_seed(1)
    module = MAMLModule(MLP((1,), (40, 40)), num_outputs=1, inner=InnerLoop(steps=1, lr=0.01)).train()
    unseen = sinusoids(100, 10, seed=10**6)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    before = module.eval().training_loss(unseen)[0].item()
    for step in range(300):
        loss, _ = module.train().training_loss(sinusoids(16, 10, step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scores = module.eval().adaptation_curve(unseen).mean(1)
    assert scores.shape == (2,)
    assert scores[1] < 0.6 * before
    assert scores[1] < 0.8 * scores[0], "adaptation does not help"
    predictor = module.adapt(unseen.support_x[0], unseen.support_y[0])
    assert predictor.classes == ()
    torch.testing.assert_close(predictor.predict(unseen.query_x[0]), module(unseen)[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="regression"):
        predictor.predict_proba(unseen.query_x[0])


def test_auto_loops_over_convolutions_on_a_cpu_only():
    x = torch.zeros(1)
    assert Execution().batching_for(Conv4(), x) == "loop"
    assert Execution().batching_for(MLP(), x) == "vmap"
    assert Execution(batching="vmap").batching_for(Conv4(), x) == "vmap"


def test_running_statistics_are_collected_in_training_and_used_in_evaluation():
    module = MAMLModule(Conv4(hidden_channels=4), num_outputs=3, batch_norm="running")
    before = {name: value.clone() for name, value in module.named_buffers()}
    module.train().training_loss(episode())
    assert any(not torch.equal(value, before[name]) for name, value in module.named_buffers())
    assert module.protocol()["batch_norm"] == "running"
    assert not module.transductive


def test_networks_without_batch_norm_are_not_transductive():
    module = MAMLModule(Conv4(norm="group"), num_outputs=3)
    assert not module.transductive
    assert module.protocol()["batch_norm"] == "none"


def test_any_backbone_and_head():
    module = MAMLModule(
        ResNet12(1, widths=(4, 4, 8, 8)),
        num_outputs=3,
        head=CosineHead,
        inner=InnerLoop(steps=1, lr=0.4, first_order=True),
    )
    loss, outputs = module.train().training_loss(episode())
    loss.backward()
    assert outputs.shape == (2, 12, 3)
    assert module.head.scale.grad is not None


def test_frozen_parameters_do_not_adapt():
    module = MAMLModule(Conv4(hidden_channels=4), num_outputs=3)
    for value in module.backbone.parameters():
        value.requires_grad_(False)
    batch = episode()
    state = module.fit_tasks(batch.support_x, batch.support_y)
    assert set(state.params) == {"head.linear.weight", "head.linear.bias"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda: {"num_outputs": None}, "MAMLModule needs num_outputs"),
        (lambda: {"inner": InnerLoop(steps=1, lr=0.0)}, "inner.lr must be .*0"),
        (lambda: {"inner": InnerLoop(steps=1, lr=float("inf"))}, "inner.lr must be .*inf"),
        (lambda: {"inner": InnerLoop(steps=-1, lr=0.1)}, "inner.steps must be .*-1"),
        (lambda: {"inner": InnerLoop(steps=1, lr=0.1, train_steps=-2)}, "inner.train_steps must be .*-2"),
        (lambda: {"batch_norm": "batch"}, "batch_norm must be one of transductive, support, running"),
        (lambda: {"execution": Execution(batching="vmapp")}, r"execution.batching .*'vmapp'.* Did you mean vmap\?"),
        (lambda: {"execution": Execution(chunk_size=0)}, "execution.chunk_size must be .*0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        MAMLModule(Conv4(hidden_channels=4), **({"num_outputs": 3} | arguments()))


def test_running_policy_refuses_layers_without_running_averages():
    backbone = Conv4(hidden_channels=4)
    backbone.layers[1] = torch.nn.BatchNorm2d(4, track_running_stats=False)
    with pytest.raises(UserError, match=r"layer 'backbone.layers.1' was built with track_running_stats=False"):
        MAMLModule(backbone, num_outputs=3, batch_norm="running")


def test_a_module_frozen_for_inference_adapts_as_before():
    module, batch = (
        MAMLModule(Conv4(hidden_channels=4), num_outputs=3, inner=InnerLoop(steps=3, lr=0.4)),
        episode(tasks=1),
    )
    expected = module.adapt(batch.support_x[0], batch.support_y[0]).predict_proba(batch.query_x[0])
    module.freeze()
    again = module.adapt(batch.support_x[0], batch.support_y[0]).predict_proba(batch.query_x[0])
    torch.testing.assert_close(again, expected)


@pytest.mark.parametrize("batching", ["loop", "vmap"])
def test_a_diverging_inner_loop_is_reported_before_the_weights_are_spoiled(batching):
    batch = episode(tasks=3)
    module = MAMLModule(
        MLP((1, 28, 28), (8,)), num_outputs=3, inner=InnerLoop(steps=3, lr=0.1), execution=Execution(batching=batching)
    ).train()
    batch.support_x[1] *= 1e30
    before = [value.clone() for value in module.parameters()]
    with pytest.raises(UserError, match=r"after inner step \d of 3 in task 1 of the meta-batch, at inner.lr=0.1"):
        module.training_loss(batch)
    assert all(torch.equal(one, two) for one, two in zip(before, module.parameters(), strict=True))
    assert all(value.grad is None for value in module.parameters())


@pytest.mark.parametrize("options", [{"checkpoint": True}, {"batching": "vmap"}, {"batching": "vmap", "chunk_size": 2}])
def test_ways_of_computing_change_no_gradient(options):
    batch = double(episode(tasks=3))
    found = []
    for chosen in ({}, options):
        torch.manual_seed(0)
        module = MAMLModule(
            Conv4(hidden_channels=4), 3, **grouped(MAMLModule, inner_steps=3, inner_lr=0.1, **chosen)
        ).double()
        module.train().training_loss(batch)[0].backward()
        found.append(torch.cat([value.grad.flatten() for value in module.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


def test_the_curve_is_what_fewer_steps_give():
    batch = episode(tasks=3)
    module = MAMLModule(Conv4(hidden_channels=4), num_outputs=3, inner=InnerLoop(steps=3, lr=0.4)).eval()
    curve = module.adaptation_curve(batch)
    assert curve.shape == (4, 3)
    for steps in range(4):
        module.inner = InnerLoop(steps=steps, lr=0.4)
        outputs = module(batch)
        torch.testing.assert_close(curve[steps], (outputs.argmax(-1) == batch.query_y).float().mean(1))


def test_inner_gradients_are_clipped():
    batch = double(episode(tasks=2))
    module = (
        MAMLModule(Conv4(hidden_channels=4), num_outputs=3, inner=InnerLoop(steps=1, lr=1.0, max_norm=0.01))
        .double()
        .eval()
    )
    start = module.adapted_parameters()
    moved = module.fit_tasks(batch.support_x, batch.support_y).params
    for task in range(2):
        norm = torch.cat([(moved[name][task] - value).flatten() for name, value in start.items()]).norm()
        assert norm.item() == pytest.approx(0.01, rel=1e-6)
