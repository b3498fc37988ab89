"""What transfer is worth: the method against its twin that starts from scratch, over several seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer

from metatransfer.callbacks.gain import Gain, Start
from metatransfer.checks import check_positive
from metatransfer.data_info import ServesSamples
from metatransfer.errors import UserError
from metatransfer.experiments.comparing import Scores, twins_over_seeds
from metatransfer.experiments.training import Budget, Evaluated
from metatransfer.methods.base import MethodModule
from metatransfer.methods.classifier import MOST_FREQUENT
from metatransfer.methods.twins import TRANSFER

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class TransferGain(Gain):
    r"""After fine-tuning, says what the transfer was worth, as a number with an interval.

    For each of several seeds the method is trained again, and with the same budget a twin of the same architecture that
    starts from random weights and trains all of them; both see the same samples and are tested with their last weights,
    which nothing has selected. A seed draws the few labels, the order, the head and the twin's weights. The gain is the
    mean difference of the accuracies; the interval is Student's over the seeds. Beside them stand the baselines that
    learn from the same samples. It prints one table and writes ``transfer_gain.json`` and a picture.

    Args:
        seeds: how many, from 0 on.
        split: ``"test"`` or ``"val"``, on which all are compared.

    Raises:
        UserError: ``seeds`` is not positive, or another split.
    """

    comparison, file, score = TRANSFER, "transfer_gain", "{} accuracy"

    def __init__(self, seeds: int = 5, split: Evaluated = "test") -> None:
        check_positive(seeds=seeds)
        super().__init__(seeds, split)

    def check(self, start: Start) -> None:
        """Makes the twins once.

        Raises:
            UserError: no split to compare on, words that mean something else under each seed, or a layer that cannot
                be initialised again.
        """
        if isinstance(start.data, ServesSamples) and not start.data.info().shared_vocabulary:
            raise UserError(
                "TransferGain has nothing to compare with tokenizer=words: the words of every division have numbers of "
                "their own, which no weights can know; set the tokenizer of the pretrained network."
            )
        getattr(start.data, f"{self.split}_dataloader")()
        for entry in start.module.twins(start.data, 0).values():
            entry.module()

    def measure(
        self, trainer: Trainer, module: MethodModule, start: Start, budget: Budget
    ) -> tuple[list[Scores], dict[str, Any]]:
        """Trains both for each seed."""
        module, data = start
        scores = twins_over_seeds(
            module, data, seeds=range(self.seeds), budget=budget, split=self.split, baselines=True
        )
        return scores, {"epochs": trainer.current_epoch}

    def figure(self, percent: dict[str, list[float]], sentence: str) -> Figure:
        """All but the most frequent class, which lies so low that nothing else could be told apart."""
        from metatransfer.drawing.classifiers import gain_figure

        return gain_figure({name: values for name, values in percent.items() if name != MOST_FREQUENT}, sentence)
