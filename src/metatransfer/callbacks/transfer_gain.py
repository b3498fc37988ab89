"""What transfer is worth: the method against its twin that starts from scratch, over several seeds."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console

from metatransfer.callbacks.figures import publish_figures
from metatransfer.callbacks.run.run_folder import agree_on_run_folder, run_folder
from metatransfer.checks import check_choice, check_positive
from metatransfer.errors import UserError
from metatransfer.experiments.training import Interval, beside_the_run, budget, train
from metatransfer.functional.losses import episode_scores
from metatransfer.methods.classifier import MOST_FREQUENT
from metatransfer.methods.finetune import FineTuneModule
from metatransfer.storage import write_atomically

TRANSFER, SCRATCH = "transfer", "from scratch"


class TransferGain(Callback):
    r"""After a fit of :class:`FineTuneModule`, says what the transfer was worth, as a number with an interval.

    For each of several seeds the method is trained again, and with the same budget a twin of the same architecture that
    starts from random weights and trains all of them; both see the same samples and are tested with their last weights,
    which nothing has selected. A seed draws the few labels, the order, the head and the twin's weights. The gain is the
    mean difference of the accuracies; the interval is Student's over the seeds. Beside them stand the baselines that
    learn from the same samples. It prints one table and writes ``transfer_gain.json`` and a picture.

    Args:
        seeds: how many, from 0 on.
        split: ``"test"`` or ``"val"``, on which all are compared.

    Raises:
        UserError: a number below 1, or another split.
    """

    def __init__(self, seeds: int = 5, split: Literal["val", "test"] = "test") -> None:
        check_positive(seeds=seeds)
        check_choice("split", split, ("val", "test"))
        self.seeds, self.split = seeds, split
        self._start: tuple[FineTuneModule, LightningDataModule] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keeps the method as it is before training.

        Raises:
            UserError: another method, several processes, or data that nothing can be compared on.
        """
        if stage != "fit":
            return
        if not isinstance(pl_module, FineTuneModule):
            raise UserError(
                f"TransferGain compares a FineTuneModule with its twin from scratch, not a {type(pl_module).__name__}: "
                "leave the callback out."
            )
        if trainer.world_size > 1:
            raise UserError("TransferGain trains in one process: leave it out here, or set trainer.devices=1.")
        agree_on_run_folder(trainer)
        data = getattr(trainer, "datamodule", None)
        if data is None:
            raise UserError("TransferGain trains on data several times: give the Trainer a data module, no loaders.")
        if getattr(trainer, f"limit_{self.split}_batches") == 0:
            raise UserError(
                f"TransferGain compares on the {self.split} split, but limit_{self.split}_batches is 0: set it, or "
                "leave the callback out."
            )
        if callable(getattr(data, "split", None)):
            data.split(self.split)  # refuses now what there is not after the fit
        if hasattr(data, "reseeded") and getattr(data, "tokenizer_name", None) == "words":
            raise UserError(
                "TransferGain has nothing to compare with tokenizer=words: the words of every division have numbers of "
                "their own, which no weights can know; set the tokenizer of the pretrained network."
            )
        pl_module.from_scratch(0)  # refuses now what it cannot do after the fit
        self._start = pl_module.restarted(0), data

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives up where a run is resumed: the weights that it once started from are not read again."""
        if trainer.ckpt_path is not None and self._start is not None:
            self._start = None
            rank_zero_warn(
                "TransferGain measures nothing after a resumed fit: the weights that it started from are not known any "
                "more; for the gain, fit from the start."
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Trains over the seeds and reports."""
        if self._start is None or trainer.fast_dev_run or trainer.interrupted:  # type: ignore[attr-defined]
            return
        module, data = self._start
        self._start = None
        settings = budget(trainer, validate=self.split == "val")
        scores = measure_gain(module, data, seeds=range(self.seeds), split=self.split, settings=settings)
        self._publish(trainer, scores)

    def _publish(self, trainer: Trainer, scores: dict[str, list[float]]) -> None:
        from metatransfer.drawing.classifiers import gain_figure

        found = {name: Interval.of(values) for name, values in scores.items()}
        gain = gain_of(scores)
        sentence = verdict(gain)
        content = {
            "split": self.split,
            "seeds": self.seeds,
            "epochs": trainer.current_epoch,
            "weights": "the last ones, unselected",
            "interval": "95 %, Student's t over the seeds",
            "accuracy": {name: interval._asdict() for name, interval in found.items()},
            "gain": gain._asdict(),
            "verdict": sentence,
        }
        path = run_folder(trainer) / "transfer_gain.json"
        write_atomically(path, json.dumps(content, indent=2) + "\n")
        # the most frequent class lies so low that nothing else could be told apart
        shown = {name: values for name, values in scores.items() if name != MOST_FREQUENT}
        percent = {name: [100 * value for value in values] for name, values in shown.items()}
        publish_figures(trainer, {"transfer_gain": gain_figure(percent, sentence)})
        console = Console(width=160)
        for name, interval in found.items():
            console.print(f"{name}: {interval} % ({self.split} accuracy, {self.seeds} seeds)", highlight=False)
        console.print(sentence, highlight=False)


