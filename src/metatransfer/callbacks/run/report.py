"""The report after a run: one table, and the same as ``results.json``."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from metatransfer.callbacks.run.numbers import Overruled, machine, numbers_of, withheld_card
from metatransfer.callbacks.run.run_folder import agree_on_run_folder, run_folder
from metatransfer.callbacks.run.table import print_report
from metatransfer.methods.base import MethodModule
from metatransfer.methods.data_access import info_of
from metatransfer.methods.evaluation.base import BaselineScores, Evaluation, Numbers
from metatransfer.methods.protocol import differences, evaluation_key, protocol_card
from metatransfer.storage import short_path, write_atomically

STAGES = {TrainerFn.FITTING: "fit", TrainerFn.VALIDATING: "validate", TrainerFn.TESTING: "test"}


class Report(Callback):
    """Evaluates the baselines on the same batches as the method, prints one table and writes ``results.json``.

    After ``fit``, the numbers are those of the best checkpoint on the validation data that selected it; only ``test``
    uses data that had no influence on the model. Metrics that may not select a checkpoint are reported separately and
    are not stored in checkpoints.

    Args:
        baselines: whether to evaluate the method's baselines; each takes about as long as one evaluation.

    Attributes:
        history: one entry for each validation of a fit, with ``step``, ``epoch`` and ``metrics``.
        measured: numbers of the baselines, by baseline and metric.
    """

    def __init__(self, baselines: bool = True) -> None:
        self.baselines = baselines
        self.seconds = 0.0
        self._started = 0.0
        self._stage = ""
        self._evaluation = ""
        self._begin()

    def _begin(self) -> None:
        self.history: list[dict[str, Any]] = []
        self.measured: dict[str, Numbers] = {}
        self._running: BaselineScores | None = None
        self._withheld: dict[int, Numbers] = {}  # by step; not in checkpoints
        self._overruled: Overruled | None = None
        self._trained_seconds: float | None = None
        self._fit_seconds: float | None = None

    # ---- state: a resumed fit keeps its past

    def state_dict(self) -> dict[str, Any]:
        """History, baselines and time, as plain values."""
        return {
            "history": self.history,
            "measured": self.measured,
            "seconds": self._elapsed(),
            "evaluation": self._evaluation,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues the history of an interrupted fit."""
        self._trained_seconds = round(state_dict["seconds"], 1)
        if self._stage != "fit":
            return
        self.seconds = state_dict["seconds"]
        if state_dict["evaluation"] != self._evaluation:
            return  # numbers on other data or of another evaluation cannot be compared
        self.history, self.measured = list(state_dict["history"]), dict(state_dict["measured"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Starts the clock."""
        self._stage = stage
        self._evaluation = evaluation_key(pl_module)
        agree_on_run_folder(trainer)
        self._started = time.perf_counter()
        self.seconds = 0.0
        self._begin()

    def _elapsed(self) -> float:
        return self.seconds + time.perf_counter() - self._started

    # ---- baselines

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepares the baselines for the first full evaluation."""
        wanted = self.baselines and not self.measured and not trainer.sanity_checking
        stage = "test" if trainer.testing else "val"
        self._running = BaselineScores.of(pl_module, stage) if wanted and isinstance(pl_module, MethodModule) else None

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Evaluates the baselines on the same batch."""
        if self._running is not None:
            self._running.update(batch, dataloader_idx)

    on_test_epoch_start, on_test_batch_end = on_validation_epoch_start, on_validation_batch_end

    def _finish(self) -> None:
        for name, numbers in self._running.compute().items() if self._running is not None else ():
            self.measured[name] = numbers_of(numbers)
        self._running = None

    # ---- results

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds a validation to the history, or reports ``lightning validate``."""
        if trainer.sanity_checking or not isinstance(pl_module, MethodModule):
            return
        self._finish()
        withheld = pl_module.evaluation.withheld
        found = _numbers(trainer, withheld) if withheld is not None else {}
        if found:
            self._withheld[trainer.global_step] = found
        numbers = _numbers(trainer, "val")
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._publish(trainer, pl_module, numbers)
            return
        self.history.append({"step": trainer.global_step, "epoch": trainer.current_epoch, "metrics": numbers})

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports ``lightning test``."""
        if isinstance(pl_module, MethodModule):
            self._finish()
            self._publish(trainer, pl_module, _numbers(trainer, "test"))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock: other callbacks may train more models after the fit."""
        self._fit_seconds = self._elapsed()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports ``lightning fit``."""
        if isinstance(pl_module, MethodModule):
            best = self._best(trainer, pl_module.evaluation)["metrics"] if self.history else {}
            self._publish(trainer, pl_module, self._overruled.metrics if self._overruled else best)

    def overrule(
        self,
        metrics: Mapping[str, float],
        sentence: str,
        selected_by: str = "source only, preferred by most validators",
        withheld: str = "oracle",
    ) -> None:
        """Reports other weights than those of the best checkpoint.

        Args:
            metrics: what their validation logged.
            sentence: why.
            selected_by: what preferred them.
            withheld: first part of the names of metrics that no run may be selected by.
        """
        known, apart = (numbers_of(metrics, f"{prefix}/") for prefix in ("val", withheld))
        self._overruled = Overruled(known, apart, sentence, selected_by)

    def _best(self, trainer: Trainer, evaluation: Evaluation) -> dict[str, Any]:
        """The validation that the best checkpoint was selected by."""
        chooser = trainer.checkpoint_callback
        name = (getattr(chooser, "monitor", None) or "").removeprefix("val/")

        def known(entry: dict[str, Any]) -> Numbers:
            apart = self._withheld.get(entry.get("step", -1), {})
            return {**entry["metrics"], **{f"{evaluation.withheld}/{key}": value for key, value in apart.items()}}

        scored = [entry for entry in self.history if name in known(entry)]
        if not scored:
            return self.history[-1]
        sign = 1 if getattr(chooser, "mode", "max") == "max" else -1

        def rank(entry: dict[str, Any]) -> float:
            value = known(entry)[name]["value"]
            return -math.inf if value is None else sign * float(value)

        return max(scored, key=rank)

    def _publish(self, trainer: Trainer, module: MethodModule, numbers: Numbers) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder, card = run_folder(trainer), protocol_card(module)
        if not trainer.is_global_zero:
            return
        stage = STAGES[trainer.state.fn]  # type: ignore[index]
        results = self._results(trainer, module, numbers, stage, card)
        path = _results_path(folder, stage)
        results["file"] = short_path(path)
        write_atomically(path, json.dumps(results, indent=2, default=str, allow_nan=False) + "\n")
        print_report(results, folder, module.evaluation)

    def _results(
        self, trainer: Trainer, module: MethodModule, numbers: Numbers, stage: str, card: dict[str, Any]
    ) -> dict[str, Any]:
        evaluation, trained, info = module.evaluation, module.trained_protocol, info_of(trainer)
        if stage != "fit" and not trained:
            card.pop("selection", None)  # nothing has selected these weights
        results: dict[str, Any] = {
            "stage": stage,
            **evaluation.counts(numbers, stage),
            "metrics": {name: one for name, one in numbers.items() if name.rpartition("/")[2] != evaluation.unit},
            "baselines": self.measured,
            "protocol": card,
            "checkpoint": _checkpoint(trainer, stage),
            "seconds": round(self._fit_seconds or self._elapsed(), 1),
            "machine": machine(trainer.strategy.root_device),
            "skipped": dict(info.skipped) if info is not None else {},
            "selected": (getattr(trainer.checkpoint_callback, "monitor", None) or "").removeprefix("val/"),
        }
        if stage != "fit" and trained:
            results["trained_under"] = trained
            results["trained_seconds"] = self._trained_seconds
            results["protocol_differences"] = differences(trained, card)
        if stage == "fit":
            results["history"] = self.history
        if self._withheld and stage == "fit":
            chosen = self._best(trainer, evaluation)["step"] if self.history else None
            told = withheld_card(self._withheld, chosen, evaluation.selected_by(card), self._overruled)
            results[str(evaluation.withheld)] = told
        elif self._withheld:
            results[str(evaluation.withheld)] = {"accuracy": list(self._withheld.values())[-1].get("accuracy")}
        if self._overruled is not None:
            results["fallback"] = self._overruled.sentence
        return results


def _numbers(trainer: Trainer, prefix: str) -> Numbers:
    return numbers_of({name: float(value) for name, value in trainer.callback_metrics.items()}, f"{prefix}/")


def _results_path(folder: Path, stage: str) -> Path:
    """``results.json``, or ``results-<stage>.json`` if the same Trainer has written another stage's."""
    path = folder / "results.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8")).get("stage") != stage:
        return folder / f"results-{stage}.json"
    return path


def _checkpoint(trainer: Trainer, stage: str) -> str | None:
    path = getattr(trainer.checkpoint_callback, "best_model_path", None) if stage == "fit" else trainer.ckpt_path
    return short_path(path) if path else None
