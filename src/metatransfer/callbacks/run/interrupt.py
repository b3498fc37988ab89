"""Ctrl-C at the end of a batch, not inside it."""

import signal
import threading
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor


class FinishBatch(Callback):
    """Ends a fit after the current batch if Ctrl-C is pressed, and not without a validation.

    A second Ctrl-C stops immediately.

    A run stopped within a batch has already drawn random numbers and updated BatchNorm statistics, which the resumed
    run would do again. Stopped between batches, a resumed run is bit-identical to an uninterrupted one. A validation
    that was interrupted, or was due next, starts from its beginning when the run is resumed.
    """

    def __init__(self) -> None:
        self._previous: Any = None
        self._asked = self._validation_due = self._repeating = self._validated = False
        self._interval: tuple[int | None, ...] = ()  # between validations, where it was changed
        self._rng_state: tuple[Tensor, Tensor | None] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forgets earlier fits of the Trainer; a checkpoint is read later."""
        self._validated = False

    def state_dict(self) -> dict[str, Any]:
        """Whether the fit has been validated."""
        return {"validated": self._validated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps this for a resumed fit."""
        self._validated = state_dict["validated"]

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        rank_zero_info("\nStopping after this batch; Ctrl-C again stops at once.")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handles the signal, which only the main thread receives."""
        self._asked = self._validation_due = self._repeating = False
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._ask)

    def _stop_if_asked(self) -> None:
        if self._asked:
            raise KeyboardInterrupt

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:  # noqa: ANN401
        """Ends the restart, which Lightning would keep until the end of the epoch and then skip ReduceLROnPlateau."""
        self._validation_due = False
        if trainer.fit_loop.restarting:
            trainer.fit_loop.restarting = False

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:  # noqa: ANN401
        """Records whether a validation comes next, and stops if asked to."""
        self._validate_at_the_end(trainer)
        fetcher = trainer.fit_loop._data_fetcher
        self._validation_due = fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)
        self._stop_if_asked()

    def _validate_at_the_end(self, trainer: Trainer) -> None:
        """Lets a fit that is shorter than the interval between validations end with one; it would have no result."""
        last_epoch = trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs
        ends = trainer.should_stop or last_epoch or trainer.global_step == trainer.max_steps
        if ends and not self._validated and trainer.enable_validation:
            self._interval = self._interval or (trainer.check_val_every_n_epoch,)
            trainer.check_val_every_n_epoch, trainer.should_stop = 1, True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the random state, in case the validation has to be repeated."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        self._validation_due = True
        loop = trainer.fit_loop.epoch_loop.val_loop
        self._repeating = loop.restarting
        if self._repeating:
            loop.batch_progress.total.reset()  # otherwise later checkpoints would look interrupted, too
        cuda = torch.cuda.get_rng_state(pl_module.device) if pl_module.device.type == "cuda" else None
        self._rng_state = torch.get_rng_state(), cuda

    def on_validation_batch_end(self, *args: Any) -> None:  # noqa: ANN401
        """Stops if asked to."""
        self._stop_if_asked()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The validation is complete."""
        self._validation_due, self._rng_state = False, None
        self._validated |= not trainer.sanity_checking
        if self._repeating:
            self._repeating = False
            trainer.fit_loop.restarting = False  # see on_train_batch_start

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Marks the validation as due in the checkpoint; Lightning would treat the epoch as finished."""
        if self._validation_due and "loops" in checkpoint:
            _repeat_validation(checkpoint["loops"]["fit_loop"])

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restores the signal handler, and the random state if a validation was interrupted."""
        if self._rng_state is not None:
            cpu, cuda = self._rng_state
            torch.set_rng_state(cpu)
            if cuda is not None:
                torch.cuda.set_rng_state(cuda, pl_module.device)
            self._rng_state = None
        self.on_fit_end(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores the signal handler and the interval between validations."""
        for interval in self._interval:
            trainer.check_val_every_n_epoch = interval
        self._interval = ()
        # Lightning ignores the signal during its shutdown
        if self._previous is not None and signal.getsignal(signal.SIGINT) == self._ask:
            signal.signal(signal.SIGINT, self._previous)
        self._previous = None


def _repeat_validation(loops: dict[str, Any]) -> None:
    """Changes the state of the loops to that of a run stopped in the first batch of its validation.

    From there, Lightning resumes with the first episode of the validation. From a later batch it would omit as many
    episodes at the end as were already done; from before the validation it would skip it.
    """
    trained = loops["epoch_loop.batch_progress"]
    for part in ("total", "current"):
        trained[part]["completed"] = trained[part]["processed"]
    validated = loops["epoch_loop.val_loop.batch_progress"]
    validated["is_last_batch"] = False
    validated["total"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    validated["current"] = dict.fromkeys(validated["current"], 0)
