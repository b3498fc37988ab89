"""Checkpoints with their protocol card beside them."""

import json
import shlex
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from metatransfer.callbacks.run.run_folder import run_folder
from metatransfer.data_info import DataInfo, info_of
from metatransfer.errors import UserError
from metatransfer.methods.base import MethodModule
from metatransfer.methods.checkpoints import save_atomically
from metatransfer.methods.evaluation.base import Evaluation
from metatransfer.methods.protocol import evaluation_key, protocol_card
from metatransfer.storage import write_atomically

AUTO = "auto"


class BestCheckpoint(ModelCheckpoint):
    """Keeps the best and the last checkpoint, each with its protocol card, also if the run is interrupted.

    The card ``<checkpoint>.protocol.json`` records data, split, ways, shots, queries, BatchNorm policy, selection rule,
    versions and seed. The checkpoint holds the same.

    Args:
        monitor: metric that selects the best checkpoint. ``"auto"`` is the metric of the method's evaluation, usually
            ``val/accuracy``.
        mode: ``"max"`` if higher values are better, else ``"min"``; defaults to the evaluation's.
        save_top_k: number of best checkpoints to keep; -1 keeps all.
        every_n_train_steps: interval in training batches at which the last checkpoint is also saved.
        dirpath: folder; defaults to ``checkpoints`` in the run's folder.
    """

    def __init__(
        self,
        monitor: str | None = AUTO,
        mode: Literal["max", "min"] | None = None,
        save_top_k: int = 1,
        every_n_train_steps: int | None = None,
        dirpath: str | None = None,
    ) -> None:
        super().__init__(
            dirpath=dirpath,
            filename="epoch={epoch}-step={step}",
            monitor=monitor,
            mode=mode or "max",
            save_top_k=save_top_k,
            save_last=True,
            auto_insert_metric_name=False,
            every_n_train_steps=every_n_train_steps,
            save_on_exception=True,
            # after the validation that selects, not after the epoch
            save_on_train_epoch_end=None if monitor is None else False,
        )
        self._mode_given = mode is not None

    _stage = ""
    _evaluation = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Sets the folder and the monitored metric."""
        self._stage = stage
        if isinstance(pl_module, MethodModule) and self.monitor is not None:
            self._follow(pl_module.evaluation, info_of(trainer) if stage != "predict" else None)
        self._evaluation = evaluation_key(pl_module)
        if self.dirpath is None and stage == "fit":
            self.dirpath = str(run_folder(trainer) / "checkpoints")
        super().setup(trainer, pl_module, stage)

    def _follow(self, evaluation: Evaluation, info: DataInfo | None) -> None:
        """Takes the monitor and the mode from the evaluation, if the user has not given them."""
        mode = evaluation.mode_of(str(self.monitor))
        if self.monitor == AUTO:
            self.monitor, mode = evaluation.monitored(info)
        if not self._mode_given and mode != self.mode:
            self.mode, self.kth_value = mode, torch.tensor(-torch.inf if mode == "max" else torch.inf)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from an interrupted fit, if it was evaluated on the same data."""
        if self._stage != "fit" or state_dict.get("evaluation") != self._evaluation:
            return
        # Lightning forgets the best checkpoint if the folder has changed, and every version has a new folder
        own = self.dirpath
        self.dirpath = state_dict["dirpath"]
        super().load_state_dict(state_dict)
        self.dirpath = own

    def state_dict(self) -> dict[str, Any]:
        """Lightning's state and the key of the evaluation."""
        return {**super().state_dict(), "evaluation": self._evaluation}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the best state, and always the last: a killed run can then be resumed."""
        super().on_validation_end(trainer, pl_module)
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the last state of a fit without validation."""
        if not (self.last_model_path or self._should_skip_saving_checkpoint(trainer)):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves the last state, and prints how to resume after Ctrl-C or SIGTERM."""
        if isinstance(exception, UserError) or trainer.global_step == 0 or trainer.sanity_checking:
            return
        if self._should_save_on_exception(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        if isinstance(exception, KeyboardInterrupt | SIGTERMException):
            path = shlex.quote(self.last_model_path)
            rank_zero_info(f"Stopped. To resume, add to the same command: --ckpt_path {path}")

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        if trainer.is_global_zero:
            card = json.dumps(protocol_card(trainer.lightning_module), indent=2, default=str)
            write_atomically(card_path(filepath), card + "\n")

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        super()._remove_checkpoint(trainer, filepath)
        if trainer.is_global_zero:
            card_path(filepath).unlink(missing_ok=True)


def save_with_card(path: Path, content: dict[str, Any]) -> None:
    """Writes a checkpoint and its protocol card, each atomically."""
    save_atomically(content, path)
    write_atomically(card_path(path), json.dumps(content["protocol"], indent=2, default=str) + "\n")


def card_path(checkpoint: str | Path) -> Path:
    """The path of a checkpoint's protocol card."""
    return Path(f"{checkpoint}.protocol.json")
