"""Any network of timm as a backbone, with weights of local files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from metatransfer.checks import did_you_mean
from metatransfer.errors import UserError
from metatransfer.nn.backbones.image_backbone import IMAGENET_MEAN, IMAGENET_STD, ImageBackbone
from metatransfer.nn.weights import weight_files_are_read


class TimmBackbone(ImageBackbone):
    """A network of timm without its classifier, pooled as it is for the classifier; needs ``metatransfer[timm]``.

    Nothing is fetched from the network.

    Args:
        name: of the network, with or without the tag of its weights: ``vit_tiny_patch16_224.augreg_in21k_ft_in1k``.
        weights: ``None`` for random ones; ``default`` for timm's file in the local cache of Hugging Face; else a file
            of weights, see :func:`metatransfer.nn.load_weights`.
        in_channels: channels of the images; where left out those of the data, on the command line, else 3. Grey images
            are repeated over three channels; other numbers are only for networks without timm's weights.
        image_size: height and width of the images; where left out that of the data, else any.
        resize: height and width that images are scaled to in the network, e.g. 224 for small images.
        mean: subtracted from the images, for each channel; where left out what timm trained the network with, 0 without
            weights.
        std: divides the images; where left out likewise, 1 without weights.

    Raises:
        UserError: no timm, an unknown name, weights that are not there or do not fit, or images that the network does
            not take.
    """

    def __init__(
        self,
        name: str,
        weights: str | None = None,
        in_channels: int | None = None,
        image_size: int | None = None,
        resize: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        config = _config(_timm(), name)
        self.name = name
        self.set_input(in_channels, image_size, resize)
        default = weights == "default"
        if default and self.channels != 3:
            raise UserError(
                f"weights 'default' of {name} take 3 channels (1 is repeated), but in_channels is {in_channels}: leave "
                "weights out, or give images of 3 channels."
            )
        if getattr(config, "fixed_input_size", False):
            self.fixed_size = self.size_for(int(config.input_size[-1]), default)
        self.network = self.fresh_network()
        self.out_features = int(getattr(self.network, "head_hidden_size", None) or self.network.num_features)  # type: ignore[arg-type]
        known = getattr(config, "mean", IMAGENET_MEAN), getattr(config, "std", IMAGENET_STD)
        self.set_statistics(mean, std, ((0.0,), (1.0,)) if weights is None else known)
        # a checkpoint that is about to fill the network needs no cache
        self.load_weights(_cached(name, config) if default and weight_files_are_read() else weights)
        self.check_size()

    def fresh_network(self) -> nn.Module:
        """The network without its classifier, with random weights.

        Raises:
            UserError: it cannot be built for this size or these channels.
        """
        size: dict[str, Any] = {} if self.fixed_size is None else {"img_size": self.fixed_size}
        if self.fixed_size == getattr(_config(_timm(), self.name), "input_size", (None,))[-1]:
            size = {}  # not every network that takes one size only can be built for another
        try:
            network: nn.Module = _timm().create_model(
                self.name, pretrained=False, num_classes=0, in_chans=self.channels, **size
            )
        except (RuntimeError, ValueError, AssertionError, TypeError) as error:
            wanted = f"images of {self.fixed_size}x{self.fixed_size}" if size else f"{self.channels} channels"
            reason = " ".join(str(error).split()).rstrip(".")[:120]
            raise UserError(
                f"timm cannot build {self.name} for {wanted} ({reason}): take another network"
                f"{', or set resize to its own size' if size else ''}."
            ) from error
        return network

    def network_maps(self, x: Tensor) -> Tensor | None:
        """The output of timm's ``forward_features``, if that is maps."""
        maps: Tensor = self.network.forward_features(x)  # type: ignore[operator]
        if maps.dim() != 4:
            return None
        return maps.permute(0, 3, 1, 2) if getattr(self.network, "output_fmt", "NCHW") == "NHWC" else maps


def _timm() -> ModuleType:
    """The package timm, imported where it is needed.

    Raises:
        UserError: it is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise UserError("TimmBackbone needs timm: install the extra, pip install 'metatransfer[timm]'.") from error
    return timm


def _config(timm: ModuleType, name: str) -> Any:  # noqa: ANN401
    """What timm knows of a network: size, statistics and where its weights are.

    Raises:
        UserError: it knows no such network or no such weights.
    """
    plain, _, tag = str(name).partition(".")
    if not timm.is_model(plain):
        raise UserError(f"timm has no network '{plain}'{did_you_mean(plain, timm.list_models())}")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{plain}.*")]
    if tag and tag not in tags:
        listed = ", ".join(known for known in tags if known) or "none"
        raise UserError(f"timm has no weights '{tag}' of {plain}{did_you_mean(tag, tags)} Known: {listed}.")
    return timm.get_pretrained_cfg(name)


def _cached(name: str, config: Any) -> Path:  # noqa: ANN401
    """The file of timm's weights in the local cache of Hugging Face.

    Raises:
        UserError: it is not there.
    """
    from huggingface_hub import try_to_load_from_cache  # comes with timm

    repository = getattr(config, "hf_hub_id", None)
    if not repository:
        raise UserError(f"timm has no weights of {name}: leave weights out, or give a file.")
    for file in ("model.safetensors", "pytorch_model.bin"):
        path = try_to_load_from_cache(repository, file)
        if isinstance(path, str):
            return Path(path)
    raise UserError(
        f"weights 'default' of {name} are not in the local cache: run 'hf download {repository} model.safetensors' "
        "where there is a network, or give a file."
    )
