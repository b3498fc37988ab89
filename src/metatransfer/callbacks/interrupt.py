"""Ctrl-C at the end of a batch, not inside it."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info


class FinishBatch(Callback):
    """Lets the batch at hand end before Ctrl-C stops a fit; a second Ctrl-C stops at once.

    Inside a batch random numbers are drawn and BatchNorm statistics changed that the resumed run would draw and change
    again; between batches a resumed run is bit-equal to one that was never stopped.
    """

    def __init__(self) -> None:
        self._asked = False
        self._previous: Any = None

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        rank_zero_info("\nStopping after this batch; Ctrl-C again stops at once.")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes over the signal, where this is the thread that gets it."""
        self._asked = False
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._ask)

    def _stop_if_asked(self) -> None:
        if self._asked:
            raise KeyboardInterrupt

    def on_train_batch_end(self, *args: Any) -> None:  # noqa: ANN401
        """Stops here if asked to."""
        self._stop_if_asked()

    def on_validation_batch_end(self, *args: Any) -> None:  # noqa: ANN401
        """Stops here if asked to."""
        self._stop_if_asked()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Gives the signal back."""
        self._restore()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives the signal back."""
        self._restore()

    def _restore(self) -> None:
        if self._previous is not None:
            # during Lightning's shutdown the signal is ignored on purpose
            if signal.getsignal(signal.SIGINT) == self._ask:
                signal.signal(signal.SIGINT, self._previous)
            self._previous = None
