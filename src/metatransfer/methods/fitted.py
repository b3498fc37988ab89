"""Methods that are fitted at once instead of step by step, by the Trainer all the same."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler

from metatransfer.data_info import ServesSamples
from metatransfer.errors import UserError
from metatransfer.methods.base import MethodModule
from metatransfer.methods.data_access import datamodule_of

_FIT = {"num_sanity_val_steps": 0, "check_val_every_n_epoch": 1, "val_check_interval": 1.0, "limit_train_batches": 1}


class FittedModule(MethodModule):
    """A part of methods that see all training samples at once: derive from it first, then from a classifier.

    A fit is one epoch of one batch in the Trainer's count, and before it :meth:`fit_data`, in one process. Checkpoints,
    reports, test and prediction are those of the classifier.

    Attributes:
        reads: the protocol of the data that :meth:`fit_data` needs.
    """

    reads: ClassVar[type] = ServesSamples

    @property  # type: ignore[misc]
    def automatic_optimization(self) -> bool:
        """``False``: there is nothing to take a step of."""
        return False

    @abstractmethod
    def fit_data(self, data: Any) -> None:  # noqa: ANN401
        """Learns from the training samples of a data module."""

    def setup(self, stage: str) -> None:
        """Prepares the Trainer for one batch of one epoch.

        Raises:
            UserError: several processes, or data whose training samples cannot be read as a whole.
        """
        super().setup(stage)
        if stage != "fit":
            return
        name = type(self).__name__
        if self.trainer.world_size > 1:
            raise UserError(f"{name} is fitted in one process: set trainer.devices=1.")
        if not isinstance(datamodule_of(self), self.reads):
            raise UserError(f"{name} needs a data module of labelled samples, such as ImageFolderDataModule.")
        # nothing is evaluated before the fit, and everything after it
        self._given = {name: getattr(self.trainer, name) for name in _FIT}
        self._max_epochs = self.trainer.max_epochs
        for setting, value in _FIT.items():
            setattr(self.trainer, setting, value)
        self.trainer.fit_loop.max_epochs = 1

    def teardown(self, stage: str) -> None:
        """Restores the Trainer's settings for other methods."""
        super().teardown(stage)
        if stage == "fit":
            for setting, value in self._given.items():
                setattr(self.trainer, setting, value)
            self.trainer.fit_loop.max_epochs = self._max_epochs

    def on_train_start(self) -> None:
        """Fits."""
        super().on_train_start()
        self.fit_data(datamodule_of(self))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """An optimiser of nothing: Lightning counts its steps, and saves checkpoints by them."""
        nothing = torch.zeros(1, requires_grad=True, device=self.device)
        nothing.grad = torch.zeros_like(nothing)  # a scaler of float16 asks for a gradient
        return torch.optim.SGD([nothing], lr=0.0)

    def training_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ANN401
        """Logs the loss of the first training batch; nothing is left to learn."""
        super().training_step(batch, batch_idx)  # type: ignore[safe-super]
        self.optimizers().step()  # type: ignore[union-attr]
