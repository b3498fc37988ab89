"""BOIL."""

from metatransfer.functional.meta.update_rules import Params
from metatransfer.methods.gradient.maml import MAMLModule


class BOILModule(MAMLModule):
    r"""BOIL (Oh, Yoo, Kim, Yun 2021, 2008.08882): MAML whose inner loop adapts only the backbone.

    .. math:: \phi_i = \phi - \alpha\nabla_\phi \mathcal L_{S_i}(\phi, \psi), \qquad
              \min_{\phi,\psi} \frac1T\sum_i \mathcal L_{Q_i}(\phi_i, \psi)

    The outer loop trains both features :math:`\phi` and head :math:`\psi`. The opposite of :class:`ANILModule`. The
    arguments are those of :class:`MAMLModule`.
    """

    def adapted_parameters(self) -> Params:
        """The parameters of the backbone."""
        return {name: value for name, value in super().adapted_parameters().items() if name.startswith("backbone.")}