def gain_of(scores: dict[str, list[float]]) -> Interval:
    """The gain of transfer, seed by seed.

    Args:
        scores: from :func:`measure_gain`.

    Returns:
        Its mean and interval.
    """
    return Interval.of([one - other for one, other in zip(scores[TRANSFER], scores[SCRATCH], strict=True)])


def verdict(gain: Interval) -> str:
    """The gain in words.

    Args:
        gain: of the accuracies, seed by seed.

    Returns:
        One sentence.
    """
    text = f"{100 * abs(gain.mean):.2f}" + (f" ± {100 * gain.ci95:.2f}" if gain.ci95 is not None else "")
    number = len(gain.values)
    if gain.ci95 is None:
        return f"Transfer {'gains' if gain.mean >= 0 else 'loses'} {text} points of accuracy, in one seed only."
    if abs(gain.mean) <= gain.ci95:
        sign = "" if gain.mean >= 0 else "-"
        return f"Transfer makes no difference that {number} seeds could tell: {sign}{text} points of accuracy."
    if gain.mean > 0:
        return f"Transfer gains {text} points of accuracy over training from scratch ({number} seeds)."
    return f"Transfer HURTS: it loses {text} points of accuracy against training from scratch ({number} seeds)."


def measure_gain(
    module: FineTuneModule,
    data: LightningDataModule,
    *,
    seeds: Sequence[int],
    split: Literal["val", "test"] = "test",
    settings: dict[str, Any],
) -> dict[str, list[float]]:
    """Trains a method and its twin from scratch over several seeds.

    Args:
        module: as it is before training; left as it is.
        data: with ``reseeded(seed)`` it draws other labels for every seed, else all seeds see the same.
        seeds: of labels, order, head and the twin's weights.
        split: on which they are compared.
        settings: arguments of the Trainer: the budget.

    Returns:
        Accuracies by what was trained, one for each seed; also those of the baselines.
    """
    scores: dict[str, list[float]] = {TRANSFER: [], SCRATCH: []}
    with beside_the_run(data):
        for seed in seeds:
            reseeded = data.reseeded(seed) if hasattr(data, "reseeded") else data
            for name in (TRANSFER, SCRATCH):
                learner = module.restarted(seed) if name == TRANSFER else module.from_scratch(seed)
                trainer = train(learner, reseeded, seed=seed, settings=settings)
                evaluate = trainer.test if split == "test" else trainer.validate
                numbers = evaluate(learner, datamodule=reseeded, verbose=False)[0]
                scores[name].append(float(numbers[f"{split}/accuracy"]))
            for name, value in _baselines(learner, trainer, split).items():
                scores.setdefault(name, []).append(value)
    return scores


def _baselines(module: FineTuneModule, trainer: Trainer, split: str) -> dict[str, float]:
    loader = getattr(trainer.datamodule, f"{split}_dataloader")()  # type: ignore[attr-defined]
    batches = min(len(loader), int((trainer.num_test_batches if split == "test" else trainer.num_val_batches)[0]))
    found = {}
    for name, baseline in module.baselines().items():
        same = itertools.islice(loader, batches)
        right = [episode_scores(baseline(batch).unsqueeze(1), batch.y.unsqueeze(1)) for batch in same]
        found[name] = float(torch.cat(right).mean())
    return found
