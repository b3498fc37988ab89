"""Callbacks that measure the gain of a method over its twin, and the gain of transfer."""

import json
import signal
import time
from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple, Self

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from metatransfer.callbacks.figures import publish_figures
from metatransfer.callbacks.run.display import show
from metatransfer.callbacks.run.run_folder import run_folder
from metatransfer.checks import check_choice, check_positive
from metatransfer.data_info import ServesSamples
from metatransfer.errors import UserError
from metatransfer.experiments.comparing import Scores, by_entry, measure_twins
from metatransfer.experiments.intervals import Interval, verdict
from metatransfer.experiments.training import Budget, Evaluated, beside_the_run
from metatransfer.functional.intervals import SMALL
from metatransfer.methods.base import MethodModule
from metatransfer.methods.evaluation.on_samples import MOST_FREQUENT
from metatransfer.methods.twins import TRANSFER, Comparison, detached
from metatransfer.storage import write_atomically


class Start(NamedTuple):
    """The method before the fit, and the data of the run."""

    module: MethodModule
    data: LightningDataModule


class Gain(Callback):
    """After a fit, trains a method's twins on the run's budget and reports the difference over several seeds.

    Writes ``<file>.json`` and a figure, and prints one row for each entry and the verdict.

    Args:
        seeds: number of seeds; 0 disables the callback.
        split: ``"test"`` or ``"val"``, the split that all entries are evaluated on.

    Attributes:
        comparison: names and words of the comparison, see :attr:`MethodModule.comparison`.
        file: name of the JSON file and of the figure.
        score: name of the printed metric; ``{}`` is replaced by the split.
    """

    comparison: ClassVar[Comparison]
    file: ClassVar[str]
    score: ClassVar[str]

    def __init__(self, seeds: int, split: Evaluated) -> None:
        check_choice("split", split, ("val", "test"))
        self.seeds, self.split = seeds, split
        self._start: Start | None = None
        self._asked_for = True

    @classmethod
    def unasked(cls) -> Self:
        """A callback that ignores methods without such a comparison, and warns if it cannot measure."""
        found = cls()  # type: ignore[call-arg]
        found._asked_for = False
        return found

    @property
    def pending(self) -> bool:
        """Whether twins will be trained after the fit."""
        return self._start is not None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copies the method before training."""
        if stage != "fit":
            return
        self._start = None
        compares = isinstance(pl_module, MethodModule) and pl_module.comparison == self.comparison
        if not self.seeds or trainer.fast_dev_run or not (compares or self._asked_for):  # type: ignore[attr-defined]
            return
        obstacle = self._obstacle(trainer, pl_module)
        if obstacle is not None:
            if self._asked_for:
                raise UserError(f"{type(self).__name__} {obstacle}.")
            rank_zero_warn(f"{type(self).__name__} is skipped: it {obstacle}.")
            return
        assert isinstance(pl_module, MethodModule)
        run_folder(trainer)
        start = Start(detached(pl_module), trainer.datamodule)  # type: ignore[attr-defined]
        self.check(start)
        self._start = start

    def _obstacle(self, trainer: Trainer, module: LightningModule) -> str | None:
        own, reference = self.comparison.own, self.comparison.reference
        if not isinstance(module, MethodModule) or module.comparison != self.comparison:
            name = type(module).__name__
            return f"compares '{own}' with '{reference}', but {name} has no such twins: remove the callback"
        if trainer.world_size > 1:
            return "trains in one process: remove it, or set trainer.devices=1"
        if getattr(trainer, "datamodule", None) is None:
            return "trains several times: give the Trainer a data module instead of loaders"
        if getattr(trainer, f"limit_{self.split}_batches") == 0:
            return f"compares on the {self.split} split, but limit_{self.split}_batches is 0: raise it"
        return None

    @abstractmethod
    def check(self, start: Start) -> None:
        """Raises a UserError before the fit if the comparison would not be possible after it."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives up if the run is resumed, since its initial weights are not known any more."""
        if trainer.ckpt_path is not None and self._start is not None:
            self._start = None
            rank_zero_warn(
                f"{type(self).__name__} is skipped: the fit was resumed, so that its initial weights are not known; to "
                "measure the gain, fit from the start."
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Trains the twins and reports the gain."""
        start, self._start = self._start, None
        if start is None or trainer.interrupted:
            return
        assert isinstance(pl_module, MethodModule)
        handler = signal.getsignal(signal.SIGINT)
        budget = Budget.of(trainer, validates=self.split == "val")
        began = time.perf_counter()
        try:
            with beside_the_run(start.data):
                scores, more = self.measure(trainer, pl_module, start, budget)
        except SystemExit:  # Lightning's answer to Ctrl-C
            signal.signal(signal.SIGINT, handler)
            name = type(self).__name__
            rank_zero_warn(f"{name} was interrupted, so no gain is reported; the run itself is complete.")
            return
        more["seconds"] = round(time.perf_counter() - began, 1)
        self._publish(trainer, scores, budget, more)

    @abstractmethod
    def measure(
        self, trainer: Trainer, module: MethodModule, start: Start, budget: Budget
    ) -> tuple[list[Scores], dict[str, Any]]:
        """Scores for each seed, and further fields of the JSON file; ``module`` is the method after the fit."""

    def conclude(self, scores: dict[str, list[float]], samples: int | None) -> tuple[Interval | None, str]:
        """The gain, or ``None`` if it is not known, and the verdict."""
        gain = Interval.of_gain(scores[self.comparison.own], scores[self.comparison.reference])
        return gain, verdict(gain, self.comparison, samples)

    def remarks(self, content: dict[str, Any]) -> list[str]:
        """Lines that are printed after the rows: by default the verdict."""
        return [content["verdict"]]

    def _publish(self, trainer: Trainer, found: list[Scores], budget: Budget, more: dict[str, Any]) -> None:
        scores, samples = by_entry(found), found[0].samples
        spent = {name: [one.spent[name] for one in found] for name in found[0].spent}
        intervals = {name: Interval.of(values) for name, values in scores.items()}
        gain, sentence = self.conclude(scores, samples)
        content: dict[str, Any] = {
            "split": self.split,
            "seeds": self.seeds,
            "samples": samples,
            "weights": "the last ones, unselected",
            "budget": {**budget.card(), "spent": spent},
            "interval": "95 %, Student's t over the seeds",
            "accuracy": {name: interval._asdict() for name, interval in intervals.items()},
            "gain": gain._asdict() if gain is not None else None,
            "verdict": sentence,
            **more,
        }
        path = run_folder(trainer) / f"{self.file}.json"
        write_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
        # the most frequent class is so low that the others would look the same
        shown = {name: [100 * value for value in scores[name]] for name in scores if name != MOST_FREQUENT}
        if len(shown) > 1:
            from metatransfer.drawing.classifiers import gain_figure  # matplotlib is slow to import

            publish_figures(trainer, {self.file: gain_figure(shown, sentence)})
        note = f"{self.score.format(self.split)}, {self.seeds} seed{'s' if self.seeds > 1 else ''}"
        rows = [f"{name}: {one.over_samples(samples)} ({note})" for name, one in intervals.items()]
        few = f"One of the {samples} samples is {100 / samples:.1f} points." if samples and samples < SMALL else ""
        took = f"The comparison took {content['seconds']:.0f} s, after the time of the run."
        show(*filter(None, [*rows, *self.remarks(content), few, took]))


class TransferGain(Gain):
    """After fine-tuning, measures the gain of transfer with a 95% confidence interval.

    For each seed, trains the method again, and on the same budget a twin of the same architecture that starts from
    random weights and trains all of them. Both use the same samples, and are evaluated with their last weights, so that
    no selection takes place. The seed determines the labelled samples, their order, the head and the twin's weights.
    The gain is the mean difference of the accuracies, with Student's t interval over the seeds. Baselines that learn
    from the same samples are reported, too.

    Args:
        seeds: number of seeds, counted from 0.
        split: ``"test"`` or ``"val"``, the split that all are evaluated on.

    Raises:
        UserError: ``seeds`` is not positive, or ``split`` is invalid.
    """

    comparison, file, score = TRANSFER, "transfer_gain", "{} accuracy"

    def __init__(self, seeds: int = 5, split: Evaluated = "test") -> None:
        check_positive(seeds=seeds)
        super().__init__(seeds, split)

    def check(self, start: Start) -> None:
        """Builds the twins once."""
        if isinstance(start.data, ServesSamples) and not start.data.info().shared_vocabulary:
            raise UserError(
                "TransferGain cannot compare with tokenizer=words, because each seed builds its own vocabulary, which "
                "does not match the pretrained weights: set the tokenizer of the pretrained network."
            )
        getattr(start.data, f"{self.split}_dataloader")()
        for entry in start.module.twins(start.data, 0).values():
            entry.module()

    def measure(
        self, trainer: Trainer, module: MethodModule, start: Start, budget: Budget
    ) -> tuple[list[Scores], dict[str, Any]]:
        """Trains both for each seed."""
        given: dict[str, Any] = {"budget": budget, "split": self.split, "baselines": True}
        scores = [measure_twins(start.module, start.data, seed=seed, **given) for seed in range(self.seeds)]
        return scores, {"epochs": trainer.current_epoch}
