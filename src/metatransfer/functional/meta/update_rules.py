"""Update rules of the inner loop: gradient descent, momentum and Adam as differentiable functions without state.

A rule owns no parameters: the method passes learned rates in as tensors, and the state of a rule (e.g. momentum) is
passed in and returned.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Params", "PlainRule", "RuleState", "UpdateRule", "adam", "clip_norm", "momentum", "sgd"]

Params = dict[str, Tensor]
RuleState = Any
"""Tensors in any nesting (dictionaries, tuples, lists)."""

PlainRule = Callable[[Params, Params, int], Params]
"""``rule(params, gradients, step) -> params``: a differentiable function without state; steps count from 0."""

Rate = float | Tensor | Mapping[str, Tensor]
Rates = Rate | Sequence[Rate]
"""One rate, or a tensor per parameter name, or a sequence of these with one entry per step (the last is repeated)."""


@dataclass(frozen=True)
class UpdateRule:
    """An update rule with state.

    Attributes:
        start: ``start(params) -> state``, before the first step.
        update: ``update(params, gradients, state, step) -> (params, state)``, differentiable.
        reads_loss: whether ``update`` takes the support loss of the task, a scalar, as a fifth argument.
    """

    start: Callable[[Params], RuleState]
    update: Callable[..., tuple[Params, RuleState]]
    reads_loss: bool = False


def as_rule(rule: UpdateRule | PlainRule) -> UpdateRule:
    """Wraps a plain function as a rule with an empty state; returns a rule unchanged."""
    if isinstance(rule, UpdateRule):
        return rule

    def update(params: Params, gradients: Params, state: RuleState, step: int) -> tuple[Params, RuleState]:
        return rule(params, gradients, step), state

    return UpdateRule(start=lambda params: (), update=update)


def _rate_of(rates: Rates, name: str, step: int) -> float | Tensor:
    """The rate of one parameter at one step."""
    if isinstance(rates, Sequence):
        rates = rates[min(step, len(rates) - 1)]
    return rates[name] if isinstance(rates, Mapping) else rates


def sgd(lr: Rates) -> PlainRule:
    r"""Plain gradient descent :math:`\theta \leftarrow \theta - \alpha \nabla\mathcal L(\theta)`.

    Args:
        lr: the rate :math:`\alpha`: a number, a tensor, a dictionary of tensors that broadcast against the parameters
            (Meta-SGD), or a sequence of these with one entry per step (MAML++).
    """

    def update(params: Params, gradients: Params, step: int) -> Params:
        return {name: value - _rate_of(lr, name, step) * gradients[name] for name, value in params.items()}

    return update


def momentum(lr: Rates, decay: Rates = 0.9) -> UpdateRule:
    r"""Gradient descent with momentum.

    .. math:: v \leftarrow \mu v + \nabla\mathcal L,\qquad \theta \leftarrow \theta - \alpha v

    Args:
        lr: the rate :math:`\alpha`, as in :func:`sgd`.
        decay: :math:`\mu`, in the same forms as ``lr``.
    """

    def update(params: Params, gradients: Params, state: RuleState, step: int) -> tuple[Params, RuleState]:
        velocity = {name: _rate_of(decay, name, step) * state[name] + gradients[name] for name in params}
        moved = {name: value - _rate_of(lr, name, step) * velocity[name] for name, value in params.items()}
        return moved, velocity

    return UpdateRule(start=_zeros, update=update)


def adam(
    lr: Rates,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    squares: Params | None = None,
    taken: float | Tensor = 0,
) -> UpdateRule:
    r"""Adam (Kingma, Ba 2015, 1412.6980), differentiable; Reptile's inner rule with :math:`\beta_1=0`.

    .. math:: m \leftarrow \beta_1 m + (1-\beta_1) g,\quad v \leftarrow \beta_2 v + (1-\beta_2) g^2,\quad
              \theta \leftarrow \theta - \alpha\,\frac{m/(1-\beta_1^t)}{\sqrt{v/(1-\beta_2^t)}+\epsilon}

    Where a gradient is exactly 0, the square root has no derivative; 0 is used.

    Args:
        lr: the rate :math:`\alpha`, as in :func:`sgd`.
        betas: :math:`\beta_1,\beta_2`.
        eps: :math:`\epsilon`.
        squares: second moments :math:`v` to start from, by name; defaults to zeros.
        taken: number of steps that ``squares`` were accumulated over.
    """
    first, second = betas

    def update(params: Params, gradients: Params, state: RuleState, step: int) -> tuple[Params, RuleState]:
        means, seconds, moved = {}, {}, {}
        for name, value in params.items():
            gradient = gradients[name]
            means[name] = first * state[0][name] + (1 - first) * gradient
            seconds[name] = second * state[1][name] + (1 - second) * gradient.square()
            variance = seconds[name] / (1 - second ** (taken + step + 1))
            zero = variance == 0
            root = torch.where(zero, 1.0, variance).sqrt().masked_fill(zero, 0.0)
            moved[name] = value - _rate_of(lr, name, step) * (means[name] / (1 - first ** (step + 1))) / (root + eps)
        return moved, (means, seconds)

    def start(params: Params) -> RuleState:
        zeros = _zeros(params)
        return zeros, zeros if squares is None else {name: squares[name] for name in params}

    return UpdateRule(start=start, update=update)


def _zeros(params: Params) -> Params:
    return {name: torch.zeros_like(value) for name, value in params.items()}


def clip_norm(gradients: Params, bound: float) -> Params:
    r"""Scales the gradients of one task so that their joint norm is at most ``bound``; differentiable.

    Args:
        gradients: by name.
        bound: the largest norm :math:`\lVert g\rVert_2` over all of them.
    """
    square = torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum()
    # clamped, because the root has no derivative at 0
    scale = torch.where(square > bound**2, bound * square.clamp(min=bound**2).rsqrt(), 1.0)
    return {name: scale * gradient for name, gradient in gradients.items()}
