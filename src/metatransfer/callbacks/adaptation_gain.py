"""The gain of domain adaptation: a method compared with its source-only twin and with the target's own labels."""

from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import Trainer

from metatransfer.callbacks.gain import Gain, Start
from metatransfer.callbacks.run.checkpoint import save_with_card
from metatransfer.callbacks.run.report import Report, number
from metatransfer.checks import check_not_negative
from metatransfer.errors import UserError
from metatransfer.experiments.comparing import Scores, measure_twins, train_entries
from metatransfer.experiments.intervals import Interval
from metatransfer.experiments.training import Budget, Evaluated, evaluate, spent
from metatransfer.methods.base import MethodModule
from metatransfer.methods.checkpoints import read_checkpoint
from metatransfer.methods.twins import ADAPTATION, ORACLE, detached, labelled, target_evaluation
from metatransfer.metrics.validators import PanelVerdict, panel_verdict
from metatransfer.storage import short_path

FALLBACK = "source_only.ckpt"
Module = TypeVar("Module", bound=MethodModule)
ADAPTED, PLAIN = ADAPTATION.own, ADAPTATION.reference


class AdaptationGain(Gain):
    """After a fit of a method that adapts to a target, measures whether the adaptation helped.

    Trains a twin that never uses the target, with the same initial weights and budget. If the target's training labels
    are known, also trains one on them alone, for as many optimiser steps. These are the rows "source only" and
    "target-trained" of the literature. The first seed is the run itself; further seeds use other weights, orders and
    divisions. All are evaluated with their last weights, so that no selection takes place; the accuracy of the run's
    best checkpoint is reported, too. The gain is the mean difference, with Student's t interval over the seeds.

    If the target has no labels, or ``data.oracle`` is ``none``, validators that need no labels compare the best
    checkpoint with the twin. For a method that is its own twin, the value of the target's labels is reported.

    Args:
        seeds: number of seeds, the first of which is the run itself; 0 disables the callback.
        split: ``"test"`` or ``"val"``, the split that all are evaluated on.
        oracle: whether to train on the target's labels, too.
        source_only: checkpoint of a :class:`SourceOnlyModule` with the same networks, to use as the twin instead of
            training one. Needs ``seeds=1``.
        fallback: if most validators prefer the twin, save it as ``source_only.ckpt`` beside the best checkpoint and
            make it the best. Target labels are not used.

    Attributes:
        twin: the trained source-only twin of the last fit; ``None`` if there is none.

    Raises:
        UserError: ``seeds`` is negative, ``split`` is invalid, or ``source_only`` is given for several seeds.
    """

    comparison, file, score = ADAPTATION, "adaptation_gain", "target {} accuracy, last weights"

    def __init__(
        self,
        seeds: int = 1,
        split: Evaluated = "test",
        oracle: bool = True,
        source_only: str | None = None,
        fallback: bool = False,
    ) -> None:
        check_not_negative(seeds=seeds)
        if source_only is not None and seeds != 1:
            raise UserError(
                f"source_only is the twin of one seed, but seeds is {seeds}: set seeds to 1, or remove source_only."
            )
        super().__init__(seeds, split)
        self.oracle, self.source_only, self.fallback = oracle, source_only, fallback
        self.twin: MethodModule | None = None

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:  # noqa: ANN401
        """Copies the method before training."""
        self.twin = None if stage == "fit" else self.twin
        super().setup(trainer, pl_module, stage)

    def check(self, start: Start) -> None:
        """Draws the weights of another seed, and loads the checkpoint of the twin."""
        if self.seeds > 1:
            start.module.restarted(0)
        if self.source_only is not None:
            loaded(start.module.twins(start.data)[PLAIN].module(), self.source_only)

    def measure(
        self, trainer: Trainer, module: MethodModule, start: Start, budget: Budget
    ) -> tuple[list[Scores], dict[str, Any]]:
        """Scores of the run and its twins, then of other seeds; and the votes of the validators."""
        run, chosen, first = detached(module), chosen_state(trainer, module), module.run_seed or 0
        scores = [self._first_seed(trainer, run, start, budget, first)]
        more: dict[str, Any] = {
            "epochs": trainer.max_epochs,
            "stopped_early": trainer.should_stop and trainer.current_epoch < (trainer.max_epochs or 0),
            "selected_accuracy": None,
        }
        if scores[0].values:
            left_out = () if ORACLE in scores[0].values else (ORACLE,)
            given: dict[str, Any] = {"budget": budget, "split": self.split, "leave_out": left_out}
            others = range(first + 1, first + self.seeds)
            scores += [measure_twins(start.module, start.data, seed=seed, **given) for seed in others]
            if chosen is not None:
                found = evaluate(chosen, start.data, self.split, budget)
                more["selected_accuracy"] = found[ADAPTATION.metrics[self.split]]
        return scores, more | self._panel(trainer, run, chosen, start, budget)

    def _first_seed(self, trainer: Trainer, run: MethodModule, start: Start, budget: Budget, seed: int) -> Scores:
        """The run itself and its twins with the same initial weights; no values if the labels are not known."""
        own, told = spent(trainer), labelled(start.data, self.split)
        entries = start.module.twins(start.data)
        mine = next(iter(entries))
        del entries[mine]
        if not (self.oracle and told):
            entries.pop(ORACLE, None)
        learners, costs = {mine: run}, {mine: own}
        if PLAIN in entries and self.source_only is not None:
            learners[PLAIN] = loaded(entries.pop(PLAIN).module(), self.source_only)
        limits = budget.in_steps(own["steps"])  # as many steps as the run has taken, whatever has ended it
        for name, one, cost in train_entries(entries, start.data, seed=seed, budget=limits, steps=own["steps"]):
            learners[name], costs[name] = one, cost
        self.twin = learners[PLAIN] if mine != PLAIN else None
        found = {name: evaluate(one, start.data, self.split, budget) for name, one in learners.items() if told}
        return Scores.of(found, costs, ADAPTATION.metrics[self.split])

    def _panel(
        self, trainer: Trainer, run: MethodModule, chosen: MethodModule | None, start: Start, budget: Budget
    ) -> dict[str, Any]:
        """The votes of the validators between the best checkpoint and the twin, and the resulting fallback."""
        if self.twin is None or trainer.limit_val_batches == 0:
            return {"panel": None, "fallback": None}
        found = []
        for one in (chosen or run, self.twin):
            metrics = evaluate(one, start.data, "val", budget)
            evaluation = target_evaluation(one)
            assert evaluation is not None
            found.append(evaluation.last_evidence().on_cpu())
        panel = panel_verdict(found[0], found[1])
        card = _panel_card(panel, "the last weights" if chosen is None else "the weights of the best checkpoint")
        if not (self.fallback and panel.hurts):
            return {"panel": card, "fallback": None}
        path = fall_back(trainer, run, self.twin)
        told = "No fallback was written, because the run saves no checkpoints."
        if path is not None:
            told = f"The best checkpoint is now {short_path(path)}, which predicts as the source-only model (fallback)."
        for one in getattr(trainer, "callbacks", ()) if path else ():
            if isinstance(one, Report):
                one.overrule(metrics, told)
        return {"panel": card, "fallback": told}

    def conclude(self, scores: dict[str, list[float]], samples: int | None) -> tuple[Interval | None, str]:
        """The gain of adaptation; for a method that is its own twin, the value of the target's labels."""
        if not scores:
            return None, "The accuracy on the target is not known, because its labels are missing or may not be used."
        if ADAPTED in scores:
            return super().conclude(scores, samples)
        if ORACLE not in scores:
            return None, ""
        more = Interval.of_gain(scores[ORACLE], scores[PLAIN])
        return None, f"Training on target labels would gain {more} points of target accuracy over source only."

    def remarks(self, content: dict[str, Any]) -> list[str]:
        """The best checkpoint, the verdict, the votes of the validators and the fallback."""
        selected, panel, lines = content["selected_accuracy"], content["panel"], []
        if selected is not None:
            name = ADAPTED if ADAPTED in content["accuracy"] else PLAIN
            lines.append(f"{name}, best checkpoint: {100 * selected:.2f} % (target {self.split} accuracy, this run)")
        lines.append(content["verdict"])
        lines.append(f"Without target labels: {panel['sentence']}" if panel is not None else "")
        return [*lines, content["fallback"] or ""]


