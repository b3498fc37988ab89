"""How a classifier of a target domain is evaluated, and chosen, without labels of the target."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from metatransfer.batches import DomainSamples
from metatransfer.errors import UserError
from metatransfer.methods.base import Baseline
from metatransfer.methods.classifier import MOST_FREQUENT, ClassifierModule, NearestSample
from metatransfer.metrics import ClassifierMetrics
from metatransfer.metrics.domain_evidence import SideCollector
from metatransfer.metrics.validators import (
    PANEL,
    Entropy,
    Evidence,
    InformationMaximization,
    SoftNeighborhoodDensity,
    SourceAccuracy,
    Validator,
)
from metatransfer.nn import Head
from metatransfer.nn.blocks.domain_norm import Side

SIDES: tuple[Side, Side] = ("source", "target")
REMEDY = "give it a DomainDataModule, with named sources and targets"
_NEVER = -1e9  # below any score; EarlyStopping takes an infinite one for a failure
_CHEAP = (Entropy(), InformationMaximization(), SoftNeighborhoodDensity())


class TargetClassifierModule(ClassifierModule):
    """Evaluates a classifier on samples of the sources with labels and on samples of the target without.

    A validation logs ``val/source_accuracy``, validators as ``val/<name>``, and ``val/selection``, the score of the
    chosen one, of which more is better. ``oracle/accuracy``, where the data module knows the target's labels, is for
    reports; what monitors it is refused.

    Args:
        num_classes: number of classes.
        validator: what chooses among the states of a run; ``InformationMaximization`` where left out.
        optimizer: see :class:`MethodModule`.
        lr_scheduler: see :class:`MethodModule`.
    """

    monitor: ClassVar[str] = "val/selection"
    head: Head

    @property
    def needs_data_module(self) -> bool:
        """Whether loaders alone are not enough to be trained on."""
        return False

    def __init__(
        self,
        num_classes: int | None,
        validator: Validator | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(num_classes, optimizer, lr_scheduler)
        self.validator = validator or InformationMaximization()
        self.evidence = nn.ModuleDict({side: SideCollector() for side in SIDES})
        self.register_buffer("best_source_accuracy", torch.zeros(()))
        self._measured_by: dict[str, ClassifierMetrics] = {}

    @abstractmethod
    def encode(self, x: Tensor, domain: Side) -> Tensor:
        """Features ``(N, E)`` of samples of a domain.

        Args:
            x: ``(N, *shape)``.
            domain: where they come from.
        """

    # ---- the start of a run

    def setup(self, stage: str) -> None:
        """As of the base.

        Raises:
            UserError: data that serves no domains.
        """
        super().setup(stage)
        data = getattr(self._trainer, "datamodule", None)
        if data is None and stage == "fit" and self.needs_data_module:
            raise UserError(f"{type(self).__name__} looks at all samples of a domain: {REMEDY}.")
        if data is not None and not hasattr(data, "target_samples") and stage != "predict":
            raise UserError(f"{type(self).__name__} adapts to a target domain: {REMEDY}.")
        names = getattr(data, "test_sources", ()) if stage == "test" else ()
        self._measured_by = {name: ClassifierMetrics(self.num_classes).to(self.device) for name in names}

    def on_fit_start(self) -> None:
        """Refuses what would select by labels of the target.

        Raises:
            UserError: a metric called ``oracle/...`` is monitored, and the data module does not allow it by name.
        """
        if getattr(getattr(self.trainer, "datamodule", None), "oracle", "report") == "select":
            return
        watching = [
            (type(one).__name__, one.monitor)
            for one in self.trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(one, ModelCheckpoint | EarlyStopping)
        ]
        watching += [
            (type(one.scheduler).__name__, one.monitor)
            for one in self.trainer.lr_scheduler_configs
            if one.reduce_on_plateau
        ]
        for name, monitor in watching:
            if str(monitor).startswith("oracle/"):
                raise UserError(
                    f"{name} monitors {monitor}, which looks at labels of the target, that no adaptation has: monitor "
                    "val/selection; or, to measure what the labels would be worth, set data.oracle=select."
                )

    def on_train_start(self) -> None:
        """As of the base; what the sanity check answered is no result."""
        super().on_train_start()
        for side in SIDES:
            self.collector(side).reset()
        if not self.trainer.global_step:  # else a run that goes on
            self.best_source_accuracy.zero_()  # type: ignore[operator]

    # ---- evaluation

    def collector(self, side: Side) -> SideCollector:
        """What keeps the answers for one side.

        Args:
            side: ``"source"`` or ``"target"``.

        Returns:
            Of the last evaluation.
        """
        found: SideCollector = self.evidence[side]  # type: ignore[assignment]
        return found

    def on_validation_epoch_start(self) -> None:
        """Forgets the answers of the last evaluation."""
        for side in SIDES:
            self.collector(side).reset()

    def validation_step(self, batch: DomainSamples, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Collects what the network says of a batch of the source (the first loader) or of the target."""
        side = SIDES[dataloader_idx]
        features = self.encode(batch.x, side)
        self.collector(side).update(self.head(features), features, batch.y, batch.number)

    def last_evidence(self) -> Evidence:
        """What the last validation tells, without a label of the target; all processes take part."""
        source, target = (self.collector(side).compute() for side in SIDES)
        return Evidence(source.logits, source.labels, source.features, target.logits, target.features, None)

    def on_validation_epoch_end(self) -> None:
        """Logs the validators, the selection, and what an oracle sees."""
        evidence = self.last_evidence()
        right = (evidence.source_logits.argmax(-1) == evidence.source_labels).double()
        numbers = _with_interval("val/source_accuracy", right)
        numbers |= self._judged(evidence)
        best: Tensor = self.best_source_accuracy  # type: ignore[assignment]
        if not self.trainer.sanity_checking:
            best.copy_(torch.maximum(best, right.mean().to(best)))
        allowed = self.validator.allows(float(right.mean()), float(best))
        numbers["val/selection"] = torch.tensor(self.validator.score(evidence) if allowed else _NEVER)
        labels = self._oracle_labels("val")
        if labels is not None:
            known = self.collector("target").compute()
            truth = labels[known.number.cpu()].to(known.logits.device)
            right = (known.logits.argmax(-1) == truth)[truth >= 0].double()  # a target may be labelled in part
            numbers |= _with_interval("oracle/accuracy", right)
        self.log_dict({name: value.float() for name, value in numbers.items()})

    def _judged(self, evidence: Evidence) -> dict[str, Tensor]:
        """The validators' numbers: those that cost little in a fit, all of them in an evaluation of its own."""
        panel = PANEL if self.trainer.state.fn == TrainerFn.VALIDATING else _CHEAP
        exact = evidence.on_cpu()
        return {
            f"val/{one.name.replace(' ', '_').replace('-', '_')}": torch.tensor(
                one.value(exact) if exact.finite() else torch.nan
            )
            for one in panel
            if not isinstance(one, SourceAccuracy)  # which stands there with its interval
        }

    def _oracle_labels(self, split: str) -> Tensor | None:
        data: Any = getattr(self._trainer, "datamodule", None)
        found: Tensor | None = data.oracle_labels(split) if hasattr(data, "oracle_labels") else None
        return found

    def test_step(self, batch: DomainSamples, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Scores a batch of a target's test split."""
        outputs = self(batch.x)
        metrics: ClassifierMetrics = self.metrics["test"]  # type: ignore[assignment]
        metrics.update(outputs, batch.y, batch.number)
        for place, one in enumerate(self._measured_by.values()):
            if place == dataloader_idx:
                one.update(outputs, batch.y, batch.number)

    def on_test_epoch_end(self) -> None:
        """Logs ``test/accuracy`` and the others over all targets, and for each of several."""
        super().on_test_epoch_end()
        for target, metrics in self._measured_by.items():
            for name, value in metrics.compute().items():
                self.log(f"test/{target}/{name}", value)

    def baselines(self) -> dict[str, Baseline]:
        """In a test: the source's most frequent class, and the class of the nearest source sample."""
        data: Any = getattr(self._trainer, "datamodule", None)
        if data is None or self.trainer.state.fn != TrainerFn.TESTING:
            return {}
        found: dict[str, Baseline] = {MOST_FREQUENT: self._most_frequent}
        shape = data.sample_shape()
        if NearestSample.affordable(data.num_source_samples, shape):
            name = "source pixel 1-NN" if len(shape) == 3 else "source 1-NN"
            found[name] = NearestSample(data.source_samples, self.num_classes)
        return found


def _with_interval(name: str, right: Tensor) -> dict[str, Tensor]:
    spread = right.std() / len(right) ** 0.5 if len(right) > 1 else torch.tensor(torch.nan)
    return {name: right.mean(), f"{name}_ci95": 1.96 * spread}
