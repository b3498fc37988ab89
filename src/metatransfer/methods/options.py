"""Groups of arguments that several methods share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from metatransfer.batches import Inputs
from metatransfer.checks import check_choice, check_not_negative, check_positive
from metatransfer.errors import UserError
from metatransfer.functional.meta.batching import Batching, choose_batching

__all__ = ["Execution", "InnerLoop"]


@dataclass(frozen=True)
class InnerLoop:
    """Gradient steps on the support set of a task.

    Attributes:
        steps: number of steps, in training and evaluation.
        lr: learning rate of a step.
        train_steps: number of steps in training, if it differs from ``steps``.
        train_lr: learning rate in training, if it differs from ``lr``.
        first_order: treat the inner gradients as constants (FOMAML): cheaper, usually slightly less accurate.
        max_norm: largest norm of a task's gradients in one step; ``None`` for no limit.
        checkpoint: recompute the steps in the backward pass instead of storing them: slower, but of each step only the
            parameters stay in memory.

    Raises:
        UserError: an argument outside its range.
    """

    steps: int
    lr: float
    train_steps: int | None = None
    train_lr: float | None = None
    first_order: bool = False
    max_norm: float | None = None
    checkpoint: bool = False

    def __post_init__(self) -> None:
        check_not_negative(**{"inner.steps": self.steps, "inner.train_steps": self.train_steps})
        rates = {"inner.lr": self.lr, "inner.train_lr": self.train_lr}
        check_positive(**rates, **{"inner.max_norm": self.max_norm})

    def steps_in(self, training: bool) -> int:
        """The number of steps in training or in evaluation."""
        return self.steps if not training or self.train_steps is None else self.train_steps

    def lr_in(self, training: bool) -> float:
        """The learning rate in training or in evaluation."""
        return self.lr if not training or self.train_lr is None else self.train_lr


@dataclass(frozen=True)
class Execution:
    """How the tasks of a meta-batch are computed; the results do not depend on it.

    Attributes:
        batching: ``"loop"`` over tasks, ``"threads"`` for as many at once as there are threads, ``"vmap"`` for all as
            one larger operation, or ``"auto"`` for the one that was measured to be faster, see
            :func:`metatransfer.functional.choose_batching`.
        chunk_size: number of tasks at a time with vmap; all if ``None``.
        compile: compile the training step, inner loop and outer gradient together, for the size of its meta-batches. It
            takes 8 to 20 seconds at the start and makes small fully connected networks about five times as fast;
            convolutions on a CPU gain nothing. Hooks do not see the outputs of layers.

    Raises:
        UserError: an argument outside its range.
    """

    batching: Literal["auto"] | Batching = "auto"
    chunk_size: int | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        check_positive(**{"execution.chunk_size": self.chunk_size})
        check_choice("execution.batching", self.batching, ("auto", "loop", "threads", "vmap"))

    def batching_for(self, network: nn.Module, x: Inputs) -> Batching:
        """The way through the tasks, which ``"auto"`` chooses by the network and the device of its inputs."""
        return choose_batching(network, x) if self.batching == "auto" else self.batching


EXECUTION = Execution()


def check_unused(method: str, reason: str, **given: object) -> None:
    """Raises an error for options that a method does not have.

    Raises:
        UserError: the first option that is set.
    """
    for name, value in given.items():
        if value:
            raise UserError(f"{method} has no {name}, but it is {value}: {reason}; leave {name} out.")