def _panel_card(panel: PanelVerdict, judged: str) -> dict[str, Any]:
    votes: dict[str, dict[str, Any]] = {}
    for name, vote in panel.votes.items():
        votes[name] = {ADAPTED: number(vote.adapted), PLAIN: number(vote.plain)}
        votes[name]["prefers"] = ADAPTED if vote.adapted_better else PLAIN
    return {"judged": judged, "hurts": panel.hurts, "sentence": panel.sentence, "votes": votes}


def loaded(module: Module, path: str | Path) -> Module:
    """Loads the weights of a checkpoint into a module without a Trainer, and returns the module."""
    content = read_checkpoint(path)
    module.on_load_checkpoint(content)
    module.load_state_dict(content["state_dict"])
    return module


def chosen_state(trainer: Trainer, module: Module) -> Module | None:
    """A copy of a method with the weights of the run's best checkpoint; ``None`` if nothing was saved."""
    path = getattr(trainer.checkpoint_callback, "best_model_path", None)
    return loaded(detached(module), path) if path else None


def fall_back(trainer: Trainer, module: MethodModule, twin: MethodModule) -> Path | None:
    """Writes a checkpoint that predicts as the twin does, and makes it the best of the run."""
    chooser: Any = trainer.checkpoint_callback
    last = getattr(chooser, "last_model_path", "") or getattr(chooser, "best_model_path", "")
    if not last:
        return None
    content, whole = read_checkpoint(last), detached(module)
    whole.take_over(twin)  # type: ignore[operator]
    kept: dict[str, Any] = {name: content[name] for name in ("protocol", "rng_state", "class_names") if name in content}
    content["state_dict"] = whole.state_dict()
    whole.on_save_checkpoint(content)  # parts that are not in the state_dict
    content.update(kept)
    content["protocol"] = {**content.get("protocol", {}), "selection": "source only, preferred by most validators"}
    path = Path(last).with_name(FALLBACK)
    save_with_card(path, content)
    chooser.best_model_path = str(path)
    return path
