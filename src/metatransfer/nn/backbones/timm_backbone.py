"""Any network of timm as a backbone."""

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
    """A network of timm without its classifier; needs the extra ``metatransfer[timm]``.

    Nothing is downloaded.

    Args:
        name: name of the network, with or without the tag of its weights (``resnet18.a1_in1k``).
        weights: ``None`` for random weights; ``default`` for timm's file in the local cache of Hugging Face; or a file,
            see :func:`metatransfer.nn.load_weights`.
        in_channels: channels of the images; defaults to those of the data on the command line, else to 3. Grey images
            are repeated over three channels. Other numbers exclude timm's weights.
        image_size: height and width of the images; defaults to that of the data on the command line, else to any.
        resize: height and width to which the network scales images, e.g. 224 for small images.
        mean: mean of each channel; defaults to that of the weights' training, or 0 without weights.
        std: standard deviation of each channel; defaults to that of the weights' training, or 1 without weights.

    Raises:
        UserError: timm is not installed, an unknown name, missing or unsuitable weights, or images that the network
            cannot process.
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
                f"weights 'default' of {name} take 3 channels (1 is repeated), but in_channels is {in_channels}: omit "
                "weights, or use images with 3 channels."
            )
        if getattr(config, "fixed_input_size", False):
            self.fixed_size = self.size_for(int(config.input_size[-1]), default)
        self.network = self.fresh_network()
        self.out_features = int(getattr(self.network, "head_hidden_size", None) or self.network.num_features)  # type: ignore[arg-type]
        known = getattr(config, "mean", IMAGENET_MEAN), getattr(config, "std", IMAGENET_STD)
        self.set_statistics(mean, std, ((0.0,), (1.0,)) if weights is None else known)
        # without the cache if a checkpoint will fill the network
        self.load_weights(_cached(name, config) if default and weight_files_are_read() else weights)
        self.check_size()

    def fresh_network(self) -> nn.Module:
        """The network without its classifier, with random weights."""
        size: dict[str, Any] = {} if self.fixed_size is None else {"img_size": self.fixed_size}
        if self.fixed_size == getattr(_config(_timm(), self.name), "input_size", (None,))[-1]:
            size = {}  # some networks do not accept the argument
        try:
            network: nn.Module = _timm().create_model(
                self.name, pretrained=False, num_classes=0, in_chans=self.channels, **size
            )
        except (RuntimeError, ValueError, AssertionError, TypeError) as error:
            wanted = f"images of {self.fixed_size}x{self.fixed_size}" if size else f"{self.channels} channels"
            reason = " ".join(str(error).split()).rstrip(".")[:120]
            raise UserError(
                f"timm cannot build {self.name} for {wanted} ({reason}): use another network"
                f"{', or set resize to its own size' if size else ''}."
            ) from error
        return network

    def network_maps(self, x: Tensor) -> Tensor | None:
        """The output of timm's ``forward_features``, if it has four dimensions."""
        maps: Tensor = self.network.forward_features(x)  # type: ignore[operator]
        if maps.dim() != 4:
            return None
        return maps.permute(0, 3, 1, 2) if getattr(self.network, "output_fmt", "NCHW") == "NHWC" else maps


def _timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise UserError("TimmBackbone needs timm: install the extra, pip install 'metatransfer[timm]'.") from error
    return timm


def _config(timm: ModuleType, name: str) -> Any:  # noqa: ANN401
    # image size, statistics and origin of the weights
    plain, _, tag = str(name).partition(".")
    if not timm.is_model(plain):
        raise UserError(f"timm has no network '{plain}'{did_you_mean(plain, timm.list_models())}")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{plain}.*")]
    if tag and tag not in tags:
        listed = ", ".join(known for known in tags if known) or "none"
        raise UserError(f"timm has no weights '{tag}' of {plain}{did_you_mean(tag, tags)} Known: {listed}.")
    return timm.get_pretrained_cfg(name)


def _cached(name: str, config: Any) -> Path:  # noqa: ANN401
    from huggingface_hub import try_to_load_from_cache  # a dependency of timm

    repository = getattr(config, "hf_hub_id", None)
    if not repository:
        raise UserError(f"timm has no weights of {name}: omit weights, or give a file.")
    for file in ("model.safetensors", "pytorch_model.bin"):
        path = try_to_load_from_cache(repository, file)
        if isinstance(path, str):
            return Path(path)
    raise UserError(
        f"weights 'default' of {name} are not in the local cache: run 'hf download {repository} model.safetensors' "
        "on a machine with internet access, or give a file."
    )
