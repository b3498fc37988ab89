"""Memory networks that answer questions about stories."""

import re
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from metatransfer.batches import Inputs, LabelledBatch, Tokens
from metatransfer.checks import check_count
from metatransfer.data_info import ServesSamples, datamodule_of
from metatransfer.errors import UserError
from metatransfer.functional.losses import episode_loss
from metatransfer.methods.classifier import ClassifierModule
from metatransfer.nn import LinearHead
from metatransfer.nn.blocks import StoryMemory, Tying

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOOK = 256  # samples of which the one with the longest story is drawn


class MemN2NModule(ClassifierModule):
    r"""Memory network that answers questions about stories.

    It is the end-to-end memory network of Sukhbaatar et al. 2015 (1503.08895); with ``tying="key-value"`` it is the
    key-value memory network of Miller et al. 2016 (1606.03126), whose keys and values are the sentences. The question
    reads the sentences of the story in several hops, see :class:`~metatransfer.nn.StoryMemory`, and the answer is a
    class: :math:`\mathrm{softmax}(Wq)` of the query after the last hop. Which sentences matter is not given. The output
    layer :math:`W` is not tied to word embeddings, since answers are classes here.

    With ``linear_start`` the first epochs train without the softmax of the attention, which avoids poor local minima.
    The paper ends them when the validation loss no longer decreases. Seeds differ: the paper takes the best of 10 by
    their training loss.

    Args:
        num_classes: number of answers; on the command line taken from the data.
        vocabulary_size: number of words; on the command line taken from the data.
        hops: number of hops.
        size: size of the embeddings.
        tying: ``"adjacent"`` or ``"layerwise"``, or ``"key-value"`` for a key-value memory network.
        sentences: number of sentences that are remembered, the last ones of a story.
        noise: probability of a gap between the ages of sentences in training.
        linear_start: number of first epochs without softmax in the attention.
        optimizer: creates the optimiser.
        lr_scheduler: creates its scheduler.

    Raises:
        UserError: a number is missing or out of range, or unknown tying.
    """

    cannot_export = "it reads stories, and exported files take images, rows of numbers or texts"
    linear: Tensor

    def __init__(
        self,
        num_classes: int | None = None,
        vocabulary_size: int | None = None,
        hops: int = 3,
        size: int = 20,
        tying: Tying = "adjacent",
        sentences: int = 50,
        noise: float = 0.1,
        linear_start: int = 0,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(num_classes, optimizer, lr_scheduler)
        if vocabulary_size is None:
            raise UserError(
                "MemN2NModule needs vocabulary_size, the number of words; on the command line it is taken from data of "
                "stories, such as Babi."
            )
        check_count(0, linear_start=linear_start)
        self.linear_start = linear_start
        self.network = StoryMemory(vocabulary_size, size, hops, tying, sentences, noise)
        self.head = LinearHead(size, self.num_classes)
        # a part of the weights: what was trained without softmax is evaluated without it
        self.register_buffer("linear", torch.tensor(linear_start > 0))

    def check_samples(self, x: Inputs) -> None:
        """Raises an error unless samples are stories with a question."""
        if not isinstance(x, Tokens) or x.ids.dim() != 3:
            raise UserError(
                "MemN2NModule reads stories with a question, Tokens (N, 1 + sentences, words), but the data has other "
                "samples: use the collection Babi."
            )

    def on_train_epoch_start(self) -> None:
        """Ends the linear start."""
        super().on_train_epoch_start()
        self.linear.fill_(self.current_epoch < self.linear_start)

    def after_restart(self) -> None:
        """Begins with the linear start again."""
        self.linear.fill_(self.linear_start > 0)

    def read(self, x: Tokens) -> tuple[Tensor, Tensor]:
        """Logits ``(N, C)`` of the answers, and the attention ``(N, hops, sentences)`` to the last sentence first."""
        query, attention = self.network(x, self.linear if self.linear_start else None)
        return self.head(query), attention

    def forward(self, x: Tokens) -> Tensor:
        """Logits ``(N, C)`` of the answers."""
        return self.read(x)[0]

    def training_loss(self, batch: LabelledBatch) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of the answers, and the logits."""
        outputs = self(batch.x)
        return episode_loss(outputs, batch.y), outputs

    @torch.no_grad()
    def more_figures(self, stage: str) -> "dict[str, Figure]":
        """The attention of each hop to the sentences of one story."""
        data = datamodule_of(self)
        if not isinstance(data, ServesSamples):
            return {}
        from metatransfer.drawing import memory as drawing  # matplotlib takes time to import

        batch = self.transfer_batch_to_device(next(iter(data.samples(stage))), self.device, 0)
        place = int(batch.x.mask[:_LOOK, 1:].any(-1).sum(1).argmax())
        outputs, attention = self.read(Tokens(*(part[place : place + 1] for part in batch.x)))
        *story, question = re.split(r"(?<=[.?!])\s+", str(data.show(stage, int(batch.number[place]))))
        told = story[::-1][: attention.shape[2]]
        title = f"{question} {self.class_names[int(outputs.argmax())]} (right: {self.class_names[int(batch.y[place])]})"
        return {f"{stage}_attention": drawing.hops_figure(told, attention[0, :, : len(told)].float().cpu(), title)}

    def protocol(self) -> dict[str, Any]:
        """Adds the memory."""
        network = self.network
        return super().protocol() | {
            "hops": network.hops.hops,
            "size": network.out_features,
            "tying": network.tying,
            "sentences": network.sentences,
            "train_noise": network.noise,
            "train_linear_start": self.linear_start,
        }
