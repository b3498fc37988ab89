"""Methods that are fitted at once instead of step by step, in the Trainer all the same."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from metatransfer.batches import LabelledBatch
from metatransfer.errors import UserError
from metatransfer.methods.classifier import ClassifierModule

_FIT = {"num_sanity_val_steps": 0, "check_val_every_n_epoch": 1, "val_check_interval": 1.0, "limit_train_batches": 1}


class FittedModule(ClassifierModule):
    """A classifier that sees all training samples at once.

    A fit is one epoch of one batch in the Trainer's count, and before it :meth:`fit_data`, in one process. Checkpoints,
    reports, test and prediction are those of any classifier.

    Args:
        num_classes: number of classes; on the command line taken from the data.

    Attributes:
        reads: the method of a data module that gives all training samples.

    Raises:
        UserError: ``num_classes`` missing.
    """

    reads: ClassVar[str] = "train_samples"

    @property  # type: ignore[misc]
    def automatic_optimization(self) -> bool:
        """``False``: there is nothing to take a step of."""
        return False

    @abstractmethod
    def fit_data(self, data: Any) -> None:  # noqa: ANN401
        """Learns from the training samples of a data module.

        Args:
            data: with ``split``, ``train_samples`` and ``val_dataloader``, see
                :class:`~metatransfer.LabelledDataModule`.
        """

    def setup(self, stage: str) -> None:
        """As of the base; a fit needs one batch of one epoch, and one process.

        Raises:
            UserError: several processes, or data whose training samples cannot be read as a whole.
        """
        super().setup(stage)
        if stage != "fit":
            return
        name = type(self).__name__
        if self.trainer.world_size > 1:
            raise UserError(f"{name} is fitted in one process: set trainer.devices=1.")
        if not hasattr(getattr(self.trainer, "datamodule", None), self.reads):
            raise UserError(f"{name} needs a data module of labelled samples, such as ImageFolderDataModule.")
        # nothing is looked at before the fit, and all is validated after it
        self._given = {name: getattr(self.trainer, name) for name in _FIT}
        self._max_epochs = self.trainer.max_epochs
        for setting, value in _FIT.items():
            setattr(self.trainer, setting, value)
        self.trainer.fit_loop.max_epochs = 1

    def teardown(self, stage: str) -> None:
        """As of the base; leaves the Trainer as it was, for other methods to use."""
        super().teardown(stage)
        if stage == "fit":
            for setting, value in self._given.items():
                setattr(self.trainer, setting, value)
            self.trainer.fit_loop.max_epochs = self._max_epochs

    def on_train_start(self) -> None:
        """As of the base, then the fit."""
        super().on_train_start()
        self.fit_data(self.trainer.datamodule)  # type: ignore[attr-defined]

    def training_loss(self, batch: LabelledBatch) -> tuple[Tensor, Tensor]:
        """The cross-entropy of what was fitted already, for the log.

        Args:
            batch: ``N`` samples.

        Returns:
            The loss, and the logits.
        """
        outputs = self.outputs(batch, "train")
        return F.cross_entropy(outputs.float(), batch.y), outputs

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """An optimiser of nothing: Lightning counts its steps, and saves checkpoints by them."""
        nothing = torch.zeros(1, requires_grad=True, device=self.device)
        nothing.grad = torch.zeros_like(nothing)  # a scaler of float16 asks for a gradient
        return torch.optim.SGD([nothing], lr=0.0)

    def training_step(self, batch: LabelledBatch, batch_idx: int) -> None:  # type: ignore[override]
        """Logs how well the first training batch is told; nothing is left to learn."""
        self.shared_step(batch, "train")
        self.optimizers().step()  # type: ignore[union-attr]
