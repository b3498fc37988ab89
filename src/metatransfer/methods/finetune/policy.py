"""The base of fine-tuning policies: which parameters train, when, how fast and with which penalty."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from metatransfer.arguments import RemembersArguments, plain_arguments
from metatransfer.errors import UserError
from metatransfer.nn.layers import Layer, LayerParameter


class FineTunePolicy(RemembersArguments, nn.Module):
    """Decides for each parameter of a network whether it trains in an epoch and how; the last layer is the head.

    Layers are counted from the input, see :func:`metatransfer.nn.layers_of`. If several policies are combined, a
    parameter trains if all of them allow it, at the product of their rates; penalties add up. By default every method
    changes nothing, so a policy overrides only what it is about.
    """

    def prepare(self, network: nn.Module) -> None:
        """Changes the network before its layers are listed, e.g. inserts adapters.

        It is called whenever a module is built, so also before a checkpoint is loaded into it: the names and shapes of
        the parameters must depend on the network and on the arguments of the policy only.

        Args:
            network: has the submodules ``backbone``, with its pretrained weights, and ``head``; either may be replaced.
        """

    def start(self, layers: Sequence[Layer]) -> None:
        """Looks at the layers once, before training.

        Args:
            layers: of the backbone, and the head.
        """

    def trains(self, parameter: LayerParameter, epoch: int) -> bool:
        """Whether a parameter trains in an epoch.

        Args:
            parameter: with its name and layer.
            epoch: from 0; the answer must depend on nothing else, so that a resumed run continues in the same way.
        """
        return True

    def lr_scale(self, parameter: LayerParameter) -> float:
        """Factor of a parameter's learning rate."""
        return 1.0

    def decays(self, parameter: LayerParameter) -> bool:
        """Whether the optimiser's weight decay acts on a parameter."""
        return True

    def penalty(self, layers: Sequence[Layer]) -> Tensor | None:
        """A scalar that is added to the training loss, or ``None``.

        Args:
            layers: of the backbone, and the head.
        """
        return None

    def protocol(self) -> str:
        """The policy and its arguments."""
        arguments = plain_arguments(self.__dict__.get("_init_arguments", {}))
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in arguments.items())})"


def reinitialise(layer: Layer) -> None:
    """Gives a layer new random weights.

    Raises:
        UserError: one of its modules does not define ``reset_parameters``.
    """
    owners = [part for module in layer.modules for part in module.modules() if part._parameters]
    owned = {id(value) for part in owners for value in part._parameters.values()}
    lost = [name for name, value in layer.parameters.items() if id(value) not in owned]
    stubborn = [type(part).__name__ for part in owners if not callable(getattr(part, "reset_parameters", None))]
    if lost or stubborn:
        raise UserError(
            f"layer '{layer.name}' cannot be initialised again: {(stubborn or lost)[0]} does not define "
            "reset_parameters; define it, or leave the layer as it is."
        )
    for part in owners:
        part.reset_parameters()  # type: ignore[operator]
