"""AdaBN."""

from __future__ import annotations

from typing import ClassVar

from metatransfer.methods.domain.adaptation import Normalization
from metatransfer.methods.domain.source_only import SourceOnlyModule


class AdaBNModule(SourceOnlyModule):
    r"""Adaptive batch normalisation (Li et al. 2016, 1603.04779): the target is normalised by statistics of its own.

    .. math:: \mathrm{BN}_t(x) = \gamma\,\frac{x - \mu_t}{\sqrt{\sigma_t^2 + \epsilon}} + \beta

    The network is trained on the source alone; before each evaluation of a fit every BatchNorm layer's
    :math:`\mu_t, \sigma_t^2` are estimated from all training samples of the target. Nothing else is adapted, and
    nothing has to be chosen.

    Args and errors are those of :class:`DomainAdaptationModule`; the network has BatchNorm layers that keep statistics.
    """

    normalizations: ClassVar[tuple[Normalization, ...]] = ("adabn",)
