"""Parameters that no task reaches."""

from __future__ import annotations

from lightning.pytorch import LightningModule

from metatransfer.errors import UserError


class ReachesAllParameters(LightningModule):
    """Checks at the first gradients of a fit that every trainable parameter has one."""

    _reached = False

    def on_train_start(self) -> None:
        """Prepares the check."""
        super().on_train_start()
        self._reached = False

    def on_after_backward(self) -> None:
        """Raises an error for parameters without a gradient, which would silently never be trained.

        Raises:
            UserError: a parameter without a gradient.
        """
        if self._reached:
            return
        self._reached = True
        lost = [name for name, value in self.named_parameters() if value.requires_grad and value.grad is None]
        if lost:
            raise UserError(
                f"no task of the first meta-batch reaches {', '.join(lost[:3])}{', …' * (len(lost) > 3)}: the loss "
                "does not depend on it, so it would never be trained; use it in the network, or freeze it "
                "(requires_grad_(False))."
            )
