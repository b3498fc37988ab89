"""Weighted training: the loss, where the weights come from and stay, and the sentence of every mistake."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from domain_toys import CLASSES, CloudPoints, Clouds, batch, clouds, fit, module, served, trainer

from conftest import best_checkpoint
from contract import ROOT
from metatransfer import MLP, UserError
from metatransfer.adapters.estimators import KLIEP, DiscriminatorWeights, KernelMeanMatching
from metatransfer.methods.domain import importance_weighted
from metatransfer.methods.domain.importance_weighted import ImportanceWeightedModule
from metatransfer.methods.domain.source_only import SourceOnlyModule

CONFIG = ROOT / "configs" / "importance_weighted.yaml"
ESTIMATORS = {"KMM": KernelMeanMatching, "KLIEP": KLIEP, "discriminator": DiscriminatorWeights, "default": lambda: None}
every = pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS)


def method(**arguments):
    return module(ImportanceWeightedModule, **arguments)


def rows(loader):
    return torch.cat([part.x for part in loader])


@every
def test_weights_are_the_estimators_in_the_order_of_the_numbers(make):
    one, data = method(estimator=make()), clouds()
    fit(one, data, max_epochs=1)
    estimator = make() or DiscriminatorWeights()
    expected = estimator.fit(rows(data.source_samples()).numpy(), target=rows(data.target_samples()).numpy()).weights_
    np.testing.assert_allclose(one.sample_weights.numpy(), expected, rtol=1e-5)
    assert one.sample_weights.std() > 0.01
    assert len(one.sample_weights) == sum(data.info().class_counts)


def test_the_loss_is_the_weighted_mean():
    one, given = method().double(), batch(dtype=torch.float64)
    one.sample_weights = torch.tensor([0.0, 2.0, 1.0, 0.5, 2.5, 0.0], dtype=torch.float64)
    given = given._replace(source_number=torch.tensor([5, 4, 3, 2, 1, 0]))
    logits = torch.randn(6, CLASSES, dtype=torch.float64)
    each = -F.log_softmax(logits, 1)[torch.arange(6), given.source_y]
    expected = (each * torch.tensor([0.0, 2.5, 0.5, 1.0, 2.0, 0.0], dtype=torch.float64)).mean()
    torch.testing.assert_close(one.source_loss(logits, given), expected, rtol=1e-12, atol=0)
    one.sample_weights = torch.ones(6, dtype=torch.float64)
    torch.testing.assert_close(one.source_loss(logits, given), F.cross_entropy(logits, given.source_y))


def test_equal_weights_train_as_the_source_alone(monkeypatch):
    equal = method()
    monkeypatch.setattr(equal, "find_weights", lambda data: np.ones(sum(data.info().class_counts)))
    fit(equal, clouds())
    plain = module(SourceOnlyModule)
    fit(plain, clouds())
    state = equal.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in plain.state_dict().items())
    weighted = method()
    fit(weighted, clouds())
    assert any(not torch.equal(value, weighted.state_dict()[name]) for name, value in plain.state_dict().items())


def test_features_of_the_network_are_those_before_training():
    one, data = method(features="backbone"), clouds()
    with torch.no_grad():
        before = one.backbone.eval()
        sides = [before(rows(loader)).double().numpy() for loader in (data.source_samples(), data.target_samples())]
    expected = DiscriminatorWeights().fit(sides[0], target=sides[1]).weights_
    one.train()
    fit(one, data, max_epochs=1)
    np.testing.assert_allclose(one.sample_weights.numpy(), expected, rtol=1e-4)
    raw = method()
    fit(raw, data, max_epochs=1)
    assert not torch.allclose(raw.sample_weights, one.sample_weights, rtol=1e-3)
    with pytest.raises(UserError, match="features"):
        method(features="pixels")


def test_the_effective_sample_size_is_logged_and_a_small_one_told():
    one = method()
    running = fit(one, clouds(), max_epochs=1)
    weights = one.sample_weights.double()
    expected = weights.sum() ** 2 / (weights**2).sum()
    assert float(running.callback_metrics["train/effective_sample_size"]) == pytest.approx(float(expected), rel=1e-5)
    with pytest.warns(UserWarning, match="has an effective sample size of"):
        trainer(max_epochs=1).fit(method(estimator=KLIEP(bandwidth=1.0)), datamodule=clouds(targets={"far": Far()}))


def test_weights_are_kept_and_a_run_that_goes_on_finds_none(tmp_path, monkeypatch):
    whole = method()
    fit(whole, clouds(), max_epochs=2)
    first = method()
    fit(first, clouds(), max_epochs=1).save_checkpoint(tmp_path / "half.ckpt")
    second = method(seed=5)
    monkeypatch.setattr(second, "find_weights", lambda data: pytest.fail("found anew"))
    running = trainer(max_epochs=2)
    running.fit(second, datamodule=clouds(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    loaded = ImportanceWeightedModule.load_from_checkpoint(
        tmp_path / "half.ckpt", map_location="cpu", backbone=MLP((3,), (16, 16), norm=True)
    )
    assert torch.equal(loaded.sample_weights, first.sample_weights)
    assert torch.equal(loaded.eval()(torch.ones(2, 3)), first.eval()(torch.ones(2, 3)))


def test_a_new_run_finds_them_anew():
    one = method()
    fit(one, clouds(), max_epochs=1)
    before = one.sample_weights.clone()
    assert not len(one.restarted(1).sample_weights)
    fit(one, clouds(targets={"other": Clouds(draw=7)}), max_epochs=1)
    assert not torch.equal(one.sample_weights, before)


def test_it_adapts_and_its_twin_does_not():
    one = method()
    assert one.adapts
    assert isinstance(one.unadapted(), SourceOnlyModule)


class FarPoints(CloudPoints):
    """Where the source hardly is."""

    def parts(self):
        found = super().parts()
        found["all"].data[:, 0] += 8.0
        return found


Far = served(FarPoints)


class HolesPoints(CloudPoints):
    """A number that is none."""

    def parts(self):
        found = super().parts()
        found["all"].data[7, 1] = torch.nan
        return found


Holes = served(HolesPoints)


@pytest.mark.parametrize(
    ("estimator", "data", "words"),
    [
        (KernelMeanMatching(bandwidth=0.0), {}, "bandwidth must be a number above 0"),
        (KernelMeanMatching(limit=0.5), {}, "needs limit > 1"),
        (DiscriminatorWeights(regularization=0.0), {}, "must be above 0"),
        (DiscriminatorWeights(), {"sources": {"holes": Holes()}}, "NaN"),
        (DiscriminatorWeights(), {"targets": {"holes": Holes()}}, "NaN"),
    ],
)
def test_wrong_input_is_one_sentence(estimator, data, words):
    with pytest.raises(UserError, match=words) as found:
        fit(method(estimator=estimator), clouds(**data))
    assert "\n" not in str(found.value)


def test_too_many_samples_to_match_are_refused_with_a_remedy(monkeypatch):
    monkeypatch.setattr(importance_weighted, "_MOST_MATCHED", 100)
    with pytest.raises(UserError, match="choose DiscriminatorWeights or KLIEP"):
        fit(method(estimator=KernelMeanMatching()), clouds())
    fit(method(estimator=KLIEP()), clouds(), max_epochs=1)


@pytest.mark.slow
def test_estimators_by_their_names(cli):
    alone = '--trainer.callbacks=[{"class_path": "AdaptationGain", "init_args": {"seeds": 0}}]'  # without twins
    short = [alone, "--trainer.max_epochs=1", "--trainer.limit_train_batches=2"]
    settings = '{"source": "TypesetDigits", "labels_per_class": 20}'
    few = f'--data.sources={{"few": {{"class_path": "LabelledDataModule", "init_args": {settings}}}}}'
    run = cli(
        "fit", CONFIG, *short, few, "--model.estimator=KernelMeanMatching", "--model.estimator.limit=50", small=False
    )
    content = torch.load(best_checkpoint(run), weights_only=True)
    weights = content["state_dict"]["sample_weights"]
    assert weights.shape == (200,)
    assert float(weights.mean()) == pytest.approx(1, abs=1e-4)
    told = content["protocol"]["method"]["train_importance_weights"]
    assert told == "KernelMeanMatching(bandwidth=None, limit=50.0, slack=None) of raw features"
    again = ImportanceWeightedModule.load_from_checkpoint(best_checkpoint(run), map_location="cpu")
    assert type(again.estimator) is KernelMeanMatching
    assert again.estimator.limit == 50
