"""Steps of the outer loop: running statistics, and the report of an inner loop that diverged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.func import functional_call

from metatransfer.batches import Inputs, map_inputs
from metatransfer.errors import UserError
from metatransfer.functional.meta.divergence import first_divergence
from metatransfer.functional.meta.inputs import sample_axes
from metatransfer.functional.meta.update_rules import Params

if TYPE_CHECKING:
    from metatransfer.methods.gradient.base import InnerLoopModule


@torch.no_grad()
def collect_statistics(module: InnerLoopModule, support_x: Inputs) -> None:
    """Updates running averages by one plain pass over all support sets: the inner loop itself changes no buffer.

    Raises:
        UserError: too few samples for a variance.
        ValueError: any other error of the network.
    """
    if module.batch_norm != "running" or not module.training:
        return
    try:
        functional_call(module.network, module.parameters_at(0), (map_inputs(lambda x: x.flatten(0, 1), support_x),))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"batch_norm='running' collects statistics of all support samples of a meta-batch, and "
            f"{sample_axes(support_x, 2).numel()} is too few for it: serve more tasks or shots, or choose another norm."
        ) from error


def report_divergence(trajectory: list[Params], lr: float) -> None:
    """Says where an inner loop diverged.

    Raises:
        UserError: always.
    """
    found = first_divergence(trajectory)
    if found is None:
        raise UserError(
            "the outer loss is NaN or infinite though every inner loop stayed finite: look for NaN among the queries, "
            "lower inner.lr, or set inner.max_norm. The weights were not updated."
        )
    step, task, name = found
    if step < 0:
        raise UserError(
            f"parameter {name} holds NaN or infinity before the first inner step: start again from finite weights."
        )
    raise UserError(
        f"the inner loop diverged: parameter {name} is NaN or infinite after inner step {step + 1} of "
        f"{len(trajectory) - 1} in task {task} of the meta-batch, at inner.lr={lr:g}; lower inner.lr, take fewer "
        "steps, set inner.max_norm, or look at that task's samples. The weights were not updated."
    )
