"""Base class of methods that train parts of their networks in turn."""

import contextlib
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from metatransfer.batches import DomainBatch
from metatransfer.errors import UserError
from metatransfer.methods.domain.adaptation import Pair
from metatransfer.methods.domain.base import DomainAdaptationModule


class AlternatingModule(DomainAdaptationModule):
    """A method that takes several optimiser steps per batch, each for a part of its networks.

    A subclass defines the optimisers (:meth:`make_optimizers`) and the steps of a batch (:meth:`learn`). Each loss must
    be stepped by one optimiser, as mixed precision requires. Schedulers are stepped per batch or epoch, not per
    optimiser step.
    """

    @property  # type: ignore[misc]
    def automatic_optimization(self) -> bool:
        """``False``: the method steps its optimisers itself."""
        return False

    # ---- what a method says

    @abstractmethod
    def make_optimizers(self) -> list[Optimizer]:
        """The optimisers; :meth:`descend` refers to them by index."""

    @abstractmethod
    def learn(self, batch: DomainBatch) -> tuple[Tensor, Tensor]:
        """Takes all steps of a batch; returns the loss and the source's logits ``(N, C)``."""

    def transfer_loss(self, pair: Pair) -> Tensor | None:
        """``None``: adaptation has its own steps."""
        return None

    # ---- what follows

    def descend(self, loss: Tensor, number: int = 0) -> None:
        """Takes one step of the optimiser with the given index; parameters without a gradient do not move."""
        found: Any = self.optimizers()
        optimizer: LightningOptimizer = found[number] if isinstance(found, list) else found
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def trainable(self, network: nn.Module, name: str) -> list[nn.Parameter]:
        """Parameters of a network that require a gradient; raises an error if there are none."""
        found = [parameter for parameter in network.parameters() if parameter.requires_grad]
        if not found:
            raise UserError(
                f"{type(self).__name__} trains its {name}, but all its parameters are frozen, or it has none: leave "
                "some of them free."
            )
        return found

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ANN401
        """All steps of a batch, and those of the schedulers."""
        loss = super().training_step(batch, batch_idx)
        assert loss is not None
        # before anything saves a checkpoint, as Lightning does it where it steps them
        ends = self.trainer.is_last_batch or batch_idx + 1 >= self.trainer.num_training_batches
        if self.annealing is not None or ends:
            schedulers: Any = self.lr_schedulers() or []
            for one in schedulers if isinstance(schedulers, list) else [schedulers]:
                one.step()
        return loss.detach()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The method's optimisers, each with its own scheduler."""
        optimizers = self.make_optimizers()
        if self.annealing is not None:
            return optimizers, [self.annealed(one) for one in optimizers]
        if self.lr_scheduler is None:
            return optimizers
        schedulers = [self.lr_scheduler(one) for one in optimizers]
        if any(isinstance(one, ReduceLROnPlateau | torch.optim.lr_scheduler.ReduceLROnPlateau) for one in schedulers):
            raise UserError(
                f"{type(self).__name__} steps its schedulers itself, without a metric: use another scheduler than "
                "ReduceLROnPlateau, or adaptation.annealing."
            )
        return optimizers, schedulers

    def configure_callbacks(self) -> list[Callback]:
        """Returns none; Lightning calls this first, so errors about the Trainer are raised before anything happens."""
        for name, unset in (("gradient_clip_val", 0), ("accumulate_grad_batches", 1)):
            value = getattr(self.trainer, name) or unset
            if self.trainer.training and value != unset:
                raise UserError(
                    f"{type(self).__name__} takes several optimiser steps for each batch and does not support "
                    f"trainer.{name}={value}: leave it out."
                )
        strategy = self.trainer.strategy
        parallel = self.trainer.training and isinstance(strategy, DDPStrategy)
        if parallel and not strategy._ddp_kwargs.get("find_unused_parameters"):  # type: ignore[attr-defined]
            raise UserError(
                f"{type(self).__name__} takes several optimiser steps for each batch, each for a part of its networks: "
                "with several processes, set trainer.strategy=ddp_find_unused_parameters_true."
            )
        return []


@contextlib.contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Within the block, computations give the network no gradient but may pass one through it."""
    free = nn.ParameterList(parameter for parameter in network.parameters() if parameter.requires_grad)
    free.requires_grad_(False)
    try:
        yield
    finally:
        free.requires_grad_(True)
