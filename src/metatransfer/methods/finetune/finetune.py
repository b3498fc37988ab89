"""Fine-tuning."""

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self, get_args

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, LRScheduler, OneCycleLR

from metatransfer.batches import Inputs, LabelledBatch
from metatransfer.checks import check_choice
from metatransfer.data_info import info_of
from metatransfer.errors import UserError
from metatransfer.methods.finetune.policies import FineTunePolicy
from metatransfer.methods.finetune.policy_module import PolicyModule
from metatransfer.methods.twins import TRANSFER, Comparison, Entry, detached, drawing, redraw
from metatransfer.nn import Backbone, Head, LinearHead
from metatransfer.nn.blocks import remove_added
from metatransfer.nn.layers import parameters_of

ClassWeight = Literal["none", "balanced"]
Interval = Literal["epoch", "step"]


class FineTuneModule(PolicyModule):
    r"""Fine-tunes a pretrained network with a new head, under policies that decide what trains and how.

    .. math:: \min_{w, h}\ \frac1N\sum_i \mathcal L\bigl(h(f_w(x_i)), y_i\bigr) + \Omega(w, h)

    A policy may change the network, and decides for each parameter in which epochs it trains, at which rate and with
    which penalty :math:`\Omega`. Several policies can be combined. All parameters are in the optimiser from the first
    step, so that schedulers continue when layers are unfrozen. Frozen layers have no gradient, and their BatchNorm and
    dropout are in evaluation mode. Biases and other one-dimensional parameters have no weight decay.

    Args:
        backbone: the network :math:`f_w`; its argument ``weights`` names the pretrained weights.
        num_classes: number of classes; on the command line taken from the data.
        head: creates the output layer :math:`h` from ``(in_features, num_classes)``.
        policy: what trains, when and how; defaults to :class:`Full`.
        label_smoothing: probability mass of the label that is spread over all classes.
        class_weight: ``"balanced"`` weights the loss of each class by :math:`N/(C n_c)`.
        warmup_fraction: fraction of the run over which the rates rise linearly from 0; they fall linearly to 0 over the
            rest (Devlin et al. 2019, 1810.04805). Replaces ``lr_scheduler``.
        optimizer: creates the optimiser from groups of parameters.
        lr_scheduler: creates its scheduler.
        lr_interval: whether the scheduler is stepped after every ``"epoch"`` or every ``"step"``.

    Raises:
        UserError: an argument is out of range, there are two schedulers, or a policy does not fit the network.
    """

    comparison: ClassVar[Comparison | None] = TRANSFER
    class_weights: Tensor | None

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | None = None,
        head: Callable[[int, int], Head] = LinearHead,
        policy: FineTunePolicy | list[FineTunePolicy] | None = None,
        label_smoothing: float = 0.0,
        class_weight: ClassWeight = "none",
        warmup_fraction: float | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Interval = "epoch",
    ) -> None:
        super().__init__(num_classes, optimizer, lr_scheduler)
        for name, value in (("label_smoothing", label_smoothing), ("warmup_fraction", warmup_fraction)):
            if value is not None and not 0 <= value < 1:
                raise UserError(f"{name} must be in [0, 1), but is {value}.")
        check_choice("class_weight", class_weight, get_args(ClassWeight))
        check_choice("lr_interval", lr_interval, get_args(Interval))
        if warmup_fraction is not None and lr_scheduler is not None:
            raise UserError("warmup_fraction and lr_scheduler both set the learning rates: use only one.")
        self.label_smoothing, self.class_weight = label_smoothing, class_weight
        self.warmup_fraction, self.lr_interval = warmup_fraction, lr_interval
        self.register_buffer("class_weights", None, persistent=False)
        self.build(backbone, head(backbone.out_features, self.num_classes), policy)

    def on_train_start(self) -> None:
        """Updates what is frozen when a run resumes in the middle of an epoch."""
        super().on_train_start()
        self._change(self.current_epoch)

    def on_train_epoch_start(self) -> None:
        """Updates what is frozen."""
        self._change(self.current_epoch)

    def _change(self, epoch: int) -> None:
        before = self._phase
        self.enter_epoch(epoch)
        strategy = self.trainer.strategy
        if self._phase != before and isinstance(strategy, DDPStrategy):
            # DistributedDataParallel averages only what was trainable when it was created
            strategy.model = strategy.lightning_module
            strategy.configure_ddp()

    def forward(self, x: Inputs) -> Tensor:
        """Logits ``(N, C)`` of samples."""
        return self.head(self.backbone(x))  # type: ignore[no-any-return]

    def training_loss(self, batch: LabelledBatch) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy with class weights and label smoothing, plus the penalties of the policies."""
        outputs = self(batch.x)
        precise = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        loss = F.cross_entropy(precise, batch.y, self.class_weights, label_smoothing=self.label_smoothing)
        for penalty in (policy.penalty(self.layers) for policy in self.each_policy()):
            loss = loss if penalty is None else loss + penalty
        return loss, outputs

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups by layer, weight decay and rate, with ``params``, ``name``, ``lr_scale`` and ``decays``."""
        groups: dict[tuple[int, bool, float], dict[str, Any]] = {}
        for one in parameters_of(self.layers):
            if one.name not in self._never:
                scale = math.prod((policy.lr_scale(one) for policy in self.each_policy()), start=1.0)
                decays = one.value.dim() > 1 and all(policy.decays(one) for policy in self.each_policy())
                name = one.layer.name if decays else f"{one.layer.name}, without decay"
                key = (one.place, not decays, scale)
                group = {"params": [], "name": name, "lr_scale": scale, "decays": decays}
                groups.setdefault(key, group)["params"].append(one.value)
        return [groups[key] for key in sorted(groups, key=lambda key: key[:2])]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Builds the optimiser and a scheduler that keeps the proportions of the rates."""
        optimizer = self.optimizer(self.parameter_groups())
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * group["lr_scale"]  # a new number: groups may share a tensor
            if not group["decays"] and "weight_decay" in group:
                group["weight_decay"] = 0.0
        if self.warmup_fraction is not None:
            warmup = _linear_warmup(optimizer, self.warmup_fraction, self.trainer.estimated_stepping_batches)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warmup, "interval": "step"}}
        found = self.with_scheduler(optimizer)
        if isinstance(found, dict) and "monitor" not in found["lr_scheduler"]:
            _keep_proportions(found["lr_scheduler"]["scheduler"], optimizer)
            found["lr_scheduler"]["interval"] = self.lr_interval
        return found  # type: ignore[no-any-return]

    def setup(self, stage: str) -> None:
        """Computes the class weights from the training data."""
        super().setup(stage)
        info = info_of(self) if stage == "fit" and self.class_weight == "balanced" else None
        if info is not None:
            found = torch.as_tensor(info.class_counts, dtype=torch.float32)
            self.class_weights = (found.sum() / (len(found) * found)).to(self.device)

    def from_scratch(self, seed: int) -> Self:
        """A copy with random weights, without what policies added, in which all parameters train."""
        twin = self.without_policies(self.restarted(seed), remove_added)
        with drawing(twin, seed + 1):
            redraw(twin.backbone)
        return twin

    def twins(self, data: LightningDataModule, seed: int | None = None) -> dict[str, Entry]:
        """The method, and the same network trained from scratch."""
        return {
            TRANSFER.own: Entry(lambda: detached(self) if seed is None else self.restarted(seed)),
            TRANSFER.reference: Entry(lambda: self.from_scratch(seed or 0)),
        }

    def protocol(self) -> dict[str, Any]:
        """Adds the policy and the settings of the loss."""
        return super().protocol() | {
            "train_policy": self.policy_text(),
            "train_label_smoothing": self.label_smoothing,
            "train_class_weight": self.class_weight,
            "train_warmup_fraction": self.warmup_fraction,
            **({"train_base_weights": self._base.checksum} if self._base else {}),
        }


def _linear_warmup(optimizer: Optimizer, fraction: float, steps: float) -> LambdaLR:
    """Learning rates that rise linearly over a fraction of the run and fall linearly over the rest."""
    if steps == float("inf"):
        raise UserError("warmup_fraction needs a run of known length: set trainer.max_epochs or trainer.max_steps.")
    rise = max(1, round(fraction * steps))
    return LambdaLR(optimizer, lambda step: min((step + 1) / rise, max(0.0, (steps - step) / max(1.0, steps - rise))))


def _keep_proportions(scheduler: LRScheduler, optimizer: Optimizer) -> None:
    """Restores the proportions of the groups in schedulers that set the same rate for all."""
    if isinstance(scheduler, OneCycleLR):
        for group in optimizer.param_groups:
            for key in ("initial_lr", "max_lr", "min_lr", "lr"):
                group[key] = group[key] * group["lr_scale"]
    elif isinstance(scheduler, CyclicLR):
        scales = [group["lr_scale"] for group in optimizer.param_groups]
        scheduler.base_lrs = [rate * scale for rate, scale in zip(scheduler.base_lrs, scales, strict=True)]
        scheduler.max_lrs = [rate * scale for rate, scale in zip(scheduler.max_lrs, scales, strict=True)]
        for group, rate in zip(optimizer.param_groups, scheduler.base_lrs, strict=True):
            group["lr"] = group["initial_lr"] = rate
