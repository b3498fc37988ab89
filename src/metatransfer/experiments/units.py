"""Keeps the score of every test unit, of a method and of baselines beside it."""

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from metatransfer.batches import Episode, Inputs, Tokens, episodes_of, map_inputs
from metatransfer.data_info import ServesDomains, datamodule_of
from metatransfer.functional.losses import episode_scores
from metatransfer.functional.meta.prototypes import class_prototypes, cosine_scores
from metatransfer.methods.evaluation.base import Baseline
from metatransfer.nn import Backbone
from metatransfer.nn.weights import weights_reports

OWN = "method"
Beside = Callable[[Any], Mapping[str, Baseline]]


class UnitScores(Callback):
    """Records the scores of a test, episode by episode or sample by sample, and the validation scores of a fit by time.

    Args:
        beside: the baselines to score on the same batches, for a method; defaults to none.

    Attributes:
        found: scores of the last test, in the order of the data, of the method (:data:`OWN`) and of each baseline.
        curve: ``(seconds, score)`` of each validation of a fit.
    """

    def __init__(self, beside: Beside = lambda _: {}) -> None:
        self.beside = beside
        self.curve: list[tuple[float, float]] = []
        self._began = time.perf_counter()
        self._reset({})

    def _reset(self, baselines: Mapping[str, Baseline]) -> None:
        self.baselines = dict(baselines)
        self._scores: dict[str, list[Tensor]] = {name: [] for name in (OWN, *baselines)}
        self._digest = hashlib.sha256()

    @property
    def found(self) -> dict[str, list[float]]:
        """See the class."""
        return {name: torch.cat(parts).double().cpu().tolist() for name, parts in self._scores.items() if parts}

    @property
    def units(self) -> str:
        """A hash of the samples and labels of the test, whatever the batch size."""
        return self._digest.hexdigest()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock of the curve."""
        self._began, self.curve = time.perf_counter(), []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds a point to the curve: labels that are withheld from the method may be used to report it."""
        names = ("oracle/accuracy", "val/accuracy")
        score = next((trainer.callback_metrics[name] for name in names if name in trainer.callback_metrics), None)
        if score is not None and math.isfinite(score) and not trainer.sanity_checking:
            self.curve.append((round(time.perf_counter() - self._began, 3), float(score)))

    def on_test_start(self, trainer: Trainer, pl_module: Any) -> None:  # noqa: ANN401
        """Prepares the baselines, and has the evaluation pass every batch of scores on."""
        self._reset(self.beside(pl_module))
        pl_module.evaluation.recorders.append(self)

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:  # noqa: ANN401
        """Ends the recording."""
        pl_module.evaluation.recorders.remove(self)

    def update(self, outputs: Any, targets: Tensor, more: Tensor, losses: Tensor | None = None) -> None:  # noqa: ANN401
        """Adds a batch, as an evaluation passes it: scores of episodes with their losses, or outputs for samples."""
        self._scores[OWN].append(more if losses is not None else episode_scores(outputs[:, None], targets[:, None]))

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,  # noqa: ANN401
        outputs: object,
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Scores the baselines."""
        for one in episodes_of(batch) if isinstance(batch, Episode | list) else [batch]:
            for row in _rows(one):
                self._digest.update(row)
        for name, baseline in self.baselines.items():
            self._scores[name].append(pl_module.evaluation.baseline_scores(pl_module, baseline, batch))


def _rows(batch: Any) -> list[bytes]:  # noqa: ANN401
    """The content of each unit of a batch; samples by their sums, which are as telling and much shorter."""
    parts: list[list[bytes]] = []
    for part in batch:
        if isinstance(part, Tokens):
            parts.append([ids[mask.bool()].cpu().numpy().tobytes() for ids, mask in zip(*part, strict=True)])
        elif isinstance(part, Tensor):
            sums = part.double().flatten(2).sum(-1) if part.dim() > 2 and part.is_floating_point() else part
            sums = sums.round(decimals=4) if sums.is_floating_point() else sums  # their last digits depend on the batch
            parts.append([row.tobytes() for row in sums.cpu().numpy()])
    return [b"".join(row) for row in zip(*parts, strict=True)]


def untrained_baselines(module: Any) -> dict[str, Baseline]:  # noqa: ANN401
    """Baselines without training: those of the evaluation, and class means of the features of the module's network."""
    found = {name: one for name, one in module.evaluation.baselines(module).items() if name != "untrained"}
    backbone = getattr(module, "backbone", None)
    if isinstance(backbone, Backbone):
        kind = "pretrained" if weights_reports(module) else "untrained"
        found[f"{kind} features, class means"] = class_means(backbone, datamodule_of(module))
    return found


def class_means(backbone: Backbone, data: Any) -> Baseline:  # noqa: ANN401
    """Predicts the class with the nearest mean of features, by cosine: of the support, or of the training samples."""
    known: list[Tensor] = []

    def features(x: Inputs) -> Tensor:
        backbone.eval()
        return backbone(x).flatten(1)  # type: ignore[no-any-return]

    def of_samples(batch: Any) -> Tensor:  # noqa: ANN401
        if not known:
            samples = data.source_samples() if isinstance(data, ServesDomains) else data.train_samples()
            device = batch.y.device
            parts = [(features(map_inputs(lambda x: x.to(device), one.x)), one.y.to(device)) for one in samples]
            x, y = torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
            known.append(class_prototypes(x[None], y[None], len(data.info().class_names)))
        return cosine_scores(features(batch.x)[None], known[0])[0]

    def predict(batch: Any) -> Tensor:  # noqa: ANN401
        if not isinstance(batch, Episode):
            return of_samples(batch)
        tasks = batch.support_y.shape[0]
        embedded = [features(map_inputs(lambda x: x.flatten(0, 1), one)) for one in (batch.support_x, batch.query_x)]
        support, query = (one.reshape(tasks, -1, one.shape[-1]) for one in embedded)
        return cosine_scores(query, class_prototypes(support, batch.support_y, int(batch.support_y.max()) + 1))

    return predict


def without_support(module: Any) -> dict[str, Baseline]:  # noqa: ANN401
    """The method itself with the labels of each support set shuffled: what it reaches without looking at them."""
    generator = torch.Generator().manual_seed(0)

    def predict(episode: Episode) -> Any:  # noqa: ANN401
        labels = episode.support_y
        order = torch.stack([torch.randperm(labels.shape[1], generator=generator) for _ in labels]).to(labels.device)
        return module(episode._replace(support_y=labels.gather(1, order)))

    return {"support-free": predict}
