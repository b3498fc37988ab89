"""Embeddings of tasks by the Fisher information of a network, and their distance."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from metatransfer.errors import UserError

__all__ = ["diagonal_fisher", "task2vec", "task2vec_distance"]

_VALUES = 2**25  # of the derivatives of one part of the samples: 128 MB
_ROWS = 256  # samples of one forward pass


def diagonal_fisher(
    forward: Callable[[Mapping[str, Tensor], Tensor], Tensor],
    params: Mapping[str, Tensor],
    x: Tensor,
    *,
    draws: int | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    r"""Diagonal of the Fisher information of a classifier, under its own predictions.

    .. math:: F_j = \frac1n\sum_i \sum_y p(y\mid x_i, w)
              \left(\frac{\partial \log p(y\mid x_i, w)}{\partial w_j}\right)^2

    exactly, or with ``draws`` labels per sample drawn from :math:`p(y\mid x_i, w)` in place of the sum over classes.
    It is not the empirical Fisher information, which takes the given labels.

    Args:
        forward: logits ``(N, C)`` as a function of parameters and samples, such as
            :func:`~metatransfer.functional.stateless` returns. A sample's logits must not depend on other samples.
        params: the parameters :math:`w` by name.
        x: ``(N, *shape)`` samples.
        draws: labels drawn per sample; by default all classes are summed over, at ``C`` times the cost of one.
        generator: source of the draws, on the device of ``x``.

    Returns:
        :math:`F` by name, in the shapes of the parameters; in units of one over the squared parameter.

    Raises:
        UserError: there are no samples, or ``draws`` is not positive.
    """
    if not len(x) or (draws is not None and draws < 1):
        raise UserError(
            f"diagonal_fisher needs samples, and a positive number of draws if any, but got {len(x)} samples and "
            f"draws={draws}."
        )

    def of_one(one: Tensor, chosen: Tensor, weight: Tensor) -> dict[str, Tensor]:
        def log_p(point: Mapping[str, Tensor]) -> Tensor:
            return forward(point, one.unsqueeze(0)).squeeze(0).log_softmax(-1)[chosen]

        slopes = jacrev(log_p)(dict(params))
        return {name: torch.tensordot(weight, slope.square(), 1) for name, slope in slopes.items()}

    with torch.no_grad():
        p = torch.cat([forward(params, part).softmax(-1) for part in torch.split(x, _ROWS)])
    if draws is None:
        chosen, weights = torch.arange(p.shape[1], device=x.device).expand_as(p), p
    else:
        chosen = torch.multinomial(p, draws, replacement=True, generator=generator)
        weights = torch.full_like(chosen, 1 / draws, dtype=p.dtype)
    size = max(1, _VALUES // (chosen.shape[1] * sum(value.numel() for value in params.values())))
    total = {name: torch.zeros_like(value) for name, value in params.items()}
    for part in zip(*(torch.split(one, size) for one in (x, chosen, weights)), strict=True):
        for name, found in vmap(of_one)(*part).items():
            total[name] += found.detach().sum(0) / len(x)
    return total


def task2vec(fisher: Mapping[str, Tensor]) -> Tensor:
    """The embedding of a task (Task2Vec, Achille et al. 2019, 1902.03545): the mean Fisher information of each filter.

    Args:
        fisher: as from :func:`diagonal_fisher`, of a probe network whose head was fitted to the task.

    Returns:
        ``(F,)`` non-negative: a value for each output channel or unit of each weight with two and more axes. Biases and
        the parameters of normalisations are left out.

    Raises:
        UserError: there is no such weight.
    """
    rows = [value.flatten(1).mean(1) for value in fisher.values() if value.dim() > 1]
    if not rows:
        raise UserError("task2vec needs a network with weights of two or more axes, such as those of convolutions.")
    return torch.cat(rows)


def task2vec_distance(a: Tensor, b: Tensor) -> Tensor:
    r"""Distance of two tasks (Achille et al. 2019, 1902.03545), symmetric.

    .. math:: 1 - \cos\left(\frac{a}{a+b}, \frac{b}{a+b}\right)

    elementwise, so that every filter counts as much as any other, whatever its scale.

    Args:
        a: ``(F,)`` embedding of :func:`task2vec`.
        b: ``(F,)`` embedding by the same network.

    Returns:
        A scalar from 0 (the same directions) to 1.

    Raises:
        UserError: the embeddings differ in shape, have negative or infinite values, or are all zeros.
    """
    valid = (
        a.shape == b.shape and a.dim() == 1 and all(bool((one >= 0).all() and one.isfinite().all()) for one in (a, b))
    )
    if not valid or not a.any() or not b.any():
        raise UserError(
            "task2vec_distance needs two embeddings (F,) of the same network, non-negative and not all zeros, but got "
            f"the shapes {tuple(a.shape)} and {tuple(b.shape)}."
        )
    total = a + b
    kept = total > 0  # a filter without effect on either task has no direction
    first, second = (one[kept] / total[kept] for one in (a, b))
    return 1 - torch.nn.functional.cosine_similarity(first, second, dim=0)
