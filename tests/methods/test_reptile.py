"""Reptile: its outer step against torch.optim.Adam run task by task."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from test_maml import double, sinusoids

from contract import episode
from metatransfer import MLP, Conv4, ReptileModule, UserError
from metatransfer.methods.options import Execution, InnerLoop


def adapted_by_torch(module, x, y, loss):
    network = copy.deepcopy(module.network)
    optimizer = torch.optim.Adam(network.parameters(), lr=module.inner.lr, betas=(0.0, 0.999))
    for _ in range(module.inner.steps_in(True)):
        optimizer.zero_grad()
        loss(network(x), y).backward()
        optimizer.step()
    return [value.detach() for value in network.parameters()]


@pytest.mark.parametrize("batching", ["loop", "vmap"])
@pytest.mark.parametrize("regression", [False, True])
def test_a_step_of_plain_descent_goes_to_the_mean_of_the_adapted_weights(batching, regression):
    torch.manual_seed(0)
    if regression:
        module, batch, loss = (
            ReptileModule(MLP((1,), (8,)), 1, execution=Execution(batching=batching)),
            sinusoids(3, 5, 0),
            F.mse_loss,
        )
    else:
        module, batch = (
            ReptileModule(Conv4(hidden_channels=4), 3, execution=Execution(batching=batching)),
            episode(tasks=3),
        )
        loss = F.cross_entropy
    module.inner_batch_size = None
    module, batch = module.double().train(), double(batch)
    x, y = (torch.cat(pair, 1) for pair in ((batch[0], batch[2]), (batch[1], batch[3])))
    found = [adapted_by_torch(module, *task, loss) for task in zip(x, y, strict=True)]
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    before = [value.detach().clone() for value in module.parameters()]
    module.training_loss(batch)[0].backward()
    optimizer.step()
    for index, value in enumerate(module.parameters()):
        mean = torch.stack([weights[index] for weights in found]).mean(0)
        torch.testing.assert_close(value.detach(), (before[index] + mean) / 2, rtol=1e-9, atol=1e-10)


def test_the_loss_that_is_shown_is_that_of_the_queries_after_adaptation():
    module, batch = ReptileModule(Conv4(hidden_channels=4), 3, inner_batch_size=None).double().train(), episode()
    batch = double(batch)
    x, y = (torch.cat(pair, 1) for pair in ((batch[0], batch[2]), (batch[1], batch[3])))
    outputs = module.predict_tasks(module.fit_tasks(x, y), batch.query_x)
    shown, scores = module.training_loss(batch)
    torch.testing.assert_close(scores, outputs.detach())
    assert shown.item() == pytest.approx(F.cross_entropy(outputs.flatten(0, 1), batch.query_y.flatten()).item())


def test_mini_batches_are_shuffled_passes_over_the_task():
    module = ReptileModule(MLP((1,), (8,)), 1, inner=InnerLoop(steps=50, lr=0.001, train_steps=6), inner_batch_size=5)
    rows = module._draw_rows(4, 15)
    assert rows.shape == (4, 6, 5)
    for task in rows:
        for passed in task.view(2, 15):
            assert sorted(passed.tolist()) == list(range(15))
    assert not torch.equal(rows[0], rows[1])
    assert module._draw_rows(4, 5) is None  # the whole task
    uneven = ReptileModule(
        MLP((1,), (8,)), 1, inner=InnerLoop(steps=50, lr=0.001, train_steps=3), inner_batch_size=4
    )._draw_rows(2, 6)
    assert uneven.shape == (2, 3, 4)
    assert sorted(uneven[0].flatten()[:6].tolist()) == list(range(6))


def test_a_step_learns_from_its_mini_batch_alone():
    """With one step of one sample, the other samples of the task move nothing."""
    module = ReptileModule(
        MLP((1,), (8,)), 1, inner=InnerLoop(steps=50, lr=0.001, train_steps=1), inner_batch_size=1, keep_moments=False
    )
    module = module.double().train()
    batch = double(sinusoids(1, 5, 0))
    samples = batch.support_y.shape[1] + batch.query_y.shape[1]
    torch.manual_seed(3)
    chosen = int(module._draw_rows(1, samples)[0, 0, 0])
    found = []
    for noise in (0.0, 5.0):
        y = torch.cat([batch.support_y, batch.query_y], 1)
        y[:, [row for row in range(samples) if row != chosen]] += noise
        torch.manual_seed(3)
        module.zero_grad()
        module.training_loss(batch._replace(support_y=y[:, :5], query_y=y[:, 5:]))[0].backward()
        found.append([value.grad.clone() for value in module.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_second_moments_go_on_from_task_to_task():
    """Serially, with one optimiser of torch for all tasks: its moments and its steps are never set back."""
    torch.manual_seed(0)
    module = ReptileModule(MLP((1,), (8,)), 1, inner=InnerLoop(steps=50, lr=0.01, train_steps=3), inner_batch_size=None)
    module = module.double().train()
    reference = copy.deepcopy(module.network)
    inner = torch.optim.Adam(reference.parameters(), lr=0.01, betas=(0.0, 0.999))
    outer = torch.optim.SGD(module.parameters(), lr=0.5)
    for seed in range(4):
        batch = double(sinusoids(1, 5, seed))
        outer.zero_grad()
        module.training_loss(batch)[0].backward()
        outer.step()
        start = [value.detach().clone() for value in reference.parameters()]
        for _ in range(3):
            inner.zero_grad()
            F.mse_loss(
                reference(torch.cat([batch.support_x[0], batch.query_x[0]])),
                torch.cat([batch.support_y[0], batch.query_y[0]]),
            ).backward()
            inner.step()
        with torch.no_grad():
            for value, before in zip(reference.parameters(), start, strict=True):
                value.copy_((value + before) / 2)
        torch.testing.assert_close(list(module.network.parameters()), list(reference.parameters()), rtol=1e-9, atol=0)
    assert module.moments.taken == 12
    # evaluation goes on from there and leaves them as they are
    kept = copy.deepcopy(module.moments.state_dict())
    module.eval()
    [tasks] = module.adapt_through(batch.support_x, batch.support_y)
    fresh = copy.deepcopy(module)
    fresh.moments = None
    assert not torch.equal(fresh.adapt_through(batch.support_x, batch.support_y)[0].params["head.linear.bias"],
                           tasks.params["head.linear.bias"])  # fmt: skip
    assert all(torch.equal(value, kept[name]) for name, value in module.moments.state_dict().items())


@pytest.mark.parametrize("batching", ["loop", "threads", "vmap"])
def test_moments_of_a_meta_batch_are_averaged(batching):
    module = ReptileModule(
        MLP((1,), (8,)),
        1,
        inner=InnerLoop(steps=50, lr=0.001, train_steps=2),
        inner_batch_size=None,
        execution=Execution(batching=batching),
    )
    module, batch = module.double().train(), double(sinusoids(4, 5, 0))
    alone = []
    for task in range(4):
        one = copy.deepcopy(module)
        one.training_loss(batch.map(lambda x, task=task: x[task : task + 1]))
        alone.append(one.moments())
    module.training_loss(batch)
    for name, value in module.moments().items():
        torch.testing.assert_close(value, torch.stack([found[name] for found in alone]).mean(0), rtol=1e-9, atol=0)
        assert value.abs().max() > 0


def test_moments_are_averaged_over_processes(monkeypatch):
    module = ReptileModule(MLP((1,), (8,)), 1)
    found = {name: torch.stack([torch.full_like(value, 1.0), torch.full_like(value, 3.0)])
             for name, value in module.moments().items()}  # fmt: skip
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda value: value.add_(6.0))  # the mean of the other process
    module.moments.keep(found, 5)
    assert all((value == 4.0).all() for value in module.moments().values())
    assert module.moments.taken == 5


def test_moments_are_in_the_checkpoint():
    module = ReptileModule(Conv4(hidden_channels=4), 3).train()
    module.training_loss(episode())
    other = ReptileModule(Conv4(hidden_channels=4), 3)
    other.load_state_dict(module.state_dict())
    assert other.moments.taken == 5
    assert all(torch.equal(value, module.moments()[name]) for name, value in other.moments().items())
    assert ReptileModule(Conv4(hidden_channels=4), 3, keep_moments=False).moments is None


def test_what_is_frozen_stays():
    module = ReptileModule(Conv4(hidden_channels=4), 3).train()
    module.backbone.layers[0].weight.requires_grad_(False)
    module.training_loss(episode())[0].backward()
    assert module.backbone.layers[0].weight.grad is None
    assert module.head.linear.weight.grad.abs().max() > 0


def test_a_diverging_inner_loop_is_named():
    module, batch = (
        ReptileModule(MLP((1,), (8,)), 1, inner=InnerLoop(steps=50, lr=1e38, train_steps=5)).train(),
        sinusoids(2, 5, 0),
    )
    with pytest.raises(UserError, match=r"the inner loop diverged: .* in task [01] of the meta-batch"):
        module.training_loss(batch)


def test_wrong_arguments():
    with pytest.raises(UserError, match="inner_batch_size must be a number above 0"):
        ReptileModule(MLP((1,), (8,)), 1, inner_batch_size=0)
