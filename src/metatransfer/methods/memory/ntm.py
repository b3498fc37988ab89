"""Neural Turing machines that learn to answer sequences of bits."""

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from metatransfer.batches import SequenceBatch
from metatransfer.checks import check_count
from metatransfer.errors import UserError
from metatransfer.methods.base import MethodModule
from metatransfer.methods.evaluation.on_sequences import OnSequences
from metatransfer.nn import LSTM, NeuralTuringMachine, Recurrent

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class NTMModule(MethodModule):
    r"""A neural Turing machine (Graves, Wayne, Danihelka 2014, 1410.5401) that answers sequences of bits.

    It reads the whole sequence; its outputs at the last positions are the answer, trained by the cross-entropy of each
    bit. With ``memory=False`` an LSTM of as many parameters takes the place of the machine: it learns the lengths that
    it is trained on, but not to copy longer sequences.

    Args:
        num_outputs: bits of an answer; defaults to those of the data on the command line.
        num_inputs: channels of the input; by default one more than ``num_outputs``, for a mark.
        memory: whether there is a memory.
        hidden: size of the controller.
        slots: rows of the memory.
        width: size of a row.
        optimizer: creates the optimiser (RMSprop in the paper; Adam at 1e-3 is faster and as stable).
        lr_scheduler: creates its scheduler.

    Raises:
        UserError: a number is out of range.
    """

    learns_from: ClassVar[type] = SequenceBatch
    cannot_export = "it reads sequences of any length, and its loop over their positions has none when it is traced"

    def __init__(
        self,
        num_outputs: int | None = None,
        num_inputs: int | None = None,
        memory: bool = True,
        hidden: int = 100,
        slots: int = 128,
        width: int = 20,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(OnSequences(), optimizer, lr_scheduler)
        self.num_outputs = 8 if num_outputs is None else num_outputs
        self.num_inputs = self.num_outputs + 1 if num_inputs is None else num_inputs
        check_count(num_outputs=self.num_outputs, num_inputs=self.num_inputs, hidden=hidden, width=width)
        check_count(2, slots=slots)
        machine: Recurrent = NeuralTuringMachine(self.num_inputs, hidden, slots, width)
        head = nn.Linear(machine.out_features, self.num_outputs)
        if not memory:
            size = sum(value.numel() for part in (machine, head) for value in part.parameters())
            machine = LSTM(self.num_inputs, lstm_size(size, self.num_inputs, self.num_outputs))
            head = nn.Linear(machine.out_features, self.num_outputs)
        self.network, self.head = machine, head

    def check_batch(self, batch: object) -> None:
        """Raises an error unless a batch has sequences of the right sizes."""
        if not isinstance(batch, SequenceBatch):
            raise UserError(
                f"{type(self).__name__} learns from sequences of bits, but the data module serves "
                f"{type(batch).__name__}: use CopyTask."
            )
        sizes = batch.x.shape[-1], batch.bits.shape[-1]
        if sizes != (self.num_inputs, self.num_outputs):
            raise UserError(
                f"{type(self).__name__} was built for {self.num_inputs} channels and answers of {self.num_outputs} "
                f"bits, but the data has {sizes[0]} and {sizes[1]}: set num_inputs and num_outputs to these."
            )

    def forward(self, batch: SequenceBatch) -> Tensor:
        """Logits ``(N, L, D)`` of the bits at the last ``L`` positions; the bits themselves are not used."""
        features, _ = self.network(batch.x)
        return self.head(features[:, -batch.bits.shape[1] :])  # type: ignore[no-any-return]

    def training_loss(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """The mean cross-entropy of the bits, and the outputs."""
        outputs = self(batch)
        wide = outputs.float() if outputs.dtype.itemsize < 4 else outputs
        return F.binary_cross_entropy_with_logits(wide, batch.bits.to(wide.dtype)), outputs

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ANN401
        """The loss of a batch."""
        self.check_batch(batch)
        loss, _ = self.training_loss(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.x))
        return loss

    @torch.no_grad()
    def sequence_figures(self, batch: SequenceBatch) -> "dict[str, Figure]":
        """What the machine reads and writes over time for one sequence; nothing without a memory."""
        if not isinstance(self.network, NeuralTuringMachine):
            return {}
        from metatransfer.drawing import memory as drawing  # matplotlib takes time to import

        first = SequenceBatch(batch.x[:1], batch.bits[:1])
        read, written = self.network.places(first.x)[0].cpu().unbind(1)
        answered = self(first)[0].sigmoid().cpu()
        return {"memory": drawing.copy_figure(first.x[0].cpu(), first.bits[0].cpu(), answered, written, read)}

    def protocol(self) -> dict[str, Any]:
        """Adds the network and its number of parameters."""
        size = sum(value.numel() for value in self.parameters())
        return super().protocol() | {"network": type(self.network).__name__, "parameters": size}


def lstm_size(parameters: int, num_inputs: int, num_outputs: int) -> int:
    """The size ``h`` of an LSTM with an output layer that together have ``4h(h + i + 2) + o(h + 1)`` parameters."""
    linear = 4 * (num_inputs + 2) + num_outputs
    return round((math.sqrt(linear**2 + 16 * (parameters - num_outputs)) - linear) / 8)
