"""What all methods share that classify samples: evaluation, report, prediction."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from metatransfer.batches import Inputs, LabelledBatch, Predictions, UnlabelledBatch
from metatransfer.checks import check_batch_kind, check_labelled_batch, check_positive
from metatransfer.errors import UserError
from metatransfer.methods.base import Baseline, MethodModule
from metatransfer.metrics import ClassifierMetrics
from metatransfer.nn import Backbone

MOST_FREQUENT = "most frequent class"
_REMEDY = "give it a data module of labelled samples, such as ImageFolderDataModule"
_NEIGHBOUR_LIMIT = 2**26  # numbers of all training samples: beyond, looking for neighbours costs more than it tells


class ClassifierModule(MethodModule):
    """A method that tells the classes of samples, learned from labelled batches.

    A subclass says what it answers (:meth:`forward`) and what it minimises (:meth:`training_loss`).

    Args:
        num_classes: number of classes; on the command line taken from the data.
        optimizer: see :class:`MethodModule`.
        lr_scheduler: see :class:`MethodModule`.

    Attributes:
        learns_from: kind of the training batches.
        class_names: names of the classes, of the data that it was trained on.

    Raises:
        UserError: ``num_classes`` missing or below 1.
    """

    learns_from: ClassVar[type] = LabelledBatch

    def __init__(
        self,
        num_classes: int | None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        if num_classes is None:
            raise UserError(
                f"{type(self).__name__} needs num_classes, the number of classes: on the command line it follows data "
                "that serves labelled samples, such as ImageFolderDataModule."
            )
        check_positive(num_classes=num_classes)
        self.num_classes = num_classes
        self.class_names: tuple[str, ...] = tuple(map(str, range(num_classes)))
        self.metrics = nn.ModuleDict({"val": ClassifierMetrics(num_classes), "test": ClassifierMetrics(num_classes)})
        self._checked: set[str] = set()

    @abstractmethod
    def forward(self, x: Inputs) -> Tensor:
        """Logits of samples.

        Args:
            x: ``(N, *shape)``, or texts.

        Returns:
            ``(N, C)``.
        """

    @abstractmethod
    def training_loss(self, batch: LabelledBatch) -> tuple[Tensor, Tensor]:
        """What training minimises.

        Args:
            batch: ``N`` samples.

        Returns:
            The loss, a scalar, and the logits ``(N, C)``.
        """

    def check_samples(self, x: Inputs) -> None:
        """Refuses samples that are not finite or that the network was not built for; asks ``self.backbone``.

        Args:
            x: a batch.

        Raises:
            UserError: texts for a network that takes none, NaN, or what the network refuses.
        """
        backbone = getattr(self, "backbone", None)
        if not isinstance(x, Tensor):
            shaped = isinstance(backbone, Backbone) and type(backbone).check_input is not Backbone.check_input
            if shaped or getattr(backbone, "in_shape", None) is not None:
                raise UserError(
                    f"{type(backbone).__name__} takes tensors, but the data module serves texts: give it a network "
                    "that reads texts, such as TokenAverage or HuggingFaceEncoder."
                )
            return
        if not torch.isfinite(x).all():
            raise UserError("the data holds samples that are NaN or infinite: clean the data.")
        check = getattr(backbone, "check_input", None)
        if check is not None:
            check(tuple(x.shape[1:]))

    def shared_step(self, batch: Any, stage: str) -> Tensor:  # noqa: ANN401
        """The loss of a labelled batch; logs the training's and collects the answers of an evaluation."""
        if stage not in self._checked:  # looking at labels waits for the device
            check_batch_kind(batch, LabelledBatch, f"{type(self).__name__} learns from", _REMEDY)
            self._check_batch(LabelledBatch(*batch), stage)
            self._checked.add(stage)
        batch = LabelledBatch(*batch)
        if stage == "train":
            loss, outputs = self.training_loss(batch)
            target = batch.y if batch.y.dim() == 1 else batch.y.argmax(-1)
            score = (outputs.detach().argmax(-1) == target).float().mean()
            self.log_dict({"train/loss": loss, "train/accuracy": score}, prog_bar=True, batch_size=len(target))
            return loss
        outputs = self.outputs(batch, stage)
        metrics: ClassifierMetrics = self.metrics[stage]  # type: ignore[assignment]
        metrics.update(outputs, batch.y, batch.number)
        return F.cross_entropy(outputs.float(), batch.y)

    def _check_batch(self, batch: LabelledBatch, stage: str) -> None:
        """Looks at the first batch of a stage.

        Raises:
            UserError: samples or labels that the method was not built for, or samples that are not finite.
        """
        self.check_samples(batch.x)
        mixed = stage == "train" and batch.y.is_floating_point()
        if not mixed:
            check_labelled_batch(batch, self.num_classes)
        elif batch.y.shape[1:] != (self.num_classes,):
            raise UserError(
                f"mixtures of labels must have shape (N, {self.num_classes}), one part for each class, but the "
                f"training batch has {tuple(batch.y.shape)}."
            )

    def outputs(self, batch: LabelledBatch, stage: str) -> Tensor:
        """Logits of an evaluation's batch; by default by its samples alone.

        Args:
            batch: ``N`` samples.
            stage: ``"train"``, ``"val"`` or ``"test"``.

        Returns:
            ``(N, C)``.
        """
        found: Tensor = self(batch.x)
        return found

    def on_train_start(self) -> None:
        """As of the base; what the sanity check answered is no result."""
        super().on_train_start()
        self.metrics["val"].reset()  # type: ignore[operator]

    def on_validation_epoch_end(self) -> None:
        """Logs ``val/accuracy`` and the others with their intervals."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Logs ``test/accuracy`` and the others with their intervals."""
        self._log_metrics("test")

    def _log_metrics(self, stage: str) -> None:
        metrics: ClassifierMetrics = self.metrics[stage]  # type: ignore[assignment]
        for name, value in metrics.compute().items():
            self.log(f"{stage}/{name}", value, prog_bar=name == metrics.score_name)

    def on_validation_epoch_start(self) -> None:
        """Forgets the answers of the last evaluation, which reports may look at until now."""
        self.metrics["val"].reset()  # type: ignore[operator]

    def on_test_epoch_start(self) -> None:
        """Forgets the answers of the last evaluation."""
        self.metrics["test"].reset()  # type: ignore[operator]

    def setup(self, stage: str) -> None:
        """As of the base; takes the names of the classes from the data that it is trained on.

        Raises:
            UserError: data of other classes than the method was trained for.
        """
        super().setup(stage)
        self._checked.clear()
        names = getattr(getattr(self._trainer, "datamodule", None), "class_names", None)
        if names is None or stage == "predict":
            return
        if len(names) != self.num_classes:
            raise UserError(
                f"{type(self).__name__} was built for {self.num_classes} classes, but the data has {len(names)} "
                f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}): leave num_classes out to have it follow "
                "the data, or test on the classes that it was trained for."
            )
        if stage == "fit" or self.class_names == tuple(map(str, range(self.num_classes))):
            self.class_names = tuple(names)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As of the base, with the names of the classes."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["class_names"] = list(self.class_names)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As of the base, with the names of the classes.

        Raises:
            UserError: the data has other classes than the checkpoint, or the same in another order.
        """
        super().on_load_checkpoint(checkpoint)
        known = tuple(checkpoint.get("class_names", self.class_names))
        data = getattr(getattr(self._trainer, "datamodule", None), "class_names", None)
        predicting = self._trainer is not None and self._trainer.predicting
        if data is not None and not predicting and tuple(data) != known:
            at = next((i for i, pair in enumerate(zip(known, data, strict=False)) if pair[0] != pair[1]), len(known))
            raise UserError(
                f"the checkpoint was trained for the classes {', '.join(known[:3])}, ... but the data's differ from "
                f"number {at} on ({', '.join(map(str, data[at : at + 3]))}): give the data that it was trained on, or "
                "start from its weights alone (--model.backbone.weights)."
            )
        self.class_names = known

    def predict_step(self, batch: UnlabelledBatch, batch_idx: int = 0) -> Predictions:
        """Labels samples.

        Raises:
            UserError: no samples to label, or one that the network gives no numbers for.
        """
        if not isinstance(batch, UnlabelledBatch):
            raise UserError(
                f"{type(self).__name__} labels an UnlabelledBatch, but the data module serves a "
                f"{type(batch).__name__}: {_REMEDY}."
            )
        x, files = batch
        if "predict" not in self._checked:
            self.check_samples(x)
            self._checked.add("predict")
        probabilities = self(x).float().softmax(-1).cpu()
        for file, whole in zip(files, probabilities.isfinite().all(-1).tolist(), strict=True):
            if not whole:
                raise UserError(f"{type(self).__name__} gives no numbers for '{file}': look at the sample.")
        return Predictions(files, self.class_names, probabilities)

    # ---- what the numbers are compared with

    def baselines(self) -> dict[str, Baseline]:
        """The most frequent class, and the class of the nearest training sample where these are small enough."""
        data = getattr(self._trainer, "datamodule", None)
        if data is None or not hasattr(data, "train_samples"):
            return {}
        found: dict[str, Baseline] = {MOST_FREQUENT: self._most_frequent}
        shape = data.sample_shape()
        if NearestSample.affordable(len(data.split("train")), shape):
            found["pixel 1-NN" if len(shape) == 3 else "1-NN"] = NearestSample(data.train_samples, data.num_classes)
        return found

    def _most_frequent(self, batch: Any) -> Tensor:  # noqa: ANN401
        counts = torch.as_tensor(self.trainer.datamodule.class_counts, device=batch.y.device)  # type: ignore[attr-defined]
        return F.one_hot(counts.argmax(), self.num_classes).float().expand(len(batch.y), -1)


class NearestSample:
    """Answers with the class of the nearest training sample by Euclidean distance.

    Args:
        samples: gives the training samples in batches with ``x`` and ``y``.
        num_classes: number of classes.
    """

    def __init__(self, samples: Callable[[], Iterable[Any]], num_classes: int) -> None:
        self.samples, self.num_classes = samples, num_classes
        self.known: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def affordable(count: int, shape: tuple[int, ...]) -> bool:
        """Whether looking for neighbours costs no more than it tells.

        Args:
            count: training samples.
            shape: of one; ``()`` for texts, which have no distance.

        Returns:
            Whether it is worth it.
        """
        return bool(shape) and count * torch.Size(shape).numel() <= _NEIGHBOUR_LIMIT

    def __call__(self, batch: Any) -> Tensor:  # noqa: ANN401
        """The answers ``(N, C)`` to a batch, as one-hot rows."""
        if self.known is None:
            parts = [(part.x.flatten(1), part.y) for part in self.samples()]
            self.known = torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
        x, y = (tensor.to(batch.y.device) for tensor in self.known)
        nearest = torch.cdist(batch.x.flatten(1).to(x.dtype), x).argmin(1)
        return F.one_hot(y[nearest], self.num_classes).float()
