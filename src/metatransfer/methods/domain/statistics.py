"""BatchNorm statistics of a target domain, estimated from all its samples."""

from __future__ import annotations

from lightning.pytorch.trainer.states import TrainerFn

from metatransfer.methods.classifier import SampleClassifier
from metatransfer.methods.data_access import datamodule_of
from metatransfer.methods.predictor import floating_dtype
from metatransfer.nn import Backbone
from metatransfer.nn.blocks.domain_norm import DomainBatchNorm, reestimate_target_statistics


class TargetStatisticsModule(SampleClassifier):
    """A classifier that, with ``normalization="adabn"``, estimates the target's statistics before each evaluation."""

    backbone: Backbone
    normalization: str

    @property
    def needs_data_module(self) -> bool:
        """Whether a data module is required, because statistics of all target samples are estimated."""
        return self.normalization == "adabn"

    def on_validation_start(self) -> None:
        """Updates the target's statistics during a fit."""
        if self.normalization == "adabn" and self.trainer.state.fn == TrainerFn.FITTING:
            self.estimate_target_statistics()

    def on_train_end(self) -> None:
        """Updates the target's statistics, for a fit without validation."""
        super().on_train_end()
        if self.normalization == "adabn":
            self.estimate_target_statistics()

    def estimate_target_statistics(self) -> None:
        """Estimates the BatchNorm statistics of the target from its training samples."""
        kind, shown = floating_dtype(self.backbone), datamodule_of(self).target_samples(shuffled=True)
        reestimate_target_statistics(self.backbone, (part.x.to(self.device, kind) for part in shown))
        if self.trainer.world_size > 1:  # each process has seen its share
            for layer in (part.target for part in self.backbone.modules() if isinstance(part, DomainBatchNorm)):
                for statistic in (layer.running_mean, layer.running_var):
                    if statistic is not None:
                        statistic.copy_(self.trainer.strategy.reduce(statistic.clone(), reduce_op="mean"))
