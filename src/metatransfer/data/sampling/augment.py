"""Augmentations and fixed transforms of samples, in batch on the device."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metatransfer.batches import Inputs
from metatransfer.checks import check_choice, check_not_negative
from metatransfer.errors import UserError
from metatransfer.functional.random import Bits, random_uniforms
from metatransfer.module_keys import shown


class Augmentation:
    """A random transform of a batch of samples.

    Subclasses set ``num_random`` and define ``__call__``. The random numbers come from the episode's own stream, so
    that an augmented episode is still a pure function of (seed, split, index).

    Attributes:
        num_random: number of random numbers per sample.
    """

    num_random: int

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in sorted(vars(self).items()))
        return f"{type(self).__name__}({settings})"

    def batch(self, x: Tensor, keys: Bits) -> Tensor:
        """Transforms the samples of a batch of tasks, ``(T, N, *shape)``, with ``(T,)`` random streams."""
        count = x.shape[1] * self.num_random
        u = torch.from_numpy(random_uniforms(keys, count)).to(x.device).view(-1, self.num_random)
        return by_sample(lambda samples: self(samples, u), x)

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """Transforms samples.

        Args:
            x: ``(N, *shape)`` float.
            u: ``(N, num_random)`` uniform in [0, 1).

        Returns:
            ``(N, *shape)``.
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__(x, u)")


class RandomAffine(Augmentation):
    """Rotates, scales, shears and shifts each image by its own random amounts, bilinearly, with zero padding.

    Args:
        degrees: maximum rotation in degrees, in both directions.
        translate: maximum shift as a fraction of the image size, in both directions.
        scale: zoom between ``1 / (1 + scale)`` and ``1 + scale``.
        shear: tangent of the maximum horizontal shear, in both directions.
    """

    num_random = 5

    def __init__(self, degrees: float = 10.0, translate: float = 0.05, scale: float = 0.1, shear: float = 0.1) -> None:
        check_not_negative(degrees=degrees, translate=translate, scale=scale, shear=shear)
        if translate >= 1:
            raise UserError(f"translate is a fraction of the image and must be below 1, but is {translate}.")
        self.degrees, self.translate, self.scale, self.shear = degrees, translate, scale, shear

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """Transforms images ``(N, C, H, W)`` with ``u`` of shape ``(N, 5)``."""
        sign = 2 * u - 1
        angle = sign[:, 0] * math.radians(self.degrees)
        zoom = torch.exp(-sign[:, 1] * math.log1p(self.scale))
        shear = sign[:, 2] * self.shear
        cos, sin = angle.cos() * zoom, angle.sin() * zoom
        # the grid runs from -1 to 1 along both sides, but an oblong image is rotated in pixels
        aspect = x.shape[-2] / x.shape[-1]
        rows = [cos, (cos * shear - sin) * aspect, sin / aspect, sin * shear + cos]
        linear = torch.stack(rows, dim=1).view(-1, 2, 2)
        # affine_grid maps positions of the result to positions of the source, so a shift of the result is undone first
        shift = linear @ (2 * self.translate * sign[:, 3:5]).unsqueeze(-1)
        theta = torch.cat([linear, shift], dim=2)
        grid = F.affine_grid(theta.to(x.dtype), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)


class TorchvisionTransforms(Augmentation):
    """Random transforms of torchvision (``torchvision.transforms.v2``), in batch on the device.

    The random number generator is seeded anew for each image or episode, so that an episode does not depend on what
    came before it; the global generator keeps its state.

    Args:
        transforms: applied in order, e.g. ``torchvision.transforms.v2.RandomHorizontalFlip()``.
        each: ``"image"``: every image is transformed independently; ``"episode"``: all support images of an episode
            share one random transform and all its queries another, which takes a single call and is much faster.

    Raises:
        UserError: no transforms, or an unknown value of ``each``.
    """

    num_random = 2

    def __init__(self, transforms: list[nn.Module], each: Literal["image", "episode"] = "image") -> None:
        check_choice("each", each, ("image", "episode"))
        if not transforms:
            raise UserError(
                "transforms is empty: give transforms of torchvision.transforms.v2, or leave the augmentation out."
            )
        self.transforms = list(transforms)
        self.each = each

    def batch(self, x: Tensor, keys: Bits) -> Tensor:
        """Transforms the samples of a batch of tasks, ``(T, N, *shape)``."""
        if self.each == "image":
            return super().batch(x, keys)
        u = torch.from_numpy(random_uniforms(keys, self.num_random))
        return self._stacked([self._seeded(task, numbers) for task, numbers in zip(x, u, strict=True)])

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """Transforms images ``(N, C, H, W)`` one by one with ``u`` of shape ``(N, 2)``."""
        return self._stacked([self._seeded(image, numbers) for image, numbers in zip(x, u.cpu(), strict=True)])

    def _seeded(self, x: Tensor, u: Tensor) -> Tensor:
        high, low = (int(number * 2**24) for number in u.tolist())
        with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
            torch.manual_seed(high << 24 | low)
            return apply_transforms(self.transforms, x)

    def _stacked(self, changed: list[Tensor]) -> Tensor:
        shapes = {tuple(one.shape) for one in changed}
        if len(shapes) > 1:
            raise UserError(
                f"transforms give images of different sizes, {sorted(shapes)}, which do not fit into one episode: end "
                "them with a Resize or a crop to one size."
            )
        return torch.stack(changed)


