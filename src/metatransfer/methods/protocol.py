"""The protocol card: the conditions under which a number was measured."""

import platform
from typing import Any

import lightning
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint

from metatransfer.data_info import ServesData, datamodule_of
from metatransfer.module_keys import code_key
from metatransfer.nn.weights import weights_reports

_OF_TRAINING = (
    "method.train_", "data.train.", "data.train_episode", "data.train_batches", "data.tasks_per_batch",
    "data.augmentation", "data.episodes.train", "data.episodes.val", "data.rotations.train",
)  # fmt: skip


def protocol_card(module: LightningModule) -> dict[str, Any]:
    """The conditions of a module's training or test, as plain values."""
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
    own = {type(part) for part in module.modules()}
    codes = {kind.__qualname__: key for kind in own if (key := code_key(kind))}
    if codes:
        card["method"] |= {"code": codes}
    started = {name: report.card() for name, report in weights_reports(module).items()}
    # weights that came with a checkpoint started from what its card says
    started = started or (getattr(module, "trained_protocol", None) or {}).get("initial_weights", {})
    if started:
        card["initial_weights"] = started
    trainer = module._trainer
    if trainer is None:
        return card
    data = datamodule_of(trainer)
    if data is not None:
        card["data"] = data.protocol() if isinstance(data, ServesData) else {"data": type(data).__name__}
    chooser = trainer.checkpoint_callback
    if isinstance(chooser, ModelCheckpoint) and chooser.monitor:
        card["selection"] = f"{chooser.mode} {chooser.monitor}"
    card["seed"] = getattr(module, "run_seed", None)
    card["precision"] = str(trainer.precision)
    card["devices"] = trainer.world_size
    return card


def differences(trained: dict[str, Any], tested: dict[str, Any]) -> list[str]:
    """Lists the fields that affect a test result and differ between two protocol cards.

    These are the method in evaluation and the evaluation data. Fields of training are ignored, and so are fields that
    only one card has.
    """
    old, new = _of_evaluation(trained), _of_evaluation(tested)
    return [f"{key}: {old[key]} -> {new[key]}" for key in old if key in new and old[key] != new[key]]


def evaluation_key(module: LightningModule) -> str:
    """A string that is equal for validations whose numbers may be compared, also after a resume."""
    return str(_of_evaluation(protocol_card(module)))


def _of_evaluation(card: dict[str, Any]) -> dict[str, Any]:
    flat = {key: value for key, value in sorted(_flat(card).items()) if key.startswith(("method.", "data."))}
    return {key: value for key, value in flat.items() if not key.startswith(_OF_TRAINING)}


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {prefix + key: item}
    return flat
