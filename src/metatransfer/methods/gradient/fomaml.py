"""First-order MAML."""

from typing import Any

from metatransfer.methods.gradient.maml import MAMLModule


class FOMAMLModule(MAMLModule):
    r"""FOMAML, first-order MAML (Finn et al. 2017, 1703.03400, section 5.2; Nichol et al. 2018, 1803.02999).

    .. math:: g = \frac1T\sum_i \nabla_{\theta_i} \mathcal L_{Q_i}(\theta_i), \qquad
              \theta_i = \theta - \alpha\,\mathrm{const}\bigl(\nabla_\theta \mathcal L_{S_i}(\theta)\bigr)

    Inner gradients are treated as constants, so there are no second derivatives. The arguments are those of
    :class:`MAMLModule`; ``inner.first_order`` has no effect.
    """

    def takes_constants(self) -> bool:
        """Always true."""
        return True

    def protocol(self) -> dict[str, Any]:
        """Records first order."""
        return super().protocol() | {"first_order": True}
