"""Networks with a memory that read a stream of samples, each followed by its label."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from metatransfer.batches import Episode, Inputs
from metatransfer.checks import check_count, check_fraction
from metatransfer.errors import UserError
from metatransfer.functional.losses import episode_loss
from metatransfer.functional.meta.inputs import concatenated
from metatransfer.methods.memory.sequence import SequenceModule
from metatransfer.methods.outputs import Outputs
from metatransfer.nn import LSTM, Backbone, LeastRecentlyUsedMemory, LinearHead, Recurrent

INSTANCES = (1, 2, 3, 4, 5, 10)


class Stream(NamedTuple):
    """What was read.

    Attributes:
        remembered: the state of the network, tensors ``(T, ...)``.
        last: ``(T, C)`` code of the last label, which comes with the next sample.
        said: ``(T, S, C)`` logits for each sample of the stream, given before its label.
        labels: ``(T, S)`` the labels, for the report.
    """

    remembered: Any
    last: Tensor
    said: Tensor
    labels: Tensor


class MANNModule(SequenceModule[Stream]):
    r"""Memory-augmented neural network (Santoro et al. 2016, 1605.06065).

    The support set is a stream. At each step the network sees a sample and the label of the **previous** one, and
    predicts the class of the sample, so that it can only know classes that were shown before:

    .. math:: z_t = g\bigl([f(x_1), 0], [f(x_2), e_{y_1}], \dots, [f(x_t), e_{y_{t-1}}]\bigr)

    It is trained on all predictions: those of the stream, and those of the queries, each of which continues the stream
    on its own. The report has the accuracy at the k-th instance, that is when a class is shown for the k-th time
    (``accuracy_at_instance_1``, ...). At the first one nothing is better than a guess among the classes that have not
    been shown yet. Use as many shots as a stream shows each class, 10 in the paper. Features are normalised over the
    batch, in evaluation by running statistics.

    Args:
        backbone: the embedding ``f``; ``RawFeatures`` for the pixels themselves, as in the paper.
        num_outputs: number of ways; defaults to that of the training episodes on the command line.
        memory: whether there is a memory; without it, the LSTM alone reads the stream (the paper's baseline).
        hidden: size of the controller.
        shape: number of slots of the memory and their size.
        heads: number of heads that read and write.
        decay: decay of the usage, see :class:`~metatransfer.nn.LeastRecentlyUsedMemory`.
        orders: number of orders of a support set in evaluation, see :class:`SequenceModule`.
        optimizer: creates the optimiser.
        lr_scheduler: creates its scheduler.

    Raises:
        UserError: no number of ways, a single order, or a number out of range.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_outputs: int | None = None,
        memory: bool = True,
        hidden: int = 200,
        shape: Sequence[int] = (128, 40),
        heads: int = 1,
        decay: float = 0.95,
        orders: int = 4,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(backbone, num_outputs, orders, optimizer, lr_scheduler)
        check_count(hidden=hidden, heads=heads)
        check_fraction(decay=decay)
        if len(shape) != 2 or min(shape) < 1 or shape[0] < heads:
            raise UserError(
                f"shape must be two numbers, that of the slots (at least heads={heads}) and their size, but is "
                f"{list(shape)}."
            )
        (slots, width), size = shape, backbone.out_features + self.num_outputs
        self.network: Recurrent = (
            LeastRecentlyUsedMemory(size, hidden, slots, width, heads, decay) if memory else LSTM(size, hidden)
        )
        # what all features share would make all samples resemble each other
        self.norm = nn.BatchNorm1d(backbone.out_features, affine=False)
        self.head = LinearHead(self.network.out_features, self.num_outputs)

    def embed(self, x: Inputs) -> Tensor:
        """Embeddings, each feature with mean 0 and variance 1."""
        embedded = super().embed(x)
        return self.norm(embedded.flatten(0, 1)).view_as(embedded)  # type: ignore[no-any-return]

    def read(self, support: Tensor, labels: Tensor) -> Stream:
        """Reads a stream; the label of a sample comes with the next one."""
        codes = F.one_hot(labels, self.num_outputs).to(support.dtype)
        before = F.pad(codes, (0, 0, 1, 0))[:, :-1]
        features, remembered = self.network(torch.cat([support, before], -1))
        return Stream(remembered, codes[:, -1], self.head(features), labels)

    def answer(self, state: Stream, queries: Tensor) -> Tensor:
        """Logits of queries, each as the next sample of its own stream."""
        count = queries.shape[1]
        last = state.last.unsqueeze(1).expand(-1, count, -1)
        # not by repeat_interleave, which ONNX fixes to the number of queries that it was exported with
        remembered = pytree.tree_map(
            lambda part: part.unsqueeze(1).expand(-1, count, *part.shape[1:]).flatten(0, 1), state.remembered
        )
        features, _ = self.network(torch.cat([queries, last], -1).flatten(0, 1).unsqueeze(1), remembered)
        return self.head(features).view(len(queries), count, self.num_outputs)  # type: ignore[no-any-return]

    def training_loss(self, batch: Episode) -> tuple[Tensor, Outputs]:
        """The mean loss of all predictions for the stream and the queries."""
        shots = batch.support_y.shape[1]
        embedded = self.embed(concatenated(batch.support_x, batch.query_x, 1))
        state = self.fit_embeddings(embedded[:, :shots], batch.support_y)
        outputs = self.predict_embeddings(state, embedded[:, shots:])
        said, labels = torch.cat([state.said, outputs], 1), torch.cat([state.labels, batch.query_y], 1)
        return episode_loss(said, labels), outputs

    def more_scores(self, state: Stream, episode: Episode) -> dict[str, Tensor]:
        """The accuracy of each task when a class is shown for the k-th time; NaN if none is shown so often."""
        tasks = len(episode.support_y)
        right = (state.said.argmax(-1) == state.labels).float().view(tasks, -1)
        instance = instances(state.labels).view(tasks, -1)
        return {f"accuracy_at_instance_{number}": _mean_where(right, instance == number) for number in INSTANCES}

    def protocol(self) -> dict[str, Any]:
        """Adds the network, and that embeddings are normalised."""
        return super().protocol() | {"network": type(self.network).__name__, "batch_norm": "running"}


def instances(labels: Tensor) -> Tensor:
    """For each label of a sequence ``(T, S)`` how often it has occurred so far, itself included."""
    earlier = labels.unsqueeze(2) == labels.unsqueeze(1)
    return earlier.tril().sum(-1)


def _mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """The mean ``(T,)`` of the chosen values ``(T, S)``; NaN if there are none."""
    return (values * chosen).sum(1) / chosen.sum(1)
