"""The base of all methods that adapt a network to a target domain without labels."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from metatransfer.batches import DomainBatch, LabelledBatch
from metatransfer.checks import check_choice, check_labelled_batch
from metatransfer.data_info import ServesDomains
from metatransfer.errors import UserError
from metatransfer.methods.domain.evaluation import REMEDY, TargetClassifierModule
from metatransfer.methods.domain.schedules import Annealing
from metatransfer.methods.predictor import floating_dtype
from metatransfer.methods.twins import ADAPTATION, ORACLE, Comparison, Entry, detached, labelled
from metatransfer.metrics.validators import (
    Validator,
)
from metatransfer.nn import Backbone, Head, LinearHead
from metatransfer.nn.blocks.domain_norm import (
    DomainBatchNorm,
    Side,
    in_domain,
    reestimate_target_statistics,
    share_source_statistics,
    split_batch_norm,
)

Normalization = Literal["joint", "separate", "domain_specific", "adabn"]


class Pair(NamedTuple):
    """What a network makes of a training batch.

    Attributes:
        source: ``(N, E)`` features.
        target: ``(M, E)`` features.
        source_logits: ``(N, C)``.
        target_logits: ``(M, C)``.
        batch: what they were made of.
    """

    source: Tensor
    target: Tensor
    source_logits: Tensor
    target_logits: Tensor
    batch: DomainBatch


class DomainAdaptationModule(TargetClassifierModule):
    r"""A classifier of a target domain, learned from labels of a source and from samples of the target without labels.

    .. math:: \min\ \frac1N\sum_i \mathcal L\bigl(h(f(x^s_i)), y^s_i\bigr) + \mathcal T(x^s, y^s, x^t)

    A subclass says what it adds to the loss of the source, :math:`\mathcal T` (:meth:`transfer_loss`). No label of the
    target reaches training or selection: the data module serves none. An evaluation logs ``val/source_accuracy``, every
    validator of :mod:`metatransfer.metrics.validators` as ``val/<name>``, and ``val/selection``, the score of the
    chosen one, of which more is better. ``oracle/accuracy``, where the target's labels are known, is for reports.

    Args:
        backbone: the network :math:`f`.
        num_classes: number of classes; on the command line taken from the data.
        head: makes the label predictor :math:`h` from ``(in_features, num_classes)``.
        normalization: statistics of BatchNorm layers in training: ``"joint"`` over both domains at once,
            ``"separate"`` by domain with common running statistics, ``"domain_specific"`` layers (1906.03950), or
            ``"adabn"``, common scales and shifts with statistics of the target from all its samples (1603.04779).
        validator: what chooses among the states of a run; ``InformationMaximization`` where left out.
        annealing: rate of each step by the progress of the run; in the place of ``lr_scheduler``.
        optimizer: makes the optimiser.
        lr_scheduler: makes a scheduler, stepped once an epoch.

    Attributes:
        uses_target: whether training looks at samples of the target.

    Raises:
        UserError: an unknown ``normalization``, one that the network has no layers for, or two schedules of the rate.
    """

    learns_from: ClassVar[type] = DomainBatch
    comparison: ClassVar[Comparison | None] = ADAPTATION
    uses_target: ClassVar[bool] = True

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | None = None,
        head: Callable[[int, int], Head] = LinearHead,
        normalization: Normalization = "joint",
        validator: Validator | None = None,
        annealing: Annealing | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(num_classes, validator, optimizer, lr_scheduler)
        check_choice("normalization", normalization, get_args(Normalization))
        if annealing is not None and lr_scheduler is not None:
            raise UserError("annealing and lr_scheduler both set the learning rate: leave one of them out.")
        self.normalization, self.annealing = normalization, annealing
        self.backbone = backbone
        if normalization in ("domain_specific", "adabn"):
            split_batch_norm(backbone, own_affine=normalization == "domain_specific")
        self.head = head(backbone.out_features, self.num_classes)
        self._total_batches = 0.0

    @property
    def needs_data_module(self) -> bool:
        """For statistics of all samples of the target."""
        return self.normalization == "adabn"

    # ---- what a method says

    @abstractmethod
    def transfer_loss(self, pair: Pair) -> Tensor | None:
        """What a method adds to the loss of the source.

        Args:
            pair: features and logits of a training batch.

        Returns:
            A scalar, or ``None`` for nothing.
        """

    def encode(self, x: Tensor, domain: Side) -> Tensor:
        """Features of samples.

        Args:
            x: ``(N, *shape)``.
            domain: where they come from.

        Returns:
            ``(N, E)``.
        """
        with in_domain(self.backbone, domain):
            features: Tensor = self.backbone(x)
        return features

    # ---- training

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Logits ``(N, C)`` of samples of the target."""
        outputs: Tensor = self.head(self.encode(x, "target"))
        return outputs

    def encode_pair(self, batch: DomainBatch) -> tuple[Tensor, Tensor]:
        """Features of both sides of a batch.

        Args:
            batch: ``N`` source and ``M`` target samples.

        Returns:
            ``(N, E)`` and ``(M, E)``; no target samples where the method uses none.
        """
        if not self.uses_target:
            source = self.encode(batch.source_x, "source")
            return source, source[:0]
        if self.normalization != "joint":
            return self.encode(batch.source_x, "source"), self.encode(batch.target_x, "target")
        both: Tensor = self.backbone(torch.cat([batch.source_x, batch.target_x]))
        source, target = both.tensor_split([len(batch.source_x)])
        return source, target

    def source_loss(self, logits: Tensor, batch: DomainBatch) -> Tensor:
        """The loss of the source's labels.

        Args:
            logits: ``(N, C)`` of the source.
            batch: with the labels.

        Returns:
            A scalar.
        """
        return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), batch.source_y)

    def training_loss(self, batch: DomainBatch) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """The loss of the source and what the method adds.

        Args:
            batch: a training batch.

        Returns:
            The loss, and the source's logits ``(N, C)``.
        """
        source, target = self.encode_pair(batch)
        logits = self.head(torch.cat([source, target])) if self.normalization == "joint" else None
        logits = logits if logits is not None else torch.cat([self.head(source), self.head(target)])
        source_logits, target_logits = logits.split([len(source), len(target)])
        loss = self.source_loss(source_logits, batch)
        added = self.transfer_loss(Pair(source, target, source_logits, target_logits, batch))
        if added is None:
            return loss, source_logits
        self._log_ratio(loss, added, source, target)
        self.log("train/transfer_loss", added.detach(), batch_size=len(source))
        return loss + added, source_logits

    def _log_ratio(self, loss: Tensor, added: Tensor, source: Tensor, target: Tensor) -> None:
        """Logs how strongly the transfer pulls at the features, beside the labels."""
        trainer = self._trainer
        if trainer is None or trainer.global_step % max(1, trainer.log_every_n_steps) or not source.requires_grad:  # type: ignore[attr-defined]
            return
        norms = []
        for value in (loss, added):
            if not value.requires_grad:
                return
            found = torch.autograd.grad(value, [source, target], retain_graph=True, allow_unused=True)
            parts = [part.float().pow(2).sum() for part in found if part is not None]
            if not parts:  # a loss of something else than these features
                return
            norms.append(torch.stack(parts).sum().sqrt())
        self.log("train/gradient_ratio", norms[1] / norms[0].clamp_min(1e-12), batch_size=len(source))

    def learn(self, batch: DomainBatch) -> tuple[Tensor, Tensor]:
        """What is done with a training batch: by default its loss is computed, for the optimiser.

        Args:
            batch: a training batch.

        Returns:
            The loss, and the source's logits ``(N, C)``.
        """
        return self.training_loss(batch)

    def shared_step(self, batch: Any, stage: str) -> Tensor:  # noqa: ANN401
        """The loss of a training batch; logs it."""
        if stage not in self._checked:  # looking at labels waits for the device
            self._check_pair(batch)
            self._checked.add(stage)
        loss, outputs = self.learn(batch)
        accuracy = (outputs.detach().argmax(-1) == batch.source_y).float().mean()
        numbers = {"train/loss": loss.detach(), "train/source_accuracy": accuracy}
        self.log_dict(numbers, prog_bar=True, batch_size=len(batch.source_y))
        return loss

    def _check_pair(self, batch: Any) -> None:  # noqa: ANN401
        """Looks at the first training batch.

        Raises:
            UserError: another kind of batch, samples that do not fit the network or are not finite, or labels out of
                range.
        """
        if not isinstance(batch, DomainBatch):
            raise UserError(
                f"{type(self).__name__} learns from pairs of source and target samples, but the data module serves "
                f"{type(batch).__name__}: {REMEDY}."
            )
        if batch.source_x.shape[1:] != batch.target_x.shape[1:]:
            raise UserError(
                f"samples of the source have shape {tuple(batch.source_x.shape[1:])}, those of the target "
                f"{tuple(batch.target_x.shape[1:])}: bring both to one shape."
            )
        self.check_samples(batch.source_x)
        self.check_samples(batch.target_x)
        check_labelled_batch(LabelledBatch(batch.source_x, batch.source_y), self.num_classes)

    # ---- the progress of a run

    @property
    def progress(self) -> float:
        """The part of the run's training batches that are done, from 0 to 1; it goes on over a resume."""
        if not self._total_batches or self._trainer is None:
            return 1.0
        # not those that were begun: a batch that was interrupted is trained on again
        return min(1.0, self._trainer.fit_loop.epoch_loop.batch_progress.total.completed / self._total_batches)

    def _run_length(self) -> float:
        """The training batches of the whole run.

        Raises:
            UserError: it has no end.
        """
        trainer = self.trainer
        if not self.automatic_optimization and trainer.max_steps != -1:
            raise UserError(
                f"{type(self).__name__} steps several optimisers for each batch, so that max_steps does not count "
                "batches: set trainer.max_epochs, and limit_train_batches for a shorter epoch."
            )
        steps = trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise UserError(
                f"{type(self).__name__}'s schedules follow the run's progress, which needs an end: set "
                "trainer.max_epochs or trainer.max_steps."
            )
        batches = float(steps * trainer.accumulate_grad_batches)
        if trainer.max_epochs is not None and trainer.max_epochs > 0:  # the last step of an epoch may hold fewer
            batches = min(batches, float(trainer.max_epochs * trainer.num_training_batches))
        return batches

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """As of the base, with the annealing."""
        if self.annealing is None:
            return super().configure_optimizers()
        found: Any = super().configure_optimizers()
        return {"optimizer": found, "lr_scheduler": {"scheduler": self.annealed(found), "interval": "step"}}

    def annealed(self, optimizer: torch.optim.Optimizer) -> LambdaLR:
        """The annealing of an optimiser, to be stepped with it.

        Args:
            optimizer: whose rates fall.

        Returns:
            The scheduler; a constant one where there is no annealing.
        """
        annealing, length = self.annealing, max(1.0, float(self.trainer.estimated_stepping_batches))
        return LambdaLR(optimizer, lambda step: annealing.factor(min(1.0, step / length)) if annealing else 1.0)

    # ---- the start of a run

    def on_fit_start(self) -> None:
        """As of the base, and learns how long the run will be."""
        super().on_fit_start()
        self._total_batches = self._run_length()

    def on_validation_start(self) -> None:
        """In a fit, brings the target's statistics up to date, where they are estimated from all its samples."""
        if self.normalization == "adabn" and self.trainer.state.fn == TrainerFn.FITTING:
            self.estimate_target_statistics()

    def on_train_end(self) -> None:
        """Brings the target's statistics up to date, for a fit without validation."""
        super().on_train_end()
        if self.normalization == "adabn":
            self.estimate_target_statistics()

    def estimate_target_statistics(self) -> None:
        """Sets the BatchNorm statistics of the target to those of its training samples."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        kind, shown = floating_dtype(self.backbone), data.target_samples(shuffled=True)
        reestimate_target_statistics(self.backbone, (part.x.to(self.device, kind) for part in shown))
        if self.trainer.world_size > 1:  # each process has seen its share
            for layer in (part.target for part in self.backbone.modules() if isinstance(part, DomainBatchNorm)):
                for statistic in (layer.running_mean, layer.running_var):
                    if statistic is not None:
                        statistic.copy_(self.trainer.strategy.reduce(statistic.clone(), reduce_op="mean"))

    # ---- twins

    @property
    def adapts(self) -> bool:
        """Whether the method uses the target at all."""
        return True

    def kept_modules(self) -> list[nn.Module]:
        """The network if its weights come from a file; copies of it follow in :meth:`after_restart`."""
        return [self.backbone] if self.backbone.weights_report is not None else []

    def unadapted(self) -> DomainAdaptationModule:
        """The twin that never looks at the target, with equal networks, weights, optimiser and schedule."""
        from metatransfer.methods.domain.source_only import SourceOnlyModule  # a subclass

        networks = copy.deepcopy((self.backbone, self.head))
        return SourceOnlyModule(
            backbone=networks[0],
            num_classes=self.num_classes,
            head=lambda *_: networks[1],
            validator=self.validator,
            annealing=self.annealing,
            optimizer=self.optimizer,
            lr_scheduler=self.lr_scheduler,
        )

    def twins(self, data: LightningDataModule, seed: int | None = None) -> dict[str, Entry]:
        """The method if it adapts, its twin without the target, and one trained on the target if labels are known."""

        def start() -> DomainAdaptationModule:
            return detached(self) if seed is None else self.restarted(seed)

        found = {ADAPTATION.own: Entry(start)} if self.adapts else {}
        found[ADAPTATION.reference] = Entry(lambda: start().unadapted())
        if isinstance(data, ServesDomains) and all(labelled(data, split) for split in ("train", "val")):
            found[ORACLE] = Entry(lambda: start().unadapted(), cast(Any, data.oracle_twin))
        return found

    def take_over(self, other: DomainAdaptationModule) -> None:
        """Answers as another method of the same networks does, from now on.

        Args:
            other: with backbone and head of the same architecture.
        """
        self.backbone.load_state_dict(other.backbone.state_dict())
        if other.normalization != "adabn":
            share_source_statistics(self.backbone)
        self._take_over_head(other.head)

    def _take_over_head(self, head: nn.Module) -> None:
        self.head.load_state_dict(head.state_dict())

    def protocol(self) -> dict[str, Any]:
        """As of the base, with the normalisation and how states are chosen."""
        return super().protocol() | {
            "normalization": self.normalization,
            "train_annealing": repr(self.annealing) if self.annealing is not None else None,
            "train_selection": self.validator.protocol(),
        }
