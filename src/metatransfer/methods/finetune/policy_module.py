"""The base of modules whose network is trained under policies."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Self

from torch import nn

from metatransfer.errors import UserError
from metatransfer.methods.checkpoints import BASE_WEIGHTS
from metatransfer.methods.classifier import ClassifierModule
from metatransfer.methods.finetune.base_weights import BaseWeights
from metatransfer.methods.finetune.policies import FineTunePolicy, Full
from metatransfer.methods.twins import detached
from metatransfer.nn import Backbone, Head
from metatransfer.nn.blocks import AddedLayer, merge_added
from metatransfer.nn.layers import Layer, layers_of, parameters_of


class PolicyModule(ClassifierModule):
    """A backbone and a head, of which policies decide what trains.

    Attributes:
        backbone: the network, as the policies changed it.
        head: the output layer.
        policies: the policies.
        layers: the layers of the backbone, and the head.
    """

    def build(self, backbone: Backbone, head: Head, policy: FineTunePolicy | list[FineTunePolicy] | None) -> None:
        """Lets the policies change the network, and freezes what does not train at first."""
        given = policy if isinstance(policy, list) else [policy or Full()]
        self.policies = nn.ModuleList(given or [Full()])
        self._base = BaseWeights(backbone) if any(one.adapter_only for one in self.each_policy()) else None
        network = nn.Sequential(OrderedDict[str, nn.Module]({"backbone": backbone, "head": head}))
        for one in self.each_policy():
            one.prepare(network)
        self.backbone: Backbone = network.backbone  # type: ignore[assignment]
        self.head: Head = network.head  # type: ignore[assignment]
        self._list_layers()
        # frozen by the user: no policy may train it
        self._never = {one.name for one in parameters_of(self.layers) if not one.value.requires_grad}
        for one in self.each_policy():
            one.start(self.layers)
        self.enter_epoch(0)

    def _list_layers(self) -> None:
        parameters = {f"head.{name}": value for name, value in self.head.named_parameters()}
        # in a list, so that the modules are registered only once
        self.layers = [*layers_of(self.backbone), Layer("head", (self.head,), parameters)]
        self._frozen: list[Layer] = []
        self._phase: dict[str, bool] = {}

    def each_policy(self) -> list[FineTunePolicy]:
        """The policies."""
        return list(self.policies)  # type: ignore[arg-type]

    def enter_epoch(self, epoch: int) -> None:
        """Freezes and unfreezes parameters for an epoch, from 0; raises an error if nothing is left to train."""
        known, policies = list(parameters_of(self.layers)), self.each_policy()
        phase = {one.name: all(policy.trains(one, epoch) for policy in policies) for one in known}
        if phase == self._phase:
            return
        if not any(trains for name, trains in phase.items() if name not in self._never):
            raise UserError(
                f"the policy {self.policy_text()} freezes all parameters in epoch {epoch}: train at least the head."
            )
        self._phase = phase
        named = [layer for layer in self.layers if layer.parameters]
        self._frozen = [layer for layer in named if not any(phase[name] for name in layer.parameters)]
        for one in known:
            if one.name not in self._never:
                one.value.requires_grad_(phase[one.name])
                one.value.grad = one.value.grad if phase[one.name] else None
        if self._base is not None:
            self._base.watch(self.backbone)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Keeps frozen layers in evaluation mode."""
        super().train(mode)
        for layer in getattr(self, "_frozen", ()):
            for module in layer.modules:
                module.eval()
        return self

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """With ``adapter_only``, leaves out the weights of the backbone that have never trained."""
        super().on_save_checkpoint(checkpoint)
        if self._base is not None:
            checkpoint["state_dict"] = self._base.reduced(checkpoint["state_dict"])
            checkpoint[BASE_WEIGHTS] = self._base.checksum

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the weights that the checkpoint leaves out."""
        if BASE_WEIGHTS in checkpoint:
            base = self._base or BaseWeights(self.backbone)
            checkpoint["state_dict"] = base.completed(checkpoint, self.backbone)
        super().on_load_checkpoint(checkpoint)

    def kept_modules(self) -> list[nn.Module]:
        """Everything but the head."""
        return [self.backbone, self.policies]

    def after_restart(self) -> None:
        """Draws what policies added to the network."""
        for part in self.backbone.modules():
            if isinstance(part, AddedLayer):
                part.reset_parameters()

    def merged(self) -> Self:
        """A copy with a plain network, which gives the same answers: changes by LoRA are added to the weights.

        Its weights have the names of the network before the fine-tuning.

        Raises:
            UserError: an added layer is not linear.
        """
        plain = self.without_policies(detached(self), merge_added)
        if any(isinstance(part, AddedLayer) for part in plain.backbone.modules()):
            raise UserError(
                f"layers that {self.policy_text()} adds are not linear and cannot be merged into the weights: keep "
                "them, also in an exported file."
            )
        return plain

    def without_policies(self, copied: Self, change: Callable[[nn.Module], None]) -> Self:
        """A copy as if it had been built without policies, after a change of its network."""
        change(copied.backbone)
        copied.policies = nn.ModuleList([Full()])
        copied.hparams["policy"], copied._base = None, None
        copied._never = {name.replace(".base.", ".") for name in self._never}
        copied._list_layers()
        copied.enter_epoch(0)
        return copied

    def policy_text(self) -> str:
        """The policies and their arguments for the protocol card."""
        return " + ".join(policy.protocol() for policy in self.each_policy())
