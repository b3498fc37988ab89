"""Base class of fine-tuning policies."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from metatransfer.arguments import RemembersArguments, plain_arguments
from metatransfer.errors import UserError
from metatransfer.nn.layers import Layer, LayerParameter


class FineTunePolicy(RemembersArguments, nn.Module):
    """Decides for each parameter of a network whether and how it trains in an epoch.

    Layers are counted from the input, see :func:`metatransfer.nn.layers_of`; the last one is the head. If policies are
    combined, a parameter trains if all of them allow it, rates are multiplied and penalties added. The methods of this
    class change nothing, so a policy overrides only what it needs.
    """

    def __init__(self) -> None:
        super().__init__()

    def prepare(self, network: nn.Module) -> None:
        """Changes the network before its layers are listed, e.g. inserts adapters.

        It is also called before a checkpoint is loaded, so the names and shapes of the parameters must depend only on
        the network and the arguments of the policy.

        Args:
            network: has the submodules ``backbone``, with pretrained weights, and ``head``; both may be replaced.
        """

    def start(self, layers: Sequence[Layer]) -> None:
        """Is called once before training, with the layers of the backbone and the head."""

    def trains(self, parameter: LayerParameter, epoch: int) -> bool:
        """Whether a parameter trains in an epoch, from 0; must depend on nothing else, so that runs can be resumed."""
        return True

    def lr_scale(self, parameter: LayerParameter) -> float:
        """Factor of a parameter's learning rate."""
        return 1.0

    def decays(self, parameter: LayerParameter) -> bool:
        """Whether a parameter has weight decay."""
        return True

    def penalty(self, layers: Sequence[Layer]) -> Tensor | None:
        """A scalar that is added to the training loss, or ``None``."""
        return None

    def protocol(self) -> str:
        """The name and arguments of the policy for the protocol card."""
        arguments = plain_arguments(self.__dict__.get("_init_arguments", {}))
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in arguments.items())})"


def reinitialise(layer: Layer) -> None:
    """Gives a layer new random weights."""
    owners = [part for module in layer.modules for part in module.modules() if part._parameters]
    owned = {id(value) for part in owners for value in part._parameters.values()}
    lost = [name for name, value in layer.parameters.items() if id(value) not in owned]
    stubborn = [type(part).__name__ for part in owners if not callable(getattr(part, "reset_parameters", None))]
    if lost or stubborn:
        raise UserError(
            f"layer '{layer.name}' cannot be reinitialised, because {(stubborn or lost)[0]} does not define "
            "reset_parameters: define it, or do not reinitialise this layer."
        )
    for part in owners:
        part.reset_parameters()  # type: ignore[operator]
