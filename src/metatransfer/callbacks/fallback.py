"""Checkpoints of a run: the chosen state, and one that answers as a twin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import Trainer

from metatransfer.callbacks.run.checkpoint import save_with_card
from metatransfer.checks import check_file
from metatransfer.errors import UserError
from metatransfer.methods.base import MethodModule
from metatransfer.methods.twins import detached
from metatransfer.storage import short_path

FALLBACK = "source_only.ckpt"
Module = TypeVar("Module", bound=MethodModule)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint of tensors and plain values.

    Raises:
        UserError: there is no such file, or it is not such a checkpoint.
    """
    check_file(path, "checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"'{path}' cannot be read as a checkpoint of tensors and plain values: give a file that fit wrote."
        ) from error
    if not isinstance(content, Mapping) or "state_dict" not in content:
        raise UserError(
            f"'{path}' holds no 'state_dict' and is not a Lightning checkpoint: give a file that fit wrote."
        )
    return dict(content)


def loaded(module: Module, path: str | Path) -> Module:
    """Gives a module, attached to no Trainer, the weights of a checkpoint; returns the module."""
    content = read_checkpoint(path)
    module.on_load_checkpoint(content)
    module.load_state_dict(content["state_dict"])
    return module


def chosen_state(trainer: Trainer, module: Module) -> Module | None:
    """A copy of a method with the weights of the run's best checkpoint; ``None`` if nothing was saved."""
    path = getattr(trainer.checkpoint_callback, "best_model_path", None)
    return loaded(detached(module), path) if path else None


def fall_back(trainer: Trainer, module: MethodModule, twin: MethodModule) -> Path | None:
    """Writes a checkpoint of the method that answers as its twin does, and makes it the best of the run."""
    chooser: Any = trainer.checkpoint_callback
    last = getattr(chooser, "last_model_path", "") or getattr(chooser, "best_model_path", "")
    if not last:
        return None
    content, whole = read_checkpoint(last), detached(module)
    whole.take_over(twin)  # type: ignore[operator]
    kept: dict[str, Any] = {name: content[name] for name in ("protocol", "rng_state", "class_names") if name in content}
    content["state_dict"] = whole.state_dict()
    whole.on_save_checkpoint(content)  # what of the weights is no tensor of the module
    content.update(kept)
    content["protocol"] = {**content.get("protocol", {}), "selection": "source only, preferred by most validators"}
    path = Path(last).with_name(FALLBACK)
    save_with_card(path, content)
    chooser.best_model_path = str(path)
    return path


def told(path: Path | None) -> str:
    """What became of a fallback."""
    if path is None:
        return "No fallback was written, because the run keeps no checkpoints."
    return f"The best checkpoint is now {short_path(path)}, which answers as the model of the source alone (fallback)."
