"""Checkpoints of a run: the best one, and the fallback to the source-only twin."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import Trainer

from metatransfer.callbacks.run.checkpoint import save_with_card
from metatransfer.methods.base import MethodModule
from metatransfer.methods.checkpoints import read_checkpoint
from metatransfer.methods.twins import detached
from metatransfer.storage import short_path

FALLBACK = "source_only.ckpt"
Module = TypeVar("Module", bound=MethodModule)


def loaded(module: Module, path: str | Path) -> Module:
    """Loads the weights of a checkpoint into a module without a Trainer, and returns the module."""
    content = read_checkpoint(path)
    module.on_load_checkpoint(content)
    module.load_state_dict(content["state_dict"])
    return module


def chosen_state(trainer: Trainer, module: Module) -> Module | None:
    """A copy of a method with the weights of the run's best checkpoint; ``None`` if nothing was saved."""
    path = getattr(trainer.checkpoint_callback, "best_model_path", None)
    return loaded(detached(module), path) if path else None


def fall_back(trainer: Trainer, module: MethodModule, twin: MethodModule) -> Path | None:
    """Writes a checkpoint that predicts as the twin does, and makes it the best of the run."""
    chooser: Any = trainer.checkpoint_callback
    last = getattr(chooser, "last_model_path", "") or getattr(chooser, "best_model_path", "")
    if not last:
        return None
    content, whole = read_checkpoint(last), detached(module)
    whole.take_over(twin)  # type: ignore[operator]
    kept: dict[str, Any] = {name: content[name] for name in ("protocol", "rng_state", "class_names") if name in content}
    content["state_dict"] = whole.state_dict()
    whole.on_save_checkpoint(content)  # parts that are not in the state_dict
    content.update(kept)
    content["protocol"] = {**content.get("protocol", {}), "selection": "source only, preferred by most validators"}
    path = Path(last).with_name(FALLBACK)
    save_with_card(path, content)
    chooser.best_model_path = str(path)
    return path


def told(path: Path | None) -> str:
    """Describes the result of a fallback."""
    if path is None:
        return "No fallback was written, because the run saves no checkpoints."
    return f"The best checkpoint is now {short_path(path)}, which predicts as the source-only model (fallback)."
