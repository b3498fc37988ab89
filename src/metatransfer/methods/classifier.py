"""Base classes of methods that classify samples."""

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from metatransfer.batches import Inputs, LabelledBatch, Predictions, UnlabelledBatch
from metatransfer.checks import check_batch_kind, check_float_samples, check_labelled_batch, check_positive
from metatransfer.data_info import ReadsSamples, datamodule_of, info_of
from metatransfer.errors import UserError
from metatransfer.functional.losses import episode_scores
from metatransfer.functional.meta.replicas import replica
from metatransfer.methods.base import MethodModule
from metatransfer.methods.evaluation import OnSamples
from metatransfer.methods.given import check_dense
from metatransfer.methods.outputs import checked_pair

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BATCH = 256  # samples at once in a prediction
_REMEDY = "use a data module of labelled samples, such as LabelledDataModule"


class SampleClassifier(MethodModule):
    """Base class of methods that classify samples.

    Args:
        evaluation: creates the evaluation from the number of classes.
        num_classes: number of classes; on the command line taken from the data.

    Attributes:
        class_names: names of the classes in the training data.

    Raises:
        UserError: ``num_classes`` is missing or below 1.
    """

    def __init__(
        self,
        evaluation: type[OnSamples] | Any,  # noqa: ANN401 - or a function of the number of classes
        num_classes: int | None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        if num_classes is None:
            raise UserError(
                f"{type(self).__name__} needs num_classes, the number of classes; on the command line it is taken from "
                "data that serves labelled samples, such as LabelledDataModule."
            )
        check_positive(num_classes=num_classes)
        super().__init__(evaluation(num_classes), optimizer, lr_scheduler)
        self.num_classes = num_classes
        self.class_names: tuple[str, ...] = tuple(map(str, range(num_classes)))

    @abstractmethod
    def forward(self, x: Any) -> Tensor:  # noqa: ANN401
        """Logits ``(N, C)`` of samples."""

    @property
    def calibrated(self) -> bool:
        """Whether the softmax of the outputs is meant as a probability; the calibration error is reported only then."""
        return True

    def more_figures(self, stage: str) -> "dict[str, Figure]":
        """Further figures of the last evaluation of a stage; by default none."""
        return {}

    def check_samples(self, x: Inputs) -> None:
        """Also raises an error unless all samples are finite."""
        if isinstance(x, Tensor) and not torch.isfinite(x).all():
            raise UserError("the data holds samples that are NaN or infinite: clean the data.")
        super().check_samples(x)

    def setup(self, stage: str) -> None:
        """Takes the class names from the training data."""
        super().setup(stage)
        info = info_of(self) if stage != "predict" else None
        if info is None or not info.class_names:
            return
        names = info.class_names
        if len(names) != self.num_classes:
            raise UserError(
                f"{type(self).__name__} was built for {self.num_classes} classes, but the data has {len(names)} "
                f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}): leave num_classes out to have it follow "
                "the data, or test on the classes that it was trained for."
            )
        if stage == "fit" or self.class_names == tuple(map(str, range(self.num_classes))):
            self.class_names = tuple(names)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the class names."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["class_names"] = list(self.class_names)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Reads the class names."""
        super().on_load_checkpoint(checkpoint)
        known = tuple(checkpoint.get("class_names", self.class_names))
        predicting = self._trainer is not None and self._trainer.predicting
        info = None if predicting else info_of(self)
        if info is not None and info.class_names and info.class_names != known:
            data = info.class_names
            at = next((i for i, pair in enumerate(zip(known, data, strict=False)) if pair[0] != pair[1]), len(known))
            raise UserError(
                f"the checkpoint was trained for the classes {', '.join(known[:3])}, ... but the classes of the data "
                f"differ from number {at} on ({', '.join(map(str, data[at : at + 3]))}): give the data that it was "
                "trained on, or start from its weights alone (--model.backbone.weights)."
            )
        self.class_names = known

    def predict(self, samples: Any, data: ReadsSamples | None = None) -> list[str]:  # noqa: ANN401
        """The class of each sample, see :meth:`predictions`."""
        return self.predictions(samples, data).labels

    def predictions(self, samples: Any, data: ReadsSamples | None = None) -> Predictions:  # noqa: ANN401
        """Labels new samples: their files, texts or indices, the class names, and the probabilities.

        Args:
            samples: ``(N, *shape)`` floats as the network takes them, as one tensor or array or as a list; or what the
                data module reads: a folder or file, or a list of image files or texts.
            data: the data module of the training; defaults to that of the run that trained the module.

        Raises:
            UserError: there is no data module to read files or texts, or samples do not fit the network.
        """
        module = replica(self).eval()  # a copy, since other threads may use the module
        with torch.no_grad():
            batches = [module.predict_step(batch) for batch in self._batches(samples, data)]
        files = tuple(file for batch in batches for file in batch.files)
        return Predictions(files, self.class_names, torch.cat([batch.probabilities for batch in batches]))

    def _batches(self, samples: Any, data: ReadsSamples | None) -> Iterator[UnlabelledBatch]:  # noqa: ANN401
        self._checked.discard("predict")
        samples = str(samples) if isinstance(samples, Path) else samples
        check_dense(samples, "samples")
        if not len(samples):
            raise UserError("there are no samples to label: give at least one.")
        if isinstance(samples[0], str | Path):
            data = datamodule_of(self) if data is None else data
            if not isinstance(data, ReadsSamples):
                raise UserError(
                    "files and texts are read by the data module of the training: call predict(samples, data) with a "
                    "data module such as LabelledDataModule, or give the samples as a tensor (N, *shape)."
                )
            read = samples if isinstance(samples, str) else [str(one) for one in samples]
            for batch in data.predict_dataloader(read):
                yield self.transfer_batch_to_device(batch, self.device, 0)
            return
        x = torch.stack([torch.as_tensor(one) for one in samples]).to(self.device)
        check_float_samples(x, "samples")
        for start in range(0, len(x), _BATCH):
            yield UnlabelledBatch(x[start : start + _BATCH], tuple(map(str, range(start, min(len(x), start + _BATCH)))))

    def predict_step(self, batch: UnlabelledBatch, batch_idx: int = 0) -> Predictions:
        """Labels samples."""
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
                name = type(self).__name__
                raise UserError(f"the probabilities of {name} for '{file}' are NaN: check sample and weights.")
        return Predictions(files, self.class_names, probabilities)


