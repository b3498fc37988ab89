"""Checkpoints that hold only what trains, over pretrained weights that they name by checksum."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from metatransfer.errors import UserError
from metatransfer.methods.checkpoints import BASE_WEIGHTS
from metatransfer.module_keys import weights_key
from metatransfer.nn.weights import weight_files_are_read, weights_reports

_PREFIX = "backbone."


class BaseWeights:
    """The pretrained weights of a backbone, which checkpoints leave out until they have trained.

    Args:
        backbone: the network, before policies change it.

    Attributes:
        checksum: SHA-256 of all weights and their names; ``None`` for a network that has none before its first batch.

    Raises:
        UserError: the weights come from no file, so that nobody could load them again.
    """

    def __init__(self, backbone: nn.Module) -> None:
        if weight_files_are_read() and not weights_reports(backbone):
            raise UserError(
                "adapter_only leaves the pretrained weights out of checkpoints, but this backbone has random ones: set "
                "its weights, or adapter_only to false."
            )
        self.checksum = weights_key(backbone)
        self._initial: dict[str, Tensor] = {}  # of what may have changed

    def watch(self, backbone: nn.Module) -> None:
        """Keeps what may change from now on as it is: parameters that train, and buffers."""
        trained = {name for name, value in backbone.named_parameters() if value.requires_grad}
        frozen = {name for name, _ in backbone.named_parameters()} - trained
        self._keep(backbone, [name for name in backbone.state_dict() if name not in frozen])

    def _keep(self, backbone: nn.Module, names: list[str]) -> None:
        for name, value in backbone.state_dict().items():
            if name in names:
                self._initial.setdefault(name, value.detach().clone())

    def reduced(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a module without those of the backbone that have never trained."""
        return {
            name: value
            for name, value in state.items()
            if not name.startswith(_PREFIX) or name.removeprefix(_PREFIX) in self._initial
        }

    def completed(self, checkpoint: Mapping[str, Any], backbone: nn.Module) -> dict[str, Tensor]:
        """The weights of a checkpoint with the pretrained ones that it leaves out.

        Raises:
            UserError: the pretrained weights are others than those of its training.
        """
        if checkpoint[BASE_WEIGHTS] != self.checksum:
            raise UserError(
                f"the checkpoint was trained over base weights with the checksum {checkpoint[BASE_WEIGHTS][:12]}, but "
                f"those of this backbone have {str(self.checksum)[:12]}: build it with the same weights "
                "(--model.backbone.weights)."
            )
        given = dict(checkpoint["state_dict"])
        self._keep(backbone, [name.removeprefix(_PREFIX) for name in given])
        own = {f"{_PREFIX}{name}": value for name, value in {**backbone.state_dict(), **self._initial}.items()}
        return {**own, **given}
