"""Update rules: against torch.optim, differentiable, with learned rates."""

import pytest
import torch

from metatransfer.functional import adam, clip_norm, momentum, sgd
from metatransfer.functional.meta.update_rules import as_rule


def run(rule, start, gradients):
    rule, params = as_rule(rule), dict(start)
    state = rule.start(params)
    for step, found in enumerate(gradients):
        params, state = rule.update(params, found, state, step)
    return params


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    draw = lambda: {  # noqa: E731
        "a": torch.randn(3, 2, generator=generator, dtype=torch.float64),
        "b": torch.randn(4, generator=generator, dtype=torch.float64),
    }
    return draw(), [draw() for _ in range(5)]


@pytest.mark.parametrize(
    ("rule", "optimizer"),
    [
        (sgd(0.1), lambda values: torch.optim.SGD(values, lr=0.1)),
        (momentum(0.1, 0.8), lambda values: torch.optim.SGD(values, lr=0.1, momentum=0.8)),
        (adam(0.1), lambda values: torch.optim.Adam(values, lr=0.1)),
        (adam(0.1, betas=(0.0, 0.9)), lambda values: torch.optim.Adam(values, lr=0.1, betas=(0.0, 0.9))),
    ],
)
def test_is_torchs_optimizer(rule, optimizer, problem):
    start, gradients = problem
    expected = {name: value.clone().requires_grad_() for name, value in start.items()}
    theirs = optimizer(list(expected.values()))
    for found in gradients:
        for name, value in expected.items():
            value.grad = found[name].clone()
        theirs.step()
    for name, value in run(rule, start, gradients).items():
        torch.testing.assert_close(value, expected[name].detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [sgd, momentum, adam])
def test_rates_by_step_and_name_and_beyond_the_last(make, problem):
    start, gradients = problem
    rates = [{"a": torch.tensor(0.1 * (step + 1)), "b": torch.tensor(0.3)} for step in range(3)]
    found = run(make(rates), start, gradients)
    # five steps, three rates: the last one stays
    same = run(make([*rates, rates[-1], rates[-1]]), start, gradients)
    assert all(torch.equal(found[name], same[name]) for name in found)
    other = run(make(rates[0]), start, gradients)
    assert not torch.equal(found["a"], other["a"])
    assert torch.equal(found["b"], other["b"])


@pytest.mark.parametrize("make", [sgd, momentum, adam])
def test_differentiable_in_rate_parameters_and_gradients(make, problem):
    start, gradients = problem
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    inputs = [lr, start["a"].requires_grad_(), gradients[0]["a"].requires_grad_()]

    def outcome(lr, a, g):
        return run(make(lr), {**start, "a": a}, [{**gradients[0], "a": g}, *gradients[1:3]])["a"]

    assert torch.autograd.gradcheck(outcome, inputs)


def test_adam_has_a_derivative_where_a_gradient_is_zero():
    value = torch.zeros(3, requires_grad=True)
    moved = run(adam(0.1), {"a": torch.ones(3)}, [{"a": value}])
    moved["a"].sum().backward()
    assert torch.isfinite(value.grad).all()


@pytest.mark.parametrize("bound", [0.5, 100.0])
def test_clip_norm_is_torchs_and_differentiable(bound, problem):
    _, [found, *_] = problem
    values = [value.clone().requires_grad_() for value in found.values()]
    for value, gradient in zip(values, found.values(), strict=True):
        value.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_(values, bound)
    for value, clipped in zip(values, clip_norm(found, bound).values(), strict=True):
        torch.testing.assert_close(clipped, value.grad, rtol=1e-5, atol=1e-7)
    leaf = found["a"].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda a: clip_norm({**found, "a": a}, bound)["a"], [leaf])
    zero = torch.zeros(3, requires_grad=True)
    clip_norm({"a": zero}, bound)["a"].sum().backward()
    assert torch.isfinite(zero.grad).all()


def test_momentum_decays_by_the_rate_of_its_step(problem):
    start, gradients = problem
    found = run(momentum([0.1, 0.2, 0.3], [0.0, 0.5, 0.25]), start, gradients[:3])["a"]
    one, two, three = (gradient["a"] for gradient in gradients[:3])
    velocities = one, 0.5 * one + two, 0.25 * (0.5 * one + two) + three
    expected = start["a"] - 0.1 * velocities[0] - 0.2 * velocities[1] - 0.3 * velocities[2]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("taken", [2, torch.tensor(2.0, dtype=torch.float64)])
def test_adam_goes_on_from_earlier_second_moments(taken, problem):
    start, gradients = problem
    whole = adam(0.1, betas=(0.0, 0.9))
    params, state = dict(start), whole.start(start)
    for step in range(2):
        params, state = whole.update(params, gradients[step], state, step)
    rest = run(adam(0.1, betas=(0.0, 0.9), squares=state[1], taken=taken), params, gradients[2:])
    torch.testing.assert_close(rest, run(whole, start, gradients))


def test_sgd_takes_the_rate_of_its_step():
    moved = sgd([0.5, 0.25])({"a": torch.ones(1)}, {"a": torch.tensor([2.0])}, 1)
    assert moved["a"].item() == 0.5
