"""iMAML: the implicit gradient against the explicit one and finite differences, memory, options."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import messages
from metatransfer import MLP, Episode, IMAMLModule, ImplicitSolver, UserError
from metatransfer.methods import Execution, InnerLoop


def tasks(count=2):
    generator = torch.Generator().manual_seed(0)
    draw = lambda number: torch.randn(count, number, 3, generator=generator, dtype=torch.float64)  # noqa: E731
    labels = lambda number: torch.arange(2).repeat(number // 2).expand(count, -1)  # noqa: E731
    return Episode(draw(4), labels(4), draw(6), labels(6))


def made(steps=40, batching="loop", solver=(30, 0.0), **options):
    torch.manual_seed(0)
    inner = InnerLoop(steps=steps, lr=0.3)
    options |= {"inner": inner, "solver": ImplicitSolver(*solver), "execution": Execution(batching=batching)}
    module = IMAMLModule(MLP((3,), (4,)), 2, **options)
    return module.double().train()


def explicit_loss(module, batch, steps):
    """The query loss after many steps, differentiated through all of them."""
    losses = []
    for support_x, support_y, query_x, query_y in zip(*batch[:4], strict=True):
        start = dict(module.network.named_parameters())
        params = {name: value + 0 for name, value in start.items()}
        for _ in range(steps):
            loss = F.cross_entropy(torch.func.functional_call(module.network, params, support_x), support_y)
            loss = loss + module.proximity / 2 * sum((params[name] - start[name]).square().sum() for name in params)
            found = torch.autograd.grad(loss, list(params.values()), create_graph=True)
            params = {name: value - 0.3 * one for (name, value), one in zip(params.items(), found, strict=True)}
        losses.append(F.cross_entropy(torch.func.functional_call(module.network, params, query_x), query_y))
    return torch.stack(losses).mean()


def test_the_gradient_is_the_explicit_one_through_converged_steps():
    batch = tasks()
    module = made()
    loss = explicit_loss(module, batch, 40)
    expected = torch.autograd.grad(loss, list(module.parameters()))
    for batching in ("loop", "threads", "vmap"):
        module = made(batching=batching)
        own, outputs = module.training_loss(batch)
        torch.testing.assert_close(own, loss.detach(), rtol=1e-10, atol=1e-12)
        assert outputs.shape == (2, 6, 2)
        for found, wanted in zip(torch.autograd.grad(own, list(module.parameters())), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)


def test_the_gradient_is_that_of_finite_differences():
    module, batch = made(), tasks()
    parameters = list(module.parameters())
    found = torch.autograd.grad(module.training_loss(batch)[0], parameters)
    generator = torch.Generator().manual_seed(1)
    along = [torch.randn(value.shape, generator=generator, dtype=value.dtype) for value in parameters]
    sides = []
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            for value, one in zip(parameters, along, strict=True):
                value += step * one
            sides.append(module.training_loss(batch)[0])
    slope = sum((one * two).sum() for one, two in zip(found, along, strict=True))
    torch.testing.assert_close(slope, (sides[0] - sides[1]) / 2e-5, rtol=1e-6, atol=1e-8)


def test_fewer_solver_steps_and_no_convergence_give_other_gradients():
    """Or the tests above would prove nothing."""
    batch, found = tasks(), []
    for options in ({}, {"solver": (1, 0.0)}, {"solver": (30, 1.0)}, {"steps": 1}):
        module = made(**options)
        found.append(torch.autograd.grad(module.training_loss(batch)[0], list(module.parameters()))[0])
    for other in found[1:]:
        assert (other - found[0]).norm() > 1e-3 * found[0].norm()


class Kept:
    """Numbers that graphs keep for the backward pass: now, and at most."""

    now = most = 0

    def __init__(self, tensor):
        self.tensor = tensor
        Kept.now += tensor.numel()
        Kept.most = max(Kept.most, Kept.now)

    def __del__(self):
        Kept.now -= self.tensor.numel()


@pytest.mark.parametrize("batching", ["loop", "vmap"])
def test_memory_does_not_grow_with_the_inner_steps(batching):
    peaks = []
    for steps in (1, 20):
        module, Kept.now, Kept.most = made(steps, batching), 0, 0
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            module.part_loss(tasks())
        peaks.append(Kept.most)
    assert peaks[0] == peaks[1] > 0


@pytest.mark.parametrize("proximity", [2.0, 4.0])
def test_a_task_ends_at_the_minimum_of_its_loss_and_the_proximal_term(proximity):
    module, batch = made(steps=100, proximity=proximity).eval(), tasks()
    found = module.fit_tasks(batch.support_x, batch.support_y).params
    start = dict(module.network.named_parameters())
    for task in range(2):
        params = {name: value[task].detach().requires_grad_() for name, value in found.items()}
        outputs = torch.func.functional_call(module.network, params, batch.support_x[task])
        loss = F.cross_entropy(outputs, batch.support_y[task])
        for (name, value), slope in zip(params.items(), torch.autograd.grad(loss, list(params.values())), strict=True):
            torch.testing.assert_close(slope, proximity * (start[name] - value), rtol=1e-8, atol=1e-10)


def test_options_without_a_meaning_are_refused():
    for inner, execution in (
        (InnerLoop(steps=2, lr=0.1, first_order=True), Execution()),
        (InnerLoop(steps=2, lr=0.1, checkpoint=True), Execution()),
        (InnerLoop(steps=2, lr=0.1), Execution(compile=True)),
    ):
        with pytest.raises(UserError, match="because its outer gradient does not pass through") as error:
            IMAMLModule(MLP((3,), (4,)), 2, inner=inner, execution=execution)
        messages.keep(str(error.value))
    with pytest.raises(UserError, match="proximity must be a number above 0"):
        made(proximity=0.0)
    with pytest.raises(UserError, match=r"solver\.steps must be a whole number from 1"):
        made(solver=(0, 0.0))
    with pytest.raises(UserError, match=r"solver\.damping must be 0 or more"):
        made(solver=(1, -1.0))
