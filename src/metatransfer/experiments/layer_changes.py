"""What a training carried over: how features and weights of each layer changed, and what a probe reads from them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from metatransfer.batches import DomainBatch, LabelledBatch
from metatransfer.checks import check_choice
from metatransfer.data_info import ServesDomains, ServesSamples
from metatransfer.errors import UserError
from metatransfer.experiments.layers_seen import SPLITS, Observed, on_domains, on_samples, on_tasks
from metatransfer.functional import linear_cka, relative_change, svcca
from metatransfer.functional.paired import holm, paired_difference
from metatransfer.methods.base import MethodModule
from metatransfer.methods.episodic import EpisodicModule
from metatransfer.methods.fitted import FittedModule
from metatransfer.methods.layer_features import method_layers

_SHOWN = 4  # names in a sentence
KEPT = 0.9  # the CKA from which a layer counts as kept


class LayerChange(NamedTuple):
    """How a layer changed; ``None`` for what cannot be measured, such as the CKA of constant features.

    Attributes:
        name: the layer.
        cka: unbiased linear CKA of its features at the start and at the end.
        svcca: their mean canonical correlation.
        svcca_by_chance: the same after the samples of one side were shuffled.
        moved: change of its weights, relative to their norm at the start.
        probe_start: accuracy of a probe on its features at the start, from 0 to 1.
        probe_end: the same at the end.
        gain: mean of the paired differences.
        gain_ci95: half-width of their 95 % interval.
        gain_p: p-value of no difference, corrected over the layers (Holm).
        moved_in_tasks: mean change of its weights when the trained method adapts to a task.
        cka_in_tasks: CKA of its features before and after adaptation.
        probe_adapted: accuracy of the probe after adaptation.
    """

    name: str
    cka: float | None
    svcca: float | None
    svcca_by_chance: float | None
    moved: float
    probe_start: float | None = None
    probe_end: float | None = None
    gain: float | None = None
    gain_ci95: float | None = None
    gain_p: float | None = None
    moved_in_tasks: float | None = None
    cka_in_tasks: float | None = None
    probe_adapted: float | None = None


class CarriedOver(NamedTuple):
    """What a training carried over.

    Attributes:
        layers: from input to output.
        samples: what the features were computed for.
        probe: what the probe is.
    """

    layers: tuple[LayerChange, ...]
    samples: str
    probe: str

    @property
    def conclusion(self) -> str:
        """What was kept, what changed, and where the probe gained, in words."""
        body = [one for one in self.layers if one.name != "head"]  # which begins anew
        known = [(one.cka, one) for one in body if one.cka is not None]
        kept = [one.name for cka, one in known if cka >= KEPT]
        text = f"Kept (CKA of at least {KEPT}): {_listed(kept)}"
        lowest, changed = min(known, default=(1.0, body[0]), key=lambda pair: pair[0])
        if lowest < KEPT:
            text += f"; changed most: {changed.name} (CKA {lowest:.2f}, weights moved by {100 * changed.moved:.0f} %)"
        text += _probe_words([one for one in body if one.gain is not None])
        moving = max(self.layers, key=lambda one: one.moved_in_tasks or 0.0)
        if moving.moved_in_tasks:
            text += f". Adaptation to a task moves {moving.name} most (by {100 * moving.moved_in_tasks:.0f} %)"
        return f"{text}."


def _probe_words(layers: Sequence[LayerChange]) -> str:
    """Where the probe gained or lost significantly."""
    gains = {one.name: float(one.gain or 0) for one in layers if one.gain_p is not None and one.gain_p <= 0.05}
    if not gains:
        return "; the probe gained or lost significantly on no layer" if layers else ""
    text = ""
    for verb, sign in (("gained", 1), ("lost", -1)):
        found = {name: gain for name, gain in gains.items() if sign * gain > 0}
        if found:
            most = max(found, key=lambda name: abs(found[name]))
            where = f", most on {most}" if len(found) > 1 else ""
            text += f"; the probe {verb} on {_listed(list(found))}{where} ({100 * found[most]:+.1f} points)"
    return text


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}" if names else "no layer"


def carried_over(
    before: MethodModule, after: MethodModule, data: LightningDataModule, *, split: str = "val", samples: int = 2000
) -> CarriedOver:
    """Compares a method before and after its training, layer by layer, on samples of a split.

    The probe of a classifier is a ridge classifier on standardised features, cross-validated over these samples (Alain
    and Bengio 2016, 1610.01644); in domain adaptation it is fitted on the sources and scored on the targets, if their
    labels may be used. In few-shot tasks it is the nearest class mean of the support set, scored on the queries.

    Args:
        before: the method before its training; as ``copy.deepcopy(module)`` before ``trainer.fit``.
        after: the same method after it.
        data: data module whose samples are used; it need not be that of the training.
        split: ``"val"`` or ``"test"``.
        samples: how many samples are used at most; of few-shot tasks, as many whole tasks as hold them.

    Raises:
        UserError: the method trains no network, or the data does not fit it.
    """
    if isinstance(after, FittedModule):
        raise UserError(f"{type(after).__name__} trains no network: explain the run of a method that trains one.")
    layers = list(zip(method_layers(before), method_layers(after), strict=True))
    check_choice("split", split, tuple(SPLITS))
    look = _observer(after, data)
    data.prepare_data()
    data.setup("validate" if split == "val" else "test")
    seen = look(before, after, data, split, samples)
    gains = _gains(seen.start.scores, seen.end.scores)
    changes = []
    for old, new in layers:
        if new.name not in seen.end.names:  # a part that is not used
            continue
        start, end = seen.start.rows(new.name), seen.end.rows(new.name)
        shuffled = end[torch.randperm(len(end), generator=torch.Generator().manual_seed(0))]
        cka, correlation = _similarity(_unbiased, start, end), _similarity(svcca, start, end)
        chance = _similarity(svcca, start, shuffled)
        moved = relative_change(old.parameters, new.parameters)
        more = gains.get(new.name, {}) | _in_tasks(seen, new.name)
        changes.append(LayerChange(new.name, cka, correlation, chance, moved, **more))
    return CarriedOver(tuple(changes), seen.samples, seen.probe)


def _observer(module: MethodModule, data: LightningDataModule) -> Callable[..., Observed]:
    """What looks at the layers for a kind of method."""
    if isinstance(module, EpisodicModule):
        return on_tasks
    if isinstance(data, ServesDomains) and module.learns_from is DomainBatch:
        return on_domains
    if isinstance(data, ServesSamples) and module.learns_from is LabelledBatch:
        return on_samples
    raise UserError(
        f"{type(module).__name__} learns from another kind of data than {type(data).__name__} serves: explain it on "
        "the data of its training, or on other data of the same kind."
    )


def _in_tasks(seen: Observed, name: str) -> dict[str, Any]:
    """Movement, CKA and probe of a layer in adaptation."""
    if seen.adapted is None:
        return {}
    moved, scores = seen.moved[name], seen.adapted.scores.get(name)
    return {
        "moved_in_tasks": sum(moved) / len(moved),
        "cka_in_tasks": _similarity(_unbiased, seen.end.rows(name), seen.adapted.rows(name)),
        "probe_adapted": None if scores is None else float(scores.mean()),
    }


def _unbiased(x: Tensor, y: Tensor) -> Tensor:
    return linear_cka(x, y, unbiased=True)


def _similarity(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> float | None:
    """``None`` if all samples have the same features, or too few samples."""
    try:
        found = float(function(x, y))
    except UserError:
        return None
    return found if found == found else None


def _gains(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Scores of the probe, their paired difference, its interval and its corrected p-value, by layer."""
    if not before:
        return {}
    start, end = (torch.stack(list(scores.values())).double() for scores in (before, after))
    found = paired_difference((end - start).unsqueeze(1), crossed=True)
    columns = {
        "probe_start": start.mean(1), "probe_end": end.mean(1), "gain": found.mean, "gain_ci95": found.half,
        "gain_p": holm(found.p),
    }  # fmt: skip
    return {name: {key: float(value[place]) for key, value in columns.items()} for place, name in enumerate(before)}
