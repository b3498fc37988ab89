"""Groups of arguments shared by several methods."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from metatransfer.batches import Inputs
from metatransfer.checks import check_choice, check_not_negative, check_positive
from metatransfer.errors import UserError
from metatransfer.functional.meta.batching import Batching, choose_batching


@dataclass(frozen=True)
class InnerLoop:
    """Gradient steps on the support set of a task.

    Attributes:
        steps: number of steps.
        lr: learning rate of a step.
        train_steps: number of steps in training, if it differs from ``steps``.
        train_lr: learning rate in training, if it differs from ``lr``.
        first_order: treat inner gradients as constants (FOMAML): faster, usually slightly less accurate.
        max_norm: largest norm of the gradients of a task in one step; no limit if ``None``.
        checkpoint: store only the parameters of each step and recompute the rest in the backward pass: slower, but uses
            less memory.

    Raises:
        UserError: an argument is out of range.
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
    """How the tasks of a meta-batch are computed. The results do not depend on it.

    Attributes:
        batching: ``"loop"`` over tasks, ``"threads"`` for one task per thread, ``"vmap"`` for all tasks as one larger
            operation, or ``"auto"`` for the fastest, see :func:`~metatransfer.functional.meta.choose_batching`.
        chunk_size: number of tasks at a time with vmap; all if ``None``.
        compile: compile the training step, including the outer gradient. Compilation takes 8 to 20 seconds. Small fully
            connected networks become about five times as fast; convolutions on a CPU do not. Forward hooks do not run.

    Raises:
        UserError: an argument is out of range.
    """

    batching: Literal["auto"] | Batching = "auto"
    chunk_size: int | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        check_positive(**{"execution.chunk_size": self.chunk_size})
        check_choice("execution.batching", self.batching, ("auto", "loop", "threads", "vmap"))

    def batching_for(self, network: nn.Module, x: Inputs) -> Batching:
        """The batching for a network and its inputs; resolves ``"auto"``."""
        return choose_batching(network, x) if self.batching == "auto" else self.batching


EXECUTION = Execution()


def check_unused(method: str, reason: str, **given: object) -> None:
    """Raises an error if an option that a method does not have is set."""
    for name, value in given.items():
        if value:
            raise UserError(f"{method} does not support {name}={value}, because {reason}: remove {name}.")
