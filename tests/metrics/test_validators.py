"""Validators: what each measures, what none may be told, and when a panel says that adaptation hurts."""

from __future__ import annotations

import math

import pytest
import torch

from metatransfer import UserError
from metatransfer.arguments import plain_arguments
from metatransfer.functional.domain import validation as domain_validation
from metatransfer.metrics.validators import (
    PANEL,
    DeepEmbeddedValidation,
    Entropy,
    Evidence,
    ImportanceWeightedValidation,
    InformationMaximization,
    SoftNeighborhoodDensity,
    SourceAccuracy,
    Validator,
    panel_verdict,
)

every = pytest.mark.parametrize("validator", PANEL, ids=lambda one: one.name)


def evidence(n=60, m=50, classes=4, confidence=4.0, right=0.9, shift=0.5, seed=0):
    """Logits that are right for a part of the source's samples, features whose domains lie ``shift`` apart."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    answers = torch.where(torch.arange(n) < right * n, y, (y + 1) % classes)
    logits = [torch.randn(size, classes, generator=generator) for size in (n, m)]
    logits[0] += confidence * torch.eye(classes)[answers]
    logits[1] += confidence * torch.eye(classes)[torch.arange(m) % classes]
    features = [torch.randn(size, 3, generator=generator) for size in (n, m, 2 * n)]
    return Evidence(logits[0], y, features[0], logits[1], features[1] + shift, features[2])


@every
def test_a_validator_is_named_has_a_direction_and_keeps_its_inputs(validator):
    given = evidence()
    copies = [part.clone() for part in given]
    value = validator.value(given)
    assert math.isfinite(value)
    assert validator.score(given) == pytest.approx(value if validator.higher_is_better else -value, abs=1e-5)
    assert validator.score(given) == validator.score(given)
    assert all(torch.equal(a, b) for a, b in zip(given, copies, strict=True))
    assert not list(validator.parameters())
    assert not validator.state_dict()


def test_names_in_the_panel_differ():
    assert len({one.name for one in PANEL}) == len(PANEL) == 6


def test_values_are_those_of_the_functions():
    given = evidence()
    logits = given.target_logits.double()
    assert Entropy().score(given) == -domain_validation.mean_entropy(logits).item()
    assert InformationMaximization().score(given) == domain_validation.information_maximization(logits).item()
    density = domain_validation.soft_neighborhood_density(logits.softmax(-1), 0.1).item()
    assert SoftNeighborhoodDensity(temperature=0.1).score(given) == pytest.approx(density, rel=1e-12)
    wrong = (given.source_logits.argmax(1) != given.source_labels).double()
    assert 0 < wrong.mean() < 0.5
    assert SourceAccuracy().score(given) == pytest.approx(1 - wrong.mean().item())
    weights = domain_validation.density_ratio(given.train_features, given.target_features, given.source_features)
    risk = domain_validation.importance_weighted_risk(wrong, weights).item()
    assert ImportanceWeightedValidation().score(given) == pytest.approx(-risk, rel=1e-9)
    risk = domain_validation.deep_embedded_validation(wrong, weights).item()
    assert DeepEmbeddedValidation().score(given) == pytest.approx(-risk, rel=1e-9)
    own = domain_validation.density_ratio(given.source_features, given.target_features, given.source_features, 0.3)
    found = ImportanceWeightedValidation(regularization=0.3).value(given._replace(train_features=None))
    assert found == pytest.approx((own * wrong).mean().item(), rel=1e-9)


@every
@pytest.mark.parametrize("broken", ["source_logits", "target_logits", "target_features", "train_features"])
def test_what_is_not_finite_is_never_preferred(validator, broken):
    given, bad = evidence(), evidence(right=1.0, confidence=30)
    getattr(bad, broken)[2, 1] = math.inf
    assert validator.score(bad) == -math.inf
    assert not validator.prefers(validator.score(bad), validator.score(given))


@every
def test_odd_evidence_does_not_stop_it(validator):
    one_class = evidence()
    one_class.target_logits[:] = torch.tensor([900.0, 0, 0, 0])
    single = Evidence(*(part[:1] for part in evidence()))
    constant = evidence()._replace(source_features=torch.ones(60, 3), target_features=torch.ones(50, 3))
    apart = evidence(shift=1e6)
    alone = evidence(classes=1)
    for given in (one_class, single, constant._replace(train_features=None), apart, alone):
        assert math.isfinite(validator.score(given))
    pictures = evidence()
    maps = {name: getattr(pictures, name)[..., None, None] for name in pictures._fields if "features" in name}
    assert validator.score(pictures._replace(**maps)) == validator.score(pictures)


@pytest.mark.parametrize("kind", [SoftNeighborhoodDensity, ImportanceWeightedValidation, DeepEmbeddedValidation])
def test_a_limit_takes_the_same_samples_every_time(kind):
    given = evidence(300, 200, right=0.7)
    assert kind(limit=40).score(given) == kind(limit=40).score(given)
    assert kind(limit=40).score(given) != kind().score(given)
    assert kind(limit=300).score(given) != kind(limit=40).score(given)
    assert kind(limit=600).score(given) == kind().score(given)


def test_half_precision_and_inference_mode():
    with torch.inference_mode():
        given = Evidence(*(part.half() if part.is_floating_point() else part for part in evidence()))
        assert all(math.isfinite(one.score(given)) for one in PANEL)


def test_a_floor_of_the_source():
    validator = Entropy(source_floor=0.9)
    assert validator.allows(0.81, 0.9)
    assert not validator.allows(0.80, 0.9)
    assert Entropy().allows(0.0, 1.0)


def test_a_domain_without_samples_is_refused():
    given = evidence()
    with pytest.raises(UserError, match="got 60 of the source and 0 of the target"):
        Entropy().score(given._replace(target_logits=torch.zeros(0, 4)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Entropy(source_floor=1.5), "source_floor must be a fraction"),
        (lambda: SoftNeighborhoodDensity(limit=0), "limit must be a number above 0"),
        (lambda: SoftNeighborhoodDensity(temperature=-1), "temperature must be"),
        (lambda: ImportanceWeightedValidation(regularization=0), "regularization must be"),
        (lambda: SourceAccuracy(tolerance=2), "tolerance must be"),
    ],
)
def test_one_sentence_for_what_cannot_be(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_checkpoints_can_name_validators():
    described = plain_arguments({"validator": SoftNeighborhoodDensity(0.8, limit=500)})
    assert described == {
        "validator": {
            "class_path": "metatransfer.SoftNeighborhoodDensity",
            "init_args": {"source_floor": 0.8, "limit": 500},
        }
    }
    assert SoftNeighborhoodDensity(0.8, limit=500).protocol() == "SoftNeighborhoodDensity(source_floor=0.8, limit=500)"


# ---- the panel


def test_no_difference_is_no_harm():
    given = evidence()
    verdict = panel_verdict(given, given)
    assert not verdict.hurts
    assert list(verdict.votes) == [one.name for one in PANEL]
    assert all(vote.adapted_better and vote.adapted == vote.plain for vote in verdict.votes.values())
    assert "none of 6 measures" in verdict.sentence


def test_what_is_worse_in_every_way_hurts():
    plain, worse = evidence(confidence=5, right=1.0), evidence(confidence=0.1, right=0.3)
    verdict = panel_verdict(worse, plain)
    assert verdict.hurts
    assert "hurt" in verdict.sentence
    assert verdict.votes["entropy"].adapted > verdict.votes["entropy"].plain
    assert verdict.votes["source accuracy"] == (pytest.approx(0.3, abs=0.2), 1.0, False)
    assert not panel_verdict(plain, worse).hurts


def test_a_collapse_hurts_though_most_measures_like_it():
    """One class for all, with certainty: of six measures one sees it."""
    plain = evidence(confidence=1)
    collapsed = plain._replace(target_logits=torch.tensor([50.0, 0, 0, 0]).repeat(50, 1))
    verdict = panel_verdict(collapsed, plain)
    assert [name for name, vote in verdict.votes.items() if not vote.adapted_better] == ["information maximization"]
    assert verdict.hurts
    assert "collapsed to 1 of 4 classes" in verdict.sentence
    assert not panel_verdict(collapsed, collapsed).hurts  # not what adaptation did
    assert not panel_verdict(plain, collapsed).hurts


def test_a_small_loss_on_the_source_is_pardoned():
    panel = (SourceAccuracy(),)
    for right, better in ((0.85, True), (0.75, False)):
        verdict = panel_verdict(evidence(right=right), evidence(right=0.9), panel)
        assert verdict.votes["source accuracy"].adapted_better is better
        assert verdict.hurts is not better


class Fixed(Validator):
    higher_is_better = True

    def value(self, evidence):
        return float(evidence.target_logits[0, 0])


@pytest.mark.parametrize(("against", "hurts"), [(0, False), (2, False), (3, True), (4, True)])
def test_a_strict_majority_decides(against, hurts):
    kinds = [type(f"V{i}", (Fixed,), {"name": f"v{i}", "higher_is_better": i >= against}) for i in range(4)]
    adapted, plain = evidence(), evidence()
    adapted.target_logits[0, 0] = plain.target_logits[0, 0] + 1
    verdict = panel_verdict(adapted, plain, tuple(kind() for kind in kinds))
    assert verdict.hurts is hurts
    assert sum(not vote.adapted_better for vote in verdict.votes.values()) == against
    assert all(f"v{i}" in verdict.sentence for i in range(against))


def test_a_diverged_adaptation_hurts_and_its_values_are_not_numbers():
    bad = evidence()
    bad.target_logits[0, 0] = math.nan
    verdict = panel_verdict(bad, evidence())
    assert verdict.hurts
    assert all(math.isnan(vote.adapted) and not vote.adapted_better for vote in verdict.votes.values())
