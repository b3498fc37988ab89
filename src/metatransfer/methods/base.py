"""The bases of all methods. They do little: what a family shares stands in its own folder."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar, Generic, Self, TypeVar

import torch
from lightning.fabric.utilities.cloud_io import _load  # private, but what is checked is read as Lightning reads it
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from metatransfer.arguments import INSTANTIATOR, plain_arguments, remember_arguments
from metatransfer.batches import Episode, MetaBatch, Predictions, PredictionTask, episodes_of
from metatransfer.checks import check_batch_kind, check_episode, check_state_dict, check_support
from metatransfer.errors import UserError
from metatransfer.functional.losses import episode_loss, episode_scores, is_regression, mask_absent_classes
from metatransfer.functional.meta.prototypes import nearest_neighbor
from metatransfer.methods.predictor import (
    Labels,
    Predictor,
    Samples,
    as_samples,
    classes_of,
    encode,
    evaluating,
    floating_dtype,
    plain_labels,
)
from metatransfer.methods.protocol import protocol_card
from metatransfer.metrics import EpisodeMetrics
from metatransfer.nn.backbones.image_backbone import ImageBackbone
from metatransfer.nn.weights import WeightsReport, no_weight_files, weights_reports
from metatransfer.trust import checked_arguments

State = TypeVar("State")
Baseline = Callable[[Episode], Tensor]
"""Outputs ``(T, Q, C)`` for the queries of an episode, by something that was not trained."""


class MethodModule(LightningModule, ABC):
    """A LightningModule whose optimiser and scheduler come from the config, and whose checkpoints tell their protocol.

    Args:
        optimizer: makes the optimiser from parameters, e.g. ``functools.partial(torch.optim.SGD, lr=0.1)``.
        lr_scheduler: makes a scheduler from the optimiser, stepped once an epoch; none where left out.

    Attributes:
        monitor: metric that chooses among the states of a run, where the user names none.
        monitor_mode: ``"max"`` or ``"min"`` of it.
    """

    monitor: ClassVar[str] = "val/accuracy"
    monitor_mode: ClassVar[str] = "max"
    trained_protocol: dict[str, Any] | None = None
    run_seed: int | None = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: ANN401
        """Notes the arguments, so that checkpoints can name them."""
        self = super().__new__(cls)
        remember_arguments(self, args, kwargs)
        return self

    def __init__(
        self, optimizer: OptimizerCallable = torch.optim.Adam, lr_scheduler: LRSchedulerCallable | None = None
    ) -> None:
        super().__init__()
        self._announced: dict[str, WeightsReport] = {}
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        if _given_hyperparameters.get() is not None:  # from the command line, as plain data already
            self.save_hyperparameters()
        else:
            given = plain_arguments(self.__dict__.get("_init_arguments", {}))
            self.save_hyperparameters({**given, "_instantiator": INSTANTIATOR})
        self._rng_state: dict[str, Tensor] | None = None

    @abstractmethod
    def shared_step(self, batch: Any, stage: str) -> Tensor:  # noqa: ANN401
        """The loss of a batch; logs what belongs to the stage.

        Args:
            batch: what the data module serves.
            stage: ``"train"``, ``"val"`` or ``"test"``.

        Returns:
            A scalar.
        """

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ANN401
        """One step of the outer loop."""
        return self.shared_step(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ANN401
        """Scores a batch of the validation split."""
        self.shared_step(batch, "val")

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:  # noqa: ANN401
        """Scores a batch of the test split."""
        self.shared_step(batch, "test")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Builds what the constructor was given, over the parameters that require a gradient.

        Raises:
            UserError: nothing is left to train.
        """
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if not trainable:
            raise UserError(f"{type(self).__name__} has no parameter to train: all are frozen, or it has none.")
        optimizer = self.optimizer(trainable)
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        if isinstance(scheduler, ReduceLROnPlateau):
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": scheduler.monitor}}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler}}

    def protocol(self) -> dict[str, Any]:
        """What of the method must stand beside its numbers."""
        return {"name": type(self).__name__}

    def baselines(self) -> dict[str, Baseline]:
        """What the method's numbers are to be compared with, on the same batches."""
        return {}

    @torch.inference_mode(False)  # an evaluation asks for it, and weights made there can take part in no gradient
    def untrained_twin(self) -> Self | None:
        """A copy with freshly initialised weights, the same ones every time; the module itself is left as it is.

        Returns:
            The copy, or ``None`` where some submodule with parameters does not define ``reset_parameters``.
        """
        # a copy must not take the Trainer, with data and loggers, along
        twin = copy.deepcopy(self, {id(self._trainer): None} if self._trainer is not None else {})
        # a network of another library draws all its weights at once
        wholes = [part for part in twin.modules() if isinstance(part, ImageBackbone)]
        inside = {id(part) for whole in wholes for part in whole.modules()}
        owners = [part for part in twin.modules() if part._parameters and id(part) not in inside] + wholes
        if not all(callable(getattr(owner, "reset_parameters", None)) for owner in owners):
            return None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for owner in owners:
                owner.to("cpu").reset_parameters()  # type: ignore[operator]
        return twin.to(self.device).eval()

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path | IO[Any],
        map_location: Any = None,  # noqa: ANN401
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        *,
        trusted: Sequence[str] = (),
        **kwargs: Any,  # noqa: ANN401
    ) -> Self:
        """Rebuilds a module and loads its weights; files of weights that its training started from are not needed.

        Args:
            checkpoint_path: a file, a URL or an open file.
            map_location: as in ``torch.load``.
            hparams_file: must be left out; give arguments by name.
            strict: whether the names of the weights must match exactly.
            weights_only: ``False`` unpickles any object, which runs code that the file brings; not done by default.
            trusted: packages that the checkpoint may import classes from, besides the known ones and those that are
                imported already.
            **kwargs: constructor arguments, in place of those in the checkpoint.

        Returns:
            The module.

        Raises:
            UserError: the checkpoint names something that is not allowed, see :mod:`metatransfer.trust`.
        """
        if hparams_file is not None:
            raise UserError("hparams_file is not read: give the constructor arguments by name.")
        weights_only = weights_only is not False
        content = _load(checkpoint_path, map_location="cpu", weights_only=weights_only)
        if not isinstance(checkpoint_path, str | Path):
            checkpoint_path.seek(0)
        described = {**content.get(cls.CHECKPOINT_HYPER_PARAMS_KEY, {}), **kwargs}
        with no_weight_files():
            kind, arguments = checked_arguments(cls, described, trusted)
            # without an instantiator Lightning takes the arguments as they are, and interprets none from the file
            return super(MethodModule, kind).load_from_checkpoint(
                checkpoint_path, map_location, None, strict, weights_only, **arguments, _instantiator=None
            )

    def setup(self, stage: str) -> None:
        """Lists what of a file of weights the networks start from, once."""
        for name, report in weights_reports(self).items():
            if self._announced.get(name) is not report:
                self._announced[name] = report
                rank_zero_info(f"{name}: {report}")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the protocol card, and the state of the random numbers where one process owns them all."""
        checkpoint["protocol"] = protocol_card(self)
        if self._trainer is None or self._trainer.world_size == 1:
            checkpoint["rng_state"] = {"cpu": torch.get_rng_state()}
            if self.device.type == "cuda":
                checkpoint["rng_state"]["cuda"] = torch.cuda.get_rng_state(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Reads back what :meth:`on_save_checkpoint` added.

        Raises:
            UserError: the weights are of another network.
        """
        check_state_dict(self.state_dict(), checkpoint["state_dict"], type(self).__name__)
        self.trained_protocol = checkpoint.get("protocol")
        for name in weights_reports(self):
            del self.get_submodule(name).weights_report  # what the weights are now started from says the card
        self._rng_state = checkpoint.get("rng_state")

    def on_train_start(self) -> None:
        """Goes on with the random numbers of the interrupted run, so that resuming changes nothing."""
        if self._rng_state is not None and self.trainer.world_size == 1:
            torch.set_rng_state(self._rng_state["cpu"].cpu())
            if self.device.type == "cuda" and "cuda" in self._rng_state:
                torch.cuda.set_rng_state(self._rng_state["cuda"].cpu(), self.device)
            self._rng_state = None


