"""What adaptation is worth: the method against its twin that never looks at the target, and the target's own labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer

from metatransfer.callbacks.fallback import chosen_state, fall_back, loaded, told
from metatransfer.callbacks.gain import Gain, Start
from metatransfer.callbacks.run.numbers import number
from metatransfer.callbacks.run.report import Report
from metatransfer.checks import check_not_negative
from metatransfer.errors import UserError
from metatransfer.experiments.comparing import Scores, measure_twins, train_entries
from metatransfer.experiments.intervals import Interval
from metatransfer.experiments.training import Budget, Evaluated, evaluate, spent
from metatransfer.methods.base import MethodModule
from metatransfer.methods.twins import ADAPTATION, ORACLE, detached, labelled, target_evaluation
from metatransfer.metrics.validators import PanelVerdict, panel_verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ADAPTED, PLAIN = ADAPTATION.own, ADAPTATION.reference


class AdaptationGain(Gain):
    """After a fit of a method that adapts to a target, says whether that helped, hurt or changed nothing.

    With the same initial weights and the same budget it trains a twin that never looks at the target, and where the
    target's training labels are known one that learns from them alone, in as many optimiser steps: the rows "source
    only" and "target-trained" of the field's tables. The first seed is the run itself; of several, the others start
    anew from other weights, orders and divisions. All are tested with their last weights, which nothing has selected;
    beside them stands the accuracy of the state that the run's checkpoint holds. The gain is the mean difference; its
    interval is Student's over the seeds. Where the target has no labels, or ``data.oracle`` is ``none``, only
    validators speak, which need none: they compare the state of the best checkpoint with the twin. Writes
    ``adaptation_gain.json`` and a picture. For a method that is its own twin it says what the target's labels would be
    worth.

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
        UserError: a negative number, another split, or a checkpoint for several seeds.
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
            raise UserError(f"source_only is one twin, but seeds is {seeds}: set seeds to 1, or leave source_only out.")
        super().__init__(seeds, split)
        self.oracle, self.source_only, self.fallback = oracle, source_only, fallback
        self.twin: MethodModule | None = None

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:  # noqa: ANN401
        """Keeps the method as it is before training."""
        if stage == "fit":
            self.twin = None
        super().setup(trainer, pl_module, stage)

    def check(self, start: Start) -> None:
        """Draws the weights of another seed once, and reads the checkpoint of a twin.

        Raises:
            UserError: a layer that cannot be initialised again, or a checkpoint of another twin.
        """
        if self.seeds > 1:
            start.module.restarted(0)
        if self.source_only is not None:
            loaded(start.module.twins(start.data)[PLAIN].module(), self.source_only)

    # ---- after the fit

    def measure(
        self, trainer: Trainer, module: MethodModule, start: Start, budget: Budget
    ) -> tuple[list[Scores], dict[str, Any]]:
        """Scores of the run and its twins, then of other seeds; and what validators say."""
        run, chosen, first = detached(module), chosen_state(trainer, module), module.run_seed or 0
        scores = [self._first_seed(trainer, run, start, budget, first)]
        more: dict[str, Any] = {
            "epochs": trainer.max_epochs,
            "stopped_early": trainer.should_stop and trainer.current_epoch < (trainer.max_epochs or 0),
            "selected_accuracy": None,
        }
        if scores[0].values:
            left_out = () if ORACLE in scores[0].values else (ORACLE,)
            scores += [
                measure_twins(
                    start.module, start.data, seed=seed, budget=budget, split=self.split, leave_out=left_out
                )
                for seed in range(first + 1, first + self.seeds)
            ]  # fmt: skip
            if chosen is not None:
                more["selected_accuracy"] = self._accuracy(chosen, start, budget)
        return scores, more | self._panel(trainer, run, chosen, start, budget)

    def _accuracy(self, module: MethodModule, start: Start, budget: Budget) -> float:
        return evaluate(module, start.data, self.split, budget)[ADAPTATION.metrics[self.split]]

    def _first_seed(self, trainer: Trainer, run: MethodModule, start: Start, budget: Budget, seed: int) -> Scores:
        """The run itself beside its twins with the same initial weights; no values if the labels are not known."""
        own = spent(trainer)
        entries = start.module.twins(start.data)
        told = labelled(start.data, self.split)
        mine = next(iter(entries))
        del entries[mine]
        if not (self.oracle and told):
            entries.pop(ORACLE, None)
        learners, scores = {mine: run}, Scores({}, {mine: own})
        steps = None if PLAIN in entries else own["steps"]
        if PLAIN in entries and self.source_only is not None:
            learners[PLAIN], steps = loaded(entries.pop(PLAIN).module(), self.source_only), own["steps"]
        for one in train_entries(entries, start.data, seed=seed, budget=budget, steps=steps):
            learners[one.name], scores.spent[one.name] = one.module, one.spent
        self.twin = learners[PLAIN] if mine != PLAIN else None
        if told:
            scores.values.update({name: self._accuracy(one, start, budget) for name, one in learners.items()})
        return scores

    def _panel(
        self, trainer: Trainer, run: MethodModule, chosen: MethodModule | None, start: Start, budget: Budget
    ) -> dict[str, Any]:
        """What validators say of the best checkpoint and the twin, and the fallback that follows."""
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
        for one in getattr(trainer, "callbacks", ()) if path else ():
            if isinstance(one, Report):
                one.overrule(metrics, told(path))
        return {"panel": card, "fallback": told(path)}

    # ---- the report

    def conclude(self, scores: dict[str, list[float]]) -> tuple[Interval | None, str]:
        """The gain of adaptation; for a method that is its own twin, what labels of the target would be worth."""
        if not scores:
            return None, "The target has no labels that may be looked at, so that no accuracy can be told."
        if ADAPTED in scores:
            return super().conclude(scores)
        if ORACLE not in scores:
            return None, ""
        more = Interval.of_gain(scores[ORACLE], scores[PLAIN])
        return None, f"Labels of the target would be worth {more} points of its accuracy over source only."

    def remarks(self, content: dict[str, Any]) -> list[str]:
        """The chosen state, the verdict, the panel and the fallback."""
        selected, panel, lines = content["selected_accuracy"], content["panel"], []
        if selected is not None:
            name = ADAPTED if ADAPTED in content["accuracy"] else PLAIN
            lines.append(f"{name}, best checkpoint: {100 * selected:.2f} % (target {self.split} accuracy, this run)")
        lines.append(content["verdict"])
        lines.append(f"Without labels of the target: {panel['sentence']}" if panel is not None else "")
        return [*lines, content["fallback"] or ""]

    def figure(self, percent: dict[str, list[float]], sentence: str) -> Figure:
        """Accuracies on the target, seed by seed."""
        from metatransfer.drawing.domains import adaptation_gain_figure

        return adaptation_gain_figure(percent, sentence)


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
