"""Checks at the start of a fit, before an epoch is spent."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden

from metatransfer.checks import check_monitor
from metatransfer.errors import UserError

_KEY = "trained_by"


class StartChecks(Callback):
    """Raises an error for a monitored metric that is not logged, and for a checkpoint of another optimiser.

    Validation metrics are checked after the sanity check and training metrics after the first batch; without a sanity
    check, both are checked after the first validation.
    """

    def __init__(self) -> None:
        self._validated: set[str] = set()
        self._done = False
        self._loaded: dict[str, list[Any]] = {}

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks the monitored validation metrics."""
        self._validated = set(trainer.callback_metrics)
        _check(trainer, self._validated, ("val", "oracle/"))  # others may be training metrics

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:  # noqa: ANN401
        """Checks all monitored metrics after the first batch, if there was a sanity check."""
        if not self._done and self._validated:
            self._check_all(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks all monitored metrics after the first validation."""
        if not self._done and not trainer.sanity_checking and trainer.state.fn == TrainerFn.FITTING:
            self._check_all(trainer, pl_module)

    def _check_all(self, trainer: Trainer, module: LightningModule) -> None:
        self._done = True
        # includes metrics that are only logged at the end of an epoch
        results = [result.meta.name for result in trainer.fit_loop.epoch_loop._results.values()]
        ends = {name + suffix for name in results for suffix in ("", "_step", "_epoch")}
        if not is_overridden("on_train_epoch_end", module):  # more may be logged there
            _check(trainer, ends | self._validated | set(trainer.callback_metrics))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the names of the optimisers and schedulers, which their states do not contain."""
        checkpoint[_KEY] = _trains(trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keeps the names until the optimisers of this run exist."""
        self._loaded = checkpoint.get(_KEY, {})

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises an error if the optimisers and schedulers differ from those of the checkpoint."""
        self._done, self._validated = False, set()
        own = _trains(trainer)
        for what, kept in self._loaded.items():
            if kept and own.get(what) and kept != own[what]:
                before, now = (", ".join(map(str, values)) for values in (kept, own[what]))
                raise UserError(
                    f"the checkpoint was trained with {what} {before}, but this run has {now}: resume with the same "
                    "arguments (see the config.yaml of the run)."
                )
        self._loaded = {}


def _trains(trainer: Trainer) -> dict[str, list[Any]]:
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    return {
        "optimizer": [type(optimizer).__name__ for optimizer in trainer.optimizers],
        "lr_scheduler": [type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs],
        "groups of parameters of sizes": [len(group["params"]) for group in groups],
    }


def _check(trainer: Trainer, known: set[str], prefixes: tuple[str, ...] = ("",)) -> None:
    for name, monitor in _monitors(trainer).items():
        if monitor.startswith(prefixes):
            check_monitor(name, monitor, known)


def _monitors(trainer: Trainer) -> dict[str, str]:
    """The monitored metric of each callback and scheduler, by the name of its argument."""
    found: dict[str, str] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        # without a validation, Lightning ignores the monitor
        chooses = isinstance(callback, ModelCheckpoint) and trainer.enable_validation
        if (chooses or (isinstance(callback, EarlyStopping) and callback.strict)) and callback.monitor:
            kind = type(callback).__name__
            found["checkpoint.monitor" if kind == "BestCheckpoint" else f"{kind}'s monitor"] = callback.monitor
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau and config.strict and config.monitor:
            found[f"{type(config.scheduler).__name__}'s monitor"] = config.monitor
    return found
