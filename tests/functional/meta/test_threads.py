"""Tasks in threads: the loop's numbers, the caller's modes, nothing shared that is written to."""

from __future__ import annotations

import copy
import os
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metatransfer import Backbone, Conv4, Episode, MAMLModule, UserError
from metatransfer.functional import adapt_tasks, choose_batching, in_threads, over_tasks, sgd, stateless
from metatransfer.functional.meta.threads import _pools, thread_count
from metatransfer.methods.options import Execution, InnerLoop


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2, "the number of threads was not set back"
    torch.set_num_threads(before)


def episode(tasks=5):
    labels = torch.arange(3)
    return Episode(
        torch.rand(tasks, 3, 1, 28, 28, dtype=torch.float64), labels.expand(tasks, -1),
        torch.rand(tasks, 6, 1, 28, 28, dtype=torch.float64), labels.repeat(2).expand(tasks, -1),
    )  # fmt: skip


def gradients(module, batch, batching):
    module.execution = Execution(batching=batching)
    module.zero_grad()
    loss, outputs = module.training_loss(batch)
    loss.backward()
    return [loss.detach(), outputs, *(value.grad.clone() for value in module.parameters())]


@pytest.mark.grid(3)
@pytest.mark.parametrize("batch_norm", ["transductive", "support", "running"])
@pytest.mark.parametrize("steps", [1, 3])
def test_gradients_are_those_of_the_loop_and_the_same_every_time(steps, batch_norm):
    module = (
        MAMLModule(Conv4(hidden_channels=4), 3, inner=InnerLoop(steps=steps, lr=0.4), batch_norm=batch_norm)
        .double()
        .train()
    )
    batch = episode()
    assert choose_batching(module.network, batch.support_x) == "threads"
    loop, once, again = (gradients(module, batch, batching) for batching in ("loop", "threads", "threads"))
    for one, two, three in zip(loop, once, again, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-13)
        assert torch.equal(two, three)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_answers_are_those_of_the_loop(mode):
    module, batch = MAMLModule(Conv4(hidden_channels=4), 3, inner=InnerLoop(steps=2, lr=0.4)).double().eval(), episode()
    answers = []
    for batching in ("loop", "threads"):
        module.execution = Execution(batching=batching)
        with mode():
            answers.append(module(batch))
    torch.testing.assert_close(*answers, rtol=1e-12, atol=1e-13)


def test_the_network_is_left_alone():
    network = Conv4(hidden_channels=4).double()
    before, state = copy.deepcopy(network.state_dict()), {name: id(v) for name, v in network.named_parameters()}
    with torch.no_grad():
        adapt_tasks(
            stateless(network), dict(network.named_parameters()), episode().support_x,
            torch.arange(3).expand(5, -1), steps=1, update=sgd(0.1), batching="threads",
            loss=lambda outputs, targets: F.cross_entropy(outputs[:, :3], targets),
        )  # fmt: skip
    assert {name: id(value) for name, value in network.named_parameters()} == state
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any("forward" in layer.__dict__ for layer in network.modules())


class Noisy(Backbone):
    """Draws at random where no layer says so."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out_features = nn.Conv2d(1, 4, 3), 4

    def forward(self, x):
        return F.dropout(self.conv(x), 0.5).mean((2, 3))


def test_what_draws_at_random_keeps_the_order_of_the_loop():
    module, batch = MAMLModule(Noisy(), 3).double().train(), episode()
    torch.manual_seed(1)
    loop = gradients(module, batch, "loop")
    after = torch.get_rng_state()
    torch.manual_seed(1)
    with pytest.warns(UserWarning, match="draws random numbers"):
        threads = gradients(module, batch, "threads")
    assert torch.equal(after, torch.get_rng_state())
    for one, two in zip(loop, threads, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-13)


def test_the_callers_modes_hold_and_cores_are_shared_out():
    torch.set_num_threads(2)
    seen = lambda: (  # noqa: E731
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"), torch.get_num_threads(), thread_count(8),
    )  # fmt: skip
    assert in_threads([seen] * 2) == [(True, False, False, torch.bfloat16, 1, 1)] * 2
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.float16):
        assert in_threads([seen] * 2) == [(False, True, True, torch.float16, 1, 1)] * 2


def test_an_error_of_a_task_is_the_users_to_see():
    def wrong(x):
        raise UserError("this task is wrong.")

    with torch.no_grad(), pytest.raises(UserError, match="this task is wrong"):
        over_tasks(wrong, torch.zeros(4, 1), batching="threads")


def test_one_thread_is_a_loop():
    torch.set_num_threads(1)
    try:
        assert thread_count(8) == 1
        assert choose_batching(Conv4(), torch.zeros(1)) == "loop"
        assert in_threads([lambda: 1, lambda: 2]) == [1, 2]
    finally:
        torch.set_num_threads(2)


def test_when_one_task_fails_the_others_have_ended():
    ended = []

    def fails():
        raise UserError("this task is wrong.")

    def ends():
        time.sleep(0.2)
        ended.append(True)

    with pytest.raises(UserError, match="this task is wrong"):
        in_threads([fails, ends])
    assert ended


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_makes_threads_of_its_own():
    in_threads([lambda: 1, lambda: 2])
    child = os.fork()
    if child == 0:  # pragma: no cover
        os._exit(0 if not _pools else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
