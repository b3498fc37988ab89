"""Checks at the start of a fit, before an epoch is spent."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden

from metatransfer.checks import check_monitor
from metatransfer.errors import UserError

_KEY = "trained_by"


class StartChecks(Callback):
    """Raises an error for monitored metrics that are not logged, and for checkpoints of another optimiser.

    A metric of the validation is looked for after the sanity check, one of the training after the first batch; without
    a sanity check both after the first validation.
    """

    def __init__(self) -> None:
        self._validated: set[str] = set()
        self._done = False
        self._loaded: dict[str, list[Any]] = {}

    # ---- metrics to monitor

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the metrics of the validation."""
        self._validated = set(trainer.callback_metrics)
        for name, monitor in _monitors(trainer).items():
            if monitor.startswith(("val", "oracle/")):  # others may be those of the training, which has not begun
                check_monitor(name, monitor, self._validated)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:  # noqa: ANN401
        """Looks at all metrics after the first batch, where the validation's are known."""
        if not self._done and self._validated:
            self._check_all(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at all metrics after the first validation."""
        if not self._done and not trainer.sanity_checking and trainer.state.fn == TrainerFn.FITTING:
            self._check_all(trainer, pl_module)

    def _check_all(self, trainer: Trainer, module: LightningModule) -> None:
        self._done = True
        known = self._validated | set(trainer.callback_metrics)
        for result in trainer.fit_loop.epoch_loop._results.values():  # also those that are only logged for an epoch
            known |= {result.meta.name + suffix for suffix in ("", "_step", "_epoch")}
        if is_overridden("on_train_epoch_end", module):
            return  # more may be logged there
        for name, monitor in _monitors(trainer).items():
            check_monitor(name, monitor, known)

    # ---- the optimiser of a checkpoint

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the names of what trains: their states do not tell."""
        checkpoint[_KEY] = _trains(trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keeps the names until this run's own are there."""
        self._loaded = checkpoint.get(_KEY, {})

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares them.

        Raises:
            UserError: the state of an optimiser or a scheduler that another one cannot take up.
        """
        self._done, self._validated = False, set()
        own = _trains(trainer)
        for what, kept in self._loaded.items():
            if kept and own[what] and kept != own[what]:
                raise UserError(
                    f"the checkpoint was trained with {what} {_listed(kept)}, but this run has {_listed(own[what])}: "
                    "resume with the arguments that it was trained with (they stand in the config.yaml of its run)."
                )
        self._loaded = {}


def _trains(trainer: Trainer) -> dict[str, list[Any]]:
    return {
        "optimizer": [type(optimizer).__name__ for optimizer in trainer.optimizers],
        "lr_scheduler": [type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs],
        "groups of parameters of sizes": [
            len(group["params"]) for optimizer in trainer.optimizers for group in optimizer.param_groups
        ],
    }


def _listed(values: list[Any]) -> str:
    return ", ".join(map(str, values))


def _monitors(trainer: Trainer) -> dict[str, str]:
    """Every metric that something waits for, by what waits."""
    found: dict[str, str] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        # without a validation Lightning saves whatever the monitor
        chooses = isinstance(callback, ModelCheckpoint) and trainer.enable_validation
        if (chooses or (isinstance(callback, EarlyStopping) and callback.strict)) and callback.monitor:
            kind = type(callback).__name__
            found["checkpoint.monitor" if kind == "BestCheckpoint" else f"{kind}'s monitor"] = callback.monitor
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau and config.strict and config.monitor:
            found[f"{type(config.scheduler).__name__}'s monitor"] = config.monitor
    return found
