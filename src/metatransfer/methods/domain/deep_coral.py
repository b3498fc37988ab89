"""Deep CORAL."""

from typing import ClassVar

from torch import Tensor

from metatransfer.functional.domain.discrepancy import coral
from metatransfer.methods.domain.dan import AdaptedLayer, DANModule


class DeepCORALModule(DANModule):
    r"""Deep correlation alignment (Sun and Saenko 2016, 1607.01719): aligns the covariances of both domains.

    .. math:: \mathcal T = \lambda\,\sum_{\ell}\frac{1}{4d^2}\,\lVert C^s_\ell - C^t_\ell\rVert_F^2

    of the logits, the paper's last layer, unless ``layers`` names others. The paper chooses the constant
    :math:`\lambda` such that both losses are about equal at the end of training; both are logged. Args and errors are
    those of :class:`DANModule`.
    """

    default_layers: ClassVar[tuple[AdaptedLayer, ...]] = ("logits",)

    def discrepancy(self, source: Tensor, target: Tensor) -> Tensor:
        """The distance of the covariances."""
        return coral(source, target)
