"""Comparisons of methods with their twins: what is trained, and the words that report the difference."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn

from metatransfer.data_info import ServesDomains
from metatransfer.errors import UserError
from metatransfer.functional.meta.replicas import deep_copy
from metatransfer.methods.evaluation.base import EvaluatedModule
from metatransfer.methods.evaluation.on_target import OnTarget
from metatransfer.nn.backbones.image_backbone import ImageBackbone

if TYPE_CHECKING:
    from metatransfer.methods.base import MethodModule

ORACLE = "target-trained"
Module = TypeVar("Module", bound=LightningModule)


class Entry(NamedTuple):
    """A training of a comparison. Method and data are created when needed, so that one network at a time is in memory.

    Attributes:
        module: creates the method, before training.
        data: creates the training data; ``None`` for the data that all entries are evaluated on.
    """

    module: "Callable[[], MethodModule]"
    data: Callable[[], LightningDataModule] | None = None


class Comparison(NamedTuple):
    """Names and words for the gain of a method over its twin.

    Attributes:
        own: entry of the method itself.
        reference: entry that the gain is measured against.
        subject: what gains or loses, as the first word of a sentence.
        over: the reference, within a sentence.
        points: unit of the gain.
        loss: name of a negative gain, in brackets; empty if there is none.
        metrics: the compared metric by split.
    """

    own: str
    reference: str
    subject: str
    over: str
    points: str
    loss: str
    metrics: dict[str, str]


TRANSFER = Comparison(
    "transfer", "from scratch", "Transfer", "training from scratch", "points of accuracy", "",
    {"val": "val/accuracy", "test": "test/accuracy"},
)  # fmt: skip
ADAPTATION = Comparison(
    "adapted", "source only", "Adaptation", "source only", "points of target accuracy", " (negative transfer)",
    {"val": "oracle/accuracy", "test": "test/accuracy"},
)  # fmt: skip


def target_evaluation(module: LightningModule) -> OnTarget | None:
    """The evaluation of a domain adaptation method; ``None`` for other methods."""
    found = module.evaluation if isinstance(module, EvaluatedModule) else None
    return found if isinstance(found, OnTarget) else None


def labelled(data: object, split: str) -> bool:
    """Whether all target samples of a split have labels that a report may use."""
    labels = data.oracle_labels(split) if isinstance(data, ServesDomains) else None
    return labels is not None and bool((labels >= 0).all())


def detached(module: Module) -> Module:
    """A copy of a module without its Trainer, which holds the data and the loggers."""
    found: Module = deep_copy(module, {id(module._trainer): None} if module._trainer is not None else {})
    return found


@contextlib.contextmanager
def drawing(module: LightningModule, seed: int) -> Iterator[None]:
    """Within the block, the module is on the CPU and random numbers come from the seed; both are restored after it."""
    device = module.device
    module.to("cpu")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would change the accelerators' streams
        yield
    module.to(device)


def redraw(module: nn.Module, keep: Iterable[nn.Module] = ()) -> None:
    """Initialises the weights of a module again, except in the parts to keep."""
    kept = {id(part) for one in keep for part in one.modules()}
    # a network of another library draws all its weights at once
    wholes = [part for part in module.modules() if isinstance(part, ImageBackbone) and id(part) not in kept]
    kept |= {id(part) for whole in wholes for part in whole.modules()}
    owners = [part for part in module.modules() if part._parameters and id(part) not in kept] + wholes
    reset(owners, type(module).__name__)


def reset(owners: Sequence[nn.Module], whole: str, parameters: Mapping[str, nn.Parameter] | None = None) -> None:
    """Draws the parameters of modules again, which are parts of ``whole`` and must hold all named ``parameters``."""
    owned = {id(value) for part in owners for value in part._parameters.values()}
    stubborn = [type(part).__name__ for part in owners if not callable(getattr(part, "reset_parameters", None))]
    stubborn += [name for name, value in (parameters or {}).items() if id(value) not in owned]
    if stubborn:
        raise UserError(
            f"{whole} cannot be initialised again, because {stubborn[0]} does not define reset_parameters: define it."
        )
    for part in owners:
        part.reset_parameters()  # type: ignore[operator]
