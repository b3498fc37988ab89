"""Distances of two domains in feature space, and signs of a failed adaptation."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metatransfer.errors import UserError
from metatransfer.functional.domain.validation import fit_domain_classifier, fixed_order

_FLAT = 1e-3  # variance over mean squared length; features after a ReLU have 0.1 and more
_CONCENTRATED = 0.3  # of the largest entropy
_ENOUGH = 10  # samples per class for which a class that is never predicted is unlikely to be chance
_AT_CHANCE, _CERTAIN, _RECORDS = 0.02, 0.99, 5


def proxy_a_distance(
    source: Tensor, target: Tensor, folds: int = 5, regularization: float = 1e-2, limit: int = 2000
) -> float:
    r"""How well a linear classifier separates two domains, :math:`2(1-2\epsilon)` (Ben-David et al. 2007, NeurIPS).

    :math:`\epsilon` is the cross-validated error of :func:`fit_domain_classifier`, averaged over the two domains and at
    most 1/2.

    Args:
        source: ``(n_s, E)`` features.
        target: ``(n_t, E)`` features.
        folds: number of folds, which are the same in every call.
        regularization: of the classifier.
        limit: largest number of samples of each domain; of more, always the same ones are used.

    Returns:
        From 0 (the domains cannot be separated) to 2.

    Raises:
        UserError: there are fewer than 2 folds, or fewer samples of a domain than folds.
    """
    parts = [part[fixed_order(len(part))[:limit].to(part.device)].detach() for part in (source, target)]
    if folds < 2 or min(map(len, parts)) < folds:
        raise UserError(
            f"proxy_a_distance needs at least 2 folds and as many samples of each domain, but got {folds} folds, "
            f"{len(source)} source and {len(target)} target samples, and limit={limit}: use more samples, or fewer "
            "folds."
        )
    wrong = [0.0, 0.0]
    for fold in range(folds):
        held = [torch.arange(len(part), device=part.device) % folds == fold for part in parts]
        mine, other = (x[~out] for x, out in zip(parts, held, strict=True))
        classifier = fit_domain_classifier(mine, other, regularization)
        for side, (x, out) in enumerate(zip(parts, held, strict=True)):
            odds = classifier.log_odds(x[out]) * (1 if side else -1)
            wrong[side] += float((odds < 0).sum() + 0.5 * (odds == 0).sum())
    error = 0.5 * sum(number / len(part) for number, part in zip(wrong, parts, strict=True))
    return 2 * (1 - 2 * min(error, 0.5))


class ClassDistances(NamedTuple):
    """Distances of the domains for each class (``None`` if it has too few samples in a domain), and their mean."""

    mean: float | None
    per_class: list[float | None]


def class_conditional_a_distance(
    source: Tensor,
    y: Tensor,
    target: Tensor,
    predicted: Tensor,
    num_classes: int,
    least: int = 10,
    folds: int = 5,
    regularization: float = 1e-2,
) -> ClassDistances:
    """:func:`proxy_a_distance` within each class, with predicted classes on the target.

    Large values show that domains which overlap as a whole have exchanged their classes.

    Args:
        source: ``(n_s, E)`` features.
        y: ``(n_s,)`` int64 labels of the source.
        target: ``(n_t, E)`` features.
        predicted: ``(n_t,)`` int64 predictions for the target, or its labels if known.
        num_classes: ``C``.
        least: smallest number of samples of a class in each domain; smaller classes are not measured.
        folds: as in :func:`proxy_a_distance`.
        regularization: of the classifiers.

    Raises:
        UserError: the numbers of labels and features differ.
    """
    if len(source) != len(y) or len(target) != len(predicted):
        raise UserError(
            f"distances by class need a label for each sample, but there are {len(y)} labels for {len(source)} source "
            f"samples and {len(predicted)} for {len(target)} target samples."
        )
    found: list[float | None] = []
    for one in range(num_classes):
        mine, other = source[y == one], target[predicted == one]
        enough = min(len(mine), len(other)) >= max(least, folds)
        found.append(proxy_a_distance(mine, other, folds, regularization) if enough else None)
    measured = [value for value in found if value is not None]
    return ClassDistances(sum(measured) / len(measured) if measured else None, found)


def effective_rank(features: Tensor) -> float:
    r"""Effective rank :math:`e^{H(\sigma/\lVert\sigma\rVert_1)}` of features ``(N, E)`` (Roy and Vetterli 2007).

    Returns:
        From 1 to the smaller of ``N - 1`` and ``E``; 0 if all samples are equal.
    """
    x = features.detach().to("cpu", torch.float64)
    values = torch.linalg.svdvals(x - x.mean(0))
    if not len(values) or values[0] <= 1e-12 * max(1.0, float(x.abs().max())):
        return 0.0
    return math.exp(float(torch.special.entr(values / values.sum()).sum()))


def collapse_signs(
    target_logits: Tensor,
    features: Tensor | None = None,
    discriminator_accuracy: Sequence[float] = (),
    chance: float = 0.5,
    source_accuracy: float | None = None,
    source_floor: float | None = None,
) -> dict[str, str]:
    """Looks for signs that an adaptation has failed, without target labels.

    Args:
        target_logits: ``(M, C)``.
        features: ``(N, E)`` of samples of either domain or both.
        discriminator_accuracy: accuracies over the course of training.
        chance: accuracy of guessing the larger domain.
        source_accuracy: accuracy of the adapted classifier on the source.
        source_floor: lowest acceptable ``source_accuracy``.

    Returns:
        A sentence with the finding and the remedy for each sign found: ``"not_finite"``, ``"concentrated"``,
        ``"missing_classes"``, ``"features_collapsed"``, ``"discriminator_at_chance"``, ``"discriminator_certain"`` and
        ``"source_lost"``.
    """
    signs = _prediction_signs(target_logits.detach().to("cpu", torch.float64))
    if features is not None and len(features) > 1:
        x = features.detach().to("cpu", torch.float64)
        if x.var(0, correction=0).sum() <= _FLAT * x.square().sum(1).mean():
            signs["features_collapsed"] = (
                "all samples have nearly the same features: lower max_lambda or the learning rate, or let the "
                "classifier train alone for longer before adapting."
            )
    signs |= _discriminator_signs(discriminator_accuracy, chance)
    if source_accuracy is not None and source_floor is not None and source_accuracy < source_floor:
        signs["source_lost"] = (
            f"the accuracy on the source fell to {100 * source_accuracy:.1f} %, below the floor of "
            f"{100 * source_floor:.1f} %: lower max_lambda, or stop earlier."
        )
    return signs


def _prediction_signs(logits: Tensor) -> dict[str, str]:
    if not len(logits):
        return {}
    if not logits.isfinite().all():
        return {"not_finite": "outputs on the target are NaN or infinite: lower the learning rate, or clip gradients."}
    classes = logits.shape[1]
    counts = logits.argmax(1).bincount(minlength=classes)
    used = int((counts > 0).sum())
    if _entropy(logits) < _CONCENTRATED * math.log(classes):
        frequent = max(1, int((counts >= 0.05 * len(logits)).sum()))
        return {
            "concentrated": f"the target's predictions collapsed to {frequent} of {classes} classes: lower max_lambda, "
            "or raise batch_size."
        }
    if used < classes and len(logits) >= _ENOUGH * classes:
        never = [str(one) for one in range(classes) if not counts[one]]
        listed = ", ".join(never[:5]) + (" and others" if len(never) > 5 else "")
        return {
            "missing_classes": f"{len(never)} of {classes} classes ({listed}) are never predicted on the target: "
            "unless the target lacks them, lower max_lambda, or raise batch_size."
        }
    return {}


def _entropy(logits: Tensor) -> float:
    return float(torch.special.entr(logits.softmax(1).mean(0)).sum())


def _discriminator_signs(accuracy: Sequence[float], chance: float) -> dict[str, str]:
    if len(accuracy) < _RECORDS:
        return {}
    if max(abs(value - chance) for value in accuracy) <= _AT_CHANCE:
        return {
            "discriminator_at_chance": f"the discriminator was never better than chance ({100 * chance:.0f} %): either "
            "the domains do not differ, or its learning rate is too low."
        }
    last = accuracy[-max(1, len(accuracy) // 4) :]
    if min(last) >= _CERTAIN:
        return {
            "discriminator_certain": "the discriminator still separates the domains "
            f"({100 * last[-1]:.0f} % accuracy): raise max_lambda, train for longer, or make the discriminator smaller."
        }
    return {}