class ClassifierModule(SampleClassifier):
    """A classifier that learns from labelled batches.

    A subclass defines the logits (:meth:`forward`) and the training loss (:meth:`training_loss`).

    Args:
        num_classes: number of classes; on the command line taken from the data.
    """

    learns_from: ClassVar[type] = LabelledBatch

    def __init__(
        self,
        num_classes: int | None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(OnSamples, num_classes, optimizer, lr_scheduler)

    @abstractmethod
    def training_loss(self, batch: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        """The training loss of a :class:`~metatransfer.LabelledBatch`, a scalar, and the logits ``(N, C)``."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:  # noqa: ANN401
        """The loss of a labelled batch, or of a pair ``(x, y)``."""
        if "train" not in self._checked:  # looking at labels waits for the device
            self.check_batch(batch, "train")
            self._checked.add("train")
        batch = LabelledBatch(*batch)
        loss, outputs = checked_pair(self, self.training_loss(batch))
        target = batch.y if batch.y.dim() == 1 else batch.y.argmax(-1)
        score = episode_scores(outputs.detach().unsqueeze(1), target.unsqueeze(1)).mean()
        self.log_dict({"train/loss": loss, "train/accuracy": score}, prog_bar=True, batch_size=len(target))
        return loss

    def check_batch(self, batch: Any, stage: str) -> None:  # noqa: ANN401
        """Raises an error unless a batch fits the method; soft labels ``(N, C)`` are allowed in training only."""
        check_batch_kind(batch, LabelledBatch, f"{type(self).__name__} learns from", _REMEDY)
        batch = LabelledBatch(*batch)
        self.check_samples(batch.x)
        if stage != "train" or not batch.y.is_floating_point():
            check_labelled_batch(batch, self.num_classes)
        elif batch.y.shape[1:] != (self.num_classes,):
            raise UserError(
                f"mixtures of labels must have shape (N, {self.num_classes}), one part for each class, but the "
                f"training batch has {tuple(batch.y.shape)}."
            )

    def outputs(self, batch: LabelledBatch, stage: str) -> Tensor:
        """Logits ``(N, C)`` of a batch of a stage; by default computed from its samples."""
        return self(batch.x)  # type: ignore[no-any-return]
