"""What an adaptation is compared with: twins trained and evaluated beside the run."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from metatransfer.callbacks.run.checkpoint import save_with_card
from metatransfer.checks import check_file
from metatransfer.errors import UserError
from metatransfer.experiments.training import Evaluated, silent_trainer, train
from metatransfer.methods.domain import DomainAdaptationModule, SourceOnlyModule
from metatransfer.methods.domain.source_only import source_only_twin
from metatransfer.metrics.validators import Evidence
from metatransfer.storage import short_path

ADAPTED, PLAIN, ORACLE = "adapted", "source only", "target-trained"
FALLBACK = "source_only.ckpt"
Module = TypeVar("Module", bound=LightningModule)


class Evaluation(NamedTuple):
    """An evaluation beside the run.

    Attributes:
        metrics: what was logged.
        evidence: of a validation, what the network said.
    """

    metrics: dict[str, float]
    evidence: Evidence | None


def detached(module: Module) -> Module:
    """A copy that leaves the Trainer, with data and loggers, behind.

    Args:
        module: left as it is.

    Returns:
        The copy.
    """
    return copy.deepcopy(module, {id(module._trainer): None} if module._trainer is not None else {})


def adapts(module: DomainAdaptationModule) -> bool:
    """Whether a method looks at the target at all.

    Args:
        module: any.

    Returns:
        ``False`` for what is its own twin.
    """
    return not isinstance(module, SourceOnlyModule) or module.normalization == "adabn"


def has_labels(data: Any, split: str) -> bool:  # noqa: ANN401
    """Whether all targets have labels that may be looked at for a report.

    Args:
        data: the data module.
        split: which.

    Returns:
        Whether accuracies can be told.
    """
    labels = data.oracle_labels(split)
    return labels is not None and bool((labels >= 0).all())


def trained(
    module: DomainAdaptationModule, data: LightningDataModule, seed: int, settings: dict[str, Any]
) -> DomainAdaptationModule:
    """Trains a method beside the run.

    Args:
        module: trained in place.
        data: what it learns from.
        seed: of all that is drawn on the way.
        settings: the budget.

    Returns:
        The module.
    """
    train(module, data, seed=seed, settings=settings)
    return module


def evaluate(
    module: DomainAdaptationModule, data: LightningDataModule, split: Evaluated, settings: dict[str, Any]
) -> Evaluation:
    """Evaluates a method beside the run.

    Args:
        module: with the weights that it has.
        data: the run's, so that all are compared on the same samples.
        split: ``"val"`` or ``"test"``.
        settings: of the Trainer.

    Returns:
        What was logged, and after a validation the evidence.
    """
    trainer = silent_trainer(settings)
    run = trainer.test if split == "test" else trainer.validate
    run(module, datamodule=data, verbose=False)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return Evaluation(metrics, module.last_evidence().on_cpu() if split == "val" else None)


def accuracy(
    module: DomainAdaptationModule, data: LightningDataModule, split: Evaluated, settings: dict[str, Any]
) -> float:
    """Accuracy on the targets.

    Args:
        module: with the weights that it has.
        data: with labels of the targets.
        split: ``"val"`` or ``"test"``.
        settings: of the Trainer.

    Returns:
        Over the samples of all targets.
    """
    return evaluate(module, data, split, settings).metrics[f"{'test' if split == 'test' else 'oracle'}/accuracy"]


def measure_adaptation(
    module: DomainAdaptationModule,
    data: LightningDataModule,
    *,
    seed: int,
    split: Evaluated = "test",
    settings: dict[str, Any],
    oracle: bool = True,
) -> dict[str, float]:
    """Trains a method and its twins anew under another seed.

    Args:
        module: before training; left as it is.
        data: with ``reseeded(seed)`` it is divided and ordered anew, else it is the same for all seeds.
        seed: of the weights, the same for all that are compared, and of the order.
        split: on which they are compared.
        settings: arguments of the Trainer: the budget.
        oracle: whether to train on the target's labels too.

    Returns:
        Accuracies of the last weights, by what was trained.
    """
    reseeded: Any = data.reseeded(seed) if hasattr(data, "reseeded") else data
    start = module.restarted(seed)
    twin = source_only_twin(start)
    jobs: dict[str, tuple[DomainAdaptationModule, Any]] = {PLAIN: (twin, reseeded)}
    if adapts(module):
        jobs = {ADAPTED: (start, reseeded)} | jobs
    if oracle:
        jobs[ORACLE] = source_only_twin(module.restarted(seed)), reseeded.oracle_twin()
    return {
        name: accuracy(trained(learner, served, seed, settings), reseeded, split, settings)
        for name, (learner, served) in jobs.items()
    }


# ---- checkpoints


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint of tensors and plain values.

    Args:
        path: the file.

    Returns:
        Its content.

    Raises:
        UserError: there is none, or it is no such checkpoint.
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


def loaded(module: DomainAdaptationModule, path: str | Path) -> DomainAdaptationModule:
    """Gives a module the weights of a checkpoint.

    Args:
        module: attached to no Trainer; changed in place.
        path: of the checkpoint.

    Returns:
        The module.

    Raises:
        UserError: no checkpoint, or one of other networks.
    """
    content = read_checkpoint(path)
    module.on_load_checkpoint(content)
    module.load_state_dict(content["state_dict"])
    return module


def chosen_state(trainer: Trainer, module: DomainAdaptationModule) -> DomainAdaptationModule | None:
    """The state of a run that its best checkpoint holds.

    Args:
        trainer: after a fit.
        module: its method; left as it is.

    Returns:
        A copy, or ``None`` where nothing was saved.
    """
    path = getattr(trainer.checkpoint_callback, "best_model_path", None)
    return loaded(detached(module), path) if path else None


def fall_back(trainer: Trainer, module: DomainAdaptationModule, twin: DomainAdaptationModule) -> Path | None:
    """Writes a checkpoint of the method that answers as its twin does, and calls it the best of the run.

    Args:
        trainer: after a fit.
        module: the method; left as it is.
        twin: trained on the source alone.

    Returns:
        The checkpoint, or ``None`` where the run has written none that it could stand beside.
    """
    chooser: Any = trainer.checkpoint_callback
    last = getattr(chooser, "last_model_path", "") or getattr(chooser, "best_model_path", "")
    if not last:
        return None
    content, whole = read_checkpoint(last), detached(module)
    whole.take_over(twin)
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
    """What became of a fallback.

    Args:
        path: of the checkpoint that was written.

    Returns:
        One sentence.
    """
    if path is None:
        return "No fallback was written: the run keeps no checkpoint beside which it could stand."
    return f"The best checkpoint is now {short_path(path)}, which answers as the model of the source alone (fallback)."
