"""Reads, checks and writes checkpoints, so that a damaged file is answered in one sentence."""

import io
import re
from collections.abc import Container, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import _load  # private, but what is checked is read as Lightning reads it
from torch import Tensor

from metatransfer.checks import check_file
from metatransfer.errors import UserError
from metatransfer.nn.weights import no_weight_files
from metatransfer.storage import write_atomically

_VERSION = "pytorch-lightning_version"
BASE_WEIGHTS = "base_weights"
"""The key of the checksum of the weights that a checkpoint leaves out."""
_LOOPS = ("fit_loop", "validate_loop", "test_loop", "predict_loop")
_KINDS = {
    "state_dict": dict, _VERSION: str, "hyper_parameters": dict, "class_path": str, "protocol": dict, "loops": dict,
    "class_names": list, "callbacks": dict, "optimizer_states": list, "lr_schedulers": list, "rng_state": dict,
    "hparams_name": str, "hparams_type": type, "trained_by": dict, "started_from": str,
    BASE_WEIGHTS: str,
}  # fmt: skip


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checks checkpoints, and writes them beside their target: a full disk or a crash leaves the old file.

    Lightning writes to the folder for temporary files, which may be full or on another disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: ANN401
        """Writes a checkpoint to a file; to a URL as Lightning does."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            save_atomically(checkpoint, path)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:  # noqa: ANN401
        """Reads a checkpoint of the right structure."""
        if "://" not in str(path):
            read_checkpoint(path, weights_only is not False)
        return super().load_checkpoint(path, map_location, weights_only)


def save_atomically(content: object, path: str | Path) -> None:
    """Writes what ``torch.save`` accepts, see :func:`~metatransfer.storage.atomic_file`."""
    buffer = io.BytesIO()  # torch itself reports a full disk as a RuntimeError without the path
    torch.save(content, buffer)
    write_atomically(path, buffer.getbuffer())


def read_checkpoint(source: str | Path | IO[Any], weights_only: bool = True) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU; unless ``weights_only`` is ``False``, reading it runs no code."""
    if isinstance(source, str | Path) and "://" not in str(source):
        source = check_file(str(source), "checkpoint")
    try:
        found = _load(source, "cpu", weights_only)  # whole: damage would be found late in a mapped file
    except Exception as error:  # damaged files raise many types of errors
        raise UserError(
            f"'{source}' cannot be read as a checkpoint of tensors and plain values: give a file that fit wrote."
        ) from error
    if not isinstance(source, str | Path):
        source.seek(0)
    check_checkpoint(found, f"'{source}'")
    if not re.match(r"\d+\.\d+", found.get(_VERSION, "")):
        raise UserError(
            f"'{source}' has no valid '{_VERSION}' and is not a Lightning checkpoint: give a file that fit wrote."
        )
    return dict(found)


def needed_files(content: Container[str]) -> AbstractContextManager[None]:
    """Within it, networks are built without weight files, unless the checkpoint of this content leaves weights out."""
    return nullcontext() if BASE_WEIGHTS in content else no_weight_files()


def check_checkpoint(content: Any, name: str = "the checkpoint", resuming: bool = False) -> None:  # noqa: ANN401
    """Raises an error unless a checkpoint, called ``name``, has the parts that fit writes; ``resuming`` needs more."""
    parts: Mapping[str, Any] = content if isinstance(content, Mapping) else {}
    if "state_dict" not in parts:
        raise UserError(f"{name} has no 'state_dict' and is not a Lightning checkpoint: give a file that fit wrote.")
    wrong = [
        f"'{key}' is a {type(parts[key]).__name__} instead of a {kind.__name__}"
        for key, kind in _KINDS.items()
        if key in parts and not isinstance(parts[key], kind) and not (key == "hparams_name" and parts[key] is None)
    ]
    if not wrong and not all(isinstance(name, str) for name in parts["state_dict"]):
        wrong = ["'state_dict' has names that are not texts"]
    if not wrong and "loops" in parts:
        wrong = [f"'loops' has no '{loop}'" for loop in _LOOPS if not isinstance(parts["loops"].get(loop), dict)]
    if not wrong and "rng_state" in parts:
        state, like = parts["rng_state"].get("cpu"), torch.get_rng_state()
        if not isinstance(state, Tensor) or (state.dtype, state.shape) != (like.dtype, like.shape):
            wrong = ["'rng_state' has no state of torch's random number generator"]
    if wrong:
        raise UserError(f"{name} is damaged, {wrong[0]}: give a file that fit wrote.")
    if resuming and not (parts.get("loops") and parts.get("optimizer_states")):
        raise UserError(
            f"{name} contains only weights, so training cannot be resumed from it: give a checkpoint that fit wrote "
            "during training, or start from its weights alone (--model.backbone.weights)."
        )
    for state in parts.get("optimizer_states", ()) if resuming else ():
        if not isinstance(state, dict) or not {"state", "param_groups"} <= state.keys():
            raise UserError(
                f"{name} is damaged, 'optimizer_states' has no state of an optimiser: give a file that fit wrote."
            )


def recorded_class(content: Mapping[str, Any], name: object) -> str:
    """The import path of the module's class."""
    if "class_path" not in content and "_class_path" not in content.get("hyper_parameters", {}):
        raise UserError(
            f"'{name}' does not record the class of its module: load it with that class, e.g. "
            "ProtoNetModule.load_from_checkpoint(...)."
        )
    return str(content.get("class_path"))


def replaced(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Recorded arguments with others in their place; of a group, only the given fields are replaced."""
    merged = dict(recorded)
    for name, value in given.items():
        known = merged.get(name)
        merges = isinstance(known, Mapping) and isinstance(value, Mapping) and "class_path" not in {*known, *value}
        merged[name] = {**known, **value} if merges else value  # type: ignore[dict-item]
    return merged


def renamed(loaded: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Weights under the names of a module, which differ where one of both was compiled by ``torch.compile``."""
    plain = {name.replace("_orig_mod.", ""): name for name in own}
    return {plain.get(name.replace("_orig_mod.", ""), name): value for name, value in loaded.items()}
