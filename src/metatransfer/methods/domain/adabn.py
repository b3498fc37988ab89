"""AdaBN."""

from typing import ClassVar

from metatransfer.methods.domain.adaptation import Normalization
from metatransfer.methods.domain.source_only import SourceOnlyModule


class AdaBNModule(SourceOnlyModule):
    r"""Adaptive batch normalisation (Li et al. 2016, 1603.04779): the target is normalised by its own statistics.

    .. math:: \mathrm{BN}_t(x) = \gamma\,\frac{x - \mu_t}{\sqrt{\sigma_t^2 + \epsilon}} + \beta

    The network is trained on the source only. Before each evaluation of a fit, :math:`\mu_t` and :math:`\sigma_t^2` of
    every BatchNorm layer are estimated from all training samples of the target. There is nothing to tune.

    Args and errors are those of :class:`DomainAdaptationModule`; the network must have BatchNorm layers with running
    statistics.
    """

    normalizations: ClassVar[tuple[Normalization, ...]] = ("adabn",)
