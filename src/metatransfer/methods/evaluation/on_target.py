"""Evaluation of domain adaptation, without labels of the target except in a test."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from metatransfer.batches import DomainSamples
from metatransfer.data_info import DataInfo, ServesDomains, datamodule_of
from metatransfer.errors import UserError
from metatransfer.functional.losses import episode_scores
from metatransfer.methods.evaluation.base import Baseline, Method, Numbers
from metatransfer.methods.evaluation.on_samples import OnSamples, sample_baselines
from metatransfer.metrics.classification import accuracy_of
from metatransfer.metrics.collector import Evidence, SideCollector
from metatransfer.metrics.validators import PANEL, InformationMaximization, Validator

Side = Literal["source", "target"]
SIDES: tuple[Side, Side] = ("source", "target")
REMEDY = "give it a DomainDataModule, with named sources and targets"
_CARD = ("sources", "targets")
_NEVER = -1e9  # below any score; EarlyStopping takes an infinite one for a failure
_CHEAP, _FULL = PANEL[:3], PANEL[:-1]  # the last, the accuracy on the source, is logged with its interval


class OnTarget(OnSamples):
    """Validates a classifier on labelled source and unlabelled target samples, and tests it on labelled target samples.

    A validation logs ``val/source_accuracy``, the validators as ``val/<name>``, and ``val/selection``, the score of the
    chosen validator (higher is better). If the data module has labels of the target, ``oracle/accuracy`` is logged for
    reports; it cannot select a state. The method needs ``encode(x, domain)``, ``head(features)`` and a buffer
    ``best_source_accuracy``.

    Args:
        num_classes: number of classes.
        validator: selects the best state; defaults to ``InformationMaximization``.
    """

    monitor: ClassVar[str] = "val/selection"
    percentages: ClassVar[frozenset[str]] = OnSamples.percentages | {"source_accuracy"}
    withheld: ClassVar[str | None] = "oracle"

    def __init__(self, num_classes: int, validator: Validator | None = None) -> None:
        super().__init__(num_classes)
        del self.metrics["val"]  # no answer could be called right or wrong
        self.score_name = "source_accuracy"
        self.validator = validator or InformationMaximization()
        self._sizes: dict[str, int] = {}
        self.sides = nn.ModuleDict({side: SideCollector() for side in SIDES})

    def setup(self, module: Method, info: DataInfo | None, stage: str) -> None:
        """Checks the type of the data."""
        super().setup(module, info, stage)
        self._sizes = {}
        self.score_name = "accuracy" if stage == "test" else "source_accuracy"
        data = datamodule_of(module)
        if data is None and stage == "fit" and module.needs_data_module:
            raise UserError(f"{type(module).__name__} needs all samples of a domain: {REMEDY}.")
        if data is not None and not isinstance(data, ServesDomains) and stage != "predict":
            raise UserError(f"{type(module).__name__} adapts to a target domain: {REMEDY}.")

    def obstacle(self, metric: str, info: DataInfo | None) -> str | None:
        """Labels of the target must not select a state, unless the data module allows it."""
        if not metric.startswith(f"{self.withheld}/") or (info is not None and info.oracle == "select"):
            return None
        return (
            "which looks at labels of the target, that no adaptation has: monitor val/selection; or, to measure what "
            "the labels would be worth, set data.oracle=select."
        )

    def start(self, stage: str) -> None:
        """Resets the metrics of a stage."""
        super().start(stage)
        for side in SIDES if stage == "val" else ():
            self.collector(side).reset()

    def collector(self, side: Side) -> SideCollector:
        """Collects the outputs of a validation for one domain."""
        return self.sides[side]  # type: ignore[return-value]

    def step(self, module: Method, batch: DomainSamples, stage: str, place: int = 0) -> None:
        """Collects outputs for the sources (first loader) and the target in a validation; scores a test batch."""
        if stage == "test":
            self.collect(module(batch.x), batch, stage, place)
            return
        features = module.encode(batch.x, SIDES[place])
        self.collector(SIDES[place]).update(module.head(features), features, batch.y, batch.number)

    def last_evidence(self) -> Evidence:
        """Outputs and features of the last validation, without labels of the target; all processes must call it."""
        source, target = (self.collector(side).compute() for side in SIDES)
        return Evidence(source.logits, source.labels, source.features, target.logits, target.features, None)

    def finish(self, module: Method, stage: str) -> None:
        """Logs validators, selection and, if the target's labels are known, accuracy; in a test, the metrics."""
        if stage == "test":
            super().finish(module, stage)
            return
        evidence = self.last_evidence()
        right = episode_scores(evidence.source_logits.unsqueeze(1), evidence.source_labels.unsqueeze(1)).double()
        numbers = accuracy_of(right, "val/source_accuracy")
        exact = evidence.on_cpu()
        for one in _FULL if module.trainer.state.fn == TrainerFn.VALIDATING else _CHEAP:
            numbers[f"val/{_key(one)}"] = torch.tensor(one.value(exact) if exact.finite() else torch.nan)
        best: Tensor = module.best_source_accuracy
        if not module.trainer.sanity_checking:
            self._sizes = {"samples": len(evidence.target_logits), "source_samples": len(right)}
            best.copy_(torch.fmax(best, right.mean().to(best)))
        allowed = self.validator.allows(float(right.mean()), float(best))
        numbers["val/selection"] = torch.tensor(self.validator.score(evidence) if allowed else _NEVER)
        numbers |= self._by_labels(datamodule_of(module))
        module.log_dict({name: value.float() for name, value in numbers.items()})

    def _by_labels(self, data: Any) -> dict[str, Tensor]:  # noqa: ANN401
        labels = data.oracle_labels("val") if isinstance(data, ServesDomains) else None
        if labels is None:
            return {}
        known = self.collector("target").compute()
        truth = labels[known.number.cpu()].to(known.logits.device)
        right = episode_scores(known.logits.unsqueeze(1), truth.unsqueeze(1))
        return accuracy_of(right[truth >= 0], "oracle/accuracy")  # a target may be labelled in part

    def baselines(self, module: Method) -> dict[str, Baseline]:
        """In a test, the most frequent class of the source, and the class of the nearest source sample."""
        data = datamodule_of(module)
        if not isinstance(data, ServesDomains) or module.trainer.state.fn != TrainerFn.TESTING:
            return {}
        return sample_baselines(data.info(), data.source_samples, "source ")

    def mode_of(self, metric: str) -> str:
        """The direction of a validator, or as in the base class."""
        known = {f"val/{_key(one)}": one.higher_is_better for one in PANEL}
        return super().mode_of(metric) if metric not in known else "max" if known[metric] else "min"

    def selected_by(self, card: Mapping[str, Any]) -> str | None:
        """The validator, if its score selected the state."""
        selection = card.get("selection")
        return card["method"].get("train_selection") if selection == f"max {self.monitor}" else selection

    def counts(self, numbers: Numbers, stage: str) -> dict[str, int | None]:
        """Number of target samples and, in a validation, of source samples."""
        return super().counts(numbers, stage) | (self._sizes if stage != "test" else {})

    def counted_line(self, results: Mapping[str, Any], split: str, seen: Mapping[str, Any]) -> tuple[str, str]:
        """Number of target and source samples, and the domains that were trained on."""
        if "targets" not in seen:
            return super().counted_line(results, split, seen)
        trained = [" and ".join(f"{name} ({one['samples']})" for name, one in seen[side].items()) for side in _CARD]
        source = f", {results['source_samples']} of the source" if "source_samples" in results else ""
        learned = f"{trained[0]} with labels and {trained[1]} without"
        return f"{results['samples']} {split} of the target{source}", learned

    def remarks(self, results: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Accuracy and selection gap, from labels of the target."""
        oracle, rows = results.get("oracle", {}), super().remarks(results)
        only = "labels of the target, for the report only"
        if oracle.get("accuracy") is not None:
            chosen = f", the state selected by {oracle['selected_by']}" if oracle.get("selected_by") else ""
            rows.append(("oracle accuracy", f"{self.told('accuracy', oracle['accuracy'])}  ({only}{chosen})"))
        if oracle.get("gap") is not None:
            best = f"best of {oracle['validations']} validations {100 * oracle['best_accuracy']:.2f} %"
            rows.append(("selection gap", f"{oracle['gap']:.2f} points  ({best}; {only})"))
        return rows


def _key(validator: Validator) -> str:
    return validator.name.replace(" ", "_").replace("-", "_")
