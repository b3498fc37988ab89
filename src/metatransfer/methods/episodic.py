"""Base class of methods that learn tasks."""

from abc import abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from metatransfer.batches import Episode, Inputs, Predictions, PredictionTask, episodes_of, map_inputs
from metatransfer.checks import check_batch_kind, check_episode
from metatransfer.errors import UserError
from metatransfer.functional.losses import episode_loss, episode_losses, is_regression, mask_absent_classes
from metatransfer.functional.meta.replicas import replica
from metatransfer.methods.base import MethodModule
from metatransfer.methods.evaluation import OnEpisodes
from metatransfer.methods.given import Labels, Samples, classes_of, encode, support_set
from metatransfer.methods.outputs import Outputs, checked_pair, default_score, map_tensors, point_of
from metatransfer.methods.predictor import Predictor

State = TypeVar("State")


class EpisodicModule(MethodModule, Generic[State]):
    """A method that learns each task from its support set and predicts the targets of its queries.

    A subclass defines how it learns from support sets (:meth:`fit_tasks`) and how it predicts (:meth:`predict_tasks`).
    The base class trains on the query loss, evaluates, adapts to new tasks and predicts. Override
    :meth:`training_loss` for another outer objective, and :meth:`loss` and :meth:`score` if outputs are neither logits
    nor values nor a distribution with ``mean`` and ``log_prob``.

    Attributes:
        num_outputs: size of a fixed output layer: the number of ways, or the size of a regression target; ``None`` for
            methods that accept any number of ways.
        transductive: whether the prediction for a query depends on the other queries.
        order_sensitive: whether the prediction depends on the order of the support set (sequence models).
    """

    learns_from: ClassVar[type] = Episode
    num_outputs: int | None = None
    transductive: bool = False
    order_sensitive: bool = False

    def __init__(
        self, optimizer: OptimizerCallable = torch.optim.Adam, lr_scheduler: LRSchedulerCallable | None = None
    ) -> None:
        super().__init__(OnEpisodes(), optimizer, lr_scheduler)

    # ---- what a method says

    @abstractmethod
    def fit_tasks(self, support_x: Any, support_y: Tensor) -> State:  # noqa: ANN401
        """Learns ``T`` tasks; returns what :meth:`predict_tasks` needs: adapted parameters, prototypes, a memory.

        Args:
            support_x: ``(T, S, *shape)``, or :class:`~metatransfer.Tokens` ``(T, S, L)``.
            support_y: ``(T, S)`` int64 or ``(T, S, D)`` float.
        """

    @abstractmethod
    def predict_tasks(self, state: State, query_x: Any) -> Outputs:  # noqa: ANN401
        """Predicts the queries of ``T`` tasks.

        Args:
            state: from :meth:`fit_tasks`.
            query_x: ``(T, Q, *shape)``, or texts.

        Returns:
            ``(T, Q, C)`` logits, ``(T, Q, D)`` values, or a distribution, see
            :data:`~metatransfer.methods.outputs.Outputs`.
        """

    def before_learning(self, support_x: Any) -> State | None:  # noqa: ANN401
        """The state of tasks before they are learned, for explanations; ``None`` if learning changes no weights."""
        return None

    def loss(self, outputs: Outputs, targets: Tensor) -> Tensor:
        """The mean loss, a scalar; by default cross-entropy, squared error, or negative log-likelihood."""
        if not isinstance(outputs, Tensor) and callable(getattr(outputs, "log_prob", None)):
            return -outputs.log_prob(targets).mean()  # type: ignore[no-any-return]
        return episode_loss(point_of(outputs), targets)

    def score(self, outputs: Outputs, targets: Tensor) -> Tensor:
        """The score of each task ``(T,)``; by default its accuracy, or the squared error of the mean."""
        return default_score(outputs, targets)

    def forward(self, episode: Episode) -> Outputs:
        """Outputs for the queries, as of :meth:`predict_tasks`; the query labels are not used.

        Logits of a fixed output layer for classes that a task does not have are set to the lowest finite number.
        """
        outputs = self.predict_tasks(self.fit_tasks(episode.support_x, episode.support_y), episode.query_x)
        return mask_absent_classes(outputs, episode.support_y)

    def evaluated(self, episode: Episode) -> tuple[Outputs, dict[str, Tensor]]:
        """The outputs for the queries, and further scores ``(T,)`` for the report by name: fractions, NaN if unknown.

        By default only the outputs of :meth:`forward`, which the first part must always equal.
        """
        return self(episode), {}

    def training_loss(self, batch: Any) -> tuple[Tensor, Outputs]:  # noqa: ANN401
        """The outer objective, a scalar, and the outputs for the queries; by default the mean query loss."""
        outputs = self(batch)
        return self.loss(outputs, batch.query_y), outputs

    # ---- what follows

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:  # noqa: ANN401
        """The loss of a meta-batch, averaged over its tasks; tasks of different sizes are processed one by one."""
        check_batch_kind(batch, Episode, f"{type(self).__name__} learns from")
        episodes = episodes_of(batch)
        if "train" not in self._checked:  # looking at labels waits for the device
            self.check_episodes(episodes, "the train episode")
            self._checked.add("train")
        number = sum(len(episode.query_y) for episode in episodes)
        loss, score = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        for episode in episodes:
            part = len(episode.query_y) / number
            own, outputs = checked_pair(self, self.training_loss(episode))
            loss = own if len(episodes) == 1 else loss + part * own
            score = score + part * self.score(map_tensors(Tensor.detach, outputs), episode.query_y).mean()
        name = "mse" if is_regression(episodes[0].query_y) else "accuracy"
        self.log_dict({"train/loss": loss, f"train/{name}": score}, prog_bar=True, batch_size=number)
        return loss

    def task_losses(self, outputs: Outputs, targets: Tensor) -> Tensor:
        """The loss of each task ``(T,)``, for evaluation."""
        if isinstance(outputs, Tensor):
            return episode_losses(outputs, targets)
        if callable(getattr(outputs, "log_prob", None)):
            return -outputs.log_prob(targets).flatten(1).mean(1)  # type: ignore[no-any-return]

        def of_task(task: int) -> Tensor:
            return self.loss(map_tensors(lambda part: part[task : task + 1], outputs), targets[task : task + 1])

        return torch.stack([of_task(task) for task in range(len(targets))])

    def check_episodes(self, episodes: list[Episode], where: str) -> None:
        """Raises an error unless the tasks of a meta-batch, called ``where``, fit each other and the method."""
        for episode in episodes:
            check_episode(episode, num_outputs=self.num_outputs, where=where)
            if self.num_outputs is None and is_regression(episode.support_y):
                raise UserError(f"{type(self).__name__} learns classes, but {where} has float targets.")
            self.check_samples(map_inputs(lambda x: x.flatten(0, 1), episode.support_x))

    def adapt(self, support_x: Samples | Inputs, support_y: Labels) -> Predictor[State]:
        """Learns one task without changing the module; the :class:`Predictor` answers in the labels given here.

        Args:
            support_x: ``(S, *shape)`` float samples, or a list of them; images in [0, 1]; or texts as
                :class:`~metatransfer.Tokens`.
            support_y: ``S`` labels of any kind (strings, integers, a tensor), or float targets to regress.

        Raises:
            UserError: no samples, unequal lengths, samples of a wrong shape, NaN, or more classes than the network has
                outputs.
        """
        return Predictor(self, *support_set(self, support_x, support_y))

    def learned(self, samples: Inputs, labels: Labels) -> State:
        """The state after learning the task of a checked support set, see :meth:`adapt`."""
        found = len(classes_of(labels))
        if self.num_outputs is not None and found > self.num_outputs:
            raise UserError(
                f"the support set has {found} classes, but this {type(self).__name__} was built for "
                f"{self.num_outputs}: leave classes out, or train with more ways."
            )
        targets = encode(labels, self.device)
        if not found:
            self._check_regression(targets)
        module = replica(self).eval()  # a copy, since other threads may use the module
        with torch.no_grad():
            return module.fit_tasks(map_inputs(lambda x: x.unsqueeze(0), samples), targets.unsqueeze(0))

    def _check_regression(self, targets: Tensor) -> None:
        """Raises an error unless the method can regress the targets."""
        if self.num_outputs is None:
            raise UserError(
                f"{type(self).__name__} learns classes, but support_y holds floats: give labels (integers, strings)."
            )
        if targets.dim() != 2 or targets.shape[1] != self.num_outputs:
            raise UserError(
                f"support_y must hold float targets of shape (S, {self.num_outputs}) for this {type(self).__name__}, "
                f"but has {tuple(targets.shape)}."
            )
        if not torch.isfinite(targets).all():
            raise UserError("support_y contains NaN or infinity: clean the targets before adapting to them.")

    def predict_step(self, batch: PredictionTask, batch_idx: int = 0) -> Predictions:
        """Labels the queries of a task."""
        predictor = self.adapt(batch.support_x, batch.support_labels)
        return Predictions(batch.files, predictor.classes, predictor.predict_proba(batch.query_x).cpu())

    def protocol(self) -> dict[str, Any]:
        """Adds whether the method is transductive."""
        return super().protocol() | {"transductive": self.transductive}
