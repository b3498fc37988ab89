"""The report after a run: one table, and the same as ``results.json``."""

import json
import math
import os
import platform
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from metatransfer.callbacks.run.display import print_report
from metatransfer.callbacks.run.run_folder import run_folder
from metatransfer.data_info import info_of
from metatransfer.methods.base import MethodModule
from metatransfer.methods.evaluation.base import BaselineScores, Evaluation, Numbers
from metatransfer.methods.protocol import differences, evaluation_key, protocol_card
from metatransfer.storage import short_path, write_atomically

FALLBACK = "source only, preferred by most validators"
_INTERVAL = ("ci95", "low", "high")


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
        self._begin()

    def _begin(self, stage: str = "", evaluation: str = "") -> None:
        self._stage, self._evaluation = stage, evaluation
        self._started, self.seconds = time.perf_counter(), 0.0
        self.history: list[dict[str, Any]] = []
        self.measured: dict[str, Numbers] = {}
        self._running: BaselineScores | None = None
        self._withheld: dict[int, Numbers] = {}  # by step; not in checkpoints
        self._overruled: dict[str, float] | None = None
        self._fallback = ""
        self._trained_seconds: float | None = None
        self._fit_seconds: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """History, baselines and time, as plain values."""
        kept = {"history": self.history, "measured": self.measured, "evaluation": self._evaluation}
        return {**kept, "seconds": self._elapsed()}

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
        run_folder(trainer)
        stage = str.__str__(stage)  # Lightning passes an enum
        self._begin(stage, "" if stage == "predict" else evaluation_key(pl_module))

    def _elapsed(self) -> float:
        return self.seconds + time.perf_counter() - self._started

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepares the baselines for the first full evaluation."""
        wanted = self.baselines and not self.measured and not trainer.sanity_checking
        stage = "test" if trainer.testing else "val"
        self._running = BaselineScores(pl_module, stage) if wanted and isinstance(pl_module, MethodModule) else None

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Evaluates the baselines on the same batch."""
        if self._running is not None:
            self._running.update(batch, dataloader_idx)

    on_test_epoch_start, on_test_batch_end = on_validation_epoch_start, on_validation_batch_end

    def _finish(self) -> None:
        if self._running is not None:
            self.measured |= {name: numbers_of(scores) for name, scores in self._running.compute().items()}
        self._running = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds a validation to the history, or reports ``lightning validate``."""
        if trainer.sanity_checking or not isinstance(pl_module, MethodModule):
            return
        self._finish()
        found = numbers_of(trainer.callback_metrics, f"{pl_module.evaluation.withheld}/")
        if found:
            self._withheld[trainer.global_step] = found
        numbers = numbers_of(trainer.callback_metrics, "val/")
        if self._stage == "validate":
            self._publish(trainer, pl_module, numbers)
        else:
            self.history.append({"step": trainer.global_step, "epoch": trainer.current_epoch, "metrics": numbers})

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports ``lightning test``."""
        if isinstance(pl_module, MethodModule):
            self._finish()
            self._publish(trainer, pl_module, numbers_of(trainer.callback_metrics, "test/"))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock: other callbacks may train more models after the fit."""
        self._fit_seconds = self._elapsed()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports ``lightning fit``."""
        if isinstance(pl_module, MethodModule):
            best = self._best(trainer, pl_module.evaluation)["metrics"] if self.history else {}
            self._publish(trainer, pl_module, numbers_of(self._overruled, "val/") if self._overruled else best)

    def overrule(self, metrics: Mapping[str, float], sentence: str) -> None:
        """Reports other weights than those of the best checkpoint: what their validation logged, and the reason."""
        self._overruled, self._fallback = dict(metrics), sentence

    def _best(self, trainer: Trainer, evaluation: Evaluation) -> dict[str, Any]:
        """The validation that the best checkpoint was selected by."""
        chooser = trainer.checkpoint_callback
        name = (getattr(chooser, "monitor", None) or "").removeprefix("val/")

        def known(entry: dict[str, Any]) -> Numbers:
            apart = self._withheld.get(entry.get("step", -1), {})
            return {**entry["metrics"], **{f"{evaluation.withheld}/{key}": value for key, value in apart.items()}}

        scored = [entry for entry in self.history if name in known(entry)]
        sign = 1 if getattr(chooser, "mode", "max") == "max" else -1

        def rank(entry: dict[str, Any]) -> float:
            value = known(entry)[name]["value"]
            return -math.inf if value is None else sign * float(value)

        return max(scored, key=rank, default=self.history[-1])

    def _publish(self, trainer: Trainer, module: MethodModule, numbers: Numbers) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder, card = run_folder(trainer), protocol_card(module)
        if not trainer.is_global_zero:
            return
        results = self._results(trainer, module, numbers, card)
        path = folder / "results.json"
        if path.exists() and json.loads(path.read_text(encoding="utf-8")).get("stage") != self._stage:
            path = folder / f"results-{self._stage}.json"  # the same Trainer has written another stage's
        results["file"] = short_path(path)
        write_atomically(path, json.dumps(results, indent=2, default=str, allow_nan=False) + "\n")
        print_report(results, folder, module.evaluation)

    def _results(
        self, trainer: Trainer, module: MethodModule, numbers: Numbers, card: dict[str, Any]
    ) -> dict[str, Any]:
        evaluation, trained, info, stage = module.evaluation, module.trained_protocol, info_of(trainer), self._stage
        chooser: Any = trainer.checkpoint_callback
        path = trainer.ckpt_path
        if stage == "fit":
            path = getattr(chooser, "best_model_path", None) or getattr(chooser, "last_model_path", None)
        if stage != "fit" and not trained:
            card.pop("selection", None)  # nothing has selected these weights
        results: dict[str, Any] = {
            "stage": stage,
            **evaluation.counts(numbers, stage),
            "metrics": {name: one for name, one in numbers.items() if name.rpartition("/")[2] != evaluation.unit},
            "baselines": self.measured,
            "protocol": card,
            "checkpoint": short_path(path) if path else None,
            "seconds": round(self._fit_seconds or self._elapsed(), 1),
            "machine": machine(trainer.strategy.root_device),
            "skipped": dict(info.skipped) if info is not None else {},
            "selected": (getattr(chooser, "monitor", None) or "").removeprefix("val/"),
        }
        if stage != "fit" and trained:
            results["trained_under"] = trained
            results["trained_seconds"] = self._trained_seconds
            results["protocol_differences"] = differences(trained, card)
        if stage == "fit":
            results["history"] = self.history
        name = str(evaluation.withheld)
        if self._overruled is not None:
            results["fallback"] = self._fallback
        if self._withheld and self._overruled is not None:
            results[name] = withheld_card(self._withheld, numbers_of(self._overruled, f"{name}/"), FALLBACK)
        elif self._withheld and stage == "fit":
            chosen = self._best(trainer, evaluation)["step"] if self.history else list(self._withheld)[-1]
            results[name] = withheld_card(self._withheld, self._withheld.get(chosen, {}), evaluation.selected_by(card))
        elif self._withheld:
            results[name] = {"accuracy": list(self._withheld.values())[-1].get("accuracy")}
        return results


