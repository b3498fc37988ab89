"""Any network of timm as a backbone."""

from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from metatransfer.checks import did_you_mean
from metatransfer.errors import UserError, explained
from metatransfer.nn.backbones.image_backbone import IMAGENET_MEAN, IMAGENET_STD, ImageBackbone, Known


class TimmBackbone(ImageBackbone):
    """A network of timm without its classifier; needs the extra ``metatransfer[timm]``.

    The arguments are those of :class:`ImageBackbone`: ``name`` may have the tag of its weights (``resnet18.a1_in1k``),
    and the weights ``default`` are timm's file in the local cache of Hugging Face.
    """

    def known(self, weights: str | None) -> Known:
        """Size and statistics of timm's weights."""
        config = _config(self.name)
        size = int(config.input_size[-1]) if getattr(config, "fixed_input_size", False) else None
        mean, std = getattr(config, "mean", IMAGENET_MEAN), getattr(config, "std", IMAGENET_STD)
        return Known(weights == "default", size, mean, std)

    def fresh_network(self) -> nn.Module:
        """The network without its classifier, with random weights."""
        size: dict[str, Any] = {} if self.fixed_size is None else {"img_size": self.fixed_size}
        if self.fixed_size == getattr(_config(self.name), "input_size", (None,))[-1]:
            size = {}  # some networks do not accept the argument
        wanted = f"images of {self.fixed_size}x{self.fixed_size}" if size else f"{self.channels} channels"
        remedy = f"use another network{', or set resize to its own size' if size else ''}"
        kinds = RuntimeError, ValueError, AssertionError, TypeError
        with explained(f"timm cannot build {self.name} for {wanted}", remedy, *kinds):
            network: nn.Module = _timm().create_model(
                self.name, pretrained=False, num_classes=0, in_chans=self.channels, **size
            )
        self.out_features = int(getattr(network, "head_hidden_size", None) or network.num_features)  # type: ignore[arg-type]
        return network

    def named_file(self, weights: str, download: bool) -> Path:
        """The file in the cache of Hugging Face."""
        from huggingface_hub import hf_hub_download, try_to_load_from_cache  # a dependency of timm

        repository = getattr(_config(self.name), "hf_hub_id", None)
        if not repository:
            raise UserError(f"timm has no weights of {self.name}: omit weights, or give a file.")
        for file in ("model.safetensors", "pytorch_model.bin"):
            path = try_to_load_from_cache(repository, file)
            if isinstance(path, str):
                return Path(path)
        if not download:
            raise UserError(
                f"weights '{weights}' of {self.name} are not in the local cache: run 'hf download {repository} "
                "model.safetensors' on a machine with internet access, set download: true, or give a file."
            )
        try:
            return Path(hf_hub_download(repository, "model.safetensors"))
        except Exception as error:  # many types of errors
            raise UserError(
                f"weights '{weights}' of {self.name} could not be downloaded from {repository} "
                f"({type(error).__name__}): download them on another machine, and give the file."
            ) from error

    def network_maps(self, x: Tensor) -> Tensor | None:
        """The output of timm's ``forward_features``, if it has four dimensions."""
        maps: Tensor = self.network.forward_features(x)  # type: ignore[operator]
        if maps.dim() != 4:
            return None
        return maps.permute(0, 3, 1, 2) if getattr(self.network, "output_fmt", "NCHW") == "NHWC" else maps


def _timm() -> ModuleType:
    extra = "install the extra, pip install 'metatransfer[timm]'"
    with explained("TimmBackbone needs timm", extra, ImportError, quoted=False):
        import timm
    return timm


def _config(name: str) -> Any:  # noqa: ANN401
    # image size, statistics and origin of the weights
    timm = _timm()
    plain, _, tag = str(name).partition(".")
    if not timm.is_model(plain):
        raise UserError(f"timm has no network '{plain}'{did_you_mean(plain, timm.list_models())}")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{plain}.*")]
    if tag and tag not in tags:
        listed = ", ".join(known for known in tags if known) or "none"
        raise UserError(f"timm has no weights '{tag}' of {plain}{did_you_mean(tag, tags)} Known: {listed}.")
    return timm.get_pretrained_cfg(name)
