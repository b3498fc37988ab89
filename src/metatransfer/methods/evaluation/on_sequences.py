"""Evaluation on sequences of bits."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metatransfer.batches import SequenceBatch
from metatransfer.methods.evaluation.base import Baseline, Evaluation, Method, Numbers
from metatransfer.metrics import EpisodeMean
from metatransfer.metrics.episode_metrics import named

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SequenceMetrics(nn.Module):
    """The number of wrong bits of a sequence and the loss of its bits, means over sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.wrong_bits, self.loss = EpisodeMean(), EpisodeMean()

    def update(self, outputs: Tensor, bits: Tensor) -> None:
        """Adds logits ``(N, L, D)`` for bits of the same shape."""
        self.wrong_bits.update(wrong_bits(outputs, bits))
        self.loss.update(F.binary_cross_entropy_with_logits(outputs, bits, reduction="none").flatten(1).mean(1))

    def compute(self) -> dict[str, Tensor]:
        """The numbers by name."""
        found = named("wrong_bits", self.wrong_bits.compute()) | named("loss", self.loss.compute())
        return {"sequences": self.wrong_bits.count.clone(), **found}

    def reset(self) -> None:
        """Removes all sequences."""
        self.wrong_bits.reset()
        self.loss.reset()


def wrong_bits(outputs: Tensor, bits: Tensor) -> Tensor:
    """The number of wrong bits of each sequence ``(N,)``, NaN if an output is NaN or infinite."""
    wrong = ((outputs > 0) != (bits > 0)).flatten(1).sum(1).float()
    return wrong.masked_fill(~outputs.isfinite().flatten(1).all(1), torch.nan)


class OnSequences(Evaluation):
    """Counts the wrong bits of each sequence; numbers are means over sequences with their 95% intervals."""

    monitor: ClassVar[str] = "val/wrong_bits"
    monitor_mode: ClassVar[str] = "min"
    unit: ClassVar[str] = "sequences"

    def __init__(self) -> None:
        super().__init__()
        self.score_name = "wrong_bits"
        self._shown: SequenceBatch | None = None

    def make_metrics(self) -> SequenceMetrics:
        """Means over sequences."""
        return SequenceMetrics()

    def step(self, module: Method, batch: Any, stage: str, place: int = 0) -> None:  # noqa: ANN401
        """Scores a batch of sequences."""
        module.check_batch(batch)
        outputs = module(batch).detach().float()
        for metrics in self.collectors(stage, place):
            metrics.update(outputs, batch.bits)
        self._shown = batch

    def baselines(self, module: Method) -> dict[str, Baseline]:
        """The bits that are right half of the time, and the network before training."""
        return {"all zeros": lambda batch: -torch.ones_like(batch.bits), "untrained": module.untrained_twin()}

    def baseline_scores(self, module: Method, baseline: Baseline, batch: SequenceBatch) -> Tensor:
        """The wrong bits of each sequence."""
        return wrong_bits(baseline(batch).float(), batch.bits)

    def counts(self, numbers: Numbers, stage: str) -> dict[str, int | None]:
        """Number of sequences."""
        return super().counts(numbers, stage) | {"sequences": int(numbers["sequences"]["value"] or 0)}

    def rows(self, results: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Number and length of the sequences."""
        data = results["protocol"].get("data", {})
        if "eval_length" not in data:
            return []
        shown = "test" if results["stage"] == "test" else "val"
        low, high = data["train_batches"]["lengths"]
        size = f"of {data['eval_length']} times {data['num_bits']} bits, trained on lengths {low} to {high}"
        return [("sequences", f"{results['sequences']} {shown}, {size}")]

    def figures(self, module: Method, stage: str, mistakes: int = 12) -> "dict[str, Figure]":
        """What is read and written over time for one sequence, if the method says it."""
        batch, self._shown = self._shown, None
        if batch is None or not module.trainer.is_global_zero:
            return {}
        return module.sequence_figures(batch)  # type: ignore[no-any-return]
