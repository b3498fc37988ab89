"""The protocol card: what must be known to read a number."""

from __future__ import annotations

import platform
from typing import Any

import lightning
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint


def protocol_card(module: LightningModule) -> dict[str, Any]:
    """What a module was trained or tested under, as plain values.

    Args:
        module: attached to a Trainer or not.

    Returns:
        ``method`` (what the module says of itself), ``data`` (what the data module says), ``selection`` (by which
        metric the checkpoint is chosen), ``seed``, ``precision``, ``devices`` and ``versions``.
    """
    from metatransfer import __version__  # the package imports this file

    says = getattr(module, "protocol", None)
    card: dict[str, Any] = {
        "method": says() if callable(says) else {"name": type(module).__name__},
        "versions": {
            "metatransfer": __version__,
            "torch": str(torch.__version__),
            "lightning": lightning.__version__,
            "python": platform.python_version(),
        },
    }
    trainer = module._trainer
    if trainer is None:
        return card
    data = getattr(trainer, "datamodule", None)
    if data is not None:
        card["data"] = data.protocol() if hasattr(data, "protocol") else {"data": type(data).__name__}
    chooser = trainer.checkpoint_callback
    if isinstance(chooser, ModelCheckpoint) and chooser.monitor:
        card["selection"] = f"{chooser.mode} {chooser.monitor}"
    card["seed"] = getattr(module, "run_seed", None)
    card["precision"] = str(trainer.precision)
    card["devices"] = trainer.world_size
    return card


def differences(trained: dict[str, Any], tested: dict[str, Any]) -> list[str]:
    """Where two protocol cards disagree in what makes numbers comparable: method and data.

    Args:
        trained: the card in the checkpoint.
        tested: the card of the run at hand.

    Returns:
        One ``"data.eval_episode.num_ways: 5 -> 20"`` for each difference; a difference between training and evaluation
        episodes of one run is no difference between runs.
    """
    old, new = _flat(trained), _flat(tested)
    return [
        f"{key}: {old.get(key, 'unset')} -> {new.get(key, 'unset')}"
        for key in sorted(old.keys() | new.keys())
        if key.startswith(("method.", "data.")) and old.get(key) != new.get(key)
    ]


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {prefix + key: item}
    return flat
