"""The report after a run: one table, and the same as ``results.json``."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from metatransfer.batches import DomainSamples, Episode, LabelledBatch, MetaBatch, episodes_of
from metatransfer.callbacks.run.numbers import Numbers, Overruled, number, numbers_of, oracle_card
from metatransfer.callbacks.run.run_folder import agree_on_run_folder, run_folder
from metatransfer.callbacks.run.table import print_report
from metatransfer.functional.losses import episode_scores, is_regression
from metatransfer.methods.base import Baseline, MethodModule
from metatransfer.methods.domain import DomainAdaptationModule
from metatransfer.methods.protocol import differences, evaluation_key, protocol_card
from metatransfer.metrics import EpisodeMean
from metatransfer.storage import short_path, write_atomically

STAGES = {TrainerFn.FITTING: "fit", TrainerFn.VALIDATING: "validate", TrainerFn.TESTING: "test"}


class Report(Callback):
    """Measures the baselines on the very episodes of the evaluation, prints one table and writes ``results.json``.

    After ``fit`` the numbers are those of the best checkpoint on the validation episodes that chose it; only ``test``
    gives numbers on classes that had no say. What labels of a target domain tell (``oracle/...``) stands apart from
    these numbers and in no checkpoint.

    Args:
        baselines: whether to measure the method's baselines; they cost about one evaluation each.

    Attributes:
        history: one entry for each validation of a fit: ``step``, ``epoch`` and ``metrics``.
        measured: the baselines' numbers, by baseline and metric.
    """

    def __init__(self, baselines: bool = True) -> None:
        self.baselines = baselines
        self.history: list[dict[str, Any]] = []
        self.measured: dict[str, Numbers] = {}
        self.seconds = 0.0
        self._started = 0.0
        self._stage = ""
        self._evaluation = ""
        self._running: dict[str, tuple[Baseline, dict[str, EpisodeMean]]] = {}
        self._score_name = "accuracy"
        self._trained_seconds: float | None = None
        self._fit_seconds: float | None = None
        self._forget_domains()

    def _forget_domains(self) -> None:
        self._oracle: dict[int, Numbers] = {}  # by step; in no checkpoint, which labels of the target must not reach
        self._sizes: dict[str, int] = {}
        self._overruled: Overruled | None = None

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
        """Takes up the past of an interrupted fit; a test of its checkpoint has no part in that past."""
        self._trained_seconds = round(state_dict["seconds"], 1)
        if self._stage != "fit":
            return
        self.seconds = state_dict["seconds"]
        if state_dict["evaluation"] != self._evaluation:
            return  # other episodes or another evaluation: numbers that cannot stand in one curve
        self.history, self.measured = list(state_dict["history"]), dict(state_dict["measured"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Starts the clock."""
        self._stage = stage
        self._evaluation = evaluation_key(pl_module)
        agree_on_run_folder(trainer)
        self._started = time.perf_counter()
        self.seconds = 0.0
        self.history, self.measured, self._running = [], {}, {}
        self._trained_seconds = self._fit_seconds = None
        self._forget_domains()

    def _elapsed(self) -> float:
        return self.seconds + time.perf_counter() - self._started

    # ---- baselines, in the first full evaluation

    def _start(self, trainer: Trainer, module: LightningModule) -> None:
        wanted = self.baselines and not self.measured and not trainer.sanity_checking
        found = module.baselines() if wanted and isinstance(module, MethodModule) else {}
        sources = getattr(getattr(trainer, "datamodule", None), "test_sources", ()) if self._testing(trainer) else ()
        keys = ["", *(f"{source}/" for source in sources)]
        self._running = {
            name: (baseline, {key: EpisodeMean().to(module.device) for key in keys}) for name, baseline in found.items()
        }

    @staticmethod
    def _testing(trainer: Trainer) -> bool:
        return trainer.state.fn == TrainerFn.TESTING

    def _measure(self, batch: MetaBatch | LabelledBatch, source: int = 0) -> None:
        for baseline, means in self._running.values():
            # the mean over all episodes, and over those of one of several test sources
            concerned = [mean for place, mean in enumerate(means.values()) if place in (0, source + 1)]
            for part in _parts_of(batch):
                scores, targets = _scores(baseline(part), part)
                for mean in concerned:
                    mean.update(scores)
                self._score_name = "mse" if is_regression(targets) else "accuracy"

    def _finish(self) -> None:
        for name, (_, means) in self._running.items():
            numbers: Numbers = {}
            for key, mean in means.items():
                value, half_width = mean.compute()
                numbers[key + self._score_name] = {"value": number(float(value)), "ci95": number(float(half_width))}
            self.measured[name] = numbers
        self._running = {}

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepares the baselines."""
        self._start(trainer, pl_module)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepares the baselines."""
        self._start(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Scores the baselines on the same episodes."""
        self._measure(batch)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Scores the baselines on the same episodes."""
        self._measure(batch, dataloader_idx)

    # ---- results

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes a validation; ends ``lightning validate``."""
        if trainer.sanity_checking:
            return
        self._finish()
        if isinstance(pl_module, DomainAdaptationModule):
            evidence = pl_module.last_evidence()
            self._sizes = {"source_samples": len(evidence.source_labels), "samples": len(evidence.target_logits)}
        oracle = _numbers(trainer, "oracle")
        if oracle:
            self._oracle[trainer.global_step] = oracle
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._publish(trainer, pl_module, _numbers(trainer, "val"))
            return
        numbers = _numbers(trainer, "val")
        self.history.append({"step": trainer.global_step, "epoch": trainer.current_epoch, "metrics": numbers})

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends ``lightning test``."""
        self._finish()
        self._publish(trainer, pl_module, _numbers(trainer, "test"))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock: what other callbacks train afterwards is no part of the run."""
        self._fit_seconds = self._elapsed()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends ``lightning fit``."""
        numbers = self._best(trainer)["metrics"] if self.history else {}
        self._publish(trainer, pl_module, self._overruled.metrics if self._overruled else numbers)

    def overrule(self, metrics: Mapping[str, float], sentence: str) -> None:
        """Reports other weights than those of the best checkpoint.

        Args:
            metrics: what their validation logged.
            sentence: why.
        """
        self._overruled = Overruled(numbers_of(metrics, "val"), numbers_of(metrics, "oracle"), sentence)

    def _best(self, trainer: Trainer) -> dict[str, Any]:
        """The validation that the best checkpoint was chosen by."""
        chooser = trainer.checkpoint_callback
        name = (getattr(chooser, "monitor", None) or "").removeprefix("val/")

        def known(entry: dict[str, Any]) -> Numbers:
            told = self._oracle.get(entry.get("step", -1), {})
            return {**entry["metrics"], **{f"oracle/{key}": value for key, value in told.items()}}

        scored = [entry for entry in self.history if name in known(entry)]
        if not scored:
            return self.history[-1]
        sign = 1 if getattr(chooser, "mode", "max") == "max" else -1

        def rank(entry: dict[str, Any]) -> float:
            value = known(entry)[name]["value"]
            return -math.inf if value is None else sign * float(value)

        return max(scored, key=rank)

    def _publish(self, trainer: Trainer, module: LightningModule, numbers: Numbers) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder, card = run_folder(trainer), protocol_card(module)
        if not trainer.is_global_zero:
            return
        stage = STAGES[trainer.state.fn]  # type: ignore[index]
        numbers = dict(numbers)
        counted = {name: numbers.pop(name, {}).get("value") for name in ("episodes", "samples")}
        if counted["samples"] is None:
            counted["samples"] = self._sizes.get("samples")
        numbers = {name: value for name, value in numbers.items() if not name.endswith("/episodes")}
        trained = getattr(module, "trained_protocol", None)
        if stage != "fit" and not trained:
            card.pop("selection", None)  # weights that nothing has chosen
        results: dict[str, Any] = {
            "stage": stage,
            "episodes": None if counted["episodes"] is None else int(counted["episodes"]),
            "samples": None if counted["samples"] is None else int(counted["samples"]),
            "metrics": numbers,
            "baselines": self.measured,
            "protocol": card,
            "checkpoint": _checkpoint(trainer, stage),
            "seconds": round(self._fit_seconds or self._elapsed(), 1),
            "machine": machine(trainer.strategy.root_device),
            "skipped": dict(getattr(getattr(trainer, "datamodule", None), "skipped", {})),
            "selected": (getattr(trainer.checkpoint_callback, "monitor", None) or "").removeprefix("val/"),
        }
        if stage != "fit" and trained:
            results["trained_under"] = trained
            results["trained_seconds"] = self._trained_seconds
            results["protocol_differences"] = differences(trained, card)
        if stage == "fit":
            results["history"] = self.history
        if stage != "test" and self._sizes:
            results["source_samples"] = self._sizes["source_samples"]
        if self._oracle:
            results["oracle"] = (
                oracle_card(self._oracle, self._best(trainer)["step"] if self.history else None, card, self._overruled)
                if stage == "fit"
                else {"accuracy": list(self._oracle.values())[-1].get("accuracy")}
            )
        if self._overruled is not None:
            results["fallback"] = self._overruled.sentence
        path = _results_path(folder, stage)
        results["file"] = short_path(path)
        write_atomically(path, json.dumps(results, indent=2, default=str, allow_nan=False) + "\n")
        print_report(results, folder)


def _parts_of(batch: Any) -> list[Any]:  # noqa: ANN401
    return [batch] if isinstance(batch, LabelledBatch | DomainSamples) else episodes_of(batch)


def _scores(outputs: Tensor, part: Episode | LabelledBatch | DomainSamples) -> tuple[Tensor, Tensor]:
    """Scores of the tasks of an episode, or of single samples, and what they are scored against."""
    if isinstance(part, LabelledBatch | DomainSamples):
        return episode_scores(outputs.unsqueeze(1), part.y.unsqueeze(1)), part.y
    return episode_scores(outputs, part.query_y), part.query_y


def machine(device: torch.device) -> dict[str, Any]:
    """What a time was measured on.

    Args:
        device: that trained or tested.

    Returns:
        The processor's name, its cores and the threads in use, and the accelerator's name where there is one.
    """
    found: dict[str, Any] = {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        found["accelerator"] = torch.cuda.get_device_name(device)
    return found


def processor_name() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _numbers(trainer: Trainer, prefix: str) -> Numbers:
    return numbers_of({name: float(value) for name, value in trainer.callback_metrics.items()}, prefix)


def _results_path(folder: Path, stage: str) -> Path:
    """``results.json``, or ``results-<stage>.json`` where a Trainer that is used again has written another stage's."""
    path = folder / "results.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8")).get("stage") != stage:
        return folder / f"results-{stage}.json"
    return path


def _checkpoint(trainer: Trainer, stage: str) -> str | None:
    path = getattr(trainer.checkpoint_callback, "best_model_path", None) if stage == "fit" else trainer.ckpt_path
    return short_path(path) if path else None