def number(value: Tensor | float) -> float | None:
    """A number for JSON: ``None`` for NaN and infinity, which JSON does not have."""
    return float(value) if math.isfinite(value) else None


def numbers_of(metrics: Mapping[str, Tensor | float], prefix: str = "") -> Numbers:
    """The logged metrics with a prefix (``"val/"``), with intervals and, for accuracies, the number of samples."""
    logged = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
    numbers: Numbers = {}
    for name, value in logged.items():
        base, _, part = name.rpartition("_")
        if base in logged and part in _INTERVAL:
            continue
        interval = {part: number(logged[f"{name}_{part}"]) for part in _INTERVAL if f"{name}_{part}" in logged}
        numbers[name] = {"value": number(value), **interval}
        samples = logged.get(f"{name.rpartition('/')[0]}/samples".removeprefix("/"))
        if "low" in interval and samples is not None:
            numbers[name]["of"] = float(samples)
    return numbers


def withheld_card(withheld: Mapping[int, Numbers], state: Numbers, selected_by: str | None) -> dict[str, Any]:
    """The accuracy on withheld labels of the selected state and of the best state, and the gap between them."""
    own = state.get("accuracy")
    reached = own["value"] if own is not None else None
    seen = [one["accuracy"]["value"] for one in withheld.values() if "accuracy" in one]
    best = max((value for value in [*seen, reached] if value is not None), default=None)
    return {
        "selected_by": selected_by,
        "accuracy": own,
        "best_accuracy": best,
        "validations": len(seen),
        "gap": None if best is None or reached is None else 100 * (best - reached),
    }


def machine(device: torch.device) -> dict[str, Any]:
    """The hardware of a run."""
    accelerator = {"accelerator": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {"processor": processor_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads()} | accelerator


def processor_name() -> str:
    """The name of the processor, as the operating system reports it."""
    info = Path("/proc/cpuinfo")
    name = re.search(r"^model name\s*:\s*(.*)", info.read_text(encoding="utf-8") if info.exists() else "", re.MULTILINE)
    return name[1].strip() if name else platform.processor() or platform.machine()
