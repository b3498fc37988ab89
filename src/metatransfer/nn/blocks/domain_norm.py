"""Batch normalisation with separate statistics for each domain."""

import contextlib
import copy
from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from metatransfer.errors import UserError

Side = Literal["source", "target"]


class DomainBatchNorm(nn.Module):
    """A BatchNorm layer with separate statistics for the source and the target.

    With ``own_affine`` each domain also has its own scale and shift: domain-specific batch normalisation (Chang et al.
    2019, 1906.03950). Otherwise they are shared, as in AdaBN (Li et al. 2016, 1603.04779). It normalises with the
    statistics of the target, unless :func:`in_domain` selects the source.

    Args:
        norm: the layer to replace; it becomes the layer of the source.
        own_affine: whether the target has its own scale and shift.
        target: the layer of the target; by default a copy of ``norm``.
    """

    def __init__(self, norm: _BatchNorm, own_affine: bool, target: _BatchNorm | None = None) -> None:
        super().__init__()
        self.source, self.target = norm, copy.deepcopy(norm) if target is None else target
        if not own_affine:
            self.target.weight, self.target.bias = norm.weight, norm.bias
        self.domain: Side = "target"

    def forward(self, x: Tensor) -> Tensor:
        """Normalises with the statistics of the current domain."""
        found: Tensor = self.source(x) if self.domain == "source" else self.target(x)
        return found


def split_batch_norm(network: nn.Module, *, own_affine: bool) -> nn.Module:
    """Replaces every BatchNorm layer of a network by a :class:`DomainBatchNorm`."""
    layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]
    # copied together and set under every name, so that what is shared stays shared
    split = {
        layer: DomainBatchNorm(layer, own_affine, copied)
        for layer, copied in zip(layers, copy.deepcopy(layers), strict=True)
    }
    found = False
    for path, layer in list(network.named_modules(remove_duplicate=False)):
        inside = isinstance(network.get_submodule(path.rpartition(".")[0]), DomainBatchNorm)
        if not isinstance(layer, _BatchNorm) or inside:
            continue
        if not layer.track_running_stats:
            raise UserError(
                f"{type(network).__name__}'s BatchNorm layer '{path}' keeps no running statistics, which each domain "
                "needs: set track_running_stats=True, or normalization='joint'."
            )
        network.set_submodule(path, split[layer])
        found = True
    if not found:
        raise UserError(
            f"{type(network).__name__} has no BatchNorm layer whose statistics could differ by domain: "
            "use a network that has one, or normalization='joint'."
        )
    return network


@contextlib.contextmanager
def in_domain(network: nn.Module, domain: Side) -> Iterator[None]:
    """Within the block, the network normalises with the statistics of a domain."""
    layers = [part for part in network.modules() if isinstance(part, DomainBatchNorm)]
    before = [layer.domain for layer in layers]
    for layer in layers:
        layer.domain = domain
    try:
        yield
    finally:
        for layer, known in zip(layers, before, strict=True):
            layer.domain = known


def share_source_statistics(network: nn.Module) -> None:
    """Copies the statistics of the source to the target."""
    for part in network.modules():
        if isinstance(part, DomainBatchNorm):
            part.target.load_state_dict(part.source.state_dict())


@torch.no_grad()
def reestimate_target_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    r"""Computes the target's statistics from its samples: AdaBN (Li et al. 2016, 1603.04779).

    .. math:: \mu = \sum_b \frac{n_b}{n} \mu_b, \qquad \sigma^2 = \sum_b \frac{n_b}{n} \sigma_b^2

    over batches :math:`b` of :math:`n_b` samples in random order. BatchNorm layers are in training mode meanwhile.
    """
    norms = [part.target for part in network.modules() if isinstance(part, DomainBatchNorm)]
    momenta, modes = [norm.momentum for norm in norms], {part: part.training for part in network.modules()}
    network.eval()  # no dropout
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    seen = 0
    try:
        with in_domain(network, "target"):
            for batch in batches:
                if len(batch) > 1:  # one sample has no variance
                    seen += len(batch)
                    for norm in norms:
                        norm.momentum = len(batch) / seen  # the mean over all samples so far
                    network(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for part, mode in modes.items():
            part.training = mode
