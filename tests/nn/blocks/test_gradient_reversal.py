"""Gradient reversal."""

import torch

from metatransfer.nn import reverse_gradient


def test_the_value_is_the_same_and_the_gradient_is_turned_and_scaled():
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, dtype=torch.float64)
    for strength in (0.0, 0.3, 2.0):
        y = reverse_gradient(x, strength)
        assert torch.equal(y, x)
        (gradient,) = torch.autograd.grad((y * weight).sum(), x)
        torch.testing.assert_close(gradient, -strength * weight.expand(4, 3))


def test_against_finite_differences_of_both_losses():
    """What comes before the reversal descends a loss less the strength times the other; what comes after, the other."""
    torch.manual_seed(0)
    before, after, x = (torch.randn(3, 3, dtype=torch.float64) for _ in range(3))
    strength, step = 0.7, 1e-6

    def losses(before, after, strength=None):
        hidden = torch.tanh(x @ before)
        shown = hidden if strength is None else reverse_gradient(hidden, strength)
        return hidden.square().mean(), torch.sigmoid(shown @ after).mean()

    mine, other = before.clone().requires_grad_(), after.clone().requires_grad_()
    sum(losses(mine, other, strength)).backward()
    for i in range(3):
        for j in range(3):
            moved = torch.zeros(3, 3, dtype=torch.float64)
            moved[i, j] = step
            up, down = losses(before + moved, after), losses(before - moved, after)
            label, domain = ((one - two) / (2 * step) for one, two in zip(up, down, strict=True))
            torch.testing.assert_close(mine.grad[i, j], label - strength * domain, rtol=1e-6, atol=1e-9)
            up, down = losses(before, after + moved), losses(before, after - moved)
            torch.testing.assert_close(other.grad[i, j], (up[1] - down[1]) / (2 * step), rtol=1e-6, atol=1e-9)


def test_without_gradients_it_is_the_sample_itself():
    x = torch.randn(2)
    with torch.no_grad():
        assert reverse_gradient(x, 2.0) is x


def test_other_dtypes_and_shapes():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = torch.ones(2, 1, 3, dtype=dtype, requires_grad=True)
        y = reverse_gradient(x)
        y.float().sum().backward()
        assert y.dtype == x.grad.dtype == dtype
        assert (x.grad == -1).all()
