"""Parts of the outer loop: unused parameters, running statistics, divergence, and the compiled training step."""

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from metatransfer.batches import Episode, Inputs, map_inputs
from metatransfer.errors import UserError
from metatransfer.functional.meta import CompiledLoss, Params, first_divergence, known_gradients, replica, sample_axes

if TYPE_CHECKING:
    from metatransfer.methods.gradient.base import InnerLoopModule


class ReachesAllParameters(LightningModule):
    """Checks once per fit that every trainable parameter has a gradient."""

    _reached = False

    def on_train_start(self) -> None:
        """Resets the check."""
        super().on_train_start()
        self._reached = False

    def on_after_backward(self) -> None:
        """Checks the gradients of the first meta-batch."""
        if self._reached:
            return
        self._reached = True
        lost = [name for name, value in self.named_parameters() if value.requires_grad and value.grad is None]
        if lost:
            raise UserError(
                f"the loss of the first meta-batch does not depend on {', '.join(lost[:3])}{', …' * (len(lost) > 3)}, "
                "which would never be trained: use it in the network, or freeze it (requires_grad_(False))."
            )


@torch.no_grad()
def collect_statistics(module: "InnerLoopModule", support_x: Inputs) -> None:
    """Updates running averages with one pass over all support sets, as the inner loop changes no buffers."""
    if module.batch_norm != "running" or not module.training:
        return
    try:
        replica(module.network, module.parameters_at(0))(map_inputs(lambda x: x.flatten(0, 1), support_x))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            "batch_norm='running' needs more support samples per meta-batch than "
            f"{sample_axes(support_x, 2).numel()}: use more tasks or shots, or choose another norm."
        ) from error


def report_divergence(trajectory: list[Params], lr: float) -> None:
    """Raises an error that says where an inner loop diverged."""
    found = first_divergence(trajectory)
    if found is None:
        raise UserError(
            "the outer loss is NaN or infinite although all inner loops are finite: look for NaN in the queries, "
            "lower inner.lr, or set inner.max_norm. The weights were not updated."
        )
    step, task, name = found
    if step < 0:
        raise UserError(f"parameter {name} is NaN or infinite before the first inner step: start from finite weights.")
    raise UserError(
        f"the inner loop diverged: parameter {name} is NaN or infinite after inner step {step + 1} of "
        f"{len(trajectory) - 1} in task {task} of the meta-batch, at inner.lr={lr:g}; lower inner.lr, take fewer "
        "steps, set inner.max_norm, or look at that task's samples. The weights were not updated."
    )


def compiled_part_loss(module: "InnerLoopModule", part: Episode, trainable: Params) -> tuple[Tensor, Any, Tensor]:
    """``module.part_loss`` and its gradients as one compiled function; the loss can be differentiated once."""
    if module.compiled is None:
        module.compiled = CompiledLoss(lambda params, part: replica(module, params).part_loss(part))
    device = part.query_y.device.type
    key = module.compile_key(), torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    (loss, outputs, finite), gradients = module.compiled(trainable, part, key=key)
    return known_gradients(loss, gradients, list(trainable.values())), outputs, finite