class EpisodicModule(MethodModule, Generic[State]):
    """A method that learns each task from its support set and answers for its queries.

    A subclass says two things: what it learns from support sets (:meth:`fit_tasks`) and what it answers with that
    (:meth:`predict_tasks`). Training by the query loss, evaluation, metrics, :meth:`adapt` and prediction follow. A
    method with another outer objective overrides :meth:`training_loss`.

    Attributes:
        num_outputs: size of a fixed output layer: the number of ways, or the size of a regression target; ``None`` for
            methods that take any number of ways.
        transductive: the answer for one query depends on the other queries.
        order_sensitive: the answer depends on the order of the support set (sequence models).
        learns_from: kind of the training batches, ``Episode`` or ``LabelledBatch``; evaluation is on episodes always.

    Args:
        optimizer: see :class:`MethodModule`.
        lr_scheduler: see :class:`MethodModule`.
    """

    num_outputs: int | None = None
    transductive: bool = False
    order_sensitive: ClassVar[bool] = False
    learns_from: ClassVar[type] = Episode

    def __init__(
        self, optimizer: OptimizerCallable = torch.optim.Adam, lr_scheduler: LRSchedulerCallable | None = None
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        self.metrics = nn.ModuleDict({"val": EpisodeMetrics(), "test": EpisodeMetrics()})
        self._checked: set[str] = set()
        self._source: str | None = None

    # ---- what a method says

    @abstractmethod
    def fit_tasks(self, support_x: Tensor, support_y: Tensor) -> State:
        """Learns ``T`` tasks.

        Args:
            support_x: ``(T, S, *shape)``.
            support_y: ``(T, S)`` int64 or ``(T, S, D)`` float.

        Returns:
            Whatever :meth:`predict_tasks` needs: adapted parameters, prototypes, a memory.
        """

    @abstractmethod
    def predict_tasks(self, state: State, query_x: Tensor) -> Tensor:
        """Answers for the queries of ``T`` tasks.

        Args:
            state: from :meth:`fit_tasks`.
            query_x: ``(T, Q, *shape)``.

        Returns:
            ``(T, Q, C)`` logits or ``(T, Q, D)`` values.
        """

    def forward(self, episode: Episode) -> Tensor:
        """Outputs for the queries; the query labels are not looked at.

        Args:
            episode: ``T`` tasks.

        Returns:
            ``(T, Q, C)`` or ``(T, Q, D)``; outputs of a fixed layer for classes that a task does not have are the
            least number there is.
        """
        outputs = self.predict_tasks(self.fit_tasks(episode.support_x, episode.support_y), episode.query_x)
        return mask_absent_classes(outputs, episode.support_y)

    def training_loss(self, episode: Episode) -> tuple[Tensor, Tensor]:
        """The outer objective: by default the mean query loss.

        Args:
            episode: ``T`` tasks.

        Returns:
            The loss to minimise, a scalar, and the outputs for the queries, for the metrics.
        """
        outputs = self(episode)
        return episode_loss(outputs, episode.query_y), outputs

    def check_samples(self, shape: tuple[int, ...]) -> None:
        """Refuses samples that the network was not built for; by default asks ``self.backbone``.

        Args:
            shape: of one sample.
        """
        check = getattr(getattr(self, "backbone", None), "check_input", None)
        if check is not None:
            check(shape)

    # ---- what follows

    def shared_step(self, batch: MetaBatch, stage: str) -> Tensor:
        """Loss of a meta-batch, averaged over its tasks; those that differ in size come one by one."""
        check_batch_kind(
            batch, Episode, f"{type(self).__name__} {'learns from' if stage == 'train' else 'is tested on'}"
        )
        episodes = episodes_of(batch)
        self._check_once(episodes, stage)
        if stage == "train":
            return self._train_on(episodes)
        losses = []
        for episode in episodes:
            outputs = self(episode)
            for metrics in self._metrics_of(stage):
                metrics.update(outputs, episode.query_y)
            losses.append(episode_loss(outputs, episode.query_y))
        return torch.stack(losses).mean()

    def _train_on(self, episodes: list[Episode]) -> Tensor:
        number = sum(len(episode.query_y) for episode in episodes)
        loss, score = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        for episode in episodes:
            part = len(episode.query_y) / number
            own, outputs = self.training_loss(episode)
            loss = own if len(episodes) == 1 else loss + part * own
            score = score + part * episode_scores(outputs.detach(), episode.query_y).mean()
        name = "mse" if is_regression(episodes[0].query_y) else "accuracy"
        self.log_dict({"train/loss": loss, f"train/{name}": score}, prog_bar=True, batch_size=number)
        return loss

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:  # noqa: ANN401
        """Scores a batch of the test split, and notes which of several test sources it is of."""
        names = self._test_sources()
        self._source = names[dataloader_idx] if names else None
        self.shared_step(batch, "test")

    def on_validation_epoch_end(self) -> None:
        """Logs ``val/accuracy`` and the others with their intervals."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Logs ``test/accuracy`` and the others with their intervals, and ``test/<source>/accuracy``."""
        self._log_metrics("test")

    def _test_sources(self) -> tuple[str, ...]:
        """Names of the sources that the data module tests on, where there are several."""
        data = getattr(self._trainer, "datamodule", None)
        return tuple(getattr(data, "test_sources", ()))

    def _metrics_of(self, stage: str) -> list[EpisodeMetrics]:
        names = [stage, *([f"{stage}/{self._source}"] if stage == "test" and self._source else [])]
        return [self.metrics[name] for name in names]  # type: ignore[misc]

    def _log_metrics(self, stage: str) -> None:
        for key in [name for name in self.metrics if name.partition("/")[0] == stage]:
            metrics: EpisodeMetrics = self.metrics[key]  # type: ignore[assignment]
            for name, value in metrics.compute().items():
                self.log(f"{key}/{name}", value, prog_bar=name == metrics.score_name, sync_dist=True)
            metrics.reset()

    def setup(self, stage: str) -> None:
        """As of the base; looks at the episodes anew: they may be another data module's."""
        super().setup(stage)
        self._checked.clear()
        self._source = None
        for name in [name for name in self.metrics if "/" in name]:
            del self.metrics[name]
        for source in self._test_sources() if stage == "test" else ():
            self.metrics[f"test/{source}"] = EpisodeMetrics().to(self.device)

    def _check_once(self, episodes: list[Episode], stage: str) -> None:
        # label checks wait for the device, so only the first meta-batch of each stage and source pays for them
        key = f"{stage} {self._source}"
        if key in self._checked:
            return
        for episode in episodes:
            check_episode(episode, num_outputs=self.num_outputs, where=f"the {stage} episode")
            if self.num_outputs is None and is_regression(episode.support_y):
                raise UserError(f"{type(self).__name__} learns classes, but the {stage} episode has float targets.")
            self.check_samples(tuple(episode.support_x.shape[2:]))
        self._checked.add(key)

    def adapt(self, support_x: Samples, support_y: Labels) -> Predictor[State]:
        """Learns one task and leaves the module as it was.

        Args:
            support_x: ``(S, *shape)`` samples, floats, or a list of them; images in [0, 1].
            support_y: ``S`` labels of any kind (strings, integers, a tensor), or float targets to regress.

        Returns:
            A :class:`Predictor` with ``predict(x)`` and ``predict_proba(x)`` in the caller's own labels.

        Raises:
            UserError: no samples, unequal lengths, samples of a shape that the network was not built for, NaN, or more
                classes than the network has outputs.
        """
        samples = as_samples(support_x, "support_x")
        check_support(samples, support_y)
        samples = samples.to(self.device, floating_dtype(self))
        support_y = plain_labels(support_y)
        self.check_samples(tuple(samples.shape[1:]))
        found = len(classes_of(support_y))
        if self.num_outputs is not None and found > self.num_outputs:
            raise UserError(
                f"the support set has {found} classes, but this {type(self).__name__} was built for "
                f"{self.num_outputs}: leave classes out, or train with more ways."
            )
        targets = encode(support_y, self.device)
        if not found:
            self._check_regression(targets)
        with evaluating(self):
            state = self.fit_tasks(samples.unsqueeze(0), targets.unsqueeze(0))
        return Predictor(self, state, support_y)

    def _check_regression(self, targets: Tensor) -> None:
        """Refuses float targets that the method cannot learn.

        Raises:
            UserError: targets of another size than the outputs, not finite, or a method that only classifies.
        """
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
        """Labels the queries of a task that has no query labels."""
        predictor = self.adapt(batch.support_x, batch.support_labels)
        return Predictions(batch.files, predictor.classes, predictor.predict_proba(batch.query_x).cpu())

    def protocol(self) -> dict[str, Any]:
        """As of the base, and whether the method is transductive."""
        return super().protocol() | {"transductive": self.transductive}

    def baselines(self) -> dict[str, Baseline]:
        """1-nearest-neighbour on the raw inputs, and this method with untrained weights."""
        shape = getattr(getattr(self, "backbone", None), "in_shape", None)
        found: dict[str, Baseline] = {
            "pixel 1-NN" if shape is None or len(shape) == 3 else "1-NN": lambda episode: nearest_neighbor(
                episode.support_x, episode.support_y, episode.query_x
            )
        }
        twin = self.untrained_twin()
        if twin is not None:
            found["untrained"] = twin
        return found
