"""Ways through the tasks."""

import pytest
import torch
from engine_networks import RECURRENT, build, tasks, trainable
from torch import nn

from metatransfer import MLP, Conv4, UserError
from metatransfer.functional import (
    adapt_tasks,
    choose_batching,
    mean_over_parts,
    over_tasks,
    sgd,
    stateless,
)  # fmt: skip


def test_auto_loops_over_convolutions_on_a_cpu_and_recurrent_layers():
    x = torch.zeros(1)
    assert choose_batching(Conv4(), x) == ("threads" if torch.get_num_threads() > 1 else "loop")
    assert choose_batching(Conv4(dropout=0.1).train(), x) == "loop"
    assert choose_batching(MLP(), x) == "vmap"
    assert choose_batching(Conv4(), torch.zeros(1, device="meta")) == "vmap"
    assert choose_batching(nn.Sequential(nn.LSTM(2, 2)), torch.zeros(1, device="meta")) == "loop"


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_adapt_in_a_loop_and_are_refused_under_vmap(name):
    net, data = build(name), tasks(name)
    [adapted], _ = adapt_tasks(stateless(net), trainable(net), *data[:2], steps=2, update=sgd(0.1))
    assert all(torch.isfinite(value).all() for value in adapted.values())
    with pytest.raises(UserError, match=r"cannot be mapped over tasks .*set batching='loop'"):
        adapt_tasks(stateless(net), trainable(net), *data[:2], steps=2, update=sgd(0.1), batching="vmap")


@pytest.mark.parametrize("chunk_size", [1, 2, 5, None])
def test_mean_over_parts_is_the_mean_over_all(chunk_size):
    weight, idle = torch.tensor([1.0, 2.0], requires_grad=True), torch.ones(3, requires_grad=True)
    x, y = torch.randn(5, 4, 2), torch.randn(5, 4)
    seen = []

    def function(x, y):
        seen.append(len(x))
        outputs = (x * weight).sum(-1).sin()
        return (outputs - y).square().mean(), outputs

    loss, outputs = mean_over_parts(function, x, y, chunk_size=chunk_size, leaves=[weight, idle])
    expected, all_outputs = function(x, y)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(outputs, all_outputs)
    (3 * loss).backward()  # as a gradient scaler or an accumulation does
    [gradient] = torch.autograd.grad(3 * expected, [weight])
    torch.testing.assert_close(weight.grad, gradient)
    assert idle.grad is None or not idle.grad.any()
    assert seen[:-1] == {1: [1] * 5, 2: [2, 2, 1]}.get(chunk_size, [5])


def test_mean_over_parts_takes_no_gradient_where_none_is_wanted():
    with torch.no_grad():
        loss, _ = mean_over_parts(lambda x: (x.mean(), x), torch.ones(4, 2), chunk_size=1, leaves=[torch.ones(1)])
    assert not loss.requires_grad


def test_float16_scaling_still_reaches_the_backward_pass():
    weight = torch.ones(2, requires_grad=True)
    sizes = []

    def function(x):
        sizes.append(len(x))
        return (x * weight).mean(), x

    with torch.autocast("cpu", dtype=torch.float16):
        mean_over_parts(function, torch.ones(4, 2), chunk_size=1, leaves=[weight])
    assert sizes == [4]


@pytest.mark.parametrize("batching", ["loop", "vmap"])
def test_over_tasks_stacks(batching):
    found = over_tasks(lambda a, b: {"sum": a + b["c"]}, torch.ones(3, 2), {"c": torch.ones(3, 2)}, batching=batching)
    assert torch.equal(found["sum"], torch.full((3, 2), 2.0))
