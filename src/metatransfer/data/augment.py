"""Augmentations in batch, on the device, and as reproducible as the episodes: random numbers are handed to them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from metatransfer.checks import check_positive
from metatransfer.errors import UserError


class Augmentation:
    """A random change of a batch of samples.

    Subclasses set ``num_random`` and write ``__call__``. The random numbers come from the episode's own stream, so that
    an augmented episode is still a pure function of (seed, split, index).

    Attributes:
        num_random: random numbers needed for each sample.
    """

    num_random: int

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in sorted(vars(self).items()))
        return f"{type(self).__name__}({settings})"

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """Changes samples.

        Args:
            x: ``(N, *shape)`` float.
            u: ``(N, num_random)`` uniform in [0, 1).

        Returns:
            ``(N, *shape)``.
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__(x, u)")


class RandomAffine(Augmentation):
    """Rotates, scales, shears and shifts each image by its own random amounts, bilinearly, with 0 outside.

    Args:
        degrees: rotation up to this many degrees either way.
        translate: shift up to this fraction of the image's size either way.
        scale: zoom between ``1 / (1 + scale)`` and ``1 + scale``.
        shear: horizontal shear up to this tangent either way.

    Raises:
        UserError: a negative amount, or ``translate`` of 1 or more.
    """

    num_random = 5

    def __init__(self, degrees: float = 10.0, translate: float = 0.05, scale: float = 0.1, shear: float = 0.1) -> None:
        check_positive(degrees=degrees or None, translate=translate or None, scale=scale or None, shear=shear or None)
        if translate >= 1:
            raise UserError(f"translate is a fraction of the image and must be below 1, but is {translate}.")
        self.degrees, self.translate, self.scale, self.shear = degrees, translate, scale, shear

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """Changes images ``(N, C, H, W)`` with ``u`` of shape ``(N, 5)``."""
        sign = 2 * u - 1
        angle = sign[:, 0] * math.radians(self.degrees)
        zoom = torch.exp(-sign[:, 1] * math.log1p(self.scale))
        shear = sign[:, 2] * self.shear
        cos, sin = angle.cos() * zoom, angle.sin() * zoom
        # the grid runs from -1 to 1 along both sides: an oblong image is turned in pixels, not in units of its sides
        aspect = x.shape[-2] / x.shape[-1]
        linear = torch.stack(
            [cos, (cos * shear - sin) * aspect, sin / aspect, sin * shear + cos],
            dim=1,
        ).view(-1, 2, 2)
        # affine_grid maps places of the result to places of the source, so a shift of the result is undone first
        shift = linear @ (2 * self.translate * sign[:, 3:5]).unsqueeze(-1)
        theta = torch.cat([linear, shift], dim=2)
        grid = F.affine_grid(theta.to(x.dtype), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)
