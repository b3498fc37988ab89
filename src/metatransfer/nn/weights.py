"""Loading the weights of one network into another, with a report on every tensor."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metatransfer.checks import check_file
from metatransfer.errors import UserError, explained
from metatransfer.model_folders import find_weights_file
from metatransfer.nn.layouts import translated, with_changes

__all__ = ["WeightsReport", "load_weights"]

_COMPILED = "_orig_mod."  # added by torch.compile
_WRAPPERS = {"backbone", "model", "module", "network"}  # of methods, Lightning modules, DistributedDataParallel, ...
_NESTED = ("state_dict", "model_state_dict", "model", "network")  # where files keep the state_dict beside other things
_unread: ContextVar[bool] = ContextVar("_unread", default=False)


class WeightsReport(NamedTuple):
    """Which tensors of a file were loaded into a network.

    Attributes:
        file: name of the file, without the folder.
        sha256: checksum of the file.
        kept: tensors that were loaded.
        dropped: tensors of the file that were not loaded, each with the reason.
        new: tensors of the network that the file does not hold, or in another shape; they are unchanged.
    """

    file: str
    sha256: str
    kept: tuple[str, ...]
    dropped: dict[str, str]
    new: tuple[str, ...]

    def card(self) -> dict[str, Any]:
        """File, checksum and counts, for the protocol card."""
        counts = {"kept": len(self.kept), "dropped": len(self.dropped), "new": len(self.new)}
        return {"file": self.file, "sha256": self.sha256, **counts}

    def __str__(self) -> str:
        lines = {"dropped": [f"{name} ({reason})" for name, reason in self.dropped.items()], "new": self.new}
        title = ", ".join([f"{len(self.kept)} kept", *(f"{len(names)} {word}" for word, names in lines.items())])
        listed = "".join(f"\n  {word}: {', '.join(names)}" for word, names in lines.items() if names)
        return f"weights of '{self.file}' (sha256 {self.sha256[:12]}): {title}{listed}"


@contextmanager
def no_weight_files() -> Iterator[None]:
    """Within the block, networks are built without weight files, because a checkpoint will fill them."""
    token = _unread.set(True)
    try:
        yield
    finally:
        _unread.reset(token)


SHIPPED = {"glyphs": Path(__file__).parent / "pretrained" / "conv4_glyphs.safetensors"}
"""Weights that come with the package; ``configs/glyphs/pretrain.yaml`` trains them."""


def weight_files_are_read() -> bool:
    """Whether networks currently read their weight files, see :func:`no_weight_files`."""
    return not _unread.get()


def weights_reports(module: nn.Module) -> dict[str, WeightsReport]:
    """The reports of all networks in a module that loaded weights from a file."""
    found = {name: getattr(part, "weights_report", None) for name, part in module.named_modules()}
    return {name: report for name, report in found.items() if isinstance(report, WeightsReport)}


def load_weights(network: nn.Module, path: str | Path) -> WeightsReport:
    """Loads those weights of a file that match a network by name and shape.

    Args:
        network: changed in place.
        path: a Lightning checkpoint, a ``state_dict``, a dictionary that holds one (``{"model": ...}``), or a
            ``.safetensors`` file; ``"glyphs"``, weights of the default ``Conv4`` that come with the package; or
            ``"package:NAME"``, the file of weights in an installed Python package. Names may have the prefixes of
            wrappers: ``backbone.``, ``model.``, ``module.``, ``_orig_mod.`` and combinations; names without the prefix
            of the others are skipped. Changes in a checkpoint of LoRA are added to the weights. timm's EfficientNets
            also accept the names of EfficientNet-PyTorch.

    Raises:
        UserError: the file does not exist, cannot be read safely, holds NaN or infinity, or is of another architecture
            (it has less than half of the network's parameters).
    """
    file = weights_file(path)
    return load_tensors(network, read_weights(file), file)


def load_tensors(network: nn.Module, given: dict[str, Tensor], file: Path) -> WeightsReport:
    """Loads those tensors of a file that match a network, see :func:`load_weights`."""
    network = getattr(network, "_orig_mod", network)  # of torch.compile
    own = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    given = translated(_without_prefix(with_changes(given), own), own)
    dropped = {name: reason for name, value in given.items() if (reason := _reason(value, own.get(name)))}
    kept = {name: value for name, value in given.items() if name not in dropped}
    _check_architecture(network, given, dropped, file)
    for name, value in kept.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"weights file '{file}': '{name}' holds NaN or infinity: use other weights.")
    whole = network.state_dict()  # some networks need the version that torch stores in it
    whole.update(kept)
    network.load_state_dict(whole)
    return WeightsReport(file.name, sha256(file), tuple(kept), dropped, tuple(name for name in own if name not in kept))


def sha256(*files: Path) -> str:
    """The checksum of files, as if they were one."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            hashlib.file_digest(content, lambda: digest)
    return digest.hexdigest()


def _without_prefix(given: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names have the prefix of wrappers with which most names match the network."""
    if not any(_COMPILED in name for name in own):
        given = {name.replace(_COMPILED, ""): value for name, value in given.items()}
    matches = Counter({"": 0})
    for name in given:
        parts = name.split(".")
        for end in range(len(parts)):
            if not _WRAPPERS.issuperset(parts[:end]):
                break
            prefix = ".".join([*parts[:end], ""])
            matches[prefix] += name.removeprefix(prefix) in own
    prefix = max(matches, key=lambda prefix: (matches[prefix], len(prefix)))
    return {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}


def _check_architecture(network: nn.Module, given: dict[str, Tensor], dropped: dict[str, str], file: Path) -> None:
    own = network.state_dict()
    parameters = [name for name, _ in network.named_parameters()]
    fitting = sum(name in given and name not in dropped for name in parameters)
    if fitting and 2 * fitting >= len(parameters):
        return
    example = next((f"{name}: {why}" for name, why in dropped.items() if name in own), None)
    example = example or f"the file has {_few(given)}, the network {_few(own)}"
    raise UserError(
        f"weights file '{file}' is for another architecture: {fitting} of the {len(parameters)} parameters of this "
        f"{type(network).__name__} are in it ({example}); build the network with the arguments that the weights were "
        "trained with."
    )


def weights_file(path: str | Path) -> Path:
    """The file that ``weights`` names: a path, weights of this package, or those in another package."""
    return SHIPPED.get(str(path)) or find_weights_file(str(path), "weights") or check_file(path, "weights file")


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, a state_dict or a safetensors file by their names, on the CPU."""
    if file.stat().st_size == 0:
        raise UserError(f"weights file '{file}' is empty: save or copy it again.")
    content: Any = _safetensors(file) if file.suffix.lower() == ".safetensors" else _torch(file)
    inner = content
    while isinstance(inner, Mapping):
        named, inner = inner, next((inner[key] for key in _NESTED if isinstance(inner.get(key), Mapping)), None)
        tensors = {str(name): value for name, value in named.items() if isinstance(value, Tensor)}
    if not isinstance(content, Mapping) or not tensors:
        found = f"has only {_few(content)}" if isinstance(content, Mapping) else f"is a {type(content).__name__}"
        raise UserError(
            f"weights file '{file}' must hold tensors by name, a state_dict or a Lightning checkpoint, but {found}: "
            "save network.state_dict()."
        )
    return tensors


def _torch(file: Path) -> Any:  # noqa: ANN401
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise many types of errors
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            raise UserError(
                f"weights file '{file}' holds Python objects, which could run code: save network.state_dict() alone."
            ) from error
        raise UserError(
            f"weights file '{file}' cannot be read as a torch checkpoint (damaged, or another kind of file): give a "
            ".ckpt, .pt or .pth that torch.save wrote, or a .safetensors."
        ) from error


def _safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    with explained(f"weights file '{file}' cannot be read as safetensors", "save it again"):
        return load_file(file)


def _reason(value: Tensor, own: Tensor | None) -> str | None:
    """Why a tensor cannot be loaded; ``None`` if it can."""
    if own is None:
        return "not in the network"
    if value.shape != own.shape:
        return f"shape {tuple(value.shape)} in the file, {tuple(own.shape)} in the network"
    if value.is_floating_point() != own.is_floating_point() or value.is_complex() != own.is_complex():
        return f"{value.dtype} in the file, {own.dtype} in the network"
    return None


def _few(names: Mapping[Any, Any]) -> str:
    shown = [str(name) for name in names][:3]
    return ", ".join(shown) + (", ..." if len(names) > 3 else "") or "nothing"
