"""What adaptation is worth: the method against its twin that never looks at the target, and the target's own labels."""

from __future__ import annotations

import json
import signal
from typing import Any, Self

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console

from metatransfer.callbacks.figures import publish_figures
from metatransfer.callbacks.run.numbers import number
from metatransfer.callbacks.run.report import Report
from metatransfer.callbacks.run.run_folder import agree_on_run_folder, run_folder
from metatransfer.checks import check_choice, check_not_negative
from metatransfer.errors import UserError
from metatransfer.experiments.domain_twins import (
    ADAPTED,
    ORACLE,
    PLAIN,
    accuracy,
    adapts,
    chosen_state,
    detached,
    evaluate,
    fall_back,
    has_labels,
    loaded,
    measure_adaptation,
    told,
    trained,
)
from metatransfer.experiments.training import Evaluated, Interval, beside_the_run, budget
from metatransfer.methods.domain import DomainAdaptationModule
from metatransfer.methods.domain.source_only import source_only_twin
from metatransfer.metrics.validators import PanelVerdict, panel_verdict
from metatransfer.storage import write_atomically


class AdaptationGain(Callback):
    """After a fit of a :class:`DomainAdaptationModule`, says whether adaptation helped, hurt or changed nothing.

    With the same initial weights and the same budget it trains a twin that never looks at the target, and where the
    target's training labels are known one that learns from them alone: the rows "source only" and "target-trained" of
    the field's tables. The first seed is the run itself; of several, the others start anew from other weights, orders
    and divisions. All are tested with their last weights, which nothing has selected; beside them stands the accuracy
    of the state that the run's checkpoint holds. The gain is the mean difference; its interval is Student's over the
    seeds. Where the target has no labels, or ``data.oracle`` is ``none``, only validators speak, which need none: they
    compare the state of the best checkpoint with the twin. Writes ``adaptation_gain.json`` and a picture. For
    :class:`SourceOnlyModule`, which is its own twin, it says what the target's labels would be worth.

    Args:
        seeds: how many, the run itself being the first; 0 trains nothing beside the run.
        split: ``"test"`` or ``"val"``, on which all are compared.
        oracle: whether to train on the target's labels as well.
        source_only: checkpoint of the twin, of a run of :class:`SourceOnlyModule` with equal networks, in place of
            training it; for one seed.
        fallback: where most validators prefer the twin, write it as ``source_only.ckpt`` beside the best checkpoint and
            name it the best; no label of the target has a say.

    Attributes:
        twin: the source-only twin of the last fit, trained; ``None`` where there is none.

    Raises:
        UserError: a number below 0, another split, or a checkpoint for several seeds.
    """

    def __init__(
        self,
        seeds: int = 1,
        split: Evaluated = "test",
        oracle: bool = True,
        source_only: str | None = None,
        fallback: bool = False,
    ) -> None:
        check_not_negative(seeds=seeds)
        check_choice("split", split, ("val", "test"))
        if source_only is not None and seeds != 1:
            raise UserError(f"source_only is one twin, but seeds is {seeds}: set seeds to 1, or leave source_only out.")
        self.seeds, self.split, self.oracle = seeds, split, oracle
        self.source_only, self.fallback = source_only, fallback
        self.twin: DomainAdaptationModule | None = None
        self._start: tuple[DomainAdaptationModule, LightningDataModule] | None = None
        self._asked_for = True

    @classmethod
    def unasked(cls) -> Self:
        """As the command line adds it: where it can measure nothing it says so and lets the fit go on."""
        found = cls()
        found._asked_for = False
        return found

    # ---- before the fit

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keeps the method as it is before training.

        Raises:
            UserError: another method, several processes, data that nothing can be compared on, or a checkpoint of
                another twin.
        """
        if stage != "fit":
            return
        self.twin, self._start = None, None
        if not self.seeds or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        obstacle = self._obstacle(trainer, pl_module)
        if obstacle is not None:
            if self._asked_for:
                raise UserError(f"{obstacle}.")
            rank_zero_warn(f"What adaptation gains is not measured: {obstacle}.")
            return
        assert isinstance(pl_module, DomainAdaptationModule)
        agree_on_run_folder(trainer)
        if self.seeds > 1:
            pl_module.restarted(0)  # refuses now what it cannot do after the fit
        start = detached(pl_module)
        if self.source_only is not None:
            loaded(source_only_twin(start), self.source_only)
        self._start = start, trainer.datamodule  # type: ignore[attr-defined]

    def _obstacle(self, trainer: Trainer, module: LightningModule) -> str | None:
        if not isinstance(module, DomainAdaptationModule):
            return (
                "AdaptationGain compares a DomainAdaptationModule with its source-only twin, not a "
                f"{type(module).__name__}: leave the callback out"
            )
        if trainer.world_size > 1:
            return "AdaptationGain trains in one process: leave it out here, or set trainer.devices=1"
        if getattr(trainer, "datamodule", None) is None:
            return "AdaptationGain trains on data several times: give the Trainer a data module, no loaders"
        if getattr(trainer, f"limit_{self.split}_batches") == 0:
            return (
                f"AdaptationGain compares on the {self.split} split, but limit_{self.split}_batches is 0: set it, or "
                "leave the callback out"
            )
        return None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives up where a run is resumed: the weights that it once started from are not read again."""
        if trainer.ckpt_path is not None and self._start is not None:
            self._start = None
            rank_zero_warn(
                "AdaptationGain measures nothing after a resumed fit: the weights that it started from are not known "
                "any more; for the gain, fit from the start."
            )

    @property
    def pending(self) -> bool:
        """Whether a twin will be there after the fit."""
        return self._start is not None

    # ---- after the fit

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Trains what the run is compared with, and reports."""
        if self._start is None or trainer.interrupted:
            return
        assert isinstance(pl_module, DomainAdaptationModule)
        (start, data), self._start = self._start, None
        handler = signal.getsignal(signal.SIGINT)
        try:
            with beside_the_run(data):
                found = self._measure(trainer, pl_module, start, data)
        except SystemExit:  # Lightning's answer to Ctrl-C
            signal.signal(signal.SIGINT, handler)
            rank_zero_warn("What adaptation gains is not measured: the comparison was stopped; the run itself is done.")
            return
        self._publish(trainer, found)

    def _measure(
        self,
        trainer: Trainer,
        module: DomainAdaptationModule,
        start: DomainAdaptationModule,
        data: Any,  # noqa: ANN401
    ) -> dict[str, Any]:
        """All that is told of the run."""
        settings = budget(trainer, validate=self.split == "val")
        looks = settings | {"limit_val_batches": trainer.limit_val_batches}
        run, chosen = detached(module), chosen_state(trainer, module)
        if adapts(module):
            self.twin = self._trained_twin(start, data, module.run_seed or 0, settings)
        found: dict[str, Any] = {"scores": {}}
        if has_labels(data, self.split):
            found["scores"] = self._scores(run, start, data, settings, looks)
            found["selected"] = accuracy(chosen, data, self.split, looks) if chosen is not None else None
        if self.twin is None or trainer.limit_val_batches == 0:
            return found
        adapted, plain = (evaluate(one, data, "val", looks) for one in (chosen or run, self.twin))
        assert adapted.evidence is not None
        assert plain.evidence is not None
        found["panel"] = panel_verdict(adapted.evidence, plain.evidence)
        found["judged"] = "the last weights" if chosen is None else "the weights of the best checkpoint"
        if self.fallback and found["panel"].hurts:
            path = fall_back(trainer, run, self.twin)
            found["fallback"] = told(path)
            for one in getattr(trainer, "callbacks", ()) if path else ():
                if isinstance(one, Report):
                    one.overrule(plain.metrics, told(path))
        return found

    def _trained_twin(
        self, start: DomainAdaptationModule, data: LightningDataModule, seed: int, settings: dict[str, Any]
    ) -> DomainAdaptationModule:
        twin = source_only_twin(start)
        return trained(twin, data, seed, settings) if self.source_only is None else loaded(twin, self.source_only)

    def _scores(
        self,
        run: DomainAdaptationModule,
        start: DomainAdaptationModule,
        data: Any,  # noqa: ANN401
        settings: dict[str, Any],
        looks: dict[str, Any],
    ) -> dict[str, list[float]]:
        """Accuracies by what was trained, seed by seed; the first is the run itself."""
        seed, learners = run.run_seed or 0, {PLAIN: run} if self.twin is None else {ADAPTED: run, PLAIN: self.twin}
        oracle = self.oracle and all(has_labels(data, split) for split in ("train", "val"))
        if oracle:
            learners[ORACLE] = trained(source_only_twin(start), data.oracle_twin(), seed, settings)
        scores = {name: [accuracy(one, data, self.split, looks)] for name, one in learners.items()}
        for other in range(seed + 1, seed + self.seeds):
            more = measure_adaptation(start, data, seed=other, split=self.split, settings=settings, oracle=oracle)
            for name, value in more.items():
                scores[name].append(value)
        return scores

    def _publish(self, trainer: Trainer, found: dict[str, Any]) -> None:
        scores: dict[str, list[float]] = found["scores"]
        panel: PanelVerdict | None = found.get("panel")
        intervals = {name: Interval.of(values) for name, values in scores.items()}
        gain, sentence = _gain_of(scores)
        content: dict[str, Any] = {
            "split": self.split,
            "seeds": self.seeds,
            "epochs": trainer.max_epochs,
            "stopped_early": trainer.should_stop and trainer.current_epoch < (trainer.max_epochs or 0),
            "weights": "the last ones, unselected",
            "interval": "95 %, Student's t over the seeds",
            "accuracy": {name: interval._asdict() for name, interval in intervals.items()},
            "selected_accuracy": found.get("selected"),
            "gain": gain._asdict() if gain is not None else None,
            "verdict": sentence,
            "panel": _panel_card(panel, found["judged"]) if panel is not None else None,
            "fallback": found.get("fallback"),
        }
        path = run_folder(trainer) / "adaptation_gain.json"
        write_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
        if len(scores) > 1:
            from metatransfer.drawing.domains import adaptation_gain_figure

            percent = {name: [100 * value for value in values] for name, values in scores.items()}
            publish_figures(trainer, {"adaptation_gain": adaptation_gain_figure(percent, sentence)})
        self._print(found, intervals, sentence)

    def _print(self, found: dict[str, Any], intervals: dict[str, Interval], sentence: str) -> None:
        console = Console(width=160)
        seeds = f"{self.seeds} seed{'s' if self.seeds > 1 else ''}"
        lines = [
            f"{name}: {interval} % (target {self.split} accuracy, last weights, {seeds})"
            for name, interval in intervals.items()
        ]
        if found.get("selected") is not None:
            name = f"{ADAPTED if ADAPTED in intervals else PLAIN}, best checkpoint"
            lines.append(f"{name}: {100 * found['selected']:.2f} % (target {self.split} accuracy, this run)")
        panel: PanelVerdict | None = found.get("panel")
        lines += [sentence, f"Without labels of the target: {panel.sentence}" if panel is not None else ""]
        for line in [*lines, found.get("fallback") or ""]:
            if line:
                console.print(line, highlight=False)


def _panel_card(panel: PanelVerdict, judged: str) -> dict[str, Any]:
    votes = {
        name: {
            ADAPTED: number(vote.adapted),
            PLAIN: number(vote.plain),
            "prefers": ADAPTED if vote.adapted_better else PLAIN,
        }
        for name, vote in panel.votes.items()
    }
    return {"judged": judged, "hurts": panel.hurts, "sentence": panel.sentence, "votes": votes}


# ---- the number


def _gain_of(scores: dict[str, list[float]]) -> tuple[Interval | None, str]:
    """The gain seed by seed, and what there is to say of the scores."""
    names = (ADAPTED, PLAIN) if ADAPTED in scores else (ORACLE, PLAIN)
    if not set(names) <= set(scores):
        return (
            None,
            "The target has no labels that may be looked at, so that no accuracy can be told." if not scores else "",
        )
    differences = Interval.of([one - other for one, other in zip(*(scores[name] for name in names), strict=True)])
    if names[0] == ADAPTED:
        return differences, verdict(differences)
    text = f"{100 * differences.mean:.2f}" + (
        f" ± {100 * differences.ci95:.2f}" if differences.ci95 is not None else ""
    )
    return None, f"Labels of the target would be worth {text} points of its accuracy over source only."


def verdict(gain: Interval) -> str:
    """The gain in words.

    Args:
        gain: of the accuracies, seed by seed.

    Returns:
        One sentence.
    """
    text = f"{100 * abs(gain.mean):.2f}" + (f" ± {100 * gain.ci95:.2f}" if gain.ci95 is not None else "")
    number, points = len(gain.values), "points of target accuracy"
    if gain.ci95 is None and gain.mean >= 0:
        return f"Adaptation gains {text} {points} over source only, in one seed only."
    if gain.ci95 is None:
        return f"Adaptation loses {text} {points} against source only (negative transfer), in one seed only."
    if abs(gain.mean) <= gain.ci95:
        sign = "" if gain.mean >= 0 else "-"
        return f"Adaptation makes no difference that {number} seeds could tell: {sign}{text} {points}."
    if gain.mean > 0:
        return f"Adaptation gains {text} {points} over source only ({number} seeds)."
    return f"Adaptation HURTS (negative transfer): it loses {text} {points} against source only ({number} seeds)."
