"""The gain of transfer: a method compared with its twin that starts from scratch, over several seeds."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer

from metatransfer.callbacks.gain import Gain, Start
from metatransfer.checks import check_positive
from metatransfer.data_info import ServesSamples
from metatransfer.errors import UserError
from metatransfer.experiments.comparing import Scores, twins_over_seeds
from metatransfer.experiments.training import Budget, Evaluated
from metatransfer.methods.base import MethodModule
from metatransfer.methods.twins import TRANSFER


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
                "TransferGain cannot compare with tokenizer=words, because every seed builds another vocabulary, which "
                "pretrained weights do not know: set the tokenizer of the pretrained network."
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
