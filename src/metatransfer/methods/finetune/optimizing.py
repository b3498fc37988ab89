"""Optimisers and schedulers with a separate learning rate for each group of parameters."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, LRScheduler, OneCycleLR

from metatransfer.errors import UserError


def scale_groups(optimizer: Optimizer) -> None:
    """Applies ``lr_scale`` and ``decays`` of each group to its learning rate and weight decay."""
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * group["lr_scale"]
        if not group["decays"] and "weight_decay" in group:
            group["weight_decay"] = 0.0


def linear_warmup(optimizer: Optimizer, fraction: float, steps: float) -> LambdaLR:
    """Learning rates that rise linearly over a fraction of the run and fall linearly over the rest."""
    if steps == float("inf"):
        raise UserError("warmup_fraction needs a run of known length: set trainer.max_epochs or trainer.max_steps.")
    rise = max(1, round(fraction * steps))
    return LambdaLR(optimizer, lambda step: min((step + 1) / rise, max(0.0, (steps - step) / max(1.0, steps - rise))))


def keep_proportions(scheduler: LRScheduler, optimizer: Optimizer) -> None:
    """Restores the proportions of the groups in schedulers that set the same rate for all."""
    if isinstance(scheduler, OneCycleLR):
        for group in optimizer.param_groups:
            for key in ("initial_lr", "max_lr", "min_lr", "lr"):
                group[key] = group[key] * group["lr_scale"]
    elif isinstance(scheduler, CyclicLR):
        scales = [group["lr_scale"] for group in optimizer.param_groups]
        scheduler.base_lrs = [rate * scale for rate, scale in zip(scheduler.base_lrs, scales, strict=True)]
        scheduler.max_lrs = [rate * scale for rate, scale in zip(scheduler.max_lrs, scales, strict=True)]
        for group, rate in zip(optimizer.param_groups, scheduler.base_lrs, strict=True):
            group["lr"] = group["initial_lr"] = rate
