"""Diagnostics of domain adaptation: distances between the domains and signs of a collapse, without target labels."""

import copy
import json
import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from metatransfer.callbacks.adaptation_gain import AdaptationGain
from metatransfer.callbacks.figures import publish_figures
from metatransfer.callbacks.run.report import number
from metatransfer.callbacks.run.run_folder import run_folder
from metatransfer.checks import check_choice
from metatransfer.experiments.training import Budget, beside_the_run, evaluate
from metatransfer.functional.domain.distance import class_conditional_a_distance, collapse_signs, proxy_a_distance
from metatransfer.methods.base import MethodModule
from metatransfer.methods.fitted import FittedModule
from metatransfer.methods.twins import ADAPTATION, detached, labelled, target_evaluation
from metatransfer.metrics.validators import Evidence
from metatransfer.storage import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CURVES = {"lambda": "λ", "discriminator_accuracy": "discriminator accuracy", "gradient_ratio": "gradient ratio"}
_POINTS = 1000  # of a curve: a figure cannot show more
_FOLDS = 5


class DomainDiagnostics(Callback):
    """Measures the distance between the domains and warns of a collapse, for methods evaluated on a target domain.

    After the fit: the proxy A-distance of the validation features (Ben-David et al. 2007, NeurIPS), overall and for
    each class with predicted target classes, before and after adaptation, with a figure of the features. "Before" is
    the source-only twin if :class:`AdaptationGain` has trained one, else the network before training. During the fit:
    curves of λ, the discriminator's accuracy and the ratio of gradients, and after each validation a check for a
    collapse, with one warning for each sign. Writes ``domain_diagnostics.json`` and the figures. Target labels only
    colour the figures, and only if they may be used.

    Args:
        pictures: ``"pca"``, ``"tsne"`` or ``"none"``: how features are projected to two dimensions.

    Attributes:
        signs: signs of a collapse found so far: ``sentence``, ``epoch`` and ``step`` by name.

    Raises:
        UserError: ``pictures`` is invalid.
    """

    def __init__(self, pictures: Literal["pca", "tsne", "none"] = "pca") -> None:
        check_choice("pictures", pictures, ("pca", "tsne", "none"))
        self.pictures = pictures
        self._fitting = False
        self._forget()

    def _forget(self) -> None:
        self.signs: dict[str, dict[str, Any]] = {}
        self._curves: dict[str, list[Any]] = {name: [] for name in ("step", *_CURVES)}
        self._stride, self._seen = 1, 0
        self._due_at: int | None = None
        self._start: MethodModule | None = None
        self._adapts = False

    def state_dict(self) -> dict[str, Any]:
        """Curves and signs, as plain values."""
        return {"signs": self.signs, "curves": self._curves, "stride": self._stride, "seen": self._seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from an interrupted fit."""
        if self._fitting:
            self.signs, self._curves = dict(state_dict["signs"]), copy.deepcopy(state_dict["curves"])
            self._stride, self._seen = state_dict["stride"], state_dict["seen"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copies the network before training, unless there will be a twin."""
        self._fitting = stage == "fit"
        if not self._fitting:
            return
        self._forget()
        run_folder(trainer)
        data = getattr(trainer, "datamodule", None)
        if not isinstance(pl_module, MethodModule) or target_evaluation(pl_module) is None or data is None:
            return
        self._adapts = ADAPTATION.own in pl_module.twins(data)
        twin = self._adapts and any(gain.pending for gain in _gains(trainer))
        fitted = isinstance(pl_module, FittedModule)  # which cannot predict before it is fitted
        if not (trainer.world_size > 1 or trainer.fast_dev_run or twin or fitted):  # type: ignore[attr-defined]
            self._start = detached(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drops the copy if the run is resumed, because its initial weights are not known."""
        if trainer.ckpt_path is not None:
            self._start = None

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:  # noqa: ANN401
        """Records whether this step is logged."""
        done = trainer.fit_loop.epoch_loop.batch_progress.total.completed  # some methods take several steps for a batch
        due = done % max(1, trainer.log_every_n_steps) == 0  # type: ignore[attr-defined]
        self._due_at = trainer.global_step if due else None

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:  # noqa: ANN401
        """Adds logged values to the curves, which are thinned out when they become long."""
        if self._due_at is None:
            return
        known = {name: trainer.callback_metrics.get(f"train/{name}") for name in _CURVES}
        if any(value is not None for value in known.values()):
            if self._seen % self._stride == 0:
                self._curves["step"].append(self._due_at)
                for name, value in known.items():
                    self._curves[name].append(math.nan if value is None else float(value))
            self._seen += 1
        if len(self._curves["step"]) >= _POINTS:
            self._stride *= 2
            self._curves = {name: values[::2] for name, values in self._curves.items()}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks for signs of a collapse."""
        evaluation = target_evaluation(pl_module)
        if not self._fitting or trainer.sanity_checking or not self._adapts or evaluation is None:
            return
        evidence = evaluation.last_evidence()
        floor, best = evaluation.validator.source_floor, float(pl_module.best_source_accuracy)  # type: ignore[arg-type]
        right = (evidence.source_logits.argmax(-1) == evidence.source_labels).double().mean()
        found = collapse_signs(
            evidence.target_logits,
            torch.cat([evidence.source_features, evidence.target_features]),
            [value for value in self._curves["discriminator_accuracy"] if math.isfinite(value)],
            source_accuracy=float(right),
            source_floor=floor * best if floor else None,
        )
        for name, sentence in found.items():
            if name not in self.signs:
                self.signs[name] = {"sentence": sentence, "epoch": trainer.current_epoch, "step": trainer.global_step}
                rank_zero_warn(f"Epoch {trainer.current_epoch}: {sentence}")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the distances, and writes the results and figures."""
        if target_evaluation(pl_module) is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        evidence, (before, name) = _evidence(pl_module), self._before(trainer)
        self._start = None
        if not trainer.is_global_zero:
            return
        curves = {one: [number(value) for value in values] for one, values in self._curves.items()}
        content: dict[str, Any] = {"signs": self.signs, "curves": curves}
        for when, who, known in (("before", before, _evidence(before)), ("after", pl_module, evidence)):
            if who is not None and known is not None:
                network = name if when == "before" else "after the fit"
                content[when] = {"network": network, **distances(known, known.source_logits.shape[-1])}
        path = run_folder(trainer) / "domain_diagnostics.json"
        write_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
        publish_figures(trainer, self._figures(trainer, before, pl_module))

    def _before(self, trainer: Trainer) -> tuple[LightningModule | None, str]:
        """The validated network to compare with, and its name."""
        twin = next((gain.twin for gain in _gains(trainer) if gain.twin is not None), None)
        before = twin or self._start
        if before is None or trainer.limit_val_batches == 0 or trainer.interrupted:
            return None, ""
        if _evidence(before) is None:
            data = trainer.datamodule  # type: ignore[attr-defined]
            with beside_the_run(data):
                evaluate(before, data, "val", Budget.of(trainer))
        return before, ADAPTATION.reference if twin is not None else "before training"

    def _figures(
        self, trainer: Trainer, before: LightningModule | None, module: LightningModule
    ) -> "dict[str, Figure]":
        from metatransfer.drawing import domains as drawing

        logged = {_CURVES[name]: self._curves[name] for name in _CURVES if not all(map(math.isnan, self._curves[name]))}
        figures: dict[str, Figure] = {}
        if logged:
            figures["domain_curves"] = drawing.domain_curves_figure(self._curves["step"], logged)
        if self.pictures == "none" or before is None:
            return figures
        known = [_evidence(one) for one in (before, module)]
        if all(one is not None and one.finite() for one in known):
            planes = []
            for one, who in zip(known, (before, module), strict=True):
                assert one is not None
                drawn = one.source_features, one.target_features, one.source_labels, _labels(trainer, who)
                planes.append(drawing.embed(*drawn, self.pictures))
            names = trainer.datamodule.info().class_names  # type: ignore[attr-defined]
            figures["domains"] = drawing.embedding_figure(planes[0], planes[1], names)
        return figures


def distances(evidence: Evidence, num_classes: int) -> dict[str, Any]:
    """The distances between the domains, as plain values."""
    known = evidence.on_cpu()
    if min(len(known.source_features), len(known.target_features)) < _FOLDS or not known.finite():
        return {"proxy_a_distance": None, "class_conditional_a_distance": None}
    source, target = known.source_features.flatten(1), known.target_features.flatten(1)
    sides = source, known.source_labels, target, known.target_logits.argmax(-1)
    by_class = class_conditional_a_distance(*sides, num_classes, folds=_FOLDS)._asdict()
    whole = proxy_a_distance(source, target, folds=_FOLDS)
    return {"proxy_a_distance": whole, "class_conditional_a_distance": by_class}


def _gains(trainer: Trainer) -> list[AdaptationGain]:
    return [one for one in getattr(trainer, "callbacks", ()) if isinstance(one, AdaptationGain)]


def _evidence(module: LightningModule | None) -> Evidence | None:
    """The evidence of the last validation; ``None`` if there was none."""
    evaluation = target_evaluation(module) if module is not None else None
    if evaluation is None or not evaluation.collector("target").update_called:
        return None
    return evaluation.last_evidence()


def _labels(trainer: Trainer, module: LightningModule) -> Tensor | None:
    """Labels of the validated target samples for the colours, if all are known and may be used."""
    data, evaluation = trainer.datamodule, target_evaluation(module)  # type: ignore[attr-defined]
    if evaluation is None or not labelled(data, "val"):
        return None
    labels: Tensor = data.oracle_labels("val")
    return labels[evaluation.collector("target").compute().number.cpu()]
