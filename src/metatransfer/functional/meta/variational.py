"""Gaussian distributions over the weights of a network."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from metatransfer.functional.meta.update_rules import Params

__all__ = ["gaussian_divergence", "gaussian_weights", "standard_noise"]


def gaussian_divergence(mean: Params, log_variance: Params, prior_mean: Params, prior_log_variance: Params) -> Tensor:
    r"""Kullback-Leibler divergence between Gaussians with diagonal covariances, summed over all weights.

    .. math:: \mathrm{KL}(q\,\Vert\,p) = \frac12\sum_j \Bigl(\log\frac{\tau_j^2}{\sigma_j^2}
              + \frac{\sigma_j^2 + (\mu_j - m_j)^2}{\tau_j^2} - 1\Bigr)

    Args:
        mean: :math:`\mu` of :math:`q`, by name.
        log_variance: :math:`\log\sigma^2` of :math:`q`.
        prior_mean: :math:`m` of :math:`p`.
        prior_log_variance: :math:`\log\tau^2` of :math:`p`.

    Returns:
        A scalar, in nats.
    """
    parts = []
    for name, value in mean.items():
        gap = log_variance[name] - prior_log_variance[name]
        distance = (value - prior_mean[name]).square() * (-prior_log_variance[name]).exp()
        parts.append((gap.expm1() - gap + distance).sum() / 2)  # without cancellation for equal variances
    return torch.stack(parts).sum()


def gaussian_weights(mean: Params, log_variance: Params, noise: Params) -> list[Params]:
    r"""Samples :math:`w^{(s)} = \mu + \sigma\epsilon^{(s)}` of weights (Kingma, Welling 2014, 1312.6114).

    Args:
        mean: :math:`\mu`, by name.
        log_variance: :math:`\log\sigma^2`.
        noise: :math:`\epsilon` ``(samples, *shape)``.

    Returns:
        The weights of each sample, by name.
    """
    spread = {name: mean[name] + (value / 2).exp() * noise[name] for name, value in log_variance.items()}
    count = len(next(iter(noise.values())))
    return [{name: value[place] for name, value in spread.items()} for place in range(count)]


def standard_noise(key: Sequence[int], samples: int, like: Mapping[str, Tensor]) -> Params:
    """Standard normal numbers ``(samples, *shape)`` for tensors ``(*shape)``, by name.

    They depend on the key alone: not on the device, nor on the order in which tasks are computed.

    Args:
        key: integers that are not negative, e.g. a seed and the number of a step.
        samples: number of draws for each tensor.
        like: tensors that give shape, type and device.
    """
    draw = np.random.default_rng(list(key))
    return {
        name: torch.from_numpy(draw.standard_normal((samples, *value.shape), np.float32)).to(value)
        for name, value in like.items()
    }
