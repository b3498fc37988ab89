"""Base class of all domain adaptation methods."""

import functools
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from metatransfer.batches import DomainBatch
from metatransfer.checks import check_choice
from metatransfer.data_info import ServesDomains
from metatransfer.errors import UserError
from metatransfer.functional.meta.replicas import deep_copy
from metatransfer.methods.domain.adaptation import DEFAULT, Adaptation, DomainRun, Normalization, Pair, gradient_ratio
from metatransfer.methods.evaluation.on_target import OnTarget
from metatransfer.methods.outputs import checked_pair
from metatransfer.methods.twins import ADAPTATION, ORACLE, Comparison, Entry, detached, labelled
from metatransfer.metrics.validators import Validator
from metatransfer.nn import Backbone, Head, LinearHead
from metatransfer.nn.blocks.domain_norm import Side, in_domain, share_source_statistics, split_batch_norm


class DomainAdaptationModule(DomainRun):
    r"""A classifier of a target domain, trained on labelled samples of a source and unlabelled samples of the target.

    .. math:: \min\ \frac1N\sum_i \mathcal L\bigl(h(f(x^s_i)), y^s_i\bigr) + \mathcal T(x^s, y^s, x^t)

    A subclass defines the added loss :math:`\mathcal T` (:meth:`transfer_loss`). Training and selection use no label of
    the target; the data module does not serve them. For what is logged see
    :class:`~metatransfer.methods.evaluation.OnTarget`.

    Args:
        backbone: the network :math:`f`.
        num_classes: number of classes; on the command line taken from the data.
        head: creates the label predictor :math:`h` from ``(in_features, num_classes)``.
        adaptation: BatchNorm across domains, validator and annealing.
        optimizer: creates the optimiser.
        lr_scheduler: creates a scheduler, stepped once per epoch.

    Attributes:
        uses_target: whether training uses samples of the target.
        normalizations: allowed values of ``adaptation.normalization``; the first is the default.
        best_source_accuracy: the highest accuracy on the source's validation samples so far.

    Raises:
        UserError: a ``normalization`` that the method or the network does not support, or both ``annealing`` and
            ``lr_scheduler``.
    """

    learns_from: ClassVar[type] = DomainBatch
    comparison: ClassVar[Comparison | None] = ADAPTATION
    uses_target: ClassVar[bool] = True
    normalizations: ClassVar[tuple[Normalization, ...]] = ("joint", "separate", "domain_specific", "adabn")
    evaluation: OnTarget
    head: Head
    best_source_accuracy: Tensor

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | None = None,
        head: Callable[[int, int], Head] = LinearHead,
        adaptation: Adaptation = DEFAULT,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        evaluation = functools.partial(OnTarget, validator=adaptation.validator)
        super().__init__(evaluation, num_classes, optimizer, lr_scheduler)
        self.adaptation, self.annealing = adaptation, adaptation.annealing
        self.normalization = adaptation.normalization or self.normalizations[0]
        check_choice("normalization", self.normalization, self.normalizations)
        if self.annealing is not None and lr_scheduler is not None:
            raise UserError("annealing and lr_scheduler both set the learning rate: leave one of them out.")
        self.backbone = backbone
        if self.normalization in ("domain_specific", "adabn"):
            split_batch_norm(backbone, own_affine=self.normalization == "domain_specific")
        self.head = head(backbone.out_features, self.num_classes)
        self.register_buffer("best_source_accuracy", torch.zeros(()))

    @property
    def validator(self) -> Validator:
        """Selects the best state."""
        return self.evaluation.validator

    # ---- what a method says

    @abstractmethod
    def transfer_loss(self, pair: Pair) -> Tensor | None:
        """The loss that the method adds to that of the source, a scalar; ``None`` for nothing."""

    def encode(self, x: Tensor, domain: Side) -> Tensor:
        """Features ``(N, E)`` of samples ``(N, *shape)`` of a domain."""
        with in_domain(self.backbone, domain):
            return self.backbone(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, C)`` of samples of the target."""
        return self.head(self.encode(x, "target"))  # type: ignore[no-any-return]

    def encode_pair(self, batch: DomainBatch) -> tuple[Tensor, Tensor]:
        """Features ``(N, E)`` and ``(M, E)`` of a batch; of no target samples if the method uses none."""
        if not self.uses_target:
            source = self.encode(batch.source_x, "source")
            return source, source[:0]
        if self.normalization != "joint":
            return self.encode(batch.source_x, "source"), self.encode(batch.target_x, "target")
        both: Tensor = self.backbone(torch.cat([batch.source_x, batch.target_x]))
        source, target = both.tensor_split([len(batch.source_x)])
        return source, target

    def source_loss(self, logits: Tensor, batch: DomainBatch) -> Tensor:
        """The loss of logits ``(N, C)`` of the source, a scalar."""
        return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), batch.source_y)

    def training_loss(self, batch: DomainBatch) -> tuple[Tensor, Tensor]:
        """The loss of the source plus that of the method, and the source's logits ``(N, C)``."""
        source, target = self.encode_pair(batch)
        if self.normalization == "joint":
            source_logits, target_logits = self.head(torch.cat([source, target])).split([len(source), len(target)])
        else:
            source_logits, target_logits = self.head(source), self.head(target)
        loss = self.source_loss(source_logits, batch)
        added = self.transfer_loss(Pair(source, target, source_logits, target_logits, batch))
        if added is None:
            return loss, source_logits
        numbers, trainer = {"train/transfer_loss": added.detach()}, self._trainer
        if trainer is not None and trainer.global_step % max(1, trainer.log_every_n_steps) == 0:  # type: ignore[attr-defined]
            ratio = gradient_ratio(loss, added, source, target)
            numbers |= {} if ratio is None else {"train/gradient_ratio": ratio}
        self.log_dict(numbers, batch_size=len(source))
        return loss + added, source_logits

    def learn(self, batch: DomainBatch) -> tuple[Tensor, Tensor]:
        """Learns from a batch and returns the loss and the source's logits; by default the Trainer takes the step."""
        return self.training_loss(batch)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:  # noqa: ANN401
        """The loss of a training batch."""
        if "train" not in self._checked:  # looking at labels waits for the device
            self.check_pair(batch)
            self._checked.add("train")
        loss, outputs = checked_pair(self, self.learn(batch))
        accuracy = (outputs.detach().argmax(-1) == batch.source_y).float().mean()
        numbers = {"train/loss": loss.detach(), "train/source_accuracy": accuracy}
        self.log_dict(numbers, prog_bar=True, batch_size=len(batch.source_y))
        return loss

    def on_train_start(self) -> None:
        """Resets the best accuracy on the source, unless a run is resumed."""
        super().on_train_start()
        if not self.trainer.global_step:
            self.best_source_accuracy.zero_()

    @property
    def adapts(self) -> bool:
        """Whether the method uses the target at all."""
        return True

    def kept_modules(self) -> list[nn.Module]:
        """The network if its weights come from a file; :meth:`after_restart` renews copies of it."""
        return [self.backbone] if self.backbone.weights_report is not None else []

    def unadapted(self) -> "DomainAdaptationModule":
        """The twin that ignores the target, with the same networks, weights, optimiser and schedule."""
        from metatransfer.methods.domain.source_only import SourceOnlyModule  # a subclass

        networks = deep_copy((self.backbone, self.head))
        adaptation = replace(self.adaptation, normalization=None, validator=self.validator)
        return SourceOnlyModule(
            networks[0], self.num_classes, lambda *_: networks[1], adaptation, self.optimizer, self.lr_scheduler
        )

    def twins(self, data: LightningDataModule, seed: int | None = None) -> dict[str, Entry]:
        """The method if it adapts, its twin without the target, and one trained on the target if labels are known."""

        def start() -> "DomainAdaptationModule":
            return detached(self) if seed is None else self.restarted(seed)

        found = {ADAPTATION.own: Entry(start)} if self.adapts else {}
        found[ADAPTATION.reference] = Entry(lambda: start().unadapted())
        if isinstance(data, ServesDomains) and all(labelled(data, split) for split in ("train", "val")):
            found[ORACLE] = Entry(lambda: start().unadapted(), cast(Any, data.oracle_twin))
        return found

    def take_over(self, other: "DomainAdaptationModule") -> None:
        """Copies the weights of another method with backbone and head of the same architecture."""
        self.backbone.load_state_dict(other.backbone.state_dict())
        if other.normalization != "adabn":
            share_source_statistics(self.backbone)
        self._take_over_head(other.head)

    def _take_over_head(self, head: nn.Module) -> None:
        self.head.load_state_dict(head.state_dict())

    def protocol(self) -> dict[str, Any]:
        """Adds the normalisation and how states are selected."""
        return super().protocol() | {
            "normalization": self.normalization,
            "train_annealing": repr(self.annealing) if self.annealing is not None else None,
            "train_selection": self.validator.protocol(),
        }