def apply_transforms(transforms: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Applies transforms in order."""
    for transform in transforms:
        shape = tuple(x.shape)
        try:
            x = transform(x)
        except Exception as error:
            raise UserError(f"the transform {transform} fails on images of shape {shape}: {error}") from error
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise UserError(
                f"the transform {transform} returns {kind}, but samples must stay float tensors: leave it out."
            )
    return x


def check_deterministic(transforms: Sequence[nn.Module]) -> None:
    """Raises an error for random transforms: evaluation needs fixed ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for transform in transforms:
            x = torch.rand(3, 64, 64)
            try:
                results = [transform(x) for _ in range(12)]
            except Exception:
                continue  # needs other shapes: it is tried on real samples later
            first = results[0]
            if any(isinstance(one, Tensor) and (one.shape != first.shape or not one.equal(first)) for one in results):
                raise UserError(
                    f"transform contains {transform}, which is random, but it is applied in evaluation too: give it as "
                    "augmentation, TorchvisionTransforms, which is applied to training samples only."
                )


def by_sample(change: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Applies a function of ``(N, *shape)`` to a batch of tasks ``(T, N, *shape)``."""
    changed = change(x.flatten(0, 1))
    return changed.view(*x.shape[:2], *changed.shape[1:])


@dataclass(frozen=True)
class Changes:
    """Applied to samples after they were read: a random augmentation, then fixed transforms, in batch."""

    augmentation: Augmentation | None = None
    transform: tuple[nn.Module, ...] = ()

    def __call__(self, x: Inputs, keys: Callable[[], Bits]) -> Inputs:
        """Processes the samples of a batch of tasks."""
        for name, given in (("augmentation", self.augmentation), ("transform", self.transform)):
            if given and not isinstance(x, Tensor):
                raise UserError(f"{name} is for images and vectors, but these samples are texts: leave it out.")
        if not isinstance(x, Tensor):
            return x
        if self.augmentation is not None:
            x = self.augmentation.batch(x, keys())
        return by_sample(lambda samples: apply_transforms(self.transform, samples), x) if self.transform else x

    def each(self, x: Inputs, keys: Callable[[], Bits]) -> Inputs:
        """Processes samples ``(N, *shape)``, each with a random stream of its own."""
        changed = self(x.unsqueeze(1) if isinstance(x, Tensor) else x, keys)
        return changed.squeeze(1) if isinstance(changed, Tensor) else changed

    def fixed(self) -> "Changes":
        """The same without augmentation."""
        return Changes(None, self.transform)

    def card(self) -> dict[str, object]:
        """For the protocol card."""
        return {
            "augmentation": repr(self.augmentation) if self.augmentation is not None else "none",
            "transform": [shown(one) for one in self.transform] or "none",
        }


class RowSum(nn.Module):
    """Divides every sample by the sum of its values, so that counts become frequencies; samples with sum 0 are kept.

    The first step of the usual protocol of Office-Caltech10's SURF features (Gong et al. 2012); z-scores follow.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Divides each sample of ``x`` ``(N, *shape)`` by its sum."""
        total = x.flatten(1).sum(1).view(-1, *[1] * (x.dim() - 1))
        return x / torch.where(total == 0, torch.ones_like(total), total)


_NORMS = {"l2": 2.0, "l1": 1.0, "max": math.inf}


class UnitLength(nn.Module):
    """Divides every sample by its norm, like scikit-learn's ``Normalizer``; samples of norm 0 are kept.

    Args:
        norm: ``"l2"`` (Euclidean length), ``"l1"`` (sum of absolute values) or ``"max"`` (largest absolute value).
    """

    def __init__(self, norm: Literal["l2", "l1", "max"] = "l2") -> None:
        super().__init__()
        check_choice("norm", norm, tuple(_NORMS))
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Divides each sample of ``x`` ``(N, *shape)`` by its norm."""
        size = torch.linalg.vector_norm(x.flatten(1), ord=_NORMS[self.norm], dim=1).view(-1, *[1] * (x.dim() - 1))
        return x / torch.where(size == 0, torch.ones_like(size), size)

    def __repr__(self) -> str:
        return f"UnitLength('{self.norm}')"


class Standardize(nn.Module):
    """Z-scores: ``(x - mean) / deviation``, feature by feature; images channel by channel.

    Features are the first axis of a sample; ``mean`` and ``deviation`` are ``(D,)`` float64. The deviation is that of
    the population (divided by N). A feature that is constant in the fitted samples becomes 0.

    Attributes:
        constant: number of constant features.
    """

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.mean, self.deviation = mean, deviation
        self.constant = int((deviation == 0).sum())

    @classmethod
    def of(cls, chunks: Iterable[Tensor]) -> "Standardize":
        """Fits the statistics in float64 in one pass (Chan, Golub and LeVeque 1979)."""
        count, low, high = 0, torch.tensor(torch.inf), torch.tensor(-torch.inf)
        mean = squares = torch.zeros((), dtype=torch.float64)
        for chunk in chunks:
            values = chunk.double().transpose(0, 1).flatten(1)  # (D, n), where pixels of images count as samples
            size, own = values.shape[1], values.mean(1)
            shift = own - mean
            mean = mean + shift * (size / (count + size))
            squares = squares + (values - own[:, None]).square().sum(1)
            squares = squares + shift.square() * (count * size / (count + size))
            low, high = torch.minimum(low, values.amin(1)), torch.maximum(high, values.amax(1))
            count += size
        # rounding may give a constant feature a tiny deviation, which would blow up other values
        deviation = torch.where(low == high, torch.zeros_like(squares), (squares / max(1, count)).sqrt())
        return cls(mean, deviation)

    def __repr__(self) -> str:
        return f"Standardize({len(self.mean)} features)"

    def forward(self, x: Tensor) -> Tensor:
        """Standardises."""
        scale = torch.where(self.deviation == 0, self.deviation, 1 / self.deviation)
        mean, scale = (one.to(x.device, x.dtype).view(-1, *[1] * (x.dim() - 2)) for one in (self.mean, scale))
        return (x - mean) * scale
