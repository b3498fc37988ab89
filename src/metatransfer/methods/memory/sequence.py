"""Base class of methods that read the support set as a sequence."""

from typing import TypeVar

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable

from metatransfer.checks import check_count
from metatransfer.errors import UserError
from metatransfer.methods.embedding import OrderedModule
from metatransfer.nn import Backbone

State = TypeVar("State")


class SequenceModule(OrderedModule[State]):
    """Base class of methods that read the support set as a sequence, with labels as codes of fixed size.

    Their answers depend on the order of the support set, see :class:`~metatransfer.methods.embedding.OrderedModule`.

    Args:
        backbone: the embedding of the samples.
        num_outputs: number of ways, which the code of the labels fixes.
        orders: number of orders in evaluation, at least 2.
        optimizer: creates the optimiser.
        lr_scheduler: creates its scheduler.

    Raises:
        UserError: no number of ways, or a single order.
    """

    order_sensitive: bool = True

    def __init__(
        self,
        backbone: Backbone,
        num_outputs: int | None,
        orders: int = 4,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(backbone, orders, True, optimizer, lr_scheduler)
        if num_outputs is None:
            raise UserError(
                f"{type(self).__name__} needs num_outputs, the number of ways, since it reads labels as codes of fixed "
                "size: give it, or use data whose episodes have a number of ways."
            )
        check_count(num_outputs=num_outputs)
        self.num_outputs: int = num_outputs
