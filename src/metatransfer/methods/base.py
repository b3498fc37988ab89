"""The base of all methods."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, ClassVar, Self

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable

# private, but the only way to know whether the command line is building the module: saving the arguments twice would
# lose the plain form in which it gave them
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from metatransfer.arguments import INSTANTIATOR, RemembersArguments, class_path, plain_arguments
from metatransfer.batches import Inputs
from metatransfer.checks import check_state_dict
from metatransfer.data_info import info_of
from metatransfer.errors import UserError, explained
from metatransfer.host_memory import keep_freed_memory
from metatransfer.methods import checkpoints
from metatransfer.methods.evaluation.base import Baseline, EvaluatedModule, Evaluation
from metatransfer.methods.protocol import protocol_card
from metatransfer.methods.resuming import check_optimizers, check_progress
from metatransfer.methods.twins import Comparison, Entry, detached, drawing, redraw
from metatransfer.module_keys import weights_key
from metatransfer.nn import Backbone
from metatransfer.nn.weights import WeightsReport, weights_reports
from metatransfer.trust import checked_arguments


class MethodModule(RemembersArguments, EvaluatedModule, ABC):
    """Base class of all methods: a LightningModule with an evaluation, an optimiser, a scheduler and a protocol card.

    A subclass sets the type of its training batches (``learns_from``), defines the loss (:meth:`training_step`) and
    chooses the :class:`~metatransfer.methods.evaluation.Evaluation` that scores it.

    Args:
        evaluation: scores validation and test batches.
        optimizer: creates the optimiser from parameters, e.g. ``functools.partial(torch.optim.SGD, lr=0.1)``.
        lr_scheduler: creates the scheduler from the optimiser; it is stepped once per epoch. Defaults to none.

    Attributes:
        learns_from: type of the training batches.
        trained_protocol: the protocol card of the checkpoint that the weights were loaded from.
        run_seed: seed of the run, set by the command line.
        cannot_export: why the method cannot be exported as a function of its batches; empty if it can.
        comparison: what :meth:`twins` compares; ``None`` if the method has no twins.
        lr: learning rate that replaces that of ``optimizer``, as set by Lightning's ``LearningRateFinder``.
    """

    learns_from: ClassVar[type]
    comparison: ClassVar[Comparison | None] = None
    cannot_export: str = ""
    trained_protocol: dict[str, Any] | None = None
    run_seed: int | None = None
    lr: float | None = None

    def __init__(
        self,
        evaluation: Evaluation,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
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
        self.evaluation = evaluation
        self._checked: set[str] = set()
        self._rng_state: dict[str, Tensor] | None = None
        self._resumed: dict[str, Any] | None = None
        self._started_from: str | None = None

    @abstractmethod
    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:  # noqa: ANN401
        """Returns the loss of a training batch and logs it as ``train/loss``."""

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Builds the scheduler, and the optimiser over the parameters that require a gradient, at least one."""
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if not trainable:
            raise UserError(f"{type(self).__name__} has no parameter to train: all are frozen, or it has none.")
        optimizer = self.optimizer(trainable)
        for group in optimizer.param_groups if self.lr is not None else ():
            group["lr"] = self.lr
        return self.with_scheduler(optimizer)  # type: ignore[no-any-return]

    def with_scheduler(self, optimizer: Optimizer) -> Any:  # noqa: ANN401
        """The optimiser and the scheduler for it, as Lightning takes them."""
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        plateau = isinstance(scheduler, ReduceLROnPlateau)
        monitor = {"monitor": getattr(scheduler, "monitor", "val/loss")} if plateau else {}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **monitor}}

    def check_samples(self, x: Inputs) -> None:
        """Raises an error unless the network accepts samples ``(N, *shape)`` or texts; ``self.backbone`` decides."""
        backbone = getattr(self, "backbone", None)  # some methods have none
        if not isinstance(backbone, Backbone):
            return
        if isinstance(x, Tensor):
            backbone.check_input(tuple(x.shape[1:]))
        elif type(backbone).check_input is not Backbone.check_input or getattr(backbone, "in_shape", None) is not None:
            raise UserError(
                f"{type(backbone).__name__} takes tensors, but the data module serves texts: give it a network "
                "that reads texts, such as TokenAverage or HuggingFaceEncoder."
            )

    def protocol(self) -> dict[str, Any]:
        """Settings of the method for the protocol card; names starting with ``train_`` matter for training only."""
        return {"name": type(self).__name__}

    def baselines(self) -> dict[str, Baseline]:
        """Reference methods, evaluated on the same batches; by default those of the evaluation."""
        return self.evaluation.baselines(self)

    @torch.inference_mode(False)  # an evaluation asks for it, and weights made there can take part in no gradient
    def untrained_twin(self) -> Self | None:
        """A copy with new weights, always the same ones; ``None`` if a layer has no ``reset_parameters``."""
        twin = detached(self)
        try:
            with drawing(twin, 0):
                redraw(twin)
        except UserError:
            return None
        return twin.eval()

    @torch.inference_mode(False)
    def restarted(self, seed: int) -> Self:
        """A copy in its state before training: weights, except those of :meth:`kept_modules`, are drawn with the seed.

        Raises:
            UserError: a layer does not define ``reset_parameters``.
        """
        twin = detached(self)
        with drawing(twin, seed):
            redraw(twin, keep=twin.kept_modules())
            twin.after_restart()
        return twin

    def kept_modules(self) -> list[nn.Module]:
        """The parts whose weights :meth:`restarted` keeps; by default the networks with weights from a file."""
        return [self.get_submodule(name) for name in weights_reports(self)]

    def after_restart(self) -> None:
        """Resets buffers to their state before training, with random numbers of the seed; by default does nothing."""

    def twins(self, data: LightningDataModule, seed: int | None = None) -> dict[str, Entry]:
        """The method and what it is compared with, by name; by default none. See :attr:`comparison`.

        Args:
            data: what all of them are evaluated on.
            seed: seed of the initial weights of all; with ``None`` they start from the current weights.
        """
        return {}

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
        """Rebuilds a module from a checkpoint and loads its weights.

        The weight files of its training are not needed, unless the checkpoint leaves weights out. A base class, such as
        ``MethodModule``, loads the class that the checkpoint records, see also :func:`metatransfer.load`.

        Args:
            checkpoint_path: a file, a URL or an open file.
            map_location: as in ``torch.load``.
            hparams_file: not supported; pass arguments by name.
            strict: whether the names of the weights must match exactly.
            weights_only: ``False`` unpickles any object, which runs code contained in the file.
            trusted: packages that the checkpoint may import classes from, besides the known ones and those that are
                already imported.
            **kwargs: constructor arguments that replace those in the checkpoint; of a group given as a dict, such as
                ``inner={"steps": 10}``, only the named fields are replaced.

        Raises:
            UserError: the file is not a checkpoint, or names something that is not allowed, see
                :mod:`metatransfer.trust`.
        """
        if hparams_file is not None:
            raise UserError("hparams_file is not supported: give the constructor arguments by name.")
        weights_only = weights_only is not False
        content = checkpoints.read_checkpoint(checkpoint_path, weights_only)
        described = content.get(cls.CHECKPOINT_HYPER_PARAMS_KEY, {})
        if inspect.isabstract(cls):
            described = {"_class_path": checkpoints.recorded_class(content, checkpoint_path)} | described
        damaged = f"'{checkpoint_path}' does not record valid arguments of {cls.__name__}"
        remedy = "give a file that fit wrote, or pass the wrong argument by name"
        plain = explained(damaged, remedy, AttributeError, RuntimeError, TypeError, ValueError)
        with checkpoints.needed_files(content), plain:
            kind, arguments = checked_arguments(cls, checkpoints.replaced(described, kwargs), trusted)
            try:
                inspect.signature(kind).bind(**arguments)
            except TypeError as error:
                raise UserError(
                    f"'{checkpoint_path}' does not record all arguments ({error}): pass the missing one by name."
                ) from error
            # without an instantiator Lightning takes the arguments as they are, and interprets none from the file
            return super(MethodModule, kind).load_from_checkpoint(
                checkpoint_path, map_location, None, strict, weights_only, **arguments, _instantiator=None
            )

    def setup(self, stage: str) -> None:
        """Reports which weights come from files, makes checkpoints atomic, and prepares the evaluation for the data."""
        for name, report in weights_reports(self).items():
            if self._announced.get(name) is not report:
                self._announced[name] = report
                rank_zero_info(f"{name}: {report}")
        if type(self.trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # else the user has chosen one
            self.trainer.strategy.checkpoint_io = checkpoints.AtomicCheckpointIO()
        if self.trainer.strategy.root_device.type == "cpu":
            keep_freed_memory()
        self._checked.clear()
        if stage == "fit":  # a resumed run takes over that of its checkpoint
            self._started_from = weights_key(self)
        self.evaluation.setup(self, info_of(self) if stage != "predict" else None, stage)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the protocol card, the hash of the initial weights and, in one process, the random state."""
        checkpoint["class_path"] = class_path(type(self))
        if self._started_from is not None:
            checkpoint["started_from"] = self._started_from
        checkpoint["protocol"] = protocol_card(self)
        if self._trainer is None or self._trainer.world_size == 1:
            checkpoint["rng_state"] = {"cpu": torch.get_rng_state()}
            if self.device.type == "cuda":
                checkpoint["rng_state"]["cuda"] = torch.cuda.get_rng_state(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Reads what :meth:`on_save_checkpoint` added; raises an error if the weights belong to another network."""
        fitting = self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING
        checkpoints.check_checkpoint(checkpoint, resuming=fitting)
        if self._trainer is not None:
            check_progress(checkpoint, self._trainer)
        self._resumed = checkpoint if fitting else None
        own = self.state_dict()
        checkpoint["state_dict"] = checkpoints.renamed(checkpoint["state_dict"], own)
        check_state_dict(own, checkpoint["state_dict"], type(self).__name__)
        self.trained_protocol = checkpoint.get("protocol")
        self._started_from = checkpoint.get("started_from")
        for name in weights_reports(self):
            del self.get_submodule(name).weights_report  # the card says what these weights started from
        self._rng_state = checkpoint.get("rng_state")

    def on_fit_start(self) -> None:
        """Also checks the optimisers of a checkpoint, which Lightning reads next."""
        super().on_fit_start()
        if self._resumed is not None and self.trainer.strategy.lightning_restore_optimizer:
            check_optimizers(self._resumed, self.trainer)
        self._resumed = None

    def on_train_start(self) -> None:
        """Restores the random number generators of an interrupted run, so that resuming changes nothing."""
        super().on_train_start()
        if self._rng_state is not None and self.trainer.world_size == 1:
            torch.set_rng_state(self._rng_state["cpu"].cpu())
            if self.device.type == "cuda" and "cuda" in self._rng_state:
                torch.cuda.set_rng_state(self._rng_state["cuda"].cpu(), self.device)
            self._rng_state = None


def load(
    checkpoint: str | Path | IO[Any],
    *,
    trusted: Sequence[str] = (),
    **arguments: Any,  # noqa: ANN401
) -> MethodModule:
    """Rebuilds the module of a checkpoint, whatever its class, in evaluation mode and on the CPU.

    Args:
        checkpoint: a file, a URL or an open file.
        trusted: see :meth:`MethodModule.load_from_checkpoint`, which also lists the errors.
        **arguments: constructor arguments that replace those in the checkpoint.
    """
    return MethodModule.load_from_checkpoint(checkpoint, "cpu", trusted=trusted, **arguments).eval()
